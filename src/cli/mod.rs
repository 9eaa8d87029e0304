//! The command line: one file a subcommand. The only place that prints, blocks, or exits.

mod arrays;
mod bench;
mod caption;
mod convert;
mod delivery;
mod devices;
mod embed;
mod eval;
mod explain;
mod generation;
mod in_order;
mod inputs;
mod inspect;
mod match_;
mod output;
mod pairs;
mod parity;
mod part_file;
mod profile;
mod pull;
mod results;
mod retrieval;
mod retrieve;
mod score;
mod vqa;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::Error;
use crate::convert::{Task, kind_of};
use crate::gpu::{AdapterChoice, Disabled, GpuOptions, Profiler, WeightFormat};
use crate::task::{Blip2, CheckpointParts, OpenOptions, Work};

use output::{Output, load_progress};
use profile::Profile;

/// Exit code for "something failed; the rest was done".
const FAILED: u8 = 1;

/// BLIP-2 on any GPU: captions and answers from WGSL kernels, without Python or CUDA.
#[derive(Debug, Parser)]
#[command(
    name = "blip2-wgpu",
    version,
    propagate_version = true,
    max_term_width = 100
)]
struct Cli {
    #[command(flatten)]
    shared: Shared,
    #[command(subcommand)]
    command: Command,
}

/// Flags that every command takes.
#[derive(Debug, Clone, clap::Args)]
struct Shared {
    /// Checkpoint: a folder in the Hugging Face layout, a name on the hub (OWNER/NAME), a .pth file of LAVIS or mmpretrain, or
    /// demo (the default), the model in this program
    #[arg(
        long,
        global = true,
        value_name = "DIR|NAME|FILE|demo",
        env = "BLIP2_WGPU_MODEL"
    )]
    model: Option<PathBuf>,
    #[command(flatten)]
    parts: Parts,
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
    /// Store weights in 8 or 4 bits a value on the device (in the folder, for convert); left out, as the checkpoint has them
    #[arg(
        long,
        global = true,
        value_name = "q8|q4|f16",
        env = "BLIP2_WGPU_QUANT"
    )]
    quant: Option<Quant>,
    /// Bytes of device memory that may be used, such as 6GB; what does not fit is refused before it is loaded (by default
    /// all that is free, where that can be known: on a CPU device)
    #[arg(
        long,
        global = true,
        value_name = "BYTES",
        env = "BLIP2_WGPU_MEMORY",
        value_parser = crate::task::parse_bytes
    )]
    memory: Option<u64>,
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
    json: bool,
    /// No progress, warnings or timings on stderr
    #[arg(long, global = true)]
    quiet: bool,
    /// Timings and details on stderr
    #[arg(short, long, global = true)]
    verbose: bool,
    /// At the end, time per kernel on stderr, from the device's timestamps
    #[arg(long, global = true)]
    profile: bool,
    /// Write a trace of phases and kernels, for ui.perfetto.dev or chrome://tracing
    #[arg(long, global = true, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// What --profile and --trace collect.
    #[arg(skip)]
    profiler: Option<Profiler>,
}

/// What a checkpoint file of LAVIS or mmpretrain lacks.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Parts that a .pth file lacks")]
struct Parts {
    /// The vision transformer: LAVIS's eva_vit_g.pth
    #[arg(long, global = true, value_name = "FILE")]
    vit: Option<PathBuf>,
    /// The language model: a Hugging Face folder, or a name on the hub such as facebook/opt-2.7b
    #[arg(long, global = true, value_name = "DIR|NAME")]
    llm: Option<PathBuf>,
    /// The model's config.json (Hugging Face's) where the sizes are not a published model's
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder with the tokenizer where none lies beside the file or, for a generative model, in --llm
    #[arg(long, global = true, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
}

impl Parts {
    /// The same for the library.
    fn to_options(&self) -> CheckpointParts {
        CheckpointParts {
            vit: self.vit.clone(),
            llm: self.llm.clone(),
            config: self.config.clone(),
            tokenizer: self.tokenizer.clone(),
        }
    }

    /// The flags given, with their values.
    fn given(&self) -> impl Iterator<Item = (String, String)> {
        let flags = [
            ("--vit", &self.vit),
            ("--llm", &self.llm),
            ("--config", &self.config),
            ("--tokenizer", &self.tokenizer),
        ];
        flags.into_iter().filter_map(|(flag, path)| {
            let path = path.as_ref()?.display().to_string();
            Some((flag.to_owned(), path))
        })
    }

    /// Turns a language model's name on the hub into its folder. One that the checkpoint at `path` has no use for is not fetched; what
    /// is wrong with that checkpoint opening it says.
    fn find_llm(&mut self, path: &Path, output: &Output) -> Result<(), Error> {
        let of_use = || kind_of(path).is_ok_and(|kind| kind.task == Task::Generation);
        if let Some(llm) = &self.llm
            && of_use()
        {
            self.llm = Some(pull::resolve(llm, output)?);
        }
        Ok(())
    }
}

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Quant {
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

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure kernels or a model on this adapter, as shares of what the adapter reaches
    #[command(subcommand)]
    Bench(bench::Command),
    /// Describe images
    Caption(Box<caption::Args>),
    /// Make a folder that --model takes from a checkpoint of LAVIS, mmpretrain or transformers
    Convert(convert::Args),
    /// List adapters, their limits, and the kernels each would use
    #[command(after_help = "Example: blip2-wgpu devices --json")]
    Devices,
    /// Write features of images or texts to a file
    Embed(Box<embed::Args>),
    /// Run a dataset and measure the results
    #[command(subcommand)]
    Eval(eval::Command),
    /// Show a checkpoint's configuration, parameters and memory need
    Inspect(inspect::Args),
    /// Score how well images and texts go together
    Match(Box<match_::Args>),
    /// Find the best texts for images, or images for texts
    Retrieve(Box<retrieve::Args>),
    /// Compare every stage with a reference dump of transformers
    Parity(parity::Args),
    /// Measure results: captions, answers, or retrieval scores against the truth
    #[command(subcommand)]
    Score(score::Command),
    /// Answer questions about images
    Vqa(Box<vqa::Args>),
    /// Fetch a checkpoint from the Hugging Face Hub, or the rest of it
    Pull(pull::Args),
}

impl Command {
    /// Whether it works with the checkpoint of `--model`.
    fn takes_model(&self) -> bool {
        !matches!(
            self,
            Self::Bench(bench::Command::Kernels(_))
                | Self::Convert(_)
                | Self::Devices
                | Self::Inspect(_)
                | Self::Parity(_)
                | Self::Pull(_)
                | Self::Score(_)
                | Self::Eval(eval::Command::Merge(_))
        )
    }
}

/// Runs the program on the process's arguments.
#[must_use]
pub fn run() -> ExitCode {
    let mut cli = Cli::parse(); // wrong usage exits with 2 here
    let output = Output::new(&cli.shared);
    let mut profile = None;
    let result = pollster::block_on(async {
        profile = Profile::begin(&mut cli.shared)?;
        if cli.command.takes_model() {
            cli.shared.find_model(&output)?;
        }
        match &cli.command {
            Command::Bench(command) => bench::run(&cli.shared, command, &output).await,
            Command::Caption(args) => caption::run(&cli.shared, args, &output).await,
            Command::Convert(args) => convert::run(&cli.shared, args, &output),
            Command::Devices => devices::run(&cli.shared, &output).await,
            Command::Embed(args) => embed::run(&cli.shared, args, &output).await,
            Command::Eval(command) => eval::run(&cli.shared, command, &output).await,
            Command::Inspect(args) => inspect::run(&cli.shared, args, &output).await,
            Command::Match(args) => match_::run(&cli.shared, args, &output).await,
            Command::Retrieve(args) => retrieve::run(&cli.shared, args, &output).await,
            Command::Parity(args) => parity::run(&cli.shared, args, &output).await,
            Command::Pull(args) => pull::run(args, &output),
            Command::Score(command) => score::run(command, &output),
            Command::Vqa(args) => vqa::run(&cli.shared, args, &output).await,
        }
    });
    // The devices are gone by now, and all their times have come back.
    let shown = profile.is_none_or(|profile| profile.end(&output));
    match result.map(|all_well| all_well && shown) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAILED),
        Err(error) => {
            output.error(&error);
            ExitCode::from(if error.is_usage() { 2 } else { FAILED })
        }
    }
}

impl Shared {
    fn gpu_options(&self) -> Result<GpuOptions, Error> {
        Ok(GpuOptions {
            adapter: AdapterChoice::parse(&self.adapter),
            disabled: Disabled::parse(&self.disable)?,
            checked: self.checked,
            cache_dir: cache_dir(),
            max_part_bytes: None,
            profiler: self.profiler.clone(),
            max_binding_bytes: None,
        })
    }

    /// The format to store weights in, if one was asked for.
    fn quant(&self) -> Option<WeightFormat> {
        self.quant.map(WeightFormat::from)
    }

    /// The flags that change what a model says, for the record of a run.
    fn given(&self) -> impl Iterator<Item = (String, String)> {
        let quant = self.quant().filter(|format| format.is_quantised());
        let quant = quant.map(|quant| ("--quant".into(), quant.name().into()));
        quant.into_iter().chain(self.parts.given())
    }

    /// Turns a name on the hub into the folder of its checkpoint.
    fn find_model(&mut self, output: &Output) -> Result<(), Error> {
        if let Some(model) = self.model.as_deref()
            && model != Path::new(DEMO)
        {
            let path = pull::resolve(model, output)?;
            self.parts.find_llm(&path, output)?;
            self.model = Some(path);
        }
        Ok(())
    }

    /// The checkpoint's path; `None` is the demo model that is part of the program.
    fn checkpoint(&self) -> Result<Option<&Path>, Error> {
        match self.model.as_deref() {
            Some(name) if name != Path::new(DEMO) => Ok(Some(name)),
            _ if self.parts.given().next().is_some() => Err(Error::Usage {
                problem: "--vit, --llm, --config and --tokenizer complete a checkpoint file; name it with --model".into(),
            }),
            _ if cfg!(feature = "demo-model") => Ok(None),
            _ => Err(Error::NoModel),
        }
    }

    /// How to open the model, for images of `image_size` pixels if not the checkpoint's.
    fn open_options(&self, image_size: Option<u32>, work: Work) -> Result<OpenOptions, Error> {
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
    async fn open(
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
const DEMO: &str = "demo";

/// Opens the demo model and says what it is: its captions of photographs are worth nothing.
#[cfg(feature = "demo-model")]
async fn open_demo(options: OpenOptions, output: &Output) -> Result<Blip2, Error> {
    output.note(
        "demo model: it knows drawings of coloured shapes (see examples/) and nothing of the real world; \
         for photographs pass --model DIR, a published checkpoint such as Salesforce/blip2-opt-2.7b",
    );
    Blip2::demo(options).await
}

/// The user's cache folder for compiled pipelines.
fn cache_dir() -> Option<PathBuf> {
    let from = |variable: &str| {
        std::env::var_os(variable)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let base = if cfg!(target_os = "windows") {
        from("LOCALAPPDATA")
    } else if cfg!(target_vendor = "apple") {
        from("HOME").map(|home| home.join("Library/Caches"))
    } else {
        from("XDG_CACHE_HOME").or_else(|| from("HOME").map(|home| home.join(".cache")))
    };
    base.map(|base| base.join("blip2-wgpu"))
}
