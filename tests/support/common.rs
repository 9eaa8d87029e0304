//! What the integration tests share: the tiny checkpoint (see weights-tools/README.md), its two images, captions.
#![allow(dead_code)] // each test binary uses some of it

use std::path::PathBuf;

use blip2_wgpu::generate::GenerationOverrides;
use blip2_wgpu::gpu::{Gpu, GpuOptions};
use blip2_wgpu::image::{DecodePolicy, Rgb8Image, decode_file};
use blip2_wgpu::{Blip2, Caption, CaptionOptions, OpenOptions};

/// The prompts that the committed reference values were made with.
pub const PROMPTS: [&str; 3] = ["", "a photo of", "Question: what is this? Answer:"];

/// A file or folder of `tests/data`.
pub fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

/// A device. Opening one and compiling its pipelines takes a second: tests share them.
pub fn device(options: &GpuOptions) -> Gpu {
    pollster::block_on(Gpu::open(options)).expect("the tests need an adapter: see README")
}

/// The tiny checkpoint on `device`.
pub fn open(device: &Gpu, image_size: Option<u32>) -> Blip2 {
    let options = OpenOptions {
        device: Some(device.clone()),
        image_size,
        ..OpenOptions::default()
    };
    pollster::block_on(Blip2::open(data("tiny"), options)).expect("the tiny checkpoint")
}

/// The picture `name` of `tests/data`.
pub fn image(name: &str) -> Rgb8Image {
    decode_file(&data(name), DecodePolicy::hf()).expect("a picture")
}

/// Both pictures: house, boat.
pub fn images() -> [Rgb8Image; 2] {
    ["house.png", "boat.png"].map(image)
}

/// Options for `prompt` and `generation`.
pub fn options(prompt: &str, generation: GenerationOverrides) -> CaptionOptions {
    CaptionOptions {
        prompt: Some(prompt.into()),
        generation,
        ..CaptionOptions::default()
    }
}

/// Greedy (1) or a beam search.
pub fn beams(num_beams: usize) -> GenerationOverrides {
    GenerationOverrides {
        num_beams: Some(num_beams),
        ..GenerationOverrides::default()
    }
}

/// Captions that must succeed.
#[track_caller]
pub fn caption(model: &mut Blip2, images: &[Rgb8Image], options: &CaptionOptions) -> Vec<Caption> {
    let captions = pollster::block_on(model.caption(images, options)).expect("captions");
    assert_eq!(captions.len(), images.len());
    captions
}

/// Each image captioned by itself.
#[track_caller]
pub fn caption_singly(
    model: &mut Blip2,
    images: &[Rgb8Image],
    options: &CaptionOptions,
) -> Vec<Caption> {
    let one = |image| caption(model, std::slice::from_ref(image), options);
    images.iter().flat_map(one).collect()
}

/// Asserts equal tokens, and scores that differ by at most `tolerance`, of all alternatives.
#[track_caller]
pub fn assert_captions_close(ours: &[Caption], theirs: &[Caption], tolerance: f32, what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert_eq!(ours.alternatives.len(), theirs.alternatives.len(), "{what}");
        for (a, b) in ours.alternatives.iter().zip(&theirs.alternatives) {
            assert_eq!(a.tokens, b.tokens, "{what}");
            let difference = (a.score - b.score).abs();
            assert!(
                difference <= tolerance,
                "{what}: scores {} and {} differ by {difference:e}",
                a.score,
                b.score
            );
        }
    }
}

/// Whether the calling test, of the full name `name`, has a process of its own, as measuring that process takes. If not,
/// the test is run in one, must pass there, and has nothing more to do here.
#[track_caller]
pub fn is_alone(name: &str) -> bool {
    const ALONE: &str = "BLIP2_WGPU_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let program = std::env::current_exe().expect("this program");
    let run = std::process::Command::new(program)
        .args([name, "--exact", "--nocapture"])
        .env(ALONE, "1")
        .output()
        .expect("the same program again");
    let said = String::from_utf8_lossy(&run.stdout);
    let errors = String::from_utf8_lossy(&run.stderr);
    assert!(
        run.status.success() && said.contains("1 passed"),
        "{said}{errors}"
    );
    false
}
