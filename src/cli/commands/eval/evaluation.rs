//! What every evaluation does: goes on with the predictions of earlier runs, runs what lacks one,
//! and writes results in the official format, metrics and a report.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::Error;
use crate::cli::shared::generation::GenerationArgs;
use crate::cli::shared::output::Output;
use crate::cli::shared::results::model_fingerprint;
use crate::cli::shared::run::{check, run_items};
use crate::cli::shared::scores;
use crate::cli::shared::{DEMO, Shared};
use crate::eval::{CaptionData, EvalError, Id};
use crate::files::bounded::{self, MAX_TEXT_BYTES};
use crate::image::{DecodePolicy, decode_file};
use crate::task::{Answer, Ask, ImageSource, Item, ItemEvent, RunOptions};

use super::args::{DataArgs, LIMIT, PartArgs};
use super::image_folder::ImageFolder;
use super::predictions::{Predictions, ResultFields, write_whole};
use super::report::{Figure, Report, ReportItem, thumbnail};

/// The longest that a prediction waits for the disk.
const WRITE_EVERY: Duration = Duration::from_secs(1);

/// Items to predict for, and what to measure predictions by.
pub trait Dataset: Sized {
    /// The flags that name its files.
    type Truth;
    /// What the record of a run calls the task.
    const TASK: &'static str;
    /// What results call items and predictions.
    const FIELDS: ResultFields;
    /// Whether a limit cuts the dataset itself, so that a run with another limit is another task.
    const CUT: bool = false;

    /// Reads the files; where the dataset is [cut](Self::CUT), to `limit` images.
    fn read(truth: &Self::Truth, limit: Option<usize>) -> Result<Self, Error>;

    /// The file that says what there is.
    fn file(&self) -> &Path;

    /// Its items, in order.
    fn ids(&self) -> Vec<&Id>;

    /// Measures what is predicted of the evaluation's part, and says what is wrong with it.
    fn measure(&self, evaluation: &Evaluation<'_>) -> Measured;
}

/// A measured run.
pub struct Measured {
    pub title: &'static str,
    /// Items that have a prediction.
    pub items: usize,
    pub figures: Vec<Figure>,
    pub published_for: &'static str,
    /// The report's items, the worst first.
    pub shown: Vec<ReportItem>,
    /// The official results file.
    pub official: Value,
    /// Decimals of the printed metrics.
    pub decimals: usize,
    /// Empty where there was nothing to measure by.
    pub metrics: Map<String, Value>,
    /// Whether all predictions are for items of the dataset.
    pub all_known: bool,
}

/// What is said of a run at its end.
pub struct Outcome {
    /// Whether every item has a prediction.
    pub all_well: bool,
    /// What was measured; empty where there was nothing to measure by.
    pub metrics: Map<String, Value>,
    pub decimals: usize,
}

/// An item to run.
pub struct Job {
    pub id: Id,
    pub image: PathBuf,
    pub ask: Ask,
}

/// A part of a dataset with the predictions that there are.
pub struct Evaluation<'a> {
    pub args: &'a DataArgs,
    pub part: PartArgs,
    settings: Map<String, Value>,
    pub folder: ImageFolder,
    pub predictions: Predictions,
    pub output: &'a Output,
}

impl<'a> Evaluation<'a> {
    /// Opens the images' folder and what earlier runs have predicted. `truths` are the files that
    /// say what is asked, each with what it is; `given` are the flags that predictions depend on.
    pub fn open<D: Dataset>(
        shared: &Shared,
        (args, part): (&'a DataArgs, PartArgs),
        truths: &[(&str, Option<&PathBuf>)],
        image_size: Option<u32>,
        given: BTreeMap<String, String>,
        output: &'a Output,
    ) -> Result<Self, Error> {
        let folder = ImageFolder::open(&args.images)?;
        make_folder(&args.out)?;
        let settings = settings(D::TASK, shared, &args.images, truths, image_size, given)?;
        let file = part.file(&args.out, "predictions", "jsonl");
        let free = (!D::CUT).then_some(LIMIT);
        Ok(Self {
            args,
            part,
            folder,
            predictions: Predictions::open(&file, D::FIELDS, &settings, free)?,
            settings,
            output,
        })
    }

    /// Joins parts, all that a run of these settings does in its shards, and measures them.
    pub fn merge<D: Dataset>(
        args: &'a DataArgs,
        truth: &D::Truth,
        settings: Map<String, Value>,
        (whole, parts): (&Path, &[PathBuf]),
        output: &'a Output,
    ) -> Result<Outcome, Error> {
        let predictions = Predictions::merge(whole, D::FIELDS, parts)?;
        let limit = settings.get(LIMIT).and_then(Value::as_str);
        let limit = limit.and_then(|limit| limit.parse().ok());
        let data = D::read(truth, limit)?;
        let evaluation = Self {
            args,
            part: PartArgs {
                limit: limit.filter(|_| !D::CUT),
                shard: None,
            },
            settings,
            folder: ImageFolder::open(&args.images)?,
            predictions,
            output,
        };
        let ids = data.ids();
        let mut missing = (0..ids.len()).filter(|&index| evaluation.lacks(index, ids[index]));
        let complete = match missing.next() {
            None => true,
            Some(first) => {
                let (first, others) = (ids[first], missing.count());
                output.fail(&format!(
                    "{}: item {first} has no prediction in any part, nor have {others} others; they are left out",
                    data.file().display()
                ))
            }
        };
        Ok(evaluation.finish(&data)?.and(complete))
    }

    /// Whether item `index` is to be predicted and was not yet.
    pub fn lacks(&self, index: usize, id: &Id) -> bool {
        self.part.has(index) && self.predictions.get(id).is_none()
    }

    /// The text predicted for item `index`, if it is of the part.
    pub fn text<'p>(&'p self, index: usize, id: &Id) -> Option<&'p str> {
        let text = self.predictions.get(id).and_then(Value::as_str);
        text.filter(|_| self.part.has(index))
    }

    /// Runs all jobs and keeps each prediction as it comes; `false` if any failed. Jobs about one
    /// image should follow each other: it is encoded once then.
    pub async fn predict(
        &mut self,
        shared: &Shared,
        generation: &GenerationArgs,
        image_size: Option<u32>,
        jobs: &[Job],
    ) -> Result<bool, Error> {
        let Some(first) = jobs.first() else {
            return Ok(true);
        };
        let (output, predictions) = (self.output, &mut self.predictions);
        let work = generation.work();
        let mut model = shared.open(image_size, work, output).await?;
        check(&model, &first.ask, generation, output)?;
        let items: Vec<Item> = jobs
            .iter()
            .map(|job| Item {
                image: ImageSource::File(job.image.clone()),
                ask: job.ask.clone(),
            })
            .collect();
        let options = RunOptions {
            batch_size: generation.batch_size.0,
            pieces: false,
        };
        let mut all_well = true;
        let bar = output.items(jobs.len(), "items", false);
        let mut waiting: Vec<(Id, Value)> = Vec::new();
        let mut written = Instant::now();
        let take = &mut |event| {
            match event {
                ItemEvent::Done { item, texts } => {
                    let text = Answer::from_texts(texts).text;
                    waiting.push((jobs[item].id.clone(), text.into()));
                    bar.inc(1);
                }
                ItemEvent::Failed { item, error } => {
                    all_well = output.fail(&format!("{}: {error}", jobs[item].id));
                    bar.inc(1);
                }
                ItemEvent::Piece { .. } => {}
            }
            if written.elapsed() >= WRITE_EVERY {
                if let Err(error) = predictions.add(std::mem::take(&mut waiting)) {
                    return ControlFlow::Break(error);
                }
                written = Instant::now();
            }
            ControlFlow::Continue(())
        };
        let items = items.into_iter();
        let ended = run_items(&mut model, items, options, "items", output, take).await;
        // What is done is kept, however the run ended.
        predictions.add(waiting)?;
        if let ControlFlow::Break(error) = ended? {
            return Err(error.into());
        }
        drop(bar);
        model.gpu().save_pipelines();
        Ok(all_well)
    }

    /// Measures what is predicted and writes results, metrics and report, each whole or not at all.
    pub fn finish<D: Dataset>(mut self, data: &D) -> Result<Outcome, Error> {
        self.predictions.begin()?;
        let measured = data.measure(&self);
        let (out, part, output) = (&self.args.out, &self.part, self.output);
        let decimals = measured.decimals;
        let outcome = |all_well, metrics| Outcome {
            all_well,
            metrics,
            decimals,
        };
        if part.count(data.ids().len()) == 0 {
            output.note(&format!(
                "{}: no item falls to this part, so there is nothing to do",
                out.display()
            ));
            return Ok(outcome(measured.all_known, Map::new()));
        }
        if measured.items == 0 {
            output.error(&format!(
                "{}: no item was done, so there is nothing to measure",
                out.display()
            ));
            return Ok(outcome(false, Map::new()));
        }
        let results = part.file(out, "results", "json");
        write_whole(&results, &format!("{}\n", measured.official))?;
        let metrics = part.file(out, "metrics", "json");
        if measured.metrics.is_empty() {
            output.note(&format!(
                "{}: nothing in it to measure by, so there are no metrics; {} is there to be handed in",
                data.file().display(),
                results.display()
            ));
            // What an earlier run with the truth left would be taken for this one's.
            let _ = std::fs::remove_file(&metrics);
        } else {
            write_whole(&metrics, &format!("{}\n", json!(measured.metrics)))?;
        }
        let published: Vec<_> = measured
            .figures
            .iter()
            .filter_map(|figure| Some(format!("{} {}", figure.name, figure.published.as_ref()?)))
            .collect();
        let settings = self.settings.iter().filter(|(_, value)| !value.is_null());
        let report = Report {
            title: measured.title.into(),
            settings: settings
                .map(|(name, value)| (name.clone(), shown(value)))
                .collect(),
            figures: measured.figures,
            published_for: measured.published_for.into(),
            count: measured.items,
            items: measured.shown,
        };
        write_whole(&part.file(out, "report", "html"), &report.html())?;
        if !published.is_empty() {
            let (published, of) = (published.join(", "), measured.published_for);
            output.detail(&format!("published: {published} ({of})"));
        }
        Ok(outcome(measured.all_known, measured.metrics))
    }

    /// The start of what the report shows of an image of captions: the picture and its name.
    pub fn report_item(&self, data: &CaptionData, index: usize) -> ReportItem {
        let image = &data.images[index];
        let file = self.folder.find(&image.paths, &image.id, &data.file);
        ReportItem {
            thumbnail: file.ok().and_then(|file| thumbnail_of(&file)),
            name: format!("image {}", image.id),
            ..ReportItem::default()
        }
    }

    /// Says which predictions are for items that are not in the dataset; `true` if none.
    pub fn report_unknown<D: Dataset>(&self, data: &D) -> bool {
        let unknown = self.predictions.unknown(data.ids(), data.file());
        scores::name_each(&unknown, &|line| self.output.error(&line));
        unknown.is_empty()
    }

    /// Says which of the predictions `(id, text)` are empty. They are scored like any other, so as
    /// wrong.
    pub fn report_empty<'p>(&self, said: impl Iterator<Item = (&'p Id, &'p str)>) {
        let empty = self.predictions.empty(said);
        scores::name_each(&empty, &|line| self.output.warning(line));
    }

    /// Says which items there is nothing to judge by.
    pub fn report_unjudged(&self, unjudged: &[EvalError]) {
        scores::name_each(unjudged, &|line| self.output.warning(line));
    }
}

impl Outcome {
    /// The same, not well if `also` is not.
    pub fn and(mut self, also: bool) -> Self {
        self.all_well &= also;
        self
    }

    /// Prints the metrics; gives whether all is well.
    pub fn print(&self, output: &Output) -> bool {
        if !self.metrics.is_empty() {
            scores::print(&self.metrics, self.decimals, output);
        }
        self.all_well
    }
}

/// A picture for the report.
pub fn thumbnail_of(file: &Path) -> Option<Vec<u8>> {
    thumbnail(&decode_file(file, DecodePolicy::hf()).ok()?)
}

/// Texts of their own.
pub fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

/// A setting as the report shows it.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(fields) if fields.is_empty() => "as the preset has it".into(),
        other => other.to_string().replace('"', ""),
    }
}

/// What a run's predictions depend on; a run is gone on with only if all of it is the same. Names
/// are noted for readers, contents are compared.
fn settings(
    task: &str,
    shared: &Shared,
    images: &Path,
    truths: &[(&str, Option<&PathBuf>)],
    image_size: Option<u32>,
    given: BTreeMap<String, String>,
) -> Result<Map<String, Value>, Error> {
    let checkpoint = shared.checkpoint()?;
    let images = images
        .canonicalize()
        .or_else(|_| std::path::absolute(images))
        .unwrap_or_else(|_| images.into());
    let model = checkpoint.map_or_else(|| DEMO.to_owned(), name_of);
    let of_the_run = [
        ("task", json!(task)),
        ("model", json!(model)),
        (
            "model_fingerprint",
            json!(model_fingerprint(checkpoint, &shared.parts.to_options())),
        ),
        ("images", json!(images.to_string_lossy())),
        ("image_size", json!(image_size)),
    ];
    let mut settings = Map::from_iter(of_the_run.map(|(name, value)| (name.to_owned(), value)));
    for (what, file) in truths {
        if let Some(file) = file {
            settings.insert((*what).to_owned(), json!(name_of(file)));
            settings.insert(format!("{what}_hash"), json!(hash_of(file)?));
        }
    }
    let given = given.into_iter().chain(shared.given());
    settings.extend(given.map(|(flag, value)| (flag, json!(value))));
    Ok(settings)
}

/// The last part of a path.
fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

/// The beginning of the SHA-256 of a file's bytes.
pub fn hash_of(file: &Path) -> Result<String, EvalError> {
    let bytes = bounded::read(file, MAX_TEXT_BYTES).map_err(EvalError::read(file))?;
    let digest = Sha256::digest(&bytes);
    Ok(digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

pub fn make_folder(folder: &Path) -> Result<(), EvalError> {
    std::fs::create_dir_all(folder).map_err(EvalError::write(folder))
}
