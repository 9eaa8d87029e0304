//! `blip2-wgpu stages IMAGE --out DIR [--against DIR]`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::files::bounded::{self, MAX_TEXT_BYTES};
use crate::files::{atomic, npy};
use crate::generate::GenerationOverrides;
use crate::task::{Ask, CaptionOptions, Preset, Stage, StageRun, Text, VqaOptions, Work};

use crate::cli::shared::inputs::images_of;
use crate::cli::shared::output::Output;
use crate::cli::shared::{DEMO, Shared};

use super::parity::print_report;

/// The file that says what the others are; written last.
const LISTING: &str = "stages.json";

const EXAMPLES: &str = "\
Examples:
  blip2-wgpu stages photo.jpg --out gpu --model blip2-opt-2.7b
  blip2-wgpu stages photo.jpg --out cpu --model blip2-opt-2.7b --adapter llvmpipe --against gpu

Each stage is an array [rows, columns] of float32, in order of computation: 000.vit.embeddings.npy, and so on; \
stages.json says what was run and lists them, and the tokens.";

/// Writes what the model computes for an image, stage by stage, and compares it with an earlier run.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Image file, or - for stdin
    #[arg(value_name = "IMAGE")]
    image: std::ffi::OsString,
    /// Folder for the stages; what an earlier run wrote there is replaced
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Folder of another run, by another adapter or build or with other flags; the first stage that
    /// is off is named
    #[arg(long, value_name = "DIR")]
    against: Option<PathBuf>,
    /// Text that the caption continues
    #[arg(long, value_name = "TEXT", conflicts_with = "question")]
    prompt: Option<String>,
    /// Question to answer, instead of a caption
    #[arg(long, value_name = "TEXT")]
    question: Option<String>,
    /// Most tokens to generate
    #[arg(long, value_name = "N", default_value_t = 8)]
    max_new_tokens: usize,
    /// Side of the image in pixels, if not the checkpoint's
    #[arg(long, value_name = "PIXELS")]
    image_size: Option<u32>,
}

impl Args {
    /// Whether there is a run to compare with.
    pub fn compares(&self) -> bool {
        self.against.is_some()
    }
}

/// A folder of stages that cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", file.display())]
struct StagesError {
    file: PathBuf,
    problem: String,
}

impl StagesError {
    fn new(file: &Path, problem: impl std::fmt::Display) -> Self {
        Self {
            file: file.into(),
            problem: problem.to_string(),
        }
    }
}

/// What [`LISTING`] holds.
#[derive(Debug, Serialize, Deserialize)]
struct Listing {
    #[serde(flatten)]
    origin: Origin,
    text: String,
    tokens: Vec<u32>,
    score: f32,
    stages: Vec<ListedStage>,
}

/// What was run, by which program, on what.
#[derive(Debug, Serialize, Deserialize)]
struct Origin {
    program: String,
    adapter: String,
    model: String,
    image: String,
    /// Flags and variables on which the values depend, as far as they were given.
    options: BTreeMap<String, String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ListedStage {
    name: String,
    file: String,
    shape: [usize; 2],
}

/// Runs the image, writes its stages and compares them; `false` if a stage or a token is off.
pub async fn run(shared: &Shared, args: &Args, output: &Output) -> Result<bool, Error> {
    shared.check()?;
    let (images, failed) = images_of(std::slice::from_ref(&args.image), output);
    let [image] = &images[..] else {
        if failed == 0 {
            output.error(&format!("{} images; name one", images.len()));
        }
        return Ok(false);
    };
    let earlier = match args.against.as_deref().map(read).transpose() {
        Ok(earlier) => earlier,
        Err(error) => return Ok(output.fail(&error)),
    };
    let pixels = image.decode(Preset::Hf.decode_policy())?;
    let mut model = shared.open(args.image_size, args.work(), output).await?;
    if model.generates_otherwise() {
        output.warning(
            "the checkpoint searches with beams or draws; the stages are those of its greedy text",
        );
    }
    let run = model.stages(&pixels, &args.ask()).await?;
    let checkpoint = shared.checkpoint()?;
    let origin = Origin {
        program: format!("blip2-wgpu {}", env!("CARGO_PKG_VERSION")),
        adapter: model.gpu().info().name.clone(),
        model: checkpoint.map_or_else(|| DEMO.into(), |path| path.display().to_string()),
        image: image.name.clone(),
        options: args
            .given()
            .chain(shared.given())
            .chain(shared.given_to_device())
            .collect(),
    };
    if let Err(error) = write(&args.out, origin, &run) {
        return Ok(output.fail(&error));
    }
    let (count, folder) = (run.stages.len(), args.out.display());
    output.note(&format!("{count} stages in {folder}: {}", run.text.text));
    let Some(earlier) = earlier else {
        return Ok(true);
    };
    let report = run.compare(&earlier);
    print_report(&report, output);
    if let Some(row) = report.rows.iter().find(|row| !row.pass) {
        output.note(&format!("the first that is off: {}", row.stage));
    }
    Ok(report.pass())
}

impl Args {
    fn work(&self) -> Work {
        Work {
            batch_size: Some(1),
            beams: Some(1),
            new_tokens: Some(self.max_new_tokens),
        }
    }

    fn given(&self) -> impl Iterator<Item = (String, String)> {
        let given = [
            ("--prompt", self.prompt.clone()),
            ("--question", self.question.clone()),
            ("--max-new-tokens", Some(self.max_new_tokens.to_string())),
            (
                "--image-size",
                self.image_size.as_ref().map(ToString::to_string),
            ),
        ];
        let given = given.into_iter();
        given.filter_map(|(flag, value)| Some((flag.to_owned(), value?)))
    }

    fn ask(&self) -> Ask {
        let generation = GenerationOverrides {
            max_new_tokens: Some(self.max_new_tokens),
            num_beams: Some(1),
            num_return_sequences: Some(1),
            do_sample: Some(false),
            ..GenerationOverrides::default()
        };
        match &self.question {
            Some(question) => Ask::Question {
                question: question.clone(),
                options: Arc::new(VqaOptions {
                    generation,
                    ..VqaOptions::default()
                }),
            },
            None => Ask::Caption(Arc::new(CaptionOptions {
                prompt: self.prompt.clone(),
                generation,
                ..CaptionOptions::default()
            })),
        }
    }
}

/// Writes the stages of `run` into `folder`; without its listing, which comes last, it is none.
fn write(folder: &Path, origin: Origin, run: &StageRun) -> Result<(), StagesError> {
    let failed = |file: &Path| {
        let file = file.to_owned();
        move |cause: std::io::Error| {
            let problem =
                format!("cannot be written ({cause}); check the folder and the space there");
            StagesError::new(&file, problem)
        }
    };
    std::fs::create_dir_all(folder).map_err(failed(folder))?;
    let listing_file = folder.join(LISTING);
    if let Ok(old) = list(folder) {
        std::fs::remove_file(&listing_file).map_err(failed(&listing_file))?;
        for stage in &old.stages {
            let name = Path::new(&stage.file).file_name().unwrap_or_default();
            let _ = std::fs::remove_file(folder.join(name)); // what is left is not listed
        }
    }
    let mut stages = Vec::with_capacity(run.stages.len());
    // Numbers of one width sort as the stages do.
    let width = run.stages.len().to_string().len().max(3);
    for (number, stage) in run.stages.iter().enumerate() {
        let name = format!("{number:0width$}.{}.npy", stage.name);
        let shape = [stage.rows, stage.columns];
        let mut bytes = npy::header(&shape);
        bytes.extend_from_slice(bytemuck::cast_slice(&stage.values));
        let file = folder.join(&name);
        atomic::write(&file, &bytes).map_err(failed(&file))?;
        stages.push(ListedStage {
            name: stage.name.clone(),
            file: name,
            shape,
        });
    }
    let listing = Listing {
        origin,
        text: run.text.text.clone(),
        tokens: run.text.tokens.clone(),
        score: run.text.score,
        stages,
    };
    let json = serde_json::to_vec_pretty(&listing);
    let json = json.map_err(|error| StagesError::new(&listing_file, error))?;
    atomic::write(&listing_file, &json).map_err(failed(&listing_file))
}

fn list(folder: &Path) -> Result<Listing, StagesError> {
    let file = folder.join(LISTING);
    let remedy = "is it a folder that `blip2-wgpu stages` has written?";
    let bytes = bounded::read(&file, MAX_TEXT_BYTES)
        .map_err(|cause| StagesError::new(&file, format!("cannot be read ({cause}); {remedy}")))?;
    serde_json::from_slice(&bytes).map_err(|cause| {
        StagesError::new(&file, format!("is no list of stages ({cause}); {remedy}"))
    })
}

/// The run whose stages lie in `folder`.
fn read(folder: &Path) -> Result<StageRun, StagesError> {
    let listing = list(folder)?;
    let stage = |listed: ListedStage| {
        let file = folder.join(&listed.file);
        let again = "write the stages again";
        let bytes = bounded::read(&file, MAX_TEXT_BYTES).map_err(|cause| {
            StagesError::new(&file, format!("cannot be read ({cause}); {again}"))
        })?;
        let matrix = npy::Matrix::parse(&bytes)
            .map_err(|problem| StagesError::new(&file, format!("{problem}; {again}")))?;
        if [matrix.rows, matrix.columns] != listed.shape || matrix.fortran {
            let problem = format!("is not the array that {LISTING} lists; {again}");
            return Err(StagesError::new(&file, problem));
        }
        Ok(Stage {
            name: listed.name,
            rows: matrix.rows,
            columns: matrix.columns,
            values: matrix.values,
        })
    };
    Ok(StageRun {
        stages: listing
            .stages
            .into_iter()
            .map(stage)
            .collect::<Result<_, _>>()?,
        text: Text {
            text: listing.text,
            tokens: listing.tokens,
            score: listing.score,
            ..Text::default()
        },
    })
}
