//! The files of a tokenizer without `tokenizer.json`, parted by zero bytes: three of special tokens, then
//! `vocab.json` and `merges.txt`, then `vocab.txt`.
#![no_main]

use blip2_wgpu::text::{BertTokenizer, PromptMark, Tokenizer};
use libfuzzer_sys::fuzz_target;

const FILES: [&str; 6] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
];

const TEXT: &str = "A photo of two cats, 1 caf\u{e9} \u{1F431}\n</s>";

fuzz_target!(init: blip2_wgpu_fuzz::let_panics_pass(&["/tokenizers-", "/spm_precompiled-"]), |bytes: &[u8]| {
    let mut parts = blip2_wgpu_fuzz::parts(bytes);
    for name in FILES {
        blip2_wgpu_fuzz::file(name, parts.next().unwrap_or(b"{}"));
    }
    let folder = blip2_wgpu_fuzz::folder();
    if let Ok(tokenizer) = Tokenizer::open(folder, PromptMark::First(2)) {
        let ids = tokenizer.encode(TEXT).unwrap_or_default();
        let _ = tokenizer.decode(&ids, true);
    }
    if let Ok(tokenizer) = BertTokenizer::open(folder) {
        let _ = tokenizer.encode(TEXT, Some(8));
    }
});
