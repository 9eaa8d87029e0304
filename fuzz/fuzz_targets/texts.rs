//! Texts in any encoding: alone, a line each, in pairs with images.
#![no_main]

use blip2_wgpu::fuzzing::{decode_text, pairs, texts};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = decode_text(bytes);
    let file = blip2_wgpu_fuzz::file("texts", bytes);
    texts(&file);
    pairs(&file);
});
