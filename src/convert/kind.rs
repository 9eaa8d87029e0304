//! Which program wrote a checkpoint, and what for: told by its tensors' names.

use super::ConvertError;
use super::source::Source;

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

/// Checkpoints that are something else: (beginning of a name, what it is and what to do).
const OTHERS: [(&str, &str, &str); 8] = [
    ("llm_model.", OTHER_MODEL, USE_BLIP2),
    ("llm_proj.", OTHER_MODEL, USE_BLIP2),
    ("text_decoder.", OTHER_MODEL, USE_BLIP2),
    (
        "visual_encoder.transformer.resblocks.",
        "has CLIP's vision transformer (LAVIS's vitL models), which is not supported",
        USE_BLIP2,
    ),
    (
        "blocks.",
        "is a vision transformer alone",
        "convert a BLIP-2 checkpoint and pass this one as `vit`",
    ),
    (
        "patch_embed.",
        "is a vision transformer alone",
        "convert a BLIP-2 checkpoint and pass this one as `vit`",
    ),
    (
        "model.decoder.layers.",
        "is a language model alone",
        "convert a BLIP-2 checkpoint and pass this one's folder as `llm`",
    ),
    (
        "decoder.",
        "is a language model alone",
        "convert a BLIP-2 checkpoint and pass this one's folder as `llm`",
    ),
];
const OTHER_MODEL: &str = "is another model than BLIP-2 (InstructBLIP, BLIP 1 or the like)";
const USE_BLIP2: &str = "use a BLIP-2 checkpoint, such as blip2_pretrained_opt2.7b.pth";

/// The kind of a checkpoint.
///
/// # Errors
/// Not a BLIP-2 checkpoint; what it is where that is known.
pub fn detect(source: &Source) -> Result<Kind, ConvertError> {
    let names: Vec<&str> = source.names().collect();
    let any = |beginning: &str| names.iter().any(|name| name.starts_with(beginning));
    if let Some((_, problem, remedy)) = OTHERS[..4].iter().find(|(start, ..)| any(start)) {
        return Err(ConvertError::refused(source.path(), *problem, *remedy));
    }
    let retrieval = |starts: &[&str]| match starts.iter().any(|start| any(start)) {
        true => Task::Retrieval,
        false => Task::Generation,
    };
    if any("Qformer.") {
        let task = retrieval(&["itm_head.", "text_proj."]);
        return Ok(Kind {
            family: Family::Lavis,
            task,
        });
    }
    if any("multimodal_backbone.") {
        let task = retrieval(&["text_neck.", "multimodal_head."]);
        return Ok(Kind {
            family: Family::Mmpretrain,
            task,
        });
    }
    if names.iter().any(|name| name.contains("qformer.")) {
        let task = retrieval(&["itm_head.", "text_projection.", "blip.itm_head."]);
        return Ok(Kind {
            family: Family::HuggingFace,
            task,
        });
    }
    if let Some((_, problem, remedy)) = OTHERS[4..].iter().find(|(start, ..)| any(start)) {
        return Err(ConvertError::refused(source.path(), *problem, *remedy));
    }
    let examples: Vec<&str> = names.into_iter().take(3).collect();
    Err(ConvertError::refused(
        source.path(),
        format!(
            "has no Q-Former, so it is no BLIP-2 checkpoint (it has {})",
            examples.join(", ")
        ),
        USE_BLIP2,
    ))
}
