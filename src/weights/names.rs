//! Finding a tensor by its canonical name, whichever revision of transformers wrote the file.
//!
//! Canonical names are those transformers 5 writes for `Blip2ForConditionalGeneration` and
//! `Blip2ForImageTextRetrieval` (which have no prefix).

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use super::checkpoint::{Checkpoint, TensorView};
use super::dtype::{BadElement, Format, SourceFormat, check_f16, convert_elements};
use super::error::WeightsError;
use super::quantised::{QuantisedTensor, SCALES, quantised_format};
use super::tensors::matrix_shape;

/// T5's token embedding, and the names it has in its two stacks.
const SHARED: &str = "language_model.shared.weight";
const SHARED_ALIASES: [&str; 2] = [
    "language_model.encoder.embed_tokens.weight",
    "language_model.decoder.embed_tokens.weight",
];
const LM_HEAD: &str = "language_model.lm_head.weight";
const QKV_BIAS: &str = ".self_attn.qkv.bias";

/// What wrappers put before every name: nothing; transformers' base model (`model.`, or `blip.`, the prefix its
/// BLIP-2 class declares); PyTorch's data-parallel wrapper.
const PREFIXES: [&str; 4] = ["", "model.", "blip.", "module."];

/// Parts of names that differ between revisions: (canonical, other). A canonical part is replaced where it
/// occurs; `^` binds it to the start of the name.
const RENAMES: [(&str, &str); 14] = [
    // OPT without its causal-LM wrapper, as transformers names the inner model.
    ("^language_model.model.decoder.", "language_model.decoder."),
    ("^language_model.lm_head.", "lm_head."),
    // The Q-Former's input norm, when it sat in an embeddings module as in BERT and InstructBLIP.
    ("^qformer.layernorm.", "qformer.embeddings.layernorm."),
    ("^qformer.layernorm.", "qformer.embeddings.LayerNorm."),
    // The text embeddings of retrieval models, inside the Q-Former.
    (
        "^embeddings.word_embeddings.",
        "qformer.embeddings.word_embeddings.",
    ),
    (
        "^embeddings.position_embeddings.",
        "qformer.embeddings.position_embeddings.",
    ),
    // LAVIS's names for the projections.
    ("^vision_projection.", "vision_proj."),
    ("^text_projection.", "text_proj."),
    ("^language_projection.", "opt_proj."),
    ("^language_projection.", "t5_proj."),
    // T5's token embedding by the name it has in either stack.
    (
        "^language_model.shared.",
        "language_model.encoder.embed_tokens.",
    ),
    (
        "^language_model.shared.",
        "language_model.decoder.embed_tokens.",
    ),
    // TensorFlow's names for a layer norm's parameters, which transformers still reads.
    ("LayerNorm.weight", "LayerNorm.gamma"),
    ("LayerNorm.bias", "LayerNorm.beta"),
];

/// The names a canonical tensor may have in a file, the canonical one first.
pub fn aliases(canonical: &str) -> Vec<String> {
    let bare = bare_aliases(canonical);
    PREFIXES
        .iter()
        .flat_map(|prefix| bare.iter().map(move |name| format!("{prefix}{name}")))
        .collect()
}

/// [`aliases`] without the prefixed ones.
fn bare_aliases(canonical: &str) -> Vec<String> {
    let mut names = vec![canonical.to_string()];
    for (from, to) in RENAMES {
        let renamed = match from.strip_prefix('^') {
            Some(start) => canonical
                .strip_prefix(start)
                .map(|rest| format!("{to}{rest}")),
            None => canonical
                .contains(from)
                .then(|| canonical.replace(from, to)),
        };
        names.extend(renamed);
    }
    names
}

/// Whether a stored tensor is a buffer that inference has no use for, so that its presence and type are
/// of no interest (position numbers, the training temperature).
pub fn is_ignored_buffer(name: &str) -> bool {
    name.ends_with("position_ids") || name.ends_with("num_batches_tracked") || name == "temp"
}

/// A tensor the model asked for, under its canonical name, in the shape asked for. It borrows the mapping.
#[derive(Clone, Debug)]
pub struct Weight<'a> {
    name: String,
    shape: Vec<usize>,
    parts: Vec<Part<'a>>,
}

/// Consecutive elements of a [`Weight`].
#[derive(Clone, Debug)]
enum Part<'a> {
    Stored {
        view: TensorView<'a>,
        format: SourceFormat,
    },
    Zeros(usize),
    Quantised(QuantisedTensor<'a>),
}

impl Part<'_> {
    fn elements(&self) -> usize {
        match self {
            Part::Stored { view, format } => view.bytes.len() / format.size(),
            Part::Zeros(count) => *count,
            Part::Quantised(tensor) => tensor.elements(),
        }
    }
}

impl<'a> Weight<'a> {
    /// A tensor of zeros, for a bias that a checkpoint has no use for.
    pub fn zeros(name: impl Into<String>, shape: &[usize]) -> Self {
        let parts = vec![Part::Zeros(shape.iter().product())];
        Self {
            name: name.into(),
            shape: shape.to_vec(),
            parts,
        }
    }

    /// Canonical name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.parts.iter().map(Part::elements).sum()
    }

    /// Bytes as stored on disk.
    pub fn stored_bytes(&self) -> usize {
        self.views().map(|view| view.bytes.len()).sum()
    }

    /// The stored tensors it is made of: one, or two where q and v biases are stored apart.
    pub fn views(&self) -> impl Iterator<Item = TensorView<'a>> {
        self.parts
            .iter()
            .flat_map(|part| match part {
                Part::Stored { view, .. } => [Some(*view), None],
                Part::Zeros(_) => [None, None],
                Part::Quantised(tensor) => [Some(tensor.values), Some(tensor.scales)],
            })
            .flatten()
    }

    /// The stored blocks, if that is what the tensor is stored as.
    pub fn quantised(&self) -> Option<QuantisedTensor<'a>> {
        match self.parts.as_slice() {
            [Part::Quantised(tensor)] => Some(*tensor),
            _ => None,
        }
    }

    /// The tensor as a matrix `[rows, columns]`: a vector is one row, a convolution kernel has a row an output channel.
    pub fn matrix(&self) -> [usize; 2] {
        matrix_shape(&self.shape)
    }

    /// Converts `rows` of [`Weight::matrix`] into `target`, each row `stride` elements after the one before, the
    /// gap after each row filled with zeros (so that a kernel may read rows in whole blocks). `target` must hold
    /// `rows.len() * stride` elements of `format`; bytes beyond are left alone.
    ///
    /// # Errors
    /// A value that is NaN, infinite or beyond the format's range (named, with tensor and file): such a model
    /// would only answer nonsense. Rows or a target that do not fit.
    pub fn write_rows(
        &self,
        rows: Range<usize>,
        format: Format,
        target: &mut [u8],
        stride: usize,
    ) -> Result<(), WeightsError> {
        let [row_count, columns] = self.matrix();
        let usage = |problem: String| WeightsError::Usage {
            tensor: self.name.clone(),
            problem,
        };
        if rows.start > rows.end || rows.end > row_count || stride < columns {
            return Err(usage(format!(
                "rows {rows:?} at a stride of {stride} asked of [{row_count}, {columns}]"
            )));
        }
        let needed = rows
            .len()
            .checked_mul(stride)
            .and_then(|elements| elements.checked_mul(format.size()));
        let length = target.len();
        let Some(target) = needed.and_then(|needed| target.get_mut(..needed)) else {
            return Err(usage(format!(
                "rows {rows:?} at a stride of {stride} do not fit {length} bytes"
            )));
        };
        if stride == columns {
            return self.write_elements(rows.start * columns..rows.end * columns, format, target);
        }
        for (row, target) in rows.zip(target.chunks_exact_mut(stride * format.size())) {
            let (values, padding) = target.split_at_mut(columns * format.size());
            self.write_elements(row * columns..(row + 1) * columns, format, values)?;
            padding.fill(0);
        }
        Ok(())
    }

    /// `rows` of [`Weight::matrix`] as they are stored, where that is what [`Weight::write_rows`] would make of them in f16
    /// at this `stride`: no conversion, no padding. The values are checked all the same.
    ///
    /// # Errors
    /// A value that is NaN or infinite.
    pub(super) fn f16_rows(
        &self,
        rows: Range<usize>,
        stride: usize,
    ) -> Result<Option<&'a [u8]>, WeightsError> {
        let [_, columns] = self.matrix();
        let [Part::Stored { view, format }] = self.parts.as_slice() else {
            return Ok(None);
        };
        let row_bytes = columns * 2;
        let stored = match format {
            SourceFormat::F16 if stride == columns => {
                view.bytes.get(rows.start * row_bytes..rows.end * row_bytes)
            }
            _ => None,
        };
        let Some(stored) = stored else {
            return Ok(None);
        };
        match check_f16(stored) {
            Ok(()) => Ok(Some(stored)),
            Err(bad) => Err(bad_value(view, rows.start * columns, bad)),
        }
    }

    /// The whole tensor as f32 values on the heap: for small ones (biases, norms) and tests, not for matrices.
    ///
    /// # Errors
    /// A value that is NaN or infinite.
    pub fn to_f32(&self) -> Result<Vec<f32>, WeightsError> {
        let mut values = vec![0f32; self.elements()];
        self.write_elements(
            0..values.len(),
            Format::F32,
            bytemuck::cast_slice_mut(&mut values),
        )?;
        // `write_elements` writes little-endian bytes; on little-endian hosts this changes nothing.
        values
            .iter_mut()
            .for_each(|value| *value = f32::from_bits(u32::from_le(value.to_bits())));
        Ok(values)
    }

    /// Converts the elements of a flat range, part by part, into `target`, which they fill.
    fn write_elements(
        &self,
        range: Range<usize>,
        format: Format,
        target: &mut [u8],
    ) -> Result<(), WeightsError> {
        let mut rest = target;
        let mut part_start = 0;
        for part in &self.parts {
            let part_end = part_start + part.elements();
            let from = range.start.max(part_start);
            let to = range.end.min(part_end);
            if from < to {
                let (out, after) = rest.split_at_mut((to - from) * format.size());
                write_part(part, from - part_start..to - part_start, format, out)?;
                rest = after;
            }
            part_start = part_end;
        }
        Ok(())
    }
}

fn write_part(
    part: &Part,
    range: Range<usize>,
    format: Format,
    out: &mut [u8],
) -> Result<(), WeightsError> {
    let (view, source_format) = match part {
        Part::Stored { view, format } => (view, format),
        Part::Zeros(_) => {
            out.fill(0);
            return Ok(());
        }
        Part::Quantised(tensor) => return tensor.write_elements(range, format, out),
    };
    let size = source_format.size();
    let source = &view.bytes[range.start * size..range.end * size];
    convert_elements(*source_format, source, format, out)
        .map_err(|bad| bad_value(view, range.start, bad))
}

/// The error of `bad`, counted from element `start` of `view`.
fn bad_value(view: &TensorView<'_>, start: usize, bad: BadElement) -> WeightsError {
    WeightsError::BadValue {
        file: view.file.into(),
        tensor: view.name.into(),
        index: start + bad.index,
        value: bad.value,
        problem: if bad.value.is_finite() {
            "beyond the range it is converted to"
        } else {
            "not a finite number"
        },
    }
}

impl Checkpoint {
    /// The name under which a canonical tensor is stored, if it is.
    pub fn resolve(&self, canonical: &str) -> Option<&str> {
        self.find(canonical).map(|view| view.name)
    }

    fn find(&self, canonical: &str) -> Option<TensorView<'_>> {
        // Most files use canonical names: look that up before making the others.
        self.get(canonical)
            .or_else(|| aliases(canonical).iter().find_map(|name| self.get(name)))
    }

    /// The tensor of a canonical name in the given shape, whichever revision wrote the file.
    ///
    /// A `….self_attn.qkv.bias` of the ViT may be stored as `q_bias` and `v_bias`, the key's bias being zero.
    ///
    /// # Errors
    /// Missing (the names tried are listed), another shape, or an element type that is no weight's.
    pub fn weight(&self, canonical: &str, shape: &[usize]) -> Result<Weight<'_>, WeightsError> {
        if let Some(view) = self.find(canonical) {
            let part = match quantised_format(view.dtype) {
                Some(format) => Part::Quantised(self.quantised_tensor(view, format, shape)?),
                None => stored(view, shape)?,
            };
            return Ok(Weight {
                name: canonical.into(),
                shape: shape.to_vec(),
                parts: vec![part],
            });
        }
        if let Some([q, v]) = self.split_qkv_bias(canonical) {
            let width = shape.iter().product::<usize>() / 3;
            let parts = vec![
                stored(q, &[width])?,
                Part::Zeros(width),
                stored(v, &[width])?,
            ];
            return Ok(Weight {
                name: canonical.into(),
                shape: shape.to_vec(),
                parts,
            });
        }
        Err(WeightsError::Missing {
            checkpoint: self.path().into(),
            tensor: canonical.into(),
            tried: names_tried(canonical),
        })
    }

    /// The separately stored q and v biases behind a fused `qkv.bias`.
    fn split_qkv_bias(&self, canonical: &str) -> Option<[TensorView<'_>; 2]> {
        let [q, v] = split_qkv_names(canonical)?;
        Some([self.find(&q)?, self.find(&v)?])
    }

    /// Whether the language model has an output matrix of its own: of the two names the first, of `shape`, where it is not
    /// the second, the token embedding. `tied` is what the configuration says; as in transformers 5, a stored matrix that differs from
    /// the embedding counts whatever it says.
    ///
    /// # Errors
    /// As [`Checkpoint::weight`]; missing although the configuration says that it is not tied.
    pub(super) fn has_output_matrix(
        &self,
        [output, embedding]: [&str; 2],
        tied: bool,
        shape: &[usize],
    ) -> Result<bool, WeightsError> {
        if tied && self.find(output).is_none() {
            return Ok(false);
        }
        let output = self.weight(output, shape)?;
        let embedding = self.weight(embedding, shape)?;
        let mut both = output.views().zip(embedding.views());
        Ok(!both.all(|(a, b)| a.dtype == b.dtype && a.bytes == b.bytes))
    }

    /// The stored tensors that none of the `canonical` names stands for, sorted; ignored buffers and `lm_head`
    /// left out. For `inspect`: a long list means weights of another model.
    pub fn unused<'n>(&self, canonical: impl IntoIterator<Item = &'n str>) -> Vec<&str> {
        let mut used: HashSet<&str> = self.resolve(LM_HEAD).into_iter().collect();
        for name in canonical {
            used.extend(self.resolve(name));
            if name == SHARED {
                used.extend(
                    SHARED_ALIASES
                        .iter()
                        .filter_map(|alias| self.resolve(alias)),
                );
            }
            used.extend(
                self.split_qkv_bias(name)
                    .into_iter()
                    .flatten()
                    .map(|view| view.name),
            );
        }
        let is_used = |name: &str| {
            let tensor = name.strip_suffix(SCALES).unwrap_or(name);
            used.contains(name) || used.contains(tensor)
        };
        self.names()
            .filter(|name| !is_used(name) && !is_ignored_buffer(name))
            .collect()
    }
}

fn split_qkv_names(canonical: &str) -> Option<[String; 2]> {
    let layer = canonical.strip_suffix(QKV_BIAS)?;
    Some(["q_bias", "v_bias"].map(|bias| format!("{layer}.self_attn.{bias}")))
}

/// The names [`Checkpoint::weight`] tries, for its error.
fn names_tried(canonical: &str) -> String {
    let mut names = bare_aliases(canonical);
    if let Some(split) = split_qkv_names(canonical) {
        names.push(split.join(" + "));
    }
    format!(
        "{}; also with {}",
        names.join(", "),
        PREFIXES[1..].join(", ")
    )
}

fn stored<'a>(view: TensorView<'a>, shape: &[usize]) -> Result<Part<'a>, WeightsError> {
    let file: &Path = view.file;
    if view.shape != shape {
        return Err(WeightsError::Shape {
            file: file.into(),
            tensor: view.name.into(),
            expected: shape.to_vec(),
            found: view.shape.to_vec(),
        });
    }
    let format = SourceFormat::of(view.dtype).ok_or_else(|| WeightsError::ElementType {
        file: file.into(),
        tensor: view.name.into(),
        found: format!("{:?}", view.dtype),
    })?;
    Ok(Part::Stored { view, format })
}

#[cfg(test)]
mod tests;
