//! The names that tensors go by in files.
//!
//! Canonical names are those transformers 5 writes for `Blip2ForConditionalGeneration` and
//! `Blip2ForImageTextRetrieval` (which have no prefix). What other revisions of transformers have
//! for them is here; other systems' names are a table each: [`lavis`], [`mmpretrain`].

mod lavis;
mod mmpretrain;
mod system;

pub use system::{Family, Kind, Name, Task, names_of_language_model, names_of_vision};

/// T5's token embedding, and the names it has in its two stacks.
const SHARED: &str = "language_model.shared.weight";
const SHARED_ALIASES: [&str; 2] = [
    "language_model.encoder.embed_tokens.weight",
    "language_model.decoder.embed_tokens.weight",
];
/// The output matrix of a language model.
pub(super) const LM_HEAD: &str = "language_model.lm_head.weight";
const QKV_BIAS: &str = ".self_attn.qkv.bias";

/// What wrappers put before every name: nothing; transformers' base model (`model.`, or `blip.`,
/// the prefix its BLIP-2 class declares); PyTorch's data-parallel wrapper.
const PREFIXES: [&str; 4] = ["", "model.", "blip.", "module."];

/// Parts of names that differ between revisions: (canonical, other). A canonical part is replaced
/// where it occurs; `^` binds it to the start of the name.
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
    // The projections' names in early conversions: LAVIS's own.
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
pub(super) fn aliases(canonical: &str) -> Vec<String> {
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

/// The names, each with aliases of its own, under which a canonical tensor or parts and copies of
/// it may be stored.
pub(super) fn stored_names(canonical: &str) -> Vec<String> {
    let mut names = vec![canonical.to_owned()];
    names.extend(split_qkv_names(canonical).into_iter().flatten());
    if canonical == SHARED {
        names.extend(SHARED_ALIASES.map(String::from));
    }
    names
}

/// Whether a stored tensor is a buffer that inference has no use for, so that its presence and type
/// are of no interest (position numbers, the training temperature).
pub(super) fn is_ignored_buffer(name: &str) -> bool {
    name.ends_with("position_ids") || name.ends_with("num_batches_tracked") || name == "temp"
}

pub(super) fn split_qkv_names(canonical: &str) -> Option<[String; 2]> {
    let layer = canonical.strip_suffix(QKV_BIAS)?;
    Some(["q_bias", "v_bias"].map(|bias| format!("{layer}.self_attn.{bias}")))
}

/// The names that a tensor is looked for by, for the error of one that is missing.
pub(super) fn names_tried(canonical: &str) -> String {
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

#[cfg(test)]
mod tests;
