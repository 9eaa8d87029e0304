//! Pickles' instructions, and the tensors that they tell of.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = blip2_wgpu::fuzzing::pickle(bytes);
});
