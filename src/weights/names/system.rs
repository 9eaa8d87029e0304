//! Which system wrote a checkpoint and what for, told by its tensors' names; and what these become.

use std::path::Path;

use super::super::error::WeightsError;
use super::{lavis, mmpretrain};

/// The program whose names a checkpoint has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Salesforce's LAVIS.
    Lavis,
    /// OpenMMLab's mmpretrain.
    Mmpretrain,
    /// transformers, any revision.
    HuggingFace,
}

/// What a checkpoint is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Captions and answers.
    Generation,
    /// Matching and retrieval (LAVIS's first stage of training is of this kind).
    Retrieval,
}

/// What a checkpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// The program whose names it has.
    pub family: Family,
    /// What it is for.
    pub task: Task,
}

/// What a stored tensor is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// The tensor of this canonical name, if the model has one; aliases are not yet resolved.
    Tensor(String),
    /// Of no use here, for a reason.
    LeftOut(&'static str),
}

impl Family {
    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lavis => "LAVIS",
            Self::Mmpretrain => "mmpretrain",
            Self::HuggingFace => "Hugging Face",
        }
    }
}

impl Task {
    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Generation => "generative",
            Self::Retrieval => "retrieval",
        }
    }
}

/// Tensors of any system that the model has no use for: (last part of the name, reason).
const LEFT_OUT: [(&str, &str); 4] = [
    ("position_ids", COUNTS),
    ("relative_position_index", COUNTS),
    ("num_batches_tracked", "a count of training"),
    ("temp", "the temperature of training"),
];
const COUNTS: &str = "numbers that count up";

/// Checkpoints that are something else: (beginning of a name, what it is, what to do). They are
/// another model's even where there is a Q-Former.
const OTHER_MODELS: [(&str, &str, &str); 4] = [
    ("llm_model.", OTHER_MODEL, USE_BLIP2),
    ("llm_proj.", OTHER_MODEL, USE_BLIP2),
    ("text_decoder.", OTHER_MODEL, USE_BLIP2),
    (
        "visual_encoder.transformer.resblocks.",
        "has CLIP's vision transformer (LAVIS's vitL models), which is not supported",
        USE_BLIP2,
    ),
];

/// The same of parts of a model.
const PARTS: [(&str, &str, &str); 4] = [
    (
        "blocks.",
        VISION_ALONE,
        "convert a BLIP-2 checkpoint and pass this one as `vit`",
    ),
    (
        "patch_embed.",
        VISION_ALONE,
        "convert a BLIP-2 checkpoint and pass this one as `vit`",
    ),
    (
        "model.decoder.layers.",
        LANGUAGE_ALONE,
        "convert a BLIP-2 checkpoint and pass this one's folder as `llm`",
    ),
    (
        "decoder.",
        LANGUAGE_ALONE,
        "convert a BLIP-2 checkpoint and pass this one's folder as `llm`",
    ),
];
const OTHER_MODEL: &str = "is another model than BLIP-2 (InstructBLIP, BLIP 1 or the like)";
const USE_BLIP2: &str = "use a BLIP-2 checkpoint, such as blip2_pretrained_opt2.7b.pth";
const VISION_ALONE: &str = "is a vision transformer alone";
const LANGUAGE_ALONE: &str = "is a language model alone";

impl Kind {
    /// What the checkpoint at `path` with tensors of these `names` is.
    ///
    /// # Errors
    /// Not a BLIP-2 checkpoint; what it is where that is known.
    pub fn of(path: &Path, names: &[&str]) -> Result<Self, WeightsError> {
        let any = |starts: &[&str]| {
            let mut starts = starts.iter();
            starts.any(|start| names.iter().any(|name| name.starts_with(start)))
        };
        let refused = |problem: &str, remedy| WeightsError::BadFile {
            file: path.into(),
            problem: problem.into(),
            remedy,
        };
        let one_of = |others: &[(&str, &str, &'static str)]| {
            let found = others.iter().find(|(start, ..)| any(&[start]));
            found.map_or(Ok(()), |(_, problem, remedy)| Err(refused(problem, remedy)))
        };
        let kind = |family, retrieval: &[&str]| Self {
            family,
            task: match any(retrieval) {
                true => Task::Retrieval,
                false => Task::Generation,
            },
        };
        one_of(&OTHER_MODELS)?;
        if any(&["Qformer."]) {
            return Ok(kind(Family::Lavis, &["itm_head.", "text_proj."]));
        }
        if any(&["multimodal_backbone."]) {
            return Ok(kind(
                Family::Mmpretrain,
                &["text_neck.", "multimodal_head."],
            ));
        }
        if names.iter().any(|name| name.contains("qformer.")) {
            let retrieval = ["itm_head.", "text_projection.", "blip.itm_head."];
            return Ok(kind(Family::HuggingFace, &retrieval));
        }
        one_of(&PARTS)?;
        let examples: Vec<&str> = names.iter().copied().take(3).collect();
        let problem = format!(
            "has no Q-Former, so it is no BLIP-2 checkpoint (it has {})",
            examples.join(", ")
        );
        Err(refused(&problem, USE_BLIP2))
    }

    /// What a tensor of such a checkpoint is.
    pub fn canonical(self, name: &str) -> Name {
        match self.family {
            Family::Lavis => by_table(name, &lavis::LEFT_OUT, &lavis::NAMES),
            Family::Mmpretrain => {
                let neck = mmpretrain::neck(self.task == Task::Retrieval);
                let names = [&mmpretrain::NAMES[..], &[neck]].concat();
                by_table(name, &mmpretrain::LEFT_OUT, &names)
            }
            Family::HuggingFace => by_table(name, &[], &[]),
        }
    }
}

/// The names that the tensors of a file have here which lends its vision transformer: another
/// BLIP-2 checkpoint of `kind`, or EVA-CLIP's vision transformer alone, of these `names`.
pub fn names_of_vision(kind: Option<Kind>, names: &[&str]) -> impl Fn(&str) -> Name + use<> {
    let alone = if names.iter().any(|name| name.starts_with("layers.")) {
        (Family::Mmpretrain, mmpretrain::VISION)
    } else {
        (Family::Lavis, lavis::VISION)
    };
    move |name| {
        let Some(kind) = kind else {
            let (family, prefix) = alone;
            let task = Task::Generation;
            return Kind { family, task }.canonical(&format!("{prefix}{name}"));
        };
        match kind.canonical(name) {
            Name::Tensor(name) if !name.contains("vision_model.") => {
                Name::LeftOut("not of the vision transformer")
            }
            name => name,
        }
    }
}

/// What names in the checkpoints of OPT and T5 begin with.
const LANGUAGE_MODEL: [&str; 5] = ["model.", "decoder.", "encoder.", "shared.", "lm_head."];

/// What a tensor of a language model's own checkpoint is; another BLIP-2 folder lends its own.
pub fn names_of_language_model(name: &str) -> Name {
    let bare = name.strip_prefix("model.").unwrap_or(name);
    let others = [
        "vision_model.",
        "qformer.",
        "query_tokens",
        "language_projection.",
    ];
    let is_one_of = |name: &str, starts: &[&str]| starts.iter().any(|it| name.starts_with(it));
    if is_one_of(bare, &others) {
        return Name::LeftOut("not of the language model");
    }
    Name::Tensor(if bare.starts_with("language_model.") {
        bare.to_owned()
    } else if is_one_of(name, &LANGUAGE_MODEL) {
        format!("language_model.{name}")
    } else {
        name.to_owned()
    })
}

/// `name` by a system's tables.
fn by_table(name: &str, left_out: &[(&str, &'static str)], names: &[(&str, &str)]) -> Name {
    let begins = |(start, _): &&(&str, _)| name.starts_with(start);
    let ends = |(end, _): &&(&str, _)| {
        let rest = name.strip_suffix(end);
        rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    let reason = left_out.iter().find(begins).or(LEFT_OUT.iter().find(ends));
    if let Some((_, reason)) = reason {
        return Name::LeftOut(reason);
    }
    let mut name = name.to_owned();
    for (from, to) in names {
        name = match from.strip_prefix('^') {
            Some(start) => match name.strip_prefix(start) {
                Some(rest) => format!("{to}{rest}"),
                None => name,
            },
            None => name.replacen(from, to, 1),
        };
    }
    Name::Tensor(name)
}

#[cfg(test)]
mod tests;
