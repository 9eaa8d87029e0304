//! A run of captions or answers: what is left to do is run, shown and kept in the order of the
//! input.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use crate::Error;
use crate::task::{Answer, Ask, Blip2, Item, ItemEvent, RunOptions, Text, Texts};

use super::Shared;
use super::delivery::{Delivery, Destination, Finished, ItemKind, Summary};
use super::explain::{ExplainFile, Explainer, parse_file};
use super::generation::GenerationArgs;
use super::inputs::ImageInput;
use super::output::{Output, digits};
use super::results::{
    Columns, EarlierResults, ItemFilter, ItemState, OutArgs, ResultsError, RunRecord, Sidecars,
};

/// Flags of the commands that write texts about images.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// Side of the images in pixels, if not the checkpoint's
    #[arg(long, value_name = "PIXELS")]
    pub image_size: Option<u32>,
    /// Also show where the model looks, for each image and each word of its first text: a page
    /// (.html, any number of images) or a picture (.png, one image)
    #[arg(long, value_name = "FILE", value_parser = parse_file)]
    explain: Option<ExplainFile>,
    #[command(flatten)]
    pub out: OutArgs,
    #[command(flatten)]
    pub generation: GenerationArgs,
}

/// A run before it begins.
pub struct Run<'a> {
    pub shared: &'a Shared,
    pub output: &'a Output,
    pub args: &'a RunArgs,
    pub kind: &'static ItemKind,
    /// Side of the images in pixels, if not the checkpoint's.
    pub image_size: Option<u32>,
    pub images: Vec<ImageInput>,
    /// The number of an image, and what is asked about it.
    pub items: Vec<(usize, Ask)>,
    /// Arguments and lines that gave no item, which were reported.
    pub failed: usize,
    /// Texts beside the images, where each image is one item, in order.
    pub sidecars: Option<Sidecars>,
}

impl Run<'_> {
    /// Runs what earlier runs have left to do; `false` if an item failed.
    ///
    /// # Errors
    /// What ends the run; what was written until then stays.
    pub async fn run(mut self, checkpoint: Option<&Path>) -> Result<bool, Error> {
        let (shared, output, generation) = (self.shared, self.output, &self.args.generation);
        let earlier = match self.earlier_results(checkpoint) {
            Ok(earlier) => earlier,
            Err(error) => return Ok(output.fail(&error)),
        };
        let mut summary = Summary::new(self.kind);
        summary.failed = self.failed;
        let kept = earlier.is_some() || self.sidecars.is_some();
        let destinations = match kept {
            true => self.leave_missing(earlier.as_ref(), &mut summary),
            false => vec![Destination::default(); self.items.len()],
        };
        let left = self.items.len();
        for warning in earlier.iter().flat_map(EarlierResults::warnings) {
            output.warning(&warning);
        }
        match summary.done {
            _ if left == 0 => output.note(&summary.to_string()),
            0 => {}
            done => output.note(&format!("resuming: {done} done already, {left} to go")),
        }
        let Some((_, ask)) = self.items.first() else {
            return Ok(summary.failed == 0);
        };

        let shown = self.items.iter().map(|(image, _)| image);
        let shown = shown.collect::<HashSet<_>>().len();
        let explainer = self.args.explain.as_ref();
        let explainer = explainer.map(|file| Explainer::create(file, shown));
        let mut explainer = explainer.transpose()?;

        let mut model = shared
            .open(self.image_size, generation.work(), output)
            .await?;
        check(&model, ask, generation, output)?;
        if generation.stream && output.json {
            output.idle(&["--stream"], "with --json, which shows whole objects");
        } else if generation.stream && !model.comes_in_pieces(ask)? {
            let remedy = "with beams, which choose a text at its end; add --beams 1";
            output.idle(&["--stream"], remedy);
        }
        let results = match earlier.map(EarlierResults::begin).transpose() {
            Ok(results) => results,
            Err(error) => return Ok(output.fail(&error)),
        };
        let print = !kept || output.json || generation.stream;
        let mut delivery = Delivery::new(output, destinations, results, print, summary);
        let flow = self
            .deliver(&mut model, &mut delivery, explainer.as_mut())
            .await;
        // Whatever stopped it, what was written stays.
        let all_done = delivery.end(flow)?;
        let explained = match explainer {
            Some(explainer) => {
                let policy = generation.preset.decode_policy();
                explainer
                    .explain_all(&model, &self.images, policy, output)
                    .await?
            }
            None => true,
        };
        model.gpu().save_pipelines();
        Ok(all_done && explained)
    }

    /// The results file as earlier runs left it, if one was asked for.
    fn earlier_results(
        &self,
        checkpoint: Option<&Path>,
    ) -> Result<Option<EarlierResults>, ResultsError> {
        let RunArgs {
            image_size,
            out,
            generation,
            ..
        } = self.args;
        let mut fields = vec![self.kind.text, "score", "num_tokens", "tokens"];
        if generation.several_texts() {
            fields.push(self.kind.texts);
        }
        let record = || {
            let mut options = generation.given();
            options.extend(self.shared.given());
            options.extend(image_size.map(|size| ("--image-size".into(), size.to_string())));
            RunRecord::new(
                self.kind.command,
                checkpoint,
                &self.shared.parts.to_options(),
                options,
            )
        };
        EarlierResults::open(out, Columns::new(self.kind.keys, &fields), record)
    }

    /// Leaves the items that lack a line in `results` or a text beside their image, each once, and
    /// says what is to be kept of each. Those that cannot be kept are reported.
    fn leave_missing(
        &mut self,
        results: Option<&EarlierResults>,
        summary: &mut Summary,
    ) -> Vec<Destination> {
        let texts = self.sidecars.as_ref();
        let texts = texts.map(|sidecars| sidecars.missing(&self.images));
        let mut texts = texts.into_iter().flatten();
        let mut filter = ItemFilter::new(results);
        let mut destinations = Vec::new();
        self.items.retain(|(image, ask)| {
            let image = &self.images[*image];
            let text = texts.next().unwrap_or(Ok(None));
            let question = question_of(ask).into_iter();
            let key = Columns::key([image.name.as_str()].into_iter().chain(question));
            let line = match filter.state(image, &key) {
                ItemState::Missing => Ok(results.is_some()),
                ItemState::Done => Ok(false),
                ItemState::Repeated => {
                    summary.repeated += 1;
                    return false;
                }
                ItemState::Unclear(error) => Err(error),
            };
            match (line, text.map_err(|error| error.to_string())) {
                (Ok(false), Ok(None)) => summary.done += 1,
                (Ok(line), Ok(sidecar)) => {
                    destinations.push(Destination { line, sidecar });
                    return true;
                }
                (Err(error), _) | (_, Err(error)) => {
                    self.output.error(&error);
                    summary.failed += 1;
                }
            }
            false
        });
        destinations
    }

    /// Runs all items and hands over each outcome as it is known. Breaks where the delivery does.
    async fn deliver(
        &self,
        model: &mut Blip2,
        delivery: &mut Delivery<'_>,
        mut explainer: Option<&mut Explainer>,
    ) -> Result<ControlFlow<()>, Error> {
        let generation = &self.args.generation;
        let options = RunOptions {
            batch_size: generation.work().batch_size,
            pieces: generation.stream && !self.output.json,
        };
        let sources: Vec<_> = self.images.iter().map(ImageInput::to_source).collect();
        let items = self.items.iter().map(|(image, ask)| Item {
            image: sources[*image].clone(),
            ask: ask.clone(),
        });
        let mut warned = HashSet::new();
        let take = &mut |event| {
            let (item, outcome) = match event {
                ItemEvent::Piece { item, text } => {
                    delivery.piece(item, &self.intro(item), &text);
                    return ControlFlow::Continue(());
                }
                ItemEvent::Done { item, texts } => {
                    let (image, ask) = &self.items[item];
                    if let Some(explainer) = &mut explainer {
                        explainer.push((item, *image), ask.clone(), &texts);
                    }
                    let question = question_of(ask).filter(|_| texts.prompt_tokens_cut > 0);
                    if let Some(question) = question.filter(|question| warned.insert(*question)) {
                        let warning = cut_warning(question, texts.prompt_tokens_cut);
                        self.output.warning(&warning);
                    }
                    (item, Ok(self.finished(item, texts)))
                }
                ItemEvent::Failed { item, error } if error.names_its_image() => {
                    (item, Err(error.to_string()))
                }
                ItemEvent::Failed { item, error } => {
                    let name = &self.images[self.items[item].0].name;
                    (item, Err(format!("{name}: {error}")))
                }
            };
            delivery.finished(item, outcome)
        };
        run_items(model, items, options, self.kind.items, self.output, take).await
    }

    /// What stands before a text on its line.
    fn intro(&self, item: usize) -> String {
        let (image, ask) = &self.items[item];
        let name = &self.images[*image].name;
        match question_of(ask) {
            None => format!("{name}: "),
            Some(question) => {
                let question = question.replace(char::is_control, " ");
                format!("{name}: {} ", question.trim())
            }
        }
    }

    /// An item's texts as they are shown and kept.
    fn finished(&self, item: usize, texts: Texts) -> Finished {
        let (image, ask) = &self.items[item];
        let best = Answer::from_texts(texts);
        let mut record = serde_json::json!({
            "image": self.images[*image].name,
            self.kind.text: best.text,
            "tokens": best.tokens,
            "score": digits(best.score),
            "num_tokens": best.tokens.len(),
        });
        if let Some(question) = question_of(ask) {
            record["question"] = question.into();
        }
        let texts = best.alternatives;
        if texts.len() > 1 {
            let scored =
                |text: &Text| serde_json::json!({"text": text.text, "score": digits(text.score)});
            record[self.kind.texts] = texts.iter().map(scored).collect();
        }
        Finished {
            record,
            intro: self.intro(item),
            texts: texts.into_iter().map(|text| text.text).collect(),
        }
    }
}

/// Checks how it is asked before anything is read.
///
/// # Errors
/// Options that do not go together or with the model.
pub fn check(
    model: &Blip2,
    ask: &Ask,
    generation: &GenerationArgs,
    output: &Output,
) -> Result<(), Error> {
    let idle = model.check(ask)?;
    let is_of_beams = |option: &&str| matches!(*option, "length_penalty" | "early_stopping");
    let (of_beams, of_draws): (Vec<_>, Vec<_>) = idle.into_iter().partition(is_of_beams);
    for (options, remedy) in [
        (of_beams, "without beams; add --beams N"),
        (of_draws, "where nothing is drawn; add --sample"),
    ] {
        let flags = options.iter();
        let flags: Vec<_> = flags
            .map(|option| format!("--{}", option.replace('_', "-")))
            .collect();
        output.idle(&flags, remedy);
    }
    generation.warn_of_batch_size(output);
    Ok(())
}

/// The question that is asked, if one is.
fn question_of(ask: &Ask) -> Option<&str> {
    match ask {
        Ask::Caption(_) => None,
        Ask::Question { question, .. } => Some(question),
    }
}

/// Runs `items`, called `what`, and hands over what becomes of each, until `take` breaks.
///
/// # Errors
/// The device is gone or full.
pub async fn run_items<B>(
    model: &mut Blip2,
    items: impl ExactSizeIterator<Item = Item> + Send,
    options: RunOptions,
    what: &str,
    output: &Output,
    take: &mut dyn FnMut(ItemEvent) -> ControlFlow<B>,
) -> Result<ControlFlow<B>, Error> {
    let (started, count) = (Instant::now(), items.len());
    let mut events = model.run(items, options);
    while let Some(event) = events.next().await {
        if let ControlFlow::Break(reason) = take(event?) {
            return Ok(ControlFlow::Break(reason));
        }
    }
    drop(events);
    output.detail(&format!(
        "{count} {what} in {:.2} s; {}",
        started.elapsed().as_secs_f64(),
        model.timings()
    ));
    Ok(ControlFlow::Continue(()))
}

/// Letters of a question that a warning shows.
const EXCERPT: usize = 40;

fn cut_warning(question: &str, tokens: usize) -> String {
    let excerpt: String = question.chars().take(EXCERPT).collect();
    let dots = if excerpt.len() < question.len() {
        "…"
    } else {
        ""
    };
    format!(
        "question {excerpt:?}{dots} is too long: {tokens} tokens at the end are cut; shorten it to have it asked whole"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_show_the_start_of_a_question() {
        let warning = cut_warning(&"é\0".repeat(5000), 9_900);
        assert!(warning.contains("9900 tokens"), "{warning}");
        assert!(warning.len() < 400, "{warning}");
        assert!(!warning.contains('\0'));
    }
}
