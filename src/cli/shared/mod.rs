//! Flags and helpers that commands share.

pub mod delivery;
pub mod explain;
pub mod flags;
pub mod generation;
pub mod hub;
pub mod in_order;
pub mod inputs;
pub mod output;
pub mod page;
pub mod pairs;
mod parts;
pub mod profile;
pub mod results;
pub mod retrieval;
pub mod run;
pub mod scores;

use std::path::{Path, PathBuf};

use crate::Error;
use crate::files::environment::{VariableError, path};
use crate::gpu::{AdapterChoice, Disabled, GpuOptions, KernelChoice, Profiler, WeightFormat};
use crate::task::{Blip2, OpenOptions, Work};

use output::{Output, load_progress};
pub use parts::Parts;

/// Flags that every command takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Shared {
    /// Checkpoint: a folder in the Hugging Face layout, a name on the hub (OWNER/NAME), a .pth file of LAVIS or mmpretrain,
    /// or demo (the default), the model in this program
    #[arg(
        long,
        global = true,
        value_name = "DIR|NAME|FILE|demo",
        env = "BLIP2_WGPU_MODEL"
    )]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub parts: Parts,
    /// Adapter: its number in `devices`, part of its name, or auto
    #[arg(
        long,
        global = true,
        value_name = "N|NAME|auto",
        default_value = "auto",
        env = "BLIP2_WGPU_ADAPTER"
    )]
    adapter: String,
    /// Leave device features unused: f16, subgroups, limits (WebGPU's least), comma-separated
    #[arg(
        long,
        global = true,
        value_name = "LIST",
        default_value = "",
        hide_default_value = true,
        env = "BLIP2_WGPU_DISABLE"
    )]
    disable: String,
    /// Kernels to use in the place of those chosen for this device, such as linear=tile; `devices`
    /// lists them, -v says which serve. Repeatable, or comma-separated
    #[arg(
        long,
        global = true,
        value_name = "FAMILY=VARIANT",
        value_delimiter = ',',
        env = "BLIP2_WGPU_KERNEL"
    )]
    kernel: Vec<String>,
    /// Store weights in 8 or 4 bits a value on the device (in the folder, for convert); left out,
    /// as the checkpoint has them
    #[arg(
        long,
        global = true,
        value_name = "q8|q4|f16",
        env = "BLIP2_WGPU_QUANT"
    )]
    quant: Option<Quant>,
    /// Bytes of device memory that may be used, such as 6GB; what does not fit is refused before it
    /// is loaded (by default all that is free, where that can be known: on a CPU device)
    #[arg(
        long,
        global = true,
        value_name = "BYTES",
        env = "BLIP2_WGPU_MEMORY",
        value_parser = crate::task::parse_bytes
    )]
    pub memory: Option<u64>,
    /// Build shaders with bounds checks (slower, same results)
    #[arg(
        long,
        global = true,
        env = "BLIP2_WGPU_CHECKED",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    checked: bool,
    /// One JSON object a line on stdout
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress, warnings or timings on stderr
    #[arg(long, global = true)]
    pub quiet: bool,
    /// Timings and details on stderr
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// At the end, time per kernel on stderr, from the device's timestamps
    #[arg(long, global = true)]
    pub profile: bool,
    /// Write a trace of phases and kernels, for ui.perfetto.dev or chrome://tracing
    #[arg(long, global = true, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// What --profile and --trace collect.
    #[arg(skip)]
    pub profiler: Option<Profiler>,
}

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Quant {
    Q8,
    Q4,
    F16,
}

impl From<Quant> for WeightFormat {
    fn from(quant: Quant) -> Self {
        match quant {
            Quant::Q8 => Self::Q8,
            Quant::Q4 => Self::Q4,
            Quant::F16 => Self::F16,
        }
    }
}

impl Shared {
    pub fn gpu_options(&self) -> Result<GpuOptions, Error> {
        Ok(GpuOptions {
            adapter: AdapterChoice::parse(&self.adapter),
            disabled: Disabled::parse(&self.disable)?,
            checked: self.checked,
            kernels: KernelChoice::parse(&self.kernel.join(","))?,
            cache_dir: cache_dir()?,
            shaders: path("BLIP2_WGPU_SHADERS")?,
            max_part_bytes: None,
            profiler: self.profiler.clone(),
            max_binding_bytes: None,
        })
    }

    /// The checkpoint's path, once the flags of the device are known to be right: wrong usage comes
    /// before anything a file could fail with.
    pub fn check(&self) -> Result<Option<&Path>, Error> {
        let checkpoint = self.checkpoint()?;
        self.gpu_options()?;
        Ok(checkpoint)
    }

    /// The format to store weights in, if one was asked for.
    pub fn quant(&self) -> Option<WeightFormat> {
        self.quant.map(WeightFormat::from)
    }

    /// The flags that change what a model says, for the record of a run.
    pub fn given(&self) -> impl Iterator<Item = (String, String)> {
        let quant = self.quant().filter(|format| format.is_quantised());
        let quant = quant.map(|quant| ("--quant".into(), quant.name().into()));
        quant.into_iter().chain(self.parts.given())
    }

    /// The flags and variables that change which kernels compute, for the record of a run.
    pub fn given_to_device(&self) -> impl Iterator<Item = (String, String)> {
        let shaders = std::env::var_os("BLIP2_WGPU_SHADERS");
        let given = [
            ("--disable", self.disable.clone()),
            ("--kernel", self.kernel.join(",")),
            ("--checked", if self.checked { "on" } else { "" }.into()),
            (
                "BLIP2_WGPU_SHADERS",
                shaders.unwrap_or_default().to_string_lossy().into_owned(),
            ),
        ];
        let given = given.into_iter().filter(|(_, value)| !value.is_empty());
        given.map(|(flag, value)| (flag.to_owned(), value))
    }

    /// Turns a name on the hub into the folder of its checkpoint.
    pub fn find_model(&mut self, output: &Output) -> Result<(), Error> {
        if let Some(model) = self.model.as_deref()
            && model != Path::new(DEMO)
        {
            // A file of settings that sets the variable is not read by a shell.
            let is_variable =
                std::env::var_os("BLIP2_WGPU_MODEL").as_deref() == Some(model.as_os_str());
            let expanded = path("BLIP2_WGPU_MODEL")?.filter(|_| is_variable);
            let path = hub::resolve(expanded.as_deref().unwrap_or(model), output)?;
            self.parts.find_llm(&path, output)?;
            self.model = Some(path);
        }
        Ok(())
    }

    /// The checkpoint's path; `None` is the demo model that is part of the program.
    pub fn checkpoint(&self) -> Result<Option<&Path>, Error> {
        match self.model.as_deref() {
            Some(name) if name != Path::new(DEMO) => Ok(Some(name)),
            _ if self.parts.given().next().is_some() => Err(Error::Usage {
                problem: "--vit, --llm, --config and --tokenizer complete a checkpoint file; name it with --model".into(),
            }),
            _ if cfg!(feature = "demo-model") => Ok(None),
            _ => Err(Error::NoModel),
        }
    }

    /// How to open a checkpoint for such work.
    pub fn open_options(&self, image_size: Option<u32>, work: Work) -> Result<OpenOptions, Error> {
        Ok(OpenOptions {
            gpu: self.gpu_options()?,
            image_size,
            quant: self.quant(),
            memory: self.memory,
            work,
            parts: self.parts.to_options(),
            ..OpenOptions::default()
        })
    }

    /// Opens the checkpoint with a progress bar.
    pub async fn open(
        &self,
        image_size: Option<u32>,
        work: Work,
        output: &Output,
    ) -> Result<Blip2, Error> {
        let started = std::time::Instant::now();
        let options = self.open_options(image_size, work)?;
        let mut bytes = 0;
        let model = match self.checkpoint()? {
            #[cfg(feature = "demo-model")]
            None => open_demo(options, output).await?,
            #[cfg(not(feature = "demo-model"))]
            None => return Err(Error::NoModel),
            Some(path) => {
                let mut progress = load_progress(output);
                let mut progress = |done, total| {
                    bytes = total;
                    progress(done, total);
                };
                Blip2::open_with_progress(path, options, &mut progress).await?
            }
        };
        let seconds = started.elapsed().as_secs_f64();
        let gigabytes = bytes as f64 / 1e9;
        output.detail(&format!(
            "loaded on {} in {seconds:.2} s ({gigabytes:.2} GB, {:.2} GB/s)",
            model.gpu().info().name,
            gigabytes / seconds
        ));
        Ok(model)
    }
}

/// The name of the model that is part of the program.
pub const DEMO: &str = "demo";

/// Opens the demo model and says what it is: its captions of photographs are worth nothing.
#[cfg(feature = "demo-model")]
async fn open_demo(options: OpenOptions, output: &Output) -> Result<Blip2, Error> {
    output.note(
        "demo model: it knows drawings of coloured shapes (see examples/) and nothing of the real world; \
         for photographs pass --model DIR, a published checkpoint such as Salesforce/blip2-opt-2.7b",
    );
    Blip2::demo(options).await
}

impl From<VariableError> for Error {
    fn from(error: VariableError) -> Self {
        let problem = error.to_string();
        Self::Usage { problem }
    }
}

/// The user's cache folder for compiled pipelines.
fn cache_dir() -> Result<Option<PathBuf>, VariableError> {
    let home = |below: &str| Ok(path("HOME")?.map(|home| home.join(below)));
    let base = if cfg!(target_os = "windows") {
        path("LOCALAPPDATA")
    } else if cfg!(target_vendor = "apple") {
        home("Library/Caches")
    } else {
        match path("XDG_CACHE_HOME")? {
            None => home(".cache"),
            base => Ok(base),
        }
    };
    Ok(base?.map(|base| base.join("blip2-wgpu")))
}
