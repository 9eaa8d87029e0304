//! Index files of retrieval.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let file = blip2_wgpu_fuzz::file("index", bytes);
    let _ = blip2_wgpu::fuzzing::index(&file);
});
