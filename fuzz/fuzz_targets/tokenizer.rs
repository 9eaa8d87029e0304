//! `tokenizer.json` of each kind, and a text there and back.
#![no_main]

use std::path::Path;

use blip2_wgpu::text::{BertTokenizer, PromptMark, Tokenizer};
use libfuzzer_sys::fuzz_target;

const TEXT: &str = "A photo of two cats, 1 caf\u{e9} \u{1F431}\n</s>";

fuzz_target!(init: blip2_wgpu_fuzz::let_panics_pass(&["/tokenizers-", "/spm_precompiled-"]), |bytes: &[u8]| {
    let file = Path::new("tokenizer.json");
    for mark in [PromptMark::First(2), PromptMark::Last(1)] {
        if let Ok(tokenizer) = Tokenizer::from_json(bytes, file, mark) {
            let ids = tokenizer.encode(TEXT).unwrap_or_default();
            let _ = tokenizer.decode(&ids, true);
            let _ = tokenizer.decode(&[0, 1, 2, 3, u32::MAX], false);
            let _ = tokenizer.check_embedding_rows(4);
        }
    }
    if let Ok(tokenizer) = BertTokenizer::from_json(bytes, file) {
        let _ = tokenizer.encode(TEXT, Some(8));
        let _ = tokenizer.check_embedding_rows(4);
    }
});
