//! Datasets of captions and questions, in every layout: JSON, a line an object, tables, `.token`.
#![no_main]

use blip2_wgpu::eval::{CaptionData, QuestionData, read_image_of_text};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let file = blip2_wgpu_fuzz::file("annotations", bytes);
    if let Ok(data) = CaptionData::read(&file, "test") {
        let _ = (data.captions(), data.image_of_text());
    }
    if let Ok(data) = QuestionData::read(&file) {
        let _ = data.with_questions(&file);
    }
    let _ = read_image_of_text(&file, "test");
});
