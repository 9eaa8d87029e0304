//! Indexes of shards, of safetensors files and of PyTorch's.
#![no_main]

use blip2_wgpu::weights::Checkpoint;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for name in [
        "model.safetensors.index.json",
        "pytorch_model.bin.index.json",
    ] {
        let file = blip2_wgpu_fuzz::file(name, bytes);
        let _ = Checkpoint::open(blip2_wgpu_fuzz::folder());
        std::fs::remove_file(file).expect("the file just written");
    }
});
