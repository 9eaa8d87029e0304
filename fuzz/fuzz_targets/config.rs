//! The JSON files beside the weights: of the model, of images, of texts, of adapters.
#![no_main]

use std::path::Path;

use blip2_wgpu::generate::{GenerationOptions, GenerationOverrides, passed_over};
use blip2_wgpu::image::{Preprocessor, Rgb8Image};
use blip2_wgpu::model::Blip2Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let file = Path::new("fuzz.json");
    if let Ok(config) = Blip2Config::from_json(bytes, file) {
        let layers = config.vision.num_hidden_layers + config.qformer.num_hidden_layers;
        if layers < 8 && config.language_model().is_none() {
            let _ = config.tensors(None);
        }
    }
    if let Ok(preprocessor) = Preprocessor::from_json(bytes, "fuzz", 16) {
        let (height, width) = preprocessor.output_size(2, 3);
        let image = Rgb8Image::new(3, 2, vec![9; 18]);
        if let Some(image) = image.filter(|_| u64::from(height) * u64::from(width) < 1 << 14) {
            let _ = preprocessor.apply(&image);
        }
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = passed_over(text);
        if let Ok(overrides) = GenerationOverrides::from_json(text, file) {
            let options = GenerationOptions::default().overlay(&overrides);
            let _ = options.validate();
            let _ = options.without_effect(&overrides);
        }
    }
    blip2_wgpu_fuzz::file("adapter_config.json", bytes);
    blip2_wgpu::fuzzing::adapter(blip2_wgpu_fuzz::folder());
});
