//! Every stage against a reference dump of transformers: of a generative checkpoint (`weights-tools/reference_dump.py`)
//! or of a retrieval one (`weights-tools/retrieval_dump.py`).

mod dump;
mod retrieval;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use crate::Error;
use crate::generate::GenerationOptions;
use crate::schedule::{Pixels, Request};

use super::{Blip2, Preset, Text};
use dump::{Dump, GENERATION, Pictures};

#[cfg(feature = "fuzzing")]
pub use dump::fuzz as fuzz_dump;
pub use dump::{DumpModel, DumpSummary};

/// Largest relative error, `‖ours − reference‖ / ‖reference‖`, at which a stage passes.
pub const TOLERANCE: f64 = 2e-3;

/// Where the chosen token was ahead of the next by less than this, in log-probability, another choice is no error of
/// a kernel: f32 sums in another order move logits by about as much.
const CLOSE_CALL: f32 = 1e-2;

/// The outcome of one stage.
#[derive(Debug, Clone, PartialEq)]
pub struct ParityRow {
    /// Image, prompt and stage, such as `image 0, vit.block.3`.
    pub stage: String,
    /// `‖ours − reference‖ / ‖reference‖`; for tokens 0 or 1.
    pub relative_error: f64,
    /// Largest difference of a value.
    pub max_error: f64,
    /// Whether it is within [`TOLERANCE`].
    pub pass: bool,
    /// More words: how tokens differ; of two of our own runs, the stage's shape.
    pub note: String,
}

/// All stages, in order of computation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ParityReport {
    /// A row a stage.
    pub rows: Vec<ParityRow>,
}

impl ParityReport {
    /// Whether every stage passed.
    #[must_use]
    pub fn pass(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(|row| row.pass)
    }
}

/// The dump's metadata, as far as it is compared; see weights-tools/README.md.
#[derive(Debug, Deserialize)]
struct Reference {
    #[serde(flatten)]
    pictures: Pictures,
    max_new_tokens: usize,
    prompts: Vec<ReferencePrompt>,
}

#[derive(Debug, Deserialize)]
struct ReferencePrompt {
    prompt: String,
    input_ids: Vec<u32>,
    #[serde(default)]
    greedy: Vec<ReferenceText>,
    #[serde(default)]
    beams: BTreeMap<usize, Vec<Vec<ReferenceText>>>,
}

#[derive(Debug, Deserialize)]
struct ReferenceText {
    tokens: Vec<u32>,
    score: f32,
    #[serde(default)]
    margins: Vec<f32>,
}

impl Blip2 {
    /// Runs every image and prompt of the dump `file` and compares all stages it holds, then the generated tokens.
    ///
    /// # Errors
    /// A dump that cannot be read or belongs to another model, or a failing device.
    pub async fn parity(&mut self, file: &Path) -> Result<ParityReport, Error> {
        let bytes = dump::read_file(file)?;
        let (dump, reference) = Dump::read::<Reference>(file, &bytes, GENERATION)?;
        let pixels = dump.pixels(&reference.pictures, self.handle.preparation.preprocessor())?;
        let images = pixels.len();
        let mut report = ParityReport::default();
        let mut compared = HashSet::new();
        for (prompt_index, prompt) in reference.prompts.iter().enumerate() {
            let text = self.prompt_text(&dump, prompt)?;
            for beams in std::iter::once(1).chain(prompt.beams.keys().copied()) {
                let options = self.reference_options(&reference, beams);
                let check = options.validate().map_err(Error::from);
                check
                    .and_then(|()| self.handle.door.limits().check_length(text.len(), &options))
                    .map_err(|error| dump.error(error.to_string()))?;
            }
            for (image, pixels) in pixels.iter().enumerate() {
                for tap in self.service.engine().stages(pixels, &text, &[]).await? {
                    // The image side is the same for every prompt: one comparison is enough.
                    let of_prompt = format!("prompt.{prompt_index}.{}", tap.name);
                    let of_image = (prompt_index == 0).then(|| tap.name.clone());
                    let mut names = std::iter::once(of_prompt).chain(of_image);
                    let Some(name) = names.find(|name| dump.has(name)) else {
                        continue;
                    };
                    let Some(expected) = dump.of_image(&name, image, images)? else {
                        continue;
                    };
                    compared.insert(name.clone());
                    let ours: Vec<f32> =
                        self.gpu().read(&tap.buffer, tap.rows * tap.columns).await?;
                    let ours = reference.pictures.thinned(&name, &ours, tap.columns);
                    // Before the last row only is normed and projected, the dump has all rows.
                    let expected = &expected[expected.len().saturating_sub(ours.len())..];
                    report
                        .rows
                        .push(compare(format!("image {image}, {name}"), &ours, expected));
                }
                self.compare_texts(
                    pixels,
                    image,
                    prompt_index,
                    prompt,
                    &text,
                    &reference,
                    &mut report,
                )
                .await?;
            }
        }
        // A layer that is never compared would pass.
        let is_layer = |name: &str| {
            let prompt = name
                .strip_prefix("prompt.")
                .and_then(|it| it.split('.').next()?.parse().ok());
            let is_run = prompt.is_none_or(|prompt: usize| prompt < reference.prompts.len());
            is_run && (name.contains(".layer.") || name.contains(".block."))
        };
        let mut others = dump.names().into_iter();
        while let Some(name) = others.find(|name| is_layer(name) && !compared.contains(*name)) {
            report.rows.push(ParityRow {
                stage: name.to_owned(),
                relative_error: f64::INFINITY,
                max_error: f64::INFINITY,
                pass: false,
                note: "no stage of this program has this name".into(),
            });
        }
        Ok(report)
    }

    /// The prompt's ids without image tokens, checked against our own tokenizer.
    fn prompt_text(&self, dump: &Dump<'_>, prompt: &ReferencePrompt) -> Result<Vec<u32>, Error> {
        let queries = self.config().num_query_tokens;
        let text = prompt.input_ids.get(queries..).unwrap_or_default().to_vec();
        let ours = self.prompter().tokenizer.encode(&prompt.prompt)?;
        if ours != text {
            return Err(dump.error(format!(
                "prompt {:?} is {text:?} there and {ours:?} by this model's tokenizer",
                prompt.prompt
            )));
        }
        Ok(text)
    }

    /// How the dump's tokens were generated: the checkpoint's options, with so many beams.
    fn reference_options(&self, reference: &Reference, num_beams: usize) -> GenerationOptions {
        GenerationOptions {
            num_beams,
            num_return_sequences: 1,
            max_new_tokens: reference.max_new_tokens,
            ..self.prompter().generation.clone()
        }
    }

    #[allow(clippy::too_many_arguments)] // one comparison's coordinates
    async fn compare_texts(
        &mut self,
        pixels: &Pixels,
        image: usize,
        prompt_index: usize,
        prompt: &ReferencePrompt,
        text: &[u32],
        reference: &Reference,
        report: &mut ParityReport,
    ) -> Result<(), Error> {
        let greedy = prompt.greedy.get(image).map(|text| (1, text));
        let beams = prompt
            .beams
            .iter()
            .filter_map(|(beams, texts)| Some((*beams, texts.get(image)?.first()?)));
        for (num_beams, expected) in greedy.into_iter().chain(beams) {
            let options = self.reference_options(reference, num_beams);
            let history = self.prompter().history(text, Preset::Hf);
            let request = Request {
                text: text.to_vec(),
                history,
                options: Arc::new(options),
                stop: None,
            };
            let (door, pixels) = (&self.handle.door, Arc::clone(pixels));
            let texts = self.service.answer(door, request, pixels).await?;
            let ours = &texts[0];
            let stage = match num_beams {
                1 => format!("image {image}, prompt.{prompt_index}.greedy"),
                beams => format!("image {image}, prompt.{prompt_index}.beams.{beams}"),
            };
            report
                .rows
                .push(compare_tokens(stage, &ours.tokens, ours.score, expected));
        }
        Ok(())
    }
}

/// The row of a stage: how far our values are from those expected.
pub(super) fn compare(stage: String, ours: &[f32], expected: &[f32]) -> ParityRow {
    let differences = || ours.iter().zip(expected).map(|(a, b)| f64::from(a - b));
    let error: f64 = differences().map(|d| d * d).sum();
    let norm: f64 = expected.iter().map(|&b| f64::from(b).powi(2)).sum();
    let relative_error = (error / norm.max(1e-30)).sqrt();
    ParityRow {
        stage,
        relative_error,
        max_error: differences().map(f64::abs).fold(0.0, f64::max),
        // NaN fails: it is not `<=` anything.
        pass: ours.len() == expected.len() && relative_error <= TOLERANCE,
        note: String::new(),
    }
}

/// The row of a text's tokens beside those of another run.
pub(super) fn same_tokens(ours: &Text, theirs: &Text) -> ParityRow {
    let expected = ReferenceText {
        tokens: theirs.tokens.clone(),
        score: theirs.score,
        margins: Vec::new(),
    };
    compare_tokens("tokens".into(), &ours.tokens, ours.score, &expected)
}

fn compare_tokens(stage: String, ours: &[u32], score: f32, expected: &ReferenceText) -> ParityRow {
    let difference = f64::from((score - expected.score).abs());
    let first = ours.iter().zip(&expected.tokens).position(|(a, b)| a != b);
    let equal = ours == expected.tokens;
    let note = match first {
        _ if equal => format!("{} tokens equal, score {score:.4}", ours.len()),
        Some(at) => {
            let ahead = match expected.margins.get(at) {
                Some(margin) if *margin < CLOSE_CALL => {
                    format!(" (reference ahead by {margin:.4}, a close call)")
                }
                Some(margin) => format!(" (reference ahead by {margin:.4})"),
                None => String::new(),
            };
            format!(
                "differ from token {at} on{ahead}: {ours:?}, expected {:?}",
                expected.tokens
            )
        }
        None => format!("{} tokens, expected {}", ours.len(), expected.tokens.len()),
    };
    ParityRow {
        stage,
        relative_error: f64::from(u8::from(!equal)),
        max_error: difference,
        pass: equal && difference <= 1e-2 * f64::from(expected.score.abs()).max(1.0),
        note,
    }
}
