//! Which stored tensors the result is made of.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};

use safetensors::Dtype;

use crate::gpu::WeightFormat;
use crate::model::Blip2Config;
use crate::weights::{
    Component, Format, Role, SourceFormat, StridedView, TensorSpec, WeightsError, aliases,
};

use super::ConvertError;
use super::kind::{Family, Kind, Task};
use super::names::{Fate, of_language_model, of_model, of_vision, vision_block};
use super::source::Source;

const QKV_BIAS: &str = ".qkv.bias";
/// The output matrix of a language model, which most files share with the token embedding.
const LM_HEAD: &str = "language_model.lm_head.weight";

/// The token embedding of OPT and of T5.
const EMBEDDINGS: [&str; 2] = [
    "language_model.model.decoder.embed_tokens.weight",
    "language_model.shared.weight",
];

/// A tensor of the result.
#[derive(Debug)]
pub struct Output<'a> {
    /// Name in the result.
    pub name: String,
    /// Element type in the result.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// The model's tensor that it is, or is a part of.
    pub spec: TensorSpec,
    /// What it is made of, one after the other.
    pub parts: Vec<Part<'a>>,
}

/// Consecutive elements of an [`Output`].
#[derive(Debug)]
pub enum Part<'a> {
    /// A stored tensor.
    Stored(StridedView<'a>),
    /// So many zeros.
    Zeros(usize),
    /// A matrix's values as [`crate::weights::quantise`] has them.
    QuantisedValues(StridedView<'a>, WeightFormat),
    /// Their scales.
    Scales(StridedView<'a>, WeightFormat),
}

impl Output<'_> {
    /// Bytes in the result.
    pub fn bytes(&self) -> u64 {
        let elements: u64 = self.shape.iter().map(|&size| size as u64).product();
        elements * (self.dtype.bitsize() / 8) as u64
    }
}

/// All stored tensors under the names that transformers has for them.
#[derive(Debug)]
pub struct Plan<'a> {
    /// What the checkpoint is.
    pub kind: Kind,
    /// The checkpoint.
    pub source: &'a Source,
    /// The language model's folder, if one was given.
    pub llm: Option<&'a Source>,
    /// As in [`super::Conversion`].
    pub left_out: Vec<(String, String)>,
    /// As in [`super::Conversion`].
    pub unknown: Vec<String>,
    /// As in [`super::Conversion`].
    pub notes: Vec<String>,
    /// The vision transformer's file, if one was given.
    pub vit: Option<&'a Source>,
    stored: HashMap<String, Stored<'a>>,
}

#[derive(Debug)]
struct Stored<'a> {
    view: StridedView<'a>,
    used: Cell<bool>,
}

impl<'a> Plan<'a> {
    /// Gathers the tensors of all files. Where two have one tensor, the checkpoint's own counts, as a fine-tuned one
    /// replaces what it was tuned from.
    pub fn gather(
        kind: Kind,
        source: &'a Source,
        vit: Option<&'a Source>,
        llm: Option<&'a Source>,
    ) -> Self {
        let mut plan = Self {
            kind,
            source,
            llm,
            left_out: Vec::new(),
            unknown: Vec::new(),
            notes: Vec::new(),
            vit,
            stored: HashMap::new(),
        };
        plan.add(source, |name| of_model(name, kind));
        if let Some(vit) = vit {
            // A file of LAVIS's holds the vision transformer alone; another BLIP-2 checkpoint lends its own.
            match super::kind::detect(vit) {
                Ok(kind) => plan.add(vit, |name| match of_model(name, kind) {
                    Fate::Tensor(name) if !name.contains("vision_model.") => {
                        Fate::LeftOut("not of the vision transformer")
                    }
                    fate => fate,
                }),
                Err(_) => plan.add(vit, of_vision),
            }
        }
        if let Some(llm) = llm {
            plan.add(llm, of_language_model);
        }
        plan
    }

    /// A plan of these tensors, their names those of the result.
    #[cfg(test)]
    pub fn of_views(
        kind: Kind,
        source: &'a Source,
        llm: Option<&'a Source>,
        views: impl Iterator<Item = StridedView<'a>>,
    ) -> Self {
        let mut plan = Self::gather(kind, source, None, None);
        let used = || Cell::new(false);
        let stored = views.map(|view| (view.name.to_owned(), Stored { view, used: used() }));
        plan.stored = stored.collect();
        plan.llm = llm;
        plan
    }

    fn add(&mut self, source: &'a Source, fate: impl Fn(&str) -> Fate) {
        for view in source.tensors() {
            match fate(source.bare(view.name)) {
                Fate::LeftOut(reason) => self.left_out.push((view.name.into(), reason.into())),
                Fate::Tensor(name) => {
                    let stored = Stored {
                        view,
                        used: Cell::new(false),
                    };
                    self.stored.entry(name).or_insert(stored);
                }
            }
        }
    }

    /// The stored tensor of a name in the result, without taking it.
    pub fn find(&self, canonical: &str) -> Option<StridedView<'a>> {
        self.entry(canonical).map(|stored| stored.view)
    }

    fn entry(&self, canonical: &str) -> Option<&Stored<'a>> {
        self.stored.get(canonical).or_else(|| {
            aliases(canonical)
                .iter()
                .find_map(|name| self.stored.get(name))
        })
    }

    /// Whether any tensor of `source` is in the result.
    pub fn uses(&self, source: &Source) -> bool {
        let files: HashSet<_> = source.tensors().map(|view| view.file).collect();
        let mut stored = self.stored.values();
        stored.any(|stored| stored.used.get() && files.contains(stored.view.file))
    }

    fn take(&self, canonical: &str) -> Option<StridedView<'a>> {
        let stored = self.entry(canonical)?;
        stored.used.set(true);
        Some(stored.view)
    }

    /// Every tensor of the model, in the order an image passes them; what is left over is listed in `self`.
    ///
    /// # Errors
    /// A part that no file has; tensors that are missing, of another shape or no numbers.
    pub fn tensors(
        &mut self,
        config: &Blip2Config,
        format: Option<Format>,
    ) -> Result<Vec<Output<'a>>, ConvertError> {
        let mut outputs = Vec::new();
        let mut missing: Vec<TensorSpec> = Vec::new();
        for spec in config.tensors(None)? {
            match self.output(&spec, format)? {
                Some(output) => outputs.push(output),
                None => missing.push(spec),
            }
        }
        if let Some(first) = missing.first() {
            return Err(self.missing_error(first, &missing));
        }
        outputs.extend(self.untied_head(&outputs, format)?);
        self.list_the_rest(config);
        Ok(outputs)
    }

    /// A tensor of the result; `None` where nothing stored is it.
    fn output(
        &self,
        spec: &TensorSpec,
        format: Option<Format>,
    ) -> Result<Option<Output<'a>>, ConvertError> {
        if let Some(view) = self.take(&spec.name) {
            check_shape(&view, &spec.shape)?;
            return output(spec, vec![Part::Stored(view)], format).map(Some);
        }
        let Some(attention) = spec.name.strip_suffix(QKV_BIAS) else {
            return Ok(None);
        };
        // Queries and values have a bias, keys have none: cat(q_bias, 0, v_bias).
        let [q, v] = ["q_bias", "v_bias"].map(|bias| self.take(&format!("{attention}.{bias}")));
        let (Some(q), Some(v)) = (q, v) else {
            return Ok(None);
        };
        let width = spec.shape.iter().product::<usize>() / 3;
        check_shape(&q, &[width])?;
        check_shape(&v, &[width])?;
        let parts = vec![Part::Stored(q), Part::Zeros(width), Part::Stored(v)];
        output(spec, parts, format).map(Some)
    }

    /// An output matrix that differs from the token embedding counts whatever the configuration says, as in
    /// transformers 5.
    fn untied_head(
        &self,
        outputs: &[Output<'a>],
        format: Option<Format>,
    ) -> Result<Option<Output<'a>>, ConvertError> {
        if self.kind.task == Task::Retrieval || outputs.iter().any(|output| output.name == LM_HEAD)
        {
            return Ok(None);
        }
        let embedding = EMBEDDINGS.iter().find_map(|name| self.find(name));
        let (Some(head), Some(embedding)) = (self.take(LM_HEAD), embedding) else {
            return Ok(None);
        };
        if equal(&head, &embedding) {
            return Ok(None);
        }
        check_shape(&head, embedding.shape)?;
        let spec = TensorSpec {
            name: LM_HEAD.into(),
            shape: embedding.shape.to_vec(),
            component: Component::LanguageModel,
            role: Role::Table,
        };
        output(&spec, vec![Part::Stored(head)], format).map(Some)
    }

    /// Refuses a checkpoint whose vision transformer or language model is in none of the files.
    pub fn check_parts(&self) -> Result<(), ConvertError> {
        let missing = |what, option: String| ConvertError::MissingPart {
            file: self.source.path().into(),
            what,
            family: self.kind.family.name(),
            option,
        };
        if self.kind.family == Family::HuggingFace {
            return Ok(());
        }
        if self
            .find("vision_model.embeddings.class_embedding")
            .is_none()
        {
            return Err(match self.vit {
                Some(vit) => ConvertError::refused(
                    vit.path(),
                    "has no vision transformer in LAVIS's names",
                    "pass `vit`: LAVIS's eva_vit_g.pth",
                ),
                None => missing(
                    "the vision transformer",
                    "`vit`: LAVIS's eva_vit_g.pth".into(),
                ),
            });
        }
        let has_words = EMBEDDINGS.iter().any(|name| self.find(name).is_some());
        if self.kind.task == Task::Generation && !has_words {
            let option = format!("`llm`: {}", self.language_model_name());
            return Err(match self.llm {
                Some(llm) => ConvertError::refused(
                    llm.path(),
                    "has no language model's tensors",
                    format!("pass {option}"),
                ),
                None => missing("the language model", option),
            });
        }
        Ok(())
    }

    fn missing_error(&self, first: &TensorSpec, missing: &[TensorSpec]) -> ConvertError {
        let of = |component| first.component == component;
        let file = match (self.llm, self.vit) {
            (Some(llm), _) if of(Component::LanguageModel) => llm,
            (_, Some(vit)) if of(Component::Vision) => vit,
            _ => self.source,
        };
        let problem = format!(
            "lacks {} of the model's tensors, {} among them",
            missing.len(),
            first.name
        );
        ConvertError::refused(
            file.path(),
            problem,
            "give files of one model, and its config.json as `config`",
        )
    }

    /// The language model that a published checkpoint was trained with, for people.
    pub fn language_model_name(&self) -> String {
        let width = self
            .find("language_projection.weight")
            .and_then(|view| view.shape.first().copied());
        let t5 = self.source.names().any(|name| name.starts_with("t5_proj."));
        let name = match (t5, width) {
            (false, Some(2560)) => "facebook/opt-2.7b",
            (false, Some(4096)) => "facebook/opt-6.7b",
            (true, Some(2048)) => "google/flan-t5-xl",
            (true, Some(4096)) => "google/flan-t5-xxl",
            _ => "the language model that the checkpoint was trained with",
        };
        format!("{name} in the Hugging Face layout")
    }

    /// Sorts what was not used into what is known to be of no use, and the rest.
    fn list_the_rest(&mut self, config: &Blip2Config) {
        let blocks = config.vision.num_hidden_layers;
        for (name, stored) in &self.stored {
            if stored.used.get() {
                continue;
            }
            let stored_name = stored.view.name.to_owned();
            let reason = match vision_block(name) {
                Some(block) if block >= blocks => {
                    Some(format!("beyond the {blocks} blocks that the model runs"))
                }
                _ if name.ends_with("coder.embed_tokens.weight") => {
                    Some("a copy of the token embedding".into())
                }
                _ => None,
            };
            match reason {
                Some(reason) => self.left_out.push((stored_name, reason)),
                None => self.unknown.push(stored_name),
            }
        }
        self.left_out.sort();
        self.unknown.sort();
    }
}

fn output<'a>(
    spec: &TensorSpec,
    parts: Vec<Part<'a>>,
    format: Option<Format>,
) -> Result<Output<'a>, ConvertError> {
    let mut dtypes = Vec::new();
    for part in &parts {
        if let Part::Stored(view) = part {
            if SourceFormat::of(view.dtype).is_none() {
                return Err(WeightsError::ElementType {
                    file: view.file.into(),
                    tensor: view.name.into(),
                    found: format!("{:?}", view.dtype),
                }
                .into());
            }
            dtypes.push(view.dtype);
        }
    }
    let dtype = match (format, dtypes.as_slice()) {
        (Some(Format::F16), _) => Dtype::F16,
        (None, [first, rest @ ..]) if rest.iter().all(|dtype| dtype == first) => *first,
        _ => Dtype::F32,
    };
    Ok(Output {
        name: spec.name.clone(),
        dtype,
        shape: spec.shape.clone(),
        spec: spec.clone(),
        parts,
    })
}

fn check_shape(view: &StridedView, expected: &[usize]) -> Result<(), ConvertError> {
    if view.shape == expected {
        return Ok(());
    }
    Err(WeightsError::Shape {
        file: view.file.into(),
        tensor: view.name.into(),
        expected: expected.to_vec(),
        found: view.shape.to_vec(),
    }
    .into())
}

/// Whether two tensors are the same bytes.
fn equal(a: &StridedView, b: &StridedView) -> bool {
    let plain = a.strides.is_none() && b.strides.is_none();
    a.dtype == b.dtype && a.shape == b.shape && plain && a.bytes == b.bytes
}
