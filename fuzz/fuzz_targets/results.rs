//! Results of others, and what a run before has left: predictions, results files and their records.
#![no_main]

use blip2_wgpu::eval::Results;
use blip2_wgpu::fuzzing::{earlier_results, predictions};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let file = blip2_wgpu_fuzz::file("results", bytes);
    for results in [Results::read_captions(&file), Results::read_answers(&file)] {
        if let Ok(results) = results {
            let ids: Vec<_> = results.texts.iter().map(|(id, _)| id).collect();
            assert!(results.join(ids, &file).unknown.is_empty());
        }
    }
    predictions(&file);
    blip2_wgpu_fuzz::file("results.run.json", bytes);
    earlier_results(&file);
});
