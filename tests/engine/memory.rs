//! What is planned for before loading is what a device then holds, and what does not fit is refused with what would.

use blip2_wgpu::generate::GenerationOverrides;
use blip2_wgpu::gpu::{Gpu, GpuOptions};
use blip2_wgpu::image::Rgb8Image;
use blip2_wgpu::model::Blip2Config;
use blip2_wgpu::task::{Budget, Forecast, ImageFeaturizer, TextUse, Work};
use blip2_wgpu::weights::Checkpoint;
use blip2_wgpu::{Blip2, CaptionOptions, Error, OpenOptions, Preset, Retriever};

use crate::common::{data, images};

/// How far a plan may be off.
const TOLERANCE: f64 = 0.03;

/// Bytes of our buffers that are alive on the device: all that the allocator holds but wgpu's own.
fn held(gpu: &Gpu) -> Option<u64> {
    pollster::block_on(gpu.finish("waiting")).expect("a device that works");
    let report = gpu.device().generate_allocator_report()?;
    let ours = |name: &str| !name.contains("wgpu") && !name.starts_with("Staging");
    let mut names: std::collections::BTreeMap<&str, (usize, u64)> = Default::default();
    for allocation in &report.allocations {
        let entry = names.entry(&allocation.name).or_default();
        entry.0 += 1;
        entry.1 += allocation.size;
    }
    if std::env::var_os("SHOW_ALLOCATIONS").is_some() {
        println!("{names:#?}");
    }
    let all = names.iter().filter(|(name, _)| ours(name));
    Some(all.map(|(_, (_, bytes))| bytes).sum())
}

/// Compares what is planned with what is held.
fn check(what: &str, planned: u64, gpu: &Gpu) {
    let Some(held) = held(gpu) else {
        println!("{what}: this backend does not report what it holds");
        return;
    };
    let off = planned as f64 / held as f64 - 1.0;
    println!(
        "{what}: {planned} planned, {held} held, {:+.2} %",
        100.0 * off
    );
    assert!(
        off.abs() <= TOLERANCE,
        "{what}: {planned} planned, {held} held"
    );
}

fn forecast(gpu: &Gpu, folder: &str, batch: usize, positions: usize, beams: usize) -> u64 {
    let config = Blip2Config::open(data(folder)).expect("a config");
    let checkpoint = Checkpoint::open(data(folder)).expect("weights");
    let forecast = Forecast::new(gpu, &config, &checkpoint, None).expect("tensors");
    let plan = forecast
        .plan(None, batch, positions, beams)
        .expect("a plan");
    plan.total()
}

/// A prompt of eight tokens with its first, as plans have it, is made by repeating a word.
fn captions(folder: &str, prompt: &str, batch: usize, beams: usize, new_tokens: usize) {
    let gpu = pollster::block_on(Gpu::open(&GpuOptions::default())).expect("a device");
    let options = OpenOptions {
        device: Some(gpu.clone()),
        ..OpenOptions::default()
    };
    let mut model = pollster::block_on(Blip2::open(data(folder), options)).expect("a model");
    // An image that comes twice is encoded once: each is another.
    let house = &images()[0];
    let another = |first: u8| {
        let mut data = house.data().to_vec();
        data[0] = first;
        Rgb8Image::new(house.width(), house.height(), data).expect("as many bytes")
    };
    let many: Vec<Rgb8Image> = (0..batch as u8).map(another).collect();
    let options = CaptionOptions {
        prompt: Some(prompt.into()),
        generation: GenerationOverrides {
            max_new_tokens: Some(new_tokens),
            num_beams: Some(beams),
            ..GenerationOverrides::default()
        },
        batch_size: Some(batch),
        ..CaptionOptions::default()
    };
    pollster::block_on(model.caption(&many, &options)).expect("captions");
    let queries = model.config().num_query_tokens;
    let positions = queries + 8 + new_tokens;
    let planned = forecast(&gpu, folder, batch, positions, beams);
    check(
        &format!("{folder}, batch {batch}, beams {beams}"),
        planned,
        &gpu,
    );
}

#[test]
fn a_caption_takes_what_was_planned() {
    captions("tiny", "a a a a a a a", 1, 1, 12);
}

#[test]
fn a_batch_takes_what_was_planned() {
    captions("tiny", "a a a a a a a", 4, 1, 12);
}

#[test]
fn beams_take_what_was_planned() {
    captions("tiny", "a a a a a a a", 2, 3, 12);
}

#[test]
fn an_encoder_and_decoder_take_what_was_planned() {
    captions("tiny-t5", "a a a a a a a", 2, 1, 12);
}

#[test]
fn matching_takes_what_was_planned() {
    let gpu = pollster::block_on(Gpu::open(&GpuOptions::default())).expect("a device");
    let options = OpenOptions {
        device: Some(gpu.clone()),
        ..OpenOptions::default()
    };
    let model = pollster::block_on(Retriever::open(data("tiny-itm"), options));
    let mut model = model.expect("a model");
    let text = ["a boat on the water".to_owned()];
    let texts = model.encode_texts(&text, Preset::Hf, TextUse::Match);
    let texts = pollster::block_on(texts).expect("texts");
    let encoded = pollster::block_on(model.encode_batch(&images())).expect("images");
    let pairs = [(0, 0), (1, 0)];
    pollster::block_on(model.match_pairs(&encoded, &texts, &pairs)).expect("scores");
    check(
        "tiny-itm, batch 2",
        forecast(&gpu, "tiny-itm", 2, 8, 1),
        &gpu,
    );
}

/// Opens the image side of a generative checkpoint, which may take `memory` bytes for two images.
fn open_featurizer(gpu: &Gpu, memory: u64) -> Result<ImageFeaturizer, Error> {
    let options = OpenOptions {
        device: Some(gpu.clone()),
        memory: Some(memory),
        work: Work {
            batch_size: Some(2),
            ..Work::default()
        },
        ..OpenOptions::default()
    };
    pollster::block_on(ImageFeaturizer::open(data("tiny"), options, &mut |_, _| {}))
}

#[test]
fn image_features_alone_take_what_was_planned() {
    let gpu = pollster::block_on(Gpu::open(&GpuOptions::default())).expect("a device");
    let Err(Error::Memory(shortage)) = open_featurizer(&gpu, 1000) else {
        panic!("a thousand bytes were enough");
    };
    let needed = shortage.plan.total();
    assert!(open_featurizer(&gpu, needed - 1).is_err());
    let mut model = open_featurizer(&gpu, needed).expect("exactly enough");
    pollster::block_on(model.encode_batch(&images())).expect("features");
    check("image features, batch 2", needed, &gpu);
}

#[test]
fn a_retrieval_model_opens_with_what_it_needs_and_no_less() {
    let open = |memory| {
        let options = OpenOptions {
            memory: Some(memory),
            work: Work {
                batch_size: Some(2),
                ..Work::default()
            },
            ..OpenOptions::default()
        };
        pollster::block_on(Retriever::open(data("tiny-itm"), options))
    };
    let Err(Error::Memory(shortage)) = open(1000) else {
        panic!("a thousand bytes were enough");
    };
    let needed = shortage.plan.total();
    assert!(matches!(open(needed - 1), Err(Error::Memory(_))));
    open(needed).expect("exactly enough");
}

/// Opens a model that may take `memory` bytes for `batch` images.
fn open(folder: &str, memory: u64, batch: Option<usize>) -> Result<Blip2, Error> {
    let options = OpenOptions {
        memory: Some(memory),
        work: Work {
            batch_size: batch,
            beams: Some(1),
            new_tokens: Some(12),
        },
        ..OpenOptions::default()
    };
    pollster::block_on(Blip2::open(data(folder), options))
}

#[test]
fn what_does_not_fit_is_refused_with_what_would() {
    let Err(Error::Memory(shortage)) = open("tiny", 1000, Some(16)) else {
        panic!("a thousand bytes were enough");
    };
    let needed = shortage.plan.total();
    assert_eq!(shortage.budget, Budget::Allowed(1000));
    assert!(
        shortage.to_string().contains("1.0 KB are allowed"),
        "{shortage}"
    );

    open("tiny", needed, Some(16)).expect("exactly enough");
    let Err(Error::Memory(shortage)) = open("tiny", needed - 1, Some(16)) else {
        panic!("a byte too few was enough");
    };
    let text = shortage.to_string();
    assert!(text.contains("this fits: `batch_size`"), "{text}");
    assert!(
        shortage
            .alternatives
            .iter()
            .all(|other| other.bytes < needed)
    );
    // Where no number is asked for, the batch is what fits.
    open("tiny", needed - 1, None).expect("a smaller batch");
}
