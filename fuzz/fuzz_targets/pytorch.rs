//! Files that `torch.save` wrote: zip archives, and the format before them.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| blip2_wgpu_fuzz::weights("weights.pth", bytes));
