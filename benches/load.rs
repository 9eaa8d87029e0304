//! How fast weights reach the device: `cargo bench --bench load -- FOLDER`
//!
//! In turn, with a warm page cache: reading every byte of the files once into a small buffer (what `cat` does), copying
//! them into fresh memory with all threads (what any loader must do where the device's memory is the host's), and loading
//! the model. The last two leave nothing behind; each is done twice.

use std::fs::File;
use std::io::Read;
use std::time::Instant;

use blip2_wgpu::weights::Checkpoint;
use blip2_wgpu::{Blip2, OpenOptions};
use rayon::prelude::*;

fn main() {
    let Some(folder) = std::env::args()
        .skip(1)
        .find(|word| !word.starts_with("--"))
    else {
        println!("name a checkpoint folder: cargo bench --bench load -- FOLDER");
        return;
    };
    let checkpoint = Checkpoint::open(&folder).expect("a checkpoint");
    read(&checkpoint); // warms the page cache
    for _ in 0..2 {
        let bytes = checkpoint.total_bytes();
        let rate = |name: &str, started: Instant| {
            let seconds = started.elapsed().as_secs_f64();
            let rate = bytes as f64 / seconds / 1e9;
            println!("{name:<28} {seconds:6.2} s  {rate:6.2} GB/s");
            rate
        };
        let started = Instant::now();
        read(&checkpoint);
        let reading = rate("read once", started);
        let started = Instant::now();
        copy(&checkpoint);
        let copying = rate("copy to fresh memory", started);
        let started = Instant::now();
        let model = pollster::block_on(Blip2::open(&folder, OpenOptions::default()));
        let loading = rate("load", started);
        println!(
            "load: {:.0} % of reading, {:.0} % of copying, on {}",
            100.0 * loading / reading,
            100.0 * loading / copying,
            model.expect("it loads").gpu().info().name
        );
    }
}

fn read(checkpoint: &Checkpoint) {
    let mut buffer = vec![0; 128 << 10];
    for path in checkpoint.files() {
        let mut file = File::open(path).expect("readable");
        while file.read(&mut buffer).expect("readable") > 0 {}
    }
}

/// Copies all tensors, a buffer each; they live together, as a model's do.
fn copy(checkpoint: &Checkpoint) {
    let tensors: Vec<_> = checkpoint.tensors().collect();
    let copies: Vec<Vec<u8>> = tensors
        .par_iter()
        .with_max_len(1)
        .map(|tensor| tensor.bytes.to_vec())
        .collect();
    std::hint::black_box(&copies);
}
