//! Matrices of scores in NumPy's format.
#![no_main]

use blip2_wgpu::eval::{ScoreMatrix, score_retrieval};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let file = blip2_wgpu_fuzz::file("scores.npy", bytes);
    if let Ok(matrix) = ScoreMatrix::read(&file) {
        let _ = matrix.transposed();
        let (images, texts) = (matrix.images(), matrix.texts());
        if images > 0 && texts < 1 << 12 {
            let image_of_text: Vec<usize> = (0..texts).map(|text| text % images).collect();
            let _ = score_retrieval(&matrix, None, &image_of_text);
        }
    }
});
