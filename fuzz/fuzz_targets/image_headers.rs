//! What is read of image files beside their pixels: kind, orientation in EXIF and XMP, chunks and segments.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| blip2_wgpu::fuzzing::image_headers(bytes));
