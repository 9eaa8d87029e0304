//! The configuration of a BLIP-2 model: `config.json` in the Hugging Face layout.
//!
//! Fields that a file leaves out have the defaults of transformers 5's `Blip2Config`,
//! `Blip2VisionConfig`, `Blip2QFormerConfig`, `OPTConfig` and `T5Config`; what this program cannot
//! run is an error here, before any weight is read.

mod fields;
mod language;
mod quantised;

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::files::bounded::{self, MAX_SMALL_BYTES};
use crate::files::text;
use crate::gpu::WeightFormat;
use crate::kernels::MAX_NORM_WIDTH;

pub use fields::ConfigError;
use fields::Section;
pub use language::{DecoderConfig, LanguageConfig, OptConfig, T5Config};
pub use quantised::QUANT_METHOD;
use quantised::quantised;

/// Widths must be multiples of this: kernels read f16 rows 16 bytes at a time.
pub const WIDTH_MULTIPLE: usize = 8;

/// Heads the attention kernels have room for.
const MAX_HEAD: usize = 128;
/// Heads must be multiples of this: kernels read f32 rows 16 bytes at a time.
const HEAD_MULTIPLE: usize = 4;

// Limits far above any published model, low enough that no product of sizes overflows 64 bits.
const MAX_WIDTH: usize = 1 << 16;
const MAX_INNER_WIDTH: usize = 1 << 18;
const MAX_LAYERS: usize = 1 << 10;
const MAX_VOCABULARY: usize = 1 << 24;
const MAX_POSITIONS: usize = 1 << 20;
const MAX_IMAGE: usize = 1 << 12;
const MAX_QUERIES: usize = 1 << 12;

const USE_BLIP2: &str = "use a BLIP-2 checkpoint such as Salesforce/blip2-opt-2.7b";

/// The function between the two matrices of a feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x·Φ(x), with the error function.
    GeluErf,
    /// GELU's approximation through tanh.
    GeluTanh,
    /// max(x, 0).
    Relu,
}

/// The vision transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct VisionConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward blocks.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Attention heads a block.
    pub num_attention_heads: usize,
    /// Height and width of the image in pixels.
    pub image_size: usize,
    /// Height and width of a patch in pixels.
    pub patch_size: usize,
    /// Activation of the feed-forward blocks.
    pub hidden_act: Activation,
    /// Epsilon of all layer norms, the last included.
    pub layer_norm_eps: f32,
    /// Whether the fused query-key-value matrix has a bias (its key part is zero).
    pub qkv_bias: bool,
}

/// The querying transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct QFormerConfig {
    /// Text vocabulary (retrieval models).
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Attention heads a layer, in self- and cross-attention.
    pub num_attention_heads: usize,
    /// Width inside the feed-forward blocks.
    pub intermediate_size: usize,
    /// Activation of the feed-forward blocks.
    pub hidden_act: Activation,
    /// Text positions (retrieval models).
    pub max_position_embeddings: usize,
    /// Epsilon of all layer norms.
    pub layer_norm_eps: f32,
    /// Layer i has cross-attention if i is a multiple of this.
    pub cross_attention_frequency: usize,
    /// Width of the image tokens that cross-attention reads: that of the vision transformer,
    /// always.
    pub encoder_hidden_size: usize,
}

/// What a model is for, and what only such a model has.
#[derive(Clone, Debug, PartialEq)]
pub enum Head {
    /// Captions and answers: a language model behind the Q-Former.
    Generation(LanguageConfig),
    /// Image-text matching and retrieval: a text branch in the Q-Former and projections to a common
    /// space.
    Retrieval {
        /// Width of the common space (`image_text_hidden_size`).
        embedding_size: usize,
    },
}

/// A whole BLIP-2 model.
#[derive(Clone, Debug, PartialEq)]
pub struct Blip2Config {
    /// The vision transformer.
    pub vision: VisionConfig,
    /// The querying transformer.
    pub qformer: QFormerConfig,
    /// Language model or retrieval heads.
    pub head: Head,
    /// Learned queries: tokens an image becomes for the language model.
    pub num_query_tokens: usize,
    /// Id of the `<image>` placeholder; absent from old revisions, whose prompts have no
    /// placeholders.
    pub image_token_index: Option<u32>,
    /// The format that `convert` has stored the weights in, where it quantised them.
    pub quantised: Option<WeightFormat>,
}

impl Blip2Config {
    /// Reads `config.json` of a model folder, or the one beside a model file.
    ///
    /// # Errors
    /// File missing or no JSON; any field wrong or not supported. All name the file and, where it
    /// is one, the field.
    pub fn open(model: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let model = model.as_ref();
        let folder = if model.is_file() {
            model.parent().unwrap_or(Path::new("."))
        } else {
            model
        };
        let file = folder.join("config.json");
        let read = |cause| ConfigError::Read {
            file: file.clone(),
            cause,
        };
        let text = bounded::read(&file, MAX_SMALL_BYTES).map_err(read)?;
        Self::from_json(&text, &file)
    }

    /// Parses the text of a `config.json`; `file` is for the errors.
    ///
    /// # Errors
    /// As [`Blip2Config::open`].
    pub fn from_json(text: &[u8], file: &Path) -> Result<Self, ConfigError> {
        let json = |problem: String| ConfigError::Json {
            file: PathBuf::from(file),
            problem,
        };
        let value: Value = text::json(text).map_err(|cause| json(cause.to_string()))?;
        let Value::Object(fields) = &value else {
            return Err(json("it holds no object".into()));
        };
        let root = Section {
            file,
            prefix: "",
            fields,
        };
        let empty = serde_json::Map::new();
        let part = |field, prefix| {
            let default = Section {
                file,
                prefix,
                fields: &empty,
            };
            root.section(field, prefix)
                .map(|section| section.unwrap_or(default))
        };
        check_model_type(&root)?;
        let vision = VisionConfig::read(&part("vision_config", "vision_config.")?)?;
        let qformer_section = part("qformer_config", "qformer_config.")?;
        let qformer = QFormerConfig::read(&qformer_section, vision.hidden_size)?;
        let head = if is_retrieval(&root, &qformer_section)? {
            let embedding_size = root.size("image_text_hidden_size", 256, MAX_WIDTH)?;
            check_width(&root, "image_text_hidden_size", embedding_size)?;
            Head::Retrieval { embedding_size }
        } else {
            Head::Generation(LanguageConfig::read(&part("text_config", "text_config.")?)?)
        };
        let image_token = if root.get("image_token_index").is_some() {
            "image_token_index"
        } else {
            "image_token_id"
        };
        Ok(Self {
            vision,
            qformer,
            head,
            num_query_tokens: root.size("num_query_tokens", 32, MAX_QUERIES)?,
            image_token_index: root.token(image_token)?,
            quantised: quantised(&root)?,
        })
    }

    /// The language model, if this is a generative model.
    pub fn language_model(&self) -> Option<&LanguageConfig> {
        match &self.head {
            Head::Generation(language) => Some(language),
            Head::Retrieval { .. } => None,
        }
    }
}

impl VisionConfig {
    fn read(section: &Section) -> Result<Self, ConfigError> {
        let config = Self {
            hidden_size: section.size("hidden_size", 1408, MAX_NORM_WIDTH)?,
            intermediate_size: section.size("intermediate_size", 6144, MAX_INNER_WIDTH)?,
            num_hidden_layers: section.size("num_hidden_layers", 39, MAX_LAYERS)?,
            num_attention_heads: section.size("num_attention_heads", 16, MAX_WIDTH)?,
            image_size: section.square("image_size", 224, MAX_IMAGE)?,
            patch_size: section.square("patch_size", 14, MAX_IMAGE)?,
            hidden_act: activation(section, "hidden_act", Activation::GeluErf)?,
            layer_norm_eps: section.epsilon("layer_norm_eps", 1e-6)?,
            qkv_bias: section.flag("qkv_bias", true)?,
        };
        check_heads(section, config.hidden_size, config.num_attention_heads)?;
        check_width(section, "intermediate_size", config.intermediate_size)?;
        if !config.image_size.is_multiple_of(config.patch_size) {
            let problem = format!(
                "does not divide image_size {}; restore both as published",
                config.image_size
            );
            return Err(section.error_with_value("patch_size", config.patch_size, problem));
        }
        if section.size("num_channels", 3, MAX_WIDTH)? != 3 {
            return Err(section.error(
                "num_channels",
                format!("only 3 (RGB) is supported; {USE_BLIP2}"),
            ));
        }
        Ok(config)
    }

    /// Elements an attention head has.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// Patches along one side of the image.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Tokens an image becomes: the class token and the patches.
    pub fn tokens(&self) -> usize {
        1 + self.grid() * self.grid()
    }

    /// Values in a patch: 3 × height × width, the inner size of the patch embedding. Need not be a
    /// multiple of 8.
    pub fn patch_elements(&self) -> usize {
        3 * self.patch_size * self.patch_size
    }
}

impl QFormerConfig {
    fn read(section: &Section, encoder_hidden_size: usize) -> Result<Self, ConfigError> {
        let config = Self {
            vocab_size: section.size("vocab_size", 30522, MAX_VOCABULARY)?,
            hidden_size: section.size("hidden_size", 768, MAX_NORM_WIDTH)?,
            num_hidden_layers: section.size("num_hidden_layers", 12, MAX_LAYERS)?,
            num_attention_heads: section.size("num_attention_heads", 12, MAX_WIDTH)?,
            intermediate_size: section.size("intermediate_size", 3072, MAX_INNER_WIDTH)?,
            hidden_act: activation(section, "hidden_act", Activation::GeluErf)?,
            max_position_embeddings: section.size("max_position_embeddings", 512, MAX_POSITIONS)?,
            layer_norm_eps: section.epsilon("layer_norm_eps", 1e-12)?,
            cross_attention_frequency: section.size("cross_attention_frequency", 2, MAX_LAYERS)?,
            // transformers overwrites what the file says with the width of the vision transformer.
            encoder_hidden_size,
        };
        check_heads(section, config.hidden_size, config.num_attention_heads)?;
        check_width(section, "intermediate_size", config.intermediate_size)?;
        match section.text("position_embedding_type")? {
            None | Some("absolute") => Ok(config),
            Some(_) => Err(section.error(
                "position_embedding_type",
                format!("only \"absolute\" is supported; {USE_BLIP2}"),
            )),
        }
    }

    /// Elements an attention head has.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// Whether layer `layer` attends to the image.
    pub fn has_cross_attention(&self, layer: usize) -> bool {
        layer.is_multiple_of(self.cross_attention_frequency)
    }
}

/// Refuses files of other model families.
fn check_model_type(root: &Section) -> Result<(), ConfigError> {
    match root.text("model_type")? {
        Some("blip-2") => Ok(()),
        // Hand-written files: a Q-Former makes it plain enough.
        None if root.get("qformer_config").is_some() => Ok(()),
        None => Err(root.error("model_type", format!("must be \"blip-2\"; {USE_BLIP2}"))),
        Some("instructblip" | "blip") => Err(root.error(
            "model_type",
            format!("InstructBLIP and BLIP 1 are other models than BLIP-2; {USE_BLIP2}"),
        )),
        Some("opt") => Err(root.error(
            "model_type",
            format!("this is a language model alone, without the vision parts; {USE_BLIP2}"),
        )),
        Some(_) => Err(root.error(
            "model_type",
            format!("only \"blip-2\" is supported; {USE_BLIP2}"),
        )),
    }
}

/// Whether the file describes a retrieval model: by its `architectures`, else by the Q-Former's
/// text branch.
fn is_retrieval(root: &Section, qformer: &Section) -> Result<bool, ConfigError> {
    let names = match root.get("architectures") {
        None => return qformer.flag("use_qformer_text_input", false),
        Some(Value::Array(names)) if !names.is_empty() => names,
        Some(_) => {
            return Err(root.error(
                "architectures",
                "must be a list of class names; restore it as published",
            ));
        }
    };
    for name in names {
        match name.as_str() {
            Some("Blip2ForConditionalGeneration" | "Blip2Model") => return Ok(false),
            Some("Blip2ForImageTextRetrieval") => return Ok(true),
            _ => {}
        }
    }
    let known = "expected Blip2ForConditionalGeneration or Blip2ForImageTextRetrieval";
    Err(root.error("architectures", format!("{known}; {USE_BLIP2}")))
}

fn activation(
    section: &Section,
    field: &str,
    default: Activation,
) -> Result<Activation, ConfigError> {
    match section.text(field)? {
        None => Ok(default),
        Some("gelu") => Ok(Activation::GeluErf),
        Some("gelu_new" | "gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
        Some("relu") => Ok(Activation::Relu),
        Some(_) => {
            let problem = format!(
                "unknown activation; known are gelu, gelu_new, gelu_pytorch_tanh and relu; {USE_BLIP2}"
            );
            Err(section.error(field, problem))
        }
    }
}

fn check_width(section: &Section, field: &str, width: usize) -> Result<(), ConfigError> {
    if width.is_multiple_of(WIDTH_MULTIPLE) {
        return Ok(());
    }
    let problem = format!("widths must be multiples of {WIDTH_MULTIPLE}; {USE_BLIP2}");
    Err(section.error_with_value(field, width, problem))
}

/// Checks that `hidden_size` is a width that splits into heads of even size.
fn check_heads(section: &Section, hidden_size: usize, heads: usize) -> Result<(), ConfigError> {
    check_width(section, "hidden_size", hidden_size)?;
    let problem = if !hidden_size.is_multiple_of(heads) {
        format!("does not divide hidden_size {hidden_size}; restore both as published")
    } else if !(hidden_size / heads).is_multiple_of(HEAD_MULTIPLE) {
        format!(
            "gives heads of {} elements, which must be a multiple of {HEAD_MULTIPLE}; {USE_BLIP2}",
            hidden_size / heads
        )
    } else if hidden_size / heads > MAX_HEAD {
        format!(
            "gives heads of {} elements, at most {MAX_HEAD} are supported; {USE_BLIP2}",
            hidden_size / heads
        )
    } else {
        return Ok(());
    };
    Err(section.error_with_value("num_attention_heads", heads, problem))
}

#[cfg(test)]
mod tests;
