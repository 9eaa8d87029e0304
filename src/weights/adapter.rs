//! Adapters (LoRA and its kin, as `peft` saves them): they change a model, and are not applied here.
//! To pass over one would give another model's texts without a word, so a checkpoint with one is
//! refused.

use std::path::Path;

use serde::Deserialize;

use crate::files::bounded::{self, MAX_SMALL_BYTES};
use crate::files::text;

use super::error::WeightsError;
use super::files::folder_of;

/// What `peft` writes: an adapter's configuration, for which transformers looks in a model's folder, and its
/// weights.
const FILES: [&str; 3] = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
];

/// Parts of names that only tensors of adapters have, and those of a model that still wears one.
const NAME_PARTS: [&str; 22] = [
    "base_layer",
    "boft_R",
    "boft_s",
    "fourierft_spectrum",
    "hada_t1",
    "hada_w1_a",
    "hada_w1_b",
    "ia3_l",
    "internal_xlora_classifier",
    "lokr_w1",
    "lokr_w1_a",
    "lokr_w2",
    "lora_A",
    "lora_B",
    "lora_E",
    "lora_down",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_magnitude_vector",
    "modules_to_save",
    "oft_r",
    "vera_lambda_d",
];

/// Refuses the checkpoint at `path` if an adapter lies beside its weights, or is all there is.
///
/// # Errors
/// [`WeightsError::Adapter`].
pub fn refuse_adapter(path: &Path) -> Result<(), WeightsError> {
    #[derive(Default, Deserialize)]
    struct Config {
        peft_type: Option<String>,
        base_model_name_or_path: Option<String>,
    }

    let folder = folder_of(path);
    // A link that leads nowhere is there, too.
    let is_there = |name: &&&str| folder.join(name).symlink_metadata().is_ok();
    let Some(name) = FILES.iter().find(is_there) else {
        warn_of_adapters_below(&folder);
        return Ok(());
    };
    let file = folder.join(name);
    // What it says makes the message clearer; that it is there decides.
    let config = bounded::read(&folder.join(FILES[0]), MAX_SMALL_BYTES).ok();
    let config = config.and_then(|bytes| text::json::<Config>(&bytes).ok());
    let Config {
        peft_type,
        base_model_name_or_path,
    } = config.unwrap_or_default();
    Err(WeightsError::Adapter {
        file,
        kind: peft_type.unwrap_or_else(|| "of an unnamed kind".into()),
        base: base_model_name_or_path
            .map(|base| format!(", of {base}"))
            .unwrap_or_default(),
    })
}

/// Names the folders below a model's that hold adapters, as `peft` saves those that have a name.
fn warn_of_adapters_below(folder: &Path) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries {
        let file = entry.path().join(FILES[0]);
        if file.is_file() {
            log::warn!(
                "{}: an adapter, which is not applied; merge it into the weights to have it",
                file.display()
            );
        }
    }
}

/// Whether a tensor of this name belongs to an adapter, or to a model that wears one.
pub(super) fn is_of_adapter(name: &str) -> bool {
    name.split('.').any(|part| NAME_PARTS.contains(&part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_of_adapters_are_told_by_their_names() {
        for name in [
            "base_model.model.language_model.model.decoder.layers.0.self_attn.q_proj.lora_A.weight",
            "language_model.model.decoder.layers.0.self_attn.q_proj.lora_A.default.weight",
            "language_model.model.decoder.layers.0.self_attn.q_proj.base_layer.weight",
            "base_model.model.language_model.lm_head.modules_to_save.default.weight",
        ] {
            assert!(is_of_adapter(name), "{name}");
        }
        for name in [
            "query_tokens",
            "vision_model.encoder.layers.0.self_attn.qkv.weight",
        ] {
            assert!(!is_of_adapter(name), "{name}");
        }
    }
}
