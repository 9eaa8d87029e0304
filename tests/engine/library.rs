//! The library as a program uses it, and what it leaves behind: nothing.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use blip2_wgpu::generate::GenerationOverrides;
use blip2_wgpu::gpu::{Gpu, GpuOptions};
use blip2_wgpu::schedule::Request;
use blip2_wgpu::{Blip2, CaptionOptions, Error, OpenOptions, Preset, image};

use crate::common::{beams, caption, data, device, images, is_alone, open, options};
use crate::served::{Asked, Served, engine_on, pixels};

/// The device of these tests. Its holder has it alone: what is allocated on it is measured.
fn gpu() -> MutexGuard<'static, Gpu> {
    static GPU: OnceLock<Mutex<Gpu>> = OnceLock::new();
    GPU.get_or_init(|| Mutex::new(device(&GpuOptions::default())))
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

/// The example of [`Blip2`], word for word but for the paths.
async fn example() -> Result<(), Error> {
    let mut model = Blip2::open(data("tiny"), OpenOptions::default()).await?;
    let photo = image::decode_file(&data("house.png"), image::DecodePolicy::hf())?;
    let captions = model.caption(&[photo], &CaptionOptions::default()).await?;
    assert_eq!(captions.len(), 1);
    assert_eq!(
        captions[0].text,
        "mmGfrG are aresw are are threeG arella arella areed arella"
    );
    assert_eq!(captions[0].alternatives.len(), 1);
    assert!(captions[0].score < 0.0);
    Ok(())
}

#[test]
fn the_documented_example_works() {
    let _alone = gpu();
    pollster::block_on(example()).expect("a caption");
}

#[test]
fn futures_can_move_between_threads() {
    // For executors with several threads. Nothing runs here: it is enough that it builds.
    fn assert_send<T: Send>(_: &T) {}
    assert_send(&example());
    assert_send(&Blip2::open("nowhere", OpenOptions::default()));
}

#[test]
fn what_is_missing_is_named() {
    let _alone = gpu();
    let missing = pollster::block_on(Blip2::open("no/such/folder", OpenOptions::default()));
    let message = missing.expect_err("no folder").to_string();
    assert!(message.contains("no/such/folder"), "{message}");
    let options = OpenOptions {
        image_size: Some(50),
        ..OpenOptions::default()
    };
    let size = pollster::block_on(Blip2::open(data("tiny"), options));
    assert!(matches!(
        size,
        Err(Error::ImageSize {
            size: 50,
            patch: 14,
            suggestion: 56,
            ..
        })
    ));
}

#[test]
fn requests_may_share_an_image() {
    let gpu = gpu();
    // The service below `Blip2`: two texts about one image, then one about each of two, in the same state.
    let mut served = Served::of(engine_on(&gpu, &data("tiny")));
    let pixels = pixels(&data("tiny"));
    let generation = Arc::new(blip2_wgpu::generate::GenerationOptions {
        eos_token_ids: vec![202],
        ..Default::default()
    });
    let mut tokens = |requests: &[(usize, &[u32])]| -> Vec<Vec<u32>> {
        let asked = requests.iter().map(|(image, text)| Asked {
            image: Arc::clone(&pixels[*image]),
            request: Request {
                text: text.to_vec(),
                history: Vec::new(),
                options: Arc::clone(&generation),
                stop: None,
            },
        });
        let texts = served.texts(&asked.collect::<Vec<_>>(), 2).into_iter();
        texts.map(|mut texts| texts.remove(0).tokens).collect()
    };
    let (short, long) = ([2_u32].as_slice(), [2_u32, 100, 101].as_slice());
    let alone = [(0, short), (0, long), (1, short), (1, long)]
        .map(|(image, text)| tokens(&[(image, text)]).remove(0));
    assert_ne!(alone[0], alone[1]);
    assert_ne!(alone[1], alone[3]);
    for _ in 0..2 {
        let one_image = tokens(&[(0, short), (0, long)]);
        assert_eq!(one_image, alone[..2]);
        let two_images = tokens(&[(0, short), (1, long)]);
        assert_eq!(two_images, [alone[0].clone(), alone[3].clone()]);
        let crossed = tokens(&[(1, short), (0, long)]);
        assert_eq!(crossed, [alone[2].clone(), alone[1].clone()]);
        let many = tokens(&[(1, long), (0, long), (0, short), (1, short), (1, long)]);
        let expected = [3, 1, 0, 2, 3].map(|index: usize| alone[index].clone());
        assert_eq!(many, expected);
    }
}

#[test]
fn presets_ask_as_their_systems_do() {
    let gpu = gpu();
    let mut model = open(&gpu, None);
    let lavis = CaptionOptions {
        preset: Preset::Lavis,
        ..CaptionOptions::default()
    };
    let spelled_out = GenerationOverrides {
        max_new_tokens: Some(30),
        min_new_tokens: Some(1),
        ..beams(5)
    };
    let images = [crate::common::image("boat.png")];
    let expected = caption(&mut model, &images, &options("", spelled_out.clone()));
    assert_eq!(caption(&mut model, &images, &lavis), expected);
    let mmpretrain = CaptionOptions {
        preset: Preset::Mmpretrain,
        ..CaptionOptions::default()
    };
    let expected = caption(&mut model, &images, &options("a photo of", spelled_out));
    assert_eq!(caption(&mut model, &images, &mmpretrain), expected);
}

// ---- what is left behind --------------------------------------------------------------------------------------------

/// Live allocations on the device and their bytes, where the backend keeps count (Vulkan, DirectX 12).
fn device_memory(gpu: &Gpu) -> Option<(usize, u64)> {
    let report = gpu.device().generate_allocator_report()?;
    Some((report.allocations.len(), report.total_allocated_bytes))
}

#[test]
fn a_greedy_step_makes_no_gpu_object() {
    let gpu = gpu();
    let mut model = open(&gpu, None);
    let boat = crate::common::image("boat.png");
    let long = GenerationOverrides {
        max_new_tokens: Some(40),
        min_new_tokens: Some(40),
        ..GenerationOverrides::default()
    };
    let options = options("", long);
    let mut seen = Vec::new();
    let mut on_text = |_: usize, _: &str| seen.push((gpu.objects_made(), device_memory(&gpu)));
    pollster::block_on(model.caption_streaming(&[boat], &options, &mut on_text)).expect("a text");
    assert!(seen.len() > 20, "{}", seen.len());
    // The first token comes out of the prefill, whose inputs may still be in flight.
    assert!(
        seen[1..].windows(2).all(|pair| pair[0] == pair[1]),
        "{seen:?}"
    );
}

#[test]
fn a_cancelled_call_leaves_the_next_one_right() {
    let gpu = gpu();
    // Many images, so that the device is still busy when the call is dropped.
    let [houses, boats] = images().map(|image| vec![image; 24]);
    let options = CaptionOptions {
        batch_size: Some(24),
        ..CaptionOptions::default()
    };
    let expected = caption(&mut open(&gpu, None), &boats, &options);
    let mut model = open(&gpu, None);
    caption(&mut model, &houses, &options);
    // A device may all the same be done whenever it is asked (wgpu's submit waits for its poll); most runs of this test
    // do cancel a call, and none may fail for having had none to cancel.
    for _ in 0..5 {
        let mut call = std::pin::pin!(model.caption(&houses, &options));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        if call.as_mut().poll(&mut context).is_pending() {
            break;
        }
    }
    assert_eq!(caption(&mut model, &boats, &options), expected);
}

#[test]
fn repeated_captions_reuse_everything() {
    if !is_alone("library::repeated_captions_reuse_everything") {
        return;
    }
    let gpu = gpu();
    let mut model = open(&gpu, None);
    let images = [images(), images()].concat();
    // All texts end at the same step: where some end before others, fewer rows go on, and how many at a time depends on how
    // fast the device is; each number of rows has a program of its own, recorded when it is first met.
    let short = |generation| GenerationOverrides {
        min_new_tokens: Some(5),
        max_new_tokens: Some(5),
        ..generation
    };
    let drawn = GenerationOverrides {
        do_sample: Some(true),
        ..GenerationOverrides::default()
    };
    let every_way = [
        options("", short(beams(1))),
        options("a photo of", short(beams(3))),
        options("", short(drawn)),
    ];
    let mut run = |rounds: usize| {
        for _ in 0..rounds {
            for options in &every_way {
                caption(&mut model, &images, options);
            }
        }
        pollster::block_on(gpu.finish("testing")).expect("no error");
        (model.activation_bytes(), device_memory(&gpu))
    };
    let first = run(3);
    assert!(first.0 > 0);
    let resident_before = resident_bytes();
    // 17 rounds of three calls of 4 images: 204 captions.
    assert_eq!(run(17), first);
    if let (Some(before), Some(after)) = (resident_before, resident_bytes()) {
        let grown = after.saturating_sub(before);
        assert!(grown < 2 << 20, "{grown} bytes more than {before}");
    }
}

/// Memory of this process, where the system tells (Linux).
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * 4096)
}
