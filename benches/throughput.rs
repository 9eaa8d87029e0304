//! Captions a second: one scene at a time, and through the queue in batches. `cargo bench --bench throughput`
//!
//! 256 pictures of the demo world (the 50 of the test data, over and over; each time prepared and encoded anew) through
//! the demo model, each way three times in turn; medians. The last columns say where the time went: host seconds around
//! each part, waiting for the device included.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use blip2_wgpu::image::{DecodePolicy, Rgb8Image, decode_file};
use blip2_wgpu::task::{Ask, ImageSource, Item, ItemEvent, RunOptions, Timings};
use blip2_wgpu::{Blip2, CaptionOptions, OpenOptions};

const IMAGES: usize = 256;
const ROUNDS: usize = 3;
const BATCHES: [usize; 6] = [1, 4, 8, 16, 32, 64];

fn main() {
    let scenes = scenes();
    let mut model =
        pollster::block_on(Blip2::demo(OpenOptions::default())).expect("a device and the demo");
    println!(
        "{} captions on {} ({})",
        IMAGES,
        model.gpu().info().name,
        model.gpu().info().driver_info
    );
    for batch in BATCHES {
        run(&mut model, &scenes, batch); // records the programs
    }
    let mut all: Vec<Vec<(Duration, Timings)>> = vec![Vec::new(); BATCHES.len()];
    for _ in 0..ROUNDS {
        for (batch, measured) in BATCHES.iter().zip(&mut all) {
            measured.push(run(&mut model, &scenes, *batch));
        }
    }
    println!("batch  images/s  ratio  decode ratio  ViT s  Q-Former s  prefill s  decode s  steps");
    let mut alone = None;
    for (batch, mut measured) in BATCHES.into_iter().zip(all) {
        measured.sort_by_key(|(total, _)| *total);
        let (total, timings) = measured[ROUNDS / 2];
        let decode = timings.decode.as_secs_f64();
        let (first, first_decode) = *alone.get_or_insert((total.as_secs_f64(), decode));
        println!(
            "{batch:5}  {:8.1}  {:5.2}  {:12.2}  {:5.2}  {:10.2}  {:9.2}  {:8.2}  {:5}",
            IMAGES as f64 / total.as_secs_f64(),
            first / total.as_secs_f64(),
            first_decode / decode,
            timings.vit.as_secs_f64(),
            timings.qformer.as_secs_f64(),
            timings.prefill.as_secs_f64(),
            decode,
            timings.steps,
        );
    }
}

fn scenes() -> Vec<Rgb8Image> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/demo");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .expect("the test data")
        .map(|entry| entry.expect("a file").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "png"))
        .collect();
    files.sort();
    let decode = |file: &std::path::PathBuf| decode_file(file, DecodePolicy::hf());
    files
        .iter()
        .map(|file| decode(file).expect("a picture"))
        .collect()
}

/// A copy of `scene` with another colour in a corner: it is prepared and encoded anew.
fn another(scene: &Rgb8Image) -> Rgb8Image {
    static COPIES: AtomicU32 = AtomicU32::new(0);
    let [low, middle, high, _] = COPIES.fetch_add(1, Ordering::Relaxed).to_le_bytes();
    let mut data = scene.data().to_vec();
    data[..3].copy_from_slice(&[low, middle, high]);
    Rgb8Image::new(scene.width(), scene.height(), data).expect("a picture")
}

fn run(model: &mut Blip2, scenes: &[Rgb8Image], batch: usize) -> (Duration, Timings) {
    let options = Arc::new(CaptionOptions::default());
    let items = (0..IMAGES).map(|number| Item {
        image: ImageSource::Decoded(Arc::new(another(&scenes[number % scenes.len()]))),
        ask: Ask::Caption(Arc::clone(&options)),
    });
    let started = Instant::now();
    let mut done = 0;
    let run = RunOptions {
        batch_size: Some(batch),
        ..RunOptions::default()
    };
    let mut events = model.run(items, run);
    pollster::block_on(async {
        while let Some(event) = events.next().await {
            if let ItemEvent::Done { .. } = event.expect("a working device") {
                done += 1;
            }
        }
    });
    drop(events);
    assert_eq!(done, IMAGES);
    (started.elapsed(), model.timings())
}
