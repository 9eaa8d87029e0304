//! `blip2-wgpu inspect MODEL`

use std::path::PathBuf;

use crate::Error;
use crate::gpu::Gpu;
use crate::model::{Blip2Config, Component};
use crate::task::memory_plan;
use crate::weights::Checkpoint;

use super::Shared;
use super::output::Output;

/// Shows a checkpoint without loading it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: blip2-wgpu inspect blip2-opt-2.7b --tensors")]
pub(super) struct Args {
    /// Checkpoint folder
    #[arg(value_name = "MODEL")]
    checkpoint: PathBuf,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
}

/// Configuration, parameters a component, memory, left-over tensors.
pub(super) async fn run(shared: &Shared, args: &Args, output: &Output) -> Result<bool, Error> {
    let config = Blip2Config::open(&args.checkpoint)?;
    let checkpoint = Checkpoint::open(&args.checkpoint)?;
    let specs = config.tensors();
    for spec in &specs {
        checkpoint.weight(&spec.name, &spec.shape)?;
    }
    let unused = checkpoint.unused(specs.iter().map(|spec| spec.name.as_str()));
    let gpu = Gpu::open(&shared.gpu_options()?).await?;
    let plan = memory_plan(&gpu, &config)?;

    let components: Vec<(Component, u64)> = Component::ALL
        .into_iter()
        .map(|component| (component, config.parameters_of(component)))
        .filter(|(_, parameters)| *parameters > 0)
        .collect();
    if output.json {
        output.line(
            &serde_json::json!({
                "model": args.checkpoint.display().to_string(),
                "parameters": config.parameters(),
                "components": components.iter().map(|(component, parameters)| (component.name().to_owned(), (*parameters).into())).collect::<serde_json::Map<_, _>>(),
                "file_bytes": checkpoint.total_bytes(),
                "gpu_weight_bytes": plan.weights,
                "gpu_activation_bytes": plan.activations,
                "gpu_cache_bytes": plan.cache,
                "unused_tensors": unused,
                "adapter": gpu.info().name,
            })
            .to_string(),
        );
        return Ok(true);
    }
    print_config(&config, output);
    output.line("\nparameters");
    for (component, parameters) in &components {
        output.line(&format!(
            "  {:<22}{:>16}",
            component.name(),
            thousands(*parameters)
        ));
    }
    output.line(&format!(
        "  {:<22}{:>16}",
        "total",
        thousands(config.parameters())
    ));
    output.line(&format!(
        "\nbytes on the GPU ({}, one image, 64 positions)",
        gpu.info().name
    ));
    for (label, bytes) in [
        ("weights", plan.weights),
        ("activations", plan.activations),
        ("key-value cache", plan.cache),
    ] {
        output.line(&format!("  {label:<22}{:>16}", thousands(bytes)));
    }
    output.line(&format!("  {:<22}{:>16}", "total", thousands(plan.total())));
    output.line(&format!(
        "\nfiles: {} bytes of tensors in {} file(s)",
        thousands(checkpoint.total_bytes()),
        checkpoint.files().count()
    ));
    if !unused.is_empty() {
        output.line(&format!(
            "left-over tensors ({}): {}",
            unused.len(),
            unused.join(", ")
        ));
    }
    if args.tensors {
        output.line("");
        for view in checkpoint.tensors() {
            output.line(&format!(
                "{:<80} {:?} {:?}",
                view.name, view.dtype, view.shape
            ));
        }
    }
    Ok(true)
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
    if let Some(opt) = config.language_model() {
        output.line(&format!(
            "OPT        {} layers × {}, {} heads × {}, MLP {}, vocabulary {}, {} positions",
            opt.num_hidden_layers,
            opt.hidden_size,
            opt.num_attention_heads,
            opt.head_dim(),
            opt.ffn_dim,
            opt.vocab_size,
            opt.max_position_embeddings,
        ));
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
