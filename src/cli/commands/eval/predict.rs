//! Runs the items that have no prediction yet, and keeps each prediction as it comes.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::Error;
use crate::eval::{Id, Predictions};
use crate::task::{Answer, Ask, Blip2, Caption, ImageSource, Item, ItemEvent, RunOptions, Texts};

use crate::cli::shared::output::Output;

/// The longest that a prediction waits for the disk.
const WRITE_EVERY: Duration = Duration::from_secs(1);

/// An item to run.
pub struct Job {
    pub id: Id,
    pub image: PathBuf,
    pub ask: Ask,
}

/// Runs all jobs; `false` if any failed. Jobs about one image should follow each other: it is encoded once then.
pub async fn run_jobs(
    model: &mut Blip2,
    jobs: &[Job],
    batch_size: Option<usize>,
    predictions: &mut Predictions,
    output: &Output,
) -> Result<bool, Error> {
    let mut all_well = true;
    let started = Instant::now();
    {
        let items: Vec<Item> = jobs
            .iter()
            .map(|job| Item {
                image: ImageSource::File(job.image.clone()),
                ask: job.ask.clone(),
            })
            .collect();
        let options = RunOptions {
            batch_size,
            pieces: false,
        };
        let bar = output.items(jobs.len(), "items", false);
        let mut waiting: Vec<(Id, Value)> = Vec::new();
        let mut written = Instant::now();
        let mut events = model.run(items, options);
        let ended = loop {
            match events.next().await {
                Some(Ok(ItemEvent::Done { item, texts })) => {
                    waiting.push((
                        jobs[item].id.clone(),
                        Value::String(text(&jobs[item].ask, texts)),
                    ));
                    bar.inc(1);
                }
                Some(Ok(ItemEvent::Failed { item, error })) => {
                    output.error(&format!("{}: {error}", jobs[item].id));
                    all_well = false;
                    bar.inc(1);
                }
                Some(Ok(ItemEvent::Piece { .. })) => {}
                Some(Err(error)) => break Err(error),
                None => break Ok(()),
            }
            if written.elapsed() >= WRITE_EVERY {
                predictions.add(std::mem::take(&mut waiting))?;
                written = Instant::now();
            }
        };
        // What is done is kept, however the run ended.
        predictions.add(waiting)?;
        ended?;
    }
    output.detail(&format!(
        "{} items in {:.2} s; {}",
        jobs.len(),
        started.elapsed().as_secs_f64(),
        model.timings()
    ));
    model.gpu().save_pipelines();
    Ok(all_well)
}

fn text(ask: &Ask, texts: Texts) -> String {
    match ask {
        Ask::Caption(_) => Caption::from_texts(texts.texts).text,
        Ask::Question { .. } => Answer::from_texts(texts).text,
    }
}
