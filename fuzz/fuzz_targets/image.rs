//! Image files of every format, decoded as each of the three systems does; then made a tensor.
#![no_main]

use blip2_wgpu::image::{DecodePolicy, Preprocessor, decode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let policy = match bytes.len() % 3 {
        0 => DecodePolicy::hf(),
        1 => DecodePolicy::lavis(),
        _ => DecodePolicy::mmpretrain(),
    };
    if let Ok(image) = decode(bytes, "fuzz", policy) {
        let pixels = image.width() as usize * image.height() as usize;
        assert_eq!(image.data().len(), 3 * pixels);
        if pixels < 1 << 12 {
            let preprocessor = Preprocessor::blip2(8).expect("a size");
            assert_eq!(
                preprocessor.apply(&image).expect("a tensor").len(),
                3 * 8 * 8
            );
        }
    }
});
