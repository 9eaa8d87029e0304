//! The demo model: a small BLIP-2 trained from scratch on a world of drawn shapes, part of the program.
//!
//! `weights-tools/train` makes it; the files are those of a published checkpoint's folder.

/// The files of a demo model, by the names they have in a checkpoint's folder.
pub(crate) struct DemoFiles {
    pub config: &'static str,
    pub generation_config: &'static str,
    pub preprocessor_config: &'static str,
    pub tokenizer: &'static str,
    pub weights: &'static [u8],
}

/// The generative model: captions and answers.
pub(crate) static GENERATIVE: DemoFiles = DemoFiles {
    config: include_str!("../demo/config.json"),
    generation_config: include_str!("../demo/generation_config.json"),
    preprocessor_config: include_str!("../demo/preprocessor_config.json"),
    tokenizer: include_str!("../demo/tokenizer.json"),
    weights: include_bytes!("../demo/model.safetensors"),
};

/// The retrieval model: features and scores of images and texts. It has nothing to generate with.
pub(crate) static RETRIEVAL: DemoFiles = DemoFiles {
    config: include_str!("../demo/retrieval/config.json"),
    generation_config: "{}",
    preprocessor_config: include_str!("../demo/retrieval/preprocessor_config.json"),
    tokenizer: include_str!("../demo/retrieval/tokenizer.json"),
    weights: include_bytes!("../demo/retrieval/model.safetensors"),
};
