//! `blip2-wgpu inspect MODEL`

use std::path::PathBuf;

use clap::builder::TypedValueParser;

use crate::Error;
use crate::gpu::Gpu;
use crate::model::Blip2Config;
use crate::task::{Budget, CheckpointFiles, Forecast, MemoryPlan};
use crate::weights::{Component, TensorSpec};

use crate::cli::shared::Shared;
use crate::cli::shared::hub::resolve;
use crate::cli::shared::output::Output;

/// Positions to plan for: image, prompt and a caption.
const POSITIONS: usize = 64;

/// Batch sizes that all formats are shown with.
const BATCHES: [usize; 2] = [1, 16];

/// Shows a checkpoint without loading it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: blip2-wgpu inspect blip2-opt-2.7b --tensors")]
pub struct Args {
    /// Checkpoint folder or .pth file, or its name on the hub
    #[arg(value_name = "MODEL")]
    checkpoint: PathBuf,
    /// Images at a time to plan for
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..).map(usize::from))]
    batch_size: usize,
    /// Positions of a text to plan for: image, prompt and answer (of the text alone, for a
    /// retrieval model)
    #[arg(long, value_name = "N", default_value_t = POSITIONS, value_parser = clap::value_parser!(u16).range(1..).map(usize::from))]
    positions: usize,
    /// Beams to plan for
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..).map(usize::from))]
    beams: usize,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
}

/// Configuration, parameters a component, memory, left-over tensors.
pub async fn run(shared: &Shared, args: &Args, output: &Output) -> Result<bool, Error> {
    let path = resolve(&args.checkpoint, output)?;
    let mut parts = shared.parts.clone();
    parts.find_llm(&path, output)?;
    let files = parts.open(&path)?;
    let (config, checkpoint) = (files.config(), files.checkpoint());
    let specs = config.tensors(Some(checkpoint))?;
    let unused = checkpoint.unused(specs.iter().map(|spec| spec.name.as_str()));
    let gpu = Gpu::open(&shared.gpu_options()?).await?;
    let quant = shared.quant();
    let forecast = Forecast::new(&gpu, config, checkpoint, quant)?;
    let plan = |format, batch| forecast.plan(format, batch, args.positions, args.beams);
    let mut table = Vec::new();
    for format in forecast.formats() {
        for batch in BATCHES {
            if let Ok(plan) = plan(Some(format), batch) {
                table.push((format.name(), batch, plan));
            }
        }
    }
    let view = View {
        args,
        files: &files,
        tensors: &specs,
        unused: &unused,
        gpu: &gpu,
        plan: plan(None, args.batch_size)?,
        table,
        budget: Budget::of(&gpu, shared.memory),
    };
    if output.json {
        output.line(&view.json().to_string());
    } else {
        view.print(output);
    }
    Ok(true)
}

/// What is shown.
struct View<'a> {
    args: &'a Args,
    files: &'a CheckpointFiles,
    tensors: &'a [TensorSpec],
    unused: &'a [&'a str],
    gpu: &'a Gpu,
    plan: MemoryPlan,
    /// All formats with [`BATCHES`].
    table: Vec<(&'static str, usize, MemoryPlan)>,
    budget: Budget,
}

impl View<'_> {
    /// Parameters of each component that the model has.
    fn components(&self) -> impl Iterator<Item = (Component, u64)> {
        let parameters = |component| -> u64 {
            let those = self.tensors.iter().filter(|it| it.component == component);
            those.map(TensorSpec::elements).sum()
        };
        Component::ALL
            .into_iter()
            .map(move |component| (component, parameters(component)))
            .filter(|(_, parameters)| *parameters > 0)
    }

    /// Parameters of the whole model.
    fn parameters(&self) -> u64 {
        self.tensors.iter().map(TensorSpec::elements).sum()
    }

    /// Whether every buffer of `plan` is one that the adapter allows, and there is room for all, as
    /// far as is known.
    fn fits(&self, plan: &MemoryPlan) -> bool {
        self.allows_buffers(plan) && self.budget.holds(plan.total())
    }

    fn allows_buffers(&self, plan: &MemoryPlan) -> bool {
        let capabilities = self.gpu.capabilities();
        plan.largest_buffer
            <= capabilities
                .max_binding_bytes
                .min(capabilities.max_buffer_bytes)
    }

    fn json(&self) -> serde_json::Value {
        let components: serde_json::Map<_, _> = self
            .components()
            .map(|(component, parameters)| (component.name().to_owned(), parameters.into()))
            .collect();
        let mut line = serde_json::json!({
            "model": self.args.checkpoint.display().to_string(),
            "config": self.files.config_json(),
            "parameters": self.parameters(),
            "components": components,
            "file_bytes": self.files.checkpoint().total_bytes(),
            "unused_tensors": self.unused,
            "adapter": self.gpu.info().name,
        });
        let plan = &self.plan;
        line["gpu_weight_bytes"] = plan.weights.into();
        line["gpu_activation_bytes"] = plan.activations.into();
        line["gpu_cache_bytes"] = plan.cache.into();
        line["gpu_total_bytes"] = plan.total().into();
        line["gpu_memory_bytes"] = self.budget.bytes().into();
        line["fits"] = self.fits(plan).into();
        line["plans"] = self
            .table
            .iter()
            .map(|(format, batch, plan)| {
                serde_json::json!({
                    "weights": format,
                    "batch_size": batch,
                    "gpu_total_bytes": plan.total(),
                    "fits": self.fits(plan),
                })
            })
            .collect();
        if self.args.tensors {
            line["tensors"] = self
                .files
                .checkpoint()
                .tensors()
                .map(|tensor| {
                    serde_json::json!({
                        "name": tensor.name,
                        "dtype": format!("{:?}", tensor.dtype),
                        "shape": tensor.shape,
                    })
                })
                .collect();
        }
        line
    }

    fn print(&self, output: &Output) {
        print_config(self.files.config(), output);
        let row = |label: &str, number: u64| {
            output.line(&format!("  {label:<22}{:>16}", thousands(number)));
        };
        output.line("\nparameters");
        for (component, parameters) in self.components() {
            row(component.name(), parameters);
        }
        row("total", self.parameters());
        self.print_plan(output);
        output.line(&format!(
            "\nfiles: {} bytes of tensors in {} file(s)",
            thousands(self.files.checkpoint().total_bytes()),
            self.files.checkpoint().files().count()
        ));
        if !self.unused.is_empty() {
            let names = self.unused.join(", ");
            output.line(&format!(
                "left-over tensors ({}): {names}",
                self.unused.len()
            ));
        }
        if self.args.tensors {
            output.line("");
            for tensor in self.files.checkpoint().tensors() {
                output.line(&format!(
                    "{:<80} {:?} {:?}",
                    tensor.name, tensor.dtype, tensor.shape
                ));
            }
        }
    }
}

impl View<'_> {
    fn print_plan(&self, output: &Output) {
        let row = |label: &str, number: u64| {
            output.line(&format!("  {label:<22}{:>16}", thousands(number)));
        };
        let plan = &self.plan;
        output.line(&format!(
            "\nbytes on the GPU ({}, batch {}, {} positions, beams {})",
            self.gpu.info().name,
            self.args.batch_size,
            self.args.positions,
            self.args.beams,
        ));
        row("weights", plan.weights);
        row("activations", plan.activations);
        row("key-value cache", plan.cache);
        row("total", plan.total());
        let room = match self.budget {
            Budget::Allowed(bytes) => format!("{} bytes are allowed", thousands(bytes)),
            Budget::Available(bytes) => format!("{} bytes are free", thousands(bytes)),
            Budget::Unknown => "how much this device has is not known; say it with --memory".into(),
        };
        if !self.allows_buffers(plan) {
            output.line("  does NOT fit: a buffer is beyond the adapter's limits; use a smaller --batch-size");
        } else if self.fits(plan) {
            output.line(&format!(
                "  every buffer is within the adapter's limits; {room}"
            ));
        } else {
            output.line(&format!("  does NOT fit: {room}"));
        }
        output.line("\nother ways");
        for (format, batch, plan) in &self.table {
            let verdict = if self.fits(plan) {
                ""
            } else {
                "  does not fit"
            };
            let label = format!("{format}, batch {batch}");
            let total = thousands(plan.total());
            output.line(&format!("  {label:<22}{total:>16}{verdict}"));
        }
    }
}

fn print_config(config: &Blip2Config, output: &Output) {
    let vision = &config.vision;
    output.line(&format!(
        "ViT        {} blocks × {}, {} heads × {}, MLP {}, {} px, patch {}, {} tokens",
        vision.num_hidden_layers,
        vision.hidden_size,
        vision.num_attention_heads,
        vision.head_dim(),
        vision.intermediate_size,
        vision.image_size,
        vision.patch_size,
        vision.tokens(),
    ));
    let qformer = &config.qformer;
    output.line(&format!(
        "Q-Former   {} layers × {}, {} heads × {}, MLP {}, {} queries",
        qformer.num_hidden_layers,
        qformer.hidden_size,
        qformer.num_attention_heads,
        qformer.head_dim(),
        qformer.intermediate_size,
        config.num_query_tokens,
    ));
    if let Some(language) = config.language_model() {
        let (name, sizes) = language.summary();
        output.line(&format!("{name:<11}{sizes}"));
    }
}

/// `1234567` → `1,234,567`
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::thousands;

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_234_567), "1,234,567");
    }
}
