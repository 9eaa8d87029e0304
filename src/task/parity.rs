//! Every stage against a reference dump of transformers (`weights-tools/reference_dump.py`).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use safetensors::SafeTensors;
use serde::Deserialize;

use crate::Error;
use crate::generate::GenerationOptions;
use crate::schedule::{Pixels, Request};

use super::{Blip2, Preset};

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
    /// More words, for tokens.
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
    image_size: u32,
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

/// A dump in memory with its metadata.
struct Dump<'a> {
    file: &'a Path,
    tensors: SafeTensors<'a>,
}

impl Blip2 {
    /// The image size that the dump `file` was made at, to open the model with.
    ///
    /// # Errors
    /// [`Error::Dump`] if it is no dump.
    pub fn dump_image_size(file: &Path) -> Result<u32, Error> {
        Ok(read_reference(file, &read_file(file)?)?.image_size)
    }

    /// Runs every image and prompt of the dump `file` and compares all stages it holds, then the generated tokens.
    ///
    /// # Errors
    /// A dump that cannot be read or belongs to another model, or a failing device.
    pub async fn parity(&mut self, file: &Path) -> Result<ParityReport, Error> {
        let bytes = read_file(file)?;
        let reference = read_reference(file, &bytes)?;
        let tensors = SafeTensors::deserialize(&bytes)
            .map_err(|error| dump_error(file, error.to_string()))?;
        let dump = Dump { file, tensors };
        let (images, pixels) = dump.batch("pixel_values")?;
        let side = reference.image_size as usize;
        if pixels.len() != images * 3 * side * side {
            return Err(dump.error(format!(
                "tensor \"pixel_values\" does not hold {images} images of 3 × {side} × {side}"
            )));
        }
        let mut report = ParityReport::default();
        for (prompt_index, prompt) in reference.prompts.iter().enumerate() {
            let text = self.prompt_text(&dump, prompt)?;
            for beams in std::iter::once(1).chain(prompt.beams.keys().copied()) {
                let options = self.reference_options(&reference, beams);
                let check = options.validate().map_err(Error::from);
                check
                    .and_then(|()| self.engine.check_length(text.len(), &options))
                    .map_err(|error| dump.error(error.to_string()))?;
            }
            for (image, pixels) in pixels.chunks(pixels.len() / images).enumerate() {
                let pixels = &Pixels::new(pixels.to_vec());
                for tap in self.engine.stages(pixels, &text).await? {
                    // The image side is the same for every prompt: one comparison is enough.
                    let of_language_model = ["opt.", "t5.", "logits"]
                        .iter()
                        .any(|part| tap.name.starts_with(part));
                    if prompt_index > 0 && !of_language_model {
                        continue;
                    }
                    let name = if of_language_model {
                        format!("prompt.{prompt_index}.{}", tap.name)
                    } else {
                        tap.name.clone()
                    };
                    let Some(expected) = dump.find(&name, image, images)? else {
                        continue;
                    };
                    let ours: Vec<f32> =
                        self.gpu().read(&tap.buffer, tap.rows * tap.columns).await?;
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
        Ok(report)
    }

    /// The prompt's ids without image tokens, checked against our own tokenizer.
    fn prompt_text(&self, dump: &Dump<'_>, prompt: &ReferencePrompt) -> Result<Vec<u32>, Error> {
        let queries = self.config.num_query_tokens;
        let text = prompt.input_ids.get(queries..).unwrap_or_default().to_vec();
        let ours = self.tokenizer.encode(&prompt.prompt)?;
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
            ..self.generation.clone()
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
            let mut queue = self.engine.queue(1);
            queue.push(Request {
                image: Arc::clone(pixels),
                text: text.to_vec(),
                history,
                options: Arc::new(options),
            })?;
            let texts = queue.finish().await?;
            let ours = &texts[0][0];
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

impl Dump<'_> {
    fn error(&self, problem: String) -> Error {
        dump_error(self.file, problem)
    }

    /// A tensor of f32 and its first dimension.
    fn batch(&self, name: &str) -> Result<(usize, Vec<f32>), Error> {
        let missing = |_| self.error(format!("tensor {name:?} is missing"));
        let view = self.tensors.tensor(name).map_err(missing)?;
        let images = view.shape().first().copied().unwrap_or(0);
        if view.dtype() != safetensors::Dtype::F32 || images == 0 {
            return Err(self.error(format!("tensor {name:?} is not a batch of f32")));
        }
        let (values, _) = view.data().as_chunks::<4>();
        Ok((
            images,
            values
                .iter()
                .map(|&bytes| f32::from_le_bytes(bytes))
                .collect(),
        ))
    }

    /// The values of `image` in tensor `name`, if the dump has it.
    fn find(&self, name: &str, image: usize, images: usize) -> Result<Option<Vec<f32>>, Error> {
        if self.tensors.tensor(name).is_err() {
            return Ok(None);
        }
        let (batch, values) = self.batch(name)?;
        if batch != images {
            return Err(self.error(format!(
                "tensor {name:?} has {batch} images, pixel_values {images}"
            )));
        }
        let each = values.len() / images;
        Ok(Some(values[image * each..][..each].to_vec()))
    }
}

fn dump_error(file: &Path, problem: String) -> Error {
    Error::Dump {
        file: file.into(),
        problem,
    }
}

fn read_file(file: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(file).map_err(|error| dump_error(file, error.to_string()))
}

fn read_reference(file: &Path, bytes: &[u8]) -> Result<Reference, Error> {
    let (_, metadata) =
        SafeTensors::read_metadata(bytes).map_err(|error| dump_error(file, error.to_string()))?;
    let text = metadata
        .metadata()
        .as_ref()
        .and_then(|entries| entries.get("blip2_reference"))
        .ok_or_else(|| dump_error(file, "it has no `blip2_reference` metadata".into()))?;
    serde_json::from_str(text).map_err(|error| dump_error(file, format!("its metadata: {error}")))
}

fn compare(stage: String, ours: &[f32], expected: &[f32]) -> ParityRow {
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

fn compare_tokens(stage: String, ours: &[u32], score: f32, expected: &ReferenceText) -> ParityRow {
    let difference = f64::from((score - expected.score).abs());
    let first = ours.iter().zip(&expected.tokens).position(|(a, b)| a != b);
    let equal = ours == expected.tokens;
    let note = match first {
        _ if equal => format!("{} tokens equal, score {score:.4}", ours.len()),
        Some(at) => {
            let margin = expected.margins.get(at).copied().unwrap_or(f32::INFINITY);
            let close = if margin < CLOSE_CALL {
                ", a close call"
            } else {
                ""
            };
            format!(
                "differ from token {at} on (reference ahead by {margin:.4}{close}): {ours:?}, expected {:?}",
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
