//! Features and scores of the tiny retrieval checkpoint against transformers, on every kind of device this adapter can
//! be, and against themselves in other batches.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use blip2_wgpu::gpu::{Disabled, Gpu, GpuOptions};
use blip2_wgpu::image::Rgb8Image;
use blip2_wgpu::task::{
    Direction, Gallery, GalleryEvent, GalleryImage, GallerySource, ImageFeatures, PairScore,
    RetrieveOptions, Retrieved, TextFeatures, TextUse,
};
use blip2_wgpu::{OpenOptions, Preset, Retriever};
use safetensors::SafeTensors;

use crate::common::{data, device, images};

/// The promise is 2e-3; measured 1e-6. A value rounded to f16 anywhere shows.
const TOLERANCE: f64 = 1e-5;

/// What transformers computes (weights-tools/retrieval_dump.py).
struct Reference {
    tensors: BTreeMap<String, Vec<f32>>,
    texts: Vec<String>,
    ids: Vec<Vec<u32>>,
}

fn reference() -> &'static Reference {
    static REFERENCE: OnceLock<Reference> = OnceLock::new();
    REFERENCE.get_or_init(|| {
        let bytes = std::fs::read(data("tiny_itm_dump.safetensors")).expect("the dump");
        let (_, metadata) = SafeTensors::read_metadata(&bytes).expect("a header");
        let text = &metadata.metadata().as_ref().expect("metadata")["blip2_retrieval_reference"];
        let json: serde_json::Value = serde_json::from_str(text).expect("JSON");
        let records = json["texts"].as_array().expect("texts");
        let ids = |record: &serde_json::Value| serde_json::from_value(record["input_ids"].clone());
        let file = SafeTensors::deserialize(&bytes).expect("tensors");
        let values = |bytes: &[u8]| {
            let (words, _) = bytes.as_chunks::<4>();
            words.iter().map(|&word| f32::from_le_bytes(word)).collect()
        };
        Reference {
            tensors: file
                .iter()
                .map(|(name, view)| (name.to_owned(), values(view.data())))
                .collect(),
            texts: records
                .iter()
                .map(|record| record["text"].as_str().expect("a text").to_owned())
                .collect(),
            ids: records
                .iter()
                .map(|record| ids(record).expect("ids"))
                .collect(),
        }
    })
}

fn open(gpu: &Gpu) -> Retriever {
    let options = OpenOptions {
        device: Some(gpu.clone()),
        ..OpenOptions::default()
    };
    pollster::block_on(Retriever::open(data("tiny-itm"), options)).expect("the tiny checkpoint")
}

/// A model on the default device.
fn default_model() -> MutexGuard<'static, Retriever> {
    static MODEL: OnceLock<Mutex<Retriever>> = OnceLock::new();
    MODEL
        .get_or_init(|| Mutex::new(open(&device(&GpuOptions::default()))))
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

fn encode_images(model: &mut Retriever, images: &[Rgb8Image]) -> Vec<ImageFeatures> {
    pollster::block_on(model.encode_images(images)).expect("features")
}

fn encode_texts(model: &mut Retriever, texts: &[String]) -> Vec<TextFeatures> {
    pollster::block_on(model.encode_texts(texts, Preset::Hf, TextUse::Match)).expect("features")
}

fn all_pairs(images: usize, texts: usize) -> Vec<(usize, usize)> {
    (0..images)
        .flat_map(|image| (0..texts).map(move |text| (image, text)))
        .collect()
}

fn match_pairs(
    model: &mut Retriever,
    images: &[ImageFeatures],
    texts: &[TextFeatures],
    pairs: &[(usize, usize)],
) -> Vec<PairScore> {
    pollster::block_on(model.match_pairs(images, texts, pairs)).expect("scores")
}

#[track_caller]
fn assert_near(ours: &[f32], name: &str) {
    let theirs = &reference().tensors[name];
    assert_eq!(ours.len(), theirs.len(), "{name}");
    let difference = |(a, b): (&f32, &f32)| f64::from(a - b).powi(2);
    let error: f64 = ours.iter().zip(theirs).map(difference).sum();
    let norm: f64 = theirs.iter().map(|&b| f64::from(b).powi(2)).sum();
    let relative = (error / norm).sqrt();
    // `!good`, not `bad`: NaN must fail.
    let good = relative <= TOLERANCE;
    assert!(good, "{name}: relative error {relative:e}");
}

/// Everything that transformers computes for this checkpoint, and its scores as absolute differences.
fn check(model: &mut Retriever) {
    let reference = reference();
    let images = encode_images(model, &images());
    let texts = encode_texts(model, &reference.texts);
    let joined = |part: fn(&ImageFeatures) -> &Vec<f32>| images.iter().flat_map(part).copied();
    assert_near(&joined(|i| &i.tokens).collect::<Vec<_>>(), "vit.output");
    assert_near(
        &joined(|i| &i.queries).collect::<Vec<_>>(),
        "qformer.output",
    );
    assert_near(&joined(|i| &i.features).collect::<Vec<_>>(), "image_embeds");
    for (number, text) in texts.iter().enumerate() {
        assert_eq!(text.tokens, reference.ids[number]);
        let first = |name: &str, width: usize| {
            reference.tensors[&format!("text.{number}.{name}")][..width].to_vec()
        };
        for (ours, theirs) in [
            (&text.cls, first("output", text.cls.len())),
            (&text.features, first("text_embeds", text.features.len())),
        ] {
            for (a, b) in ours.iter().zip(theirs) {
                assert!((a - b).abs() < 2e-5, "text {number}: {a} {b}");
            }
        }
    }
    let pairs = all_pairs(images.len(), texts.len());
    let scores = match_pairs(model, &images, &texts, &pairs);
    let logits: Vec<f32> = scores.iter().flat_map(|score| score.itm_logits).collect();
    assert_near(&logits, "itm");
    let itc: Vec<f32> = scores.iter().map(|score| score.itc).collect();
    assert_near(&itc, "itc");
    for (score, logits) in scores.iter().zip(reference.tensors["itm"].chunks(2)) {
        let [no, yes] = [logits[0], logits[1]].map(f32::exp);
        assert!((score.itm - yes / (no + yes)).abs() < 1e-5, "{score:?}");
    }
}

#[test]
fn equals_transformers() {
    check(&mut default_model());
}

#[test]
fn equals_transformers_on_lesser_devices() {
    let without = |f16, subgroups, limits| Disabled {
        f16,
        subgroups,
        limits,
    };
    for disabled in [
        without(true, false, false),
        without(false, true, false),
        without(false, false, true),
        without(true, true, true),
    ] {
        let options = GpuOptions {
            disabled,
            ..GpuOptions::default()
        };
        check(&mut open(&device(&options)));
    }
}

#[test]
fn equals_transformers_with_checked_shaders_and_split_weights() {
    check(&mut open(&device(&GpuOptions {
        checked: true,
        max_part_bytes: Some(5296),
        ..GpuOptions::default()
    })));
}

/// So many texts of many lengths.
fn many_texts(count: usize) -> Vec<String> {
    let words: Vec<&str> = reference()
        .texts
        .iter()
        .flat_map(|text| text.split(' '))
        .collect();
    (0..count)
        .map(|text| {
            let of_text = (0..1 + text * 7 % 31).map(|word| words[(text + 3 * word) % words.len()]);
            of_text.collect::<Vec<_>>().join(" ")
        })
        .collect()
}

/// The two pictures, and parts of them.
fn many_images(count: usize) -> Vec<Rgb8Image> {
    let cropped = |image: &Rgb8Image, rows: u32| {
        let bytes = (image.width() * 3 * rows) as usize;
        Rgb8Image::new(image.width(), rows, image.data()[..bytes].to_vec()).expect("an image")
    };
    let [house, boat] = images();
    (0..count as u32)
        .map(|i| cropped(if i % 2 == 0 { &house } else { &boat }, 48 - i))
        .collect()
}

/// Bit by bit: on a device whose kernels for few rows add in another order, too.
fn check_batches(model: &mut Retriever) {
    let (images, texts) = (many_images(5), many_texts(40));
    let images = encode_images(model, &images);
    for (index, image) in many_images(5).iter().enumerate() {
        let alone = encode_images(model, std::slice::from_ref(image));
        assert_eq!(alone[0], images[index], "image {index}");
    }
    let encoded = encode_texts(model, &texts);
    for (index, text) in texts.iter().enumerate() {
        let alone = encode_texts(model, std::slice::from_ref(text));
        assert_eq!(alone[0], encoded[index], "text {text:?}");
    }
    let pairs = all_pairs(images.len(), encoded.len());
    let scores = match_pairs(model, &images, &encoded, &pairs);
    for (&pair, score) in pairs.iter().zip(&scores).step_by(9) {
        let alone = match_pairs(model, &images, &encoded, &[pair]);
        assert_eq!(alone[0], *score, "{pair:?}");
    }
    // Pairs in another order, images mixed.
    let turned: Vec<_> = pairs.iter().copied().rev().step_by(3).collect();
    let again = match_pairs(model, &images, &encoded, &turned);
    let expected: Vec<_> = scores.iter().copied().rev().step_by(3).collect();
    assert_eq!(again, expected);
}

#[test]
fn a_score_does_not_depend_on_its_batch() {
    check_batches(&mut default_model());
    let least = device(&GpuOptions {
        disabled: Disabled {
            f16: true,
            subgroups: true,
            limits: true,
        },
        ..GpuOptions::default()
    });
    check_batches(&mut open(&least));
}

/// Images of a folder, as files.
fn gallery_images(folder: &std::path::Path, count: usize) -> Vec<GalleryImage> {
    let bytes = ["house.png", "boat.png"].map(|name| std::fs::read(data(name)).expect("a file"));
    (0..count)
        .map(|i| {
            // Bytes after a PNG's end do no harm and make each file another one.
            let path = folder.join(format!("{i:02}.png"));
            std::fs::write(&path, [&bytes[i % 2][..], &[i as u8]].concat()).expect("written");
            GalleryImage {
                name: path.display().to_string(),
                source: GallerySource::Path(path),
            }
        })
        .collect()
}

fn encode_gallery(
    model: &mut Retriever,
    images: Vec<GalleryImage>,
    index: Option<&std::path::Path>,
    batch_size: usize,
) -> Result<(Gallery, usize), blip2_wgpu::Error> {
    let mut known = 0;
    let policy = Preset::Hf.decode_policy();
    let mut on_event = |event: GalleryEvent<'_>| match event {
        GalleryEvent::Known(count) => known = count,
        GalleryEvent::Encoded(_) => {}
        GalleryEvent::Bad(error) => panic!("{error}"),
    };
    let gallery = Gallery::encode(model, images, policy, index, batch_size, &mut on_event);
    pollster::block_on(gallery).map(|gallery| (gallery, known))
}

fn retrieve(
    model: &mut Retriever,
    gallery: &mut Gallery,
    texts: &[TextFeatures],
    options: &RetrieveOptions,
) -> Vec<Vec<Retrieved>> {
    pollster::block_on(model.retrieve(gallery, texts, options, &mut |_, _| {})).expect("finds")
}

#[test]
fn a_search_ranks_by_both_scores() {
    let mut model = default_model();
    let folder = tempfile::tempdir().expect("a folder");
    let texts = encode_texts(&mut model, &reference().texts);
    let images = gallery_images(folder.path(), 2);
    let (mut gallery, _) = encode_gallery(&mut model, images, None, 8).expect("a gallery");
    let (itc, itm) = (&reference().tensors["itc"], &reference().tensors["itm"]);
    for (direction, queries, candidates) in [
        (Direction::ImageToText, 2, 5),
        (Direction::TextToImage, 5, 2),
    ] {
        for (top_k, rerank) in [(128, true), (2, true), (128, false)] {
            let options = RetrieveOptions {
                direction,
                top_k,
                rerank,
                batch_size: Some(1),
            };
            let found = retrieve(&mut model, &mut gallery, &texts, &options);
            assert_eq!(found.len(), queries);
            for (query, found) in found.iter().enumerate() {
                let pair = |candidate: usize| match direction {
                    Direction::ImageToText => query * 5 + candidate,
                    Direction::TextToImage => candidate * 5 + query,
                };
                // By transformers' scores: the best by ITC, then sorted by the sum.
                let mut expected: Vec<usize> = (0..candidates).collect();
                expected.sort_by(|&a, &b| itc[pair(b)].total_cmp(&itc[pair(a)]));
                expected.truncate(top_k);
                let score = |&candidate: &usize| {
                    let matching = if rerank {
                        itm[2 * pair(candidate) + 1]
                    } else {
                        0.0
                    };
                    itc[pair(candidate)] + matching
                };
                expected.sort_by(|a, b| score(b).total_cmp(&score(a)));
                let items: Vec<usize> = found.iter().map(|find| find.item).collect();
                assert_eq!(items, expected);
                for find in found {
                    assert!((find.score - score(&find.item)).abs() < 1e-4, "{find:?}");
                    assert!((find.itc - itc[pair(find.item)]).abs() < 1e-5, "{find:?}");
                    assert_eq!(find.itm.is_some(), rerank);
                }
            }
        }
    }
}

#[test]
fn an_index_gives_the_same_finds_and_encodes_nothing_twice() {
    let mut model = default_model();
    let folder = tempfile::tempdir().expect("a folder");
    let index = folder.path().join("images.index");
    let texts = encode_texts(&mut model, &many_texts(20));
    let images = gallery_images(folder.path(), 7);
    let options = RetrieveOptions {
        direction: Direction::TextToImage,
        top_k: 4,
        ..RetrieveOptions::default()
    };
    let mut search = |images: &[GalleryImage], index: Option<&std::path::Path>, batch| {
        let before = model.images_encoded();
        let images = images.to_vec();
        let (mut gallery, known) = encode_gallery(&mut model, images, index, batch)?;
        let found = retrieve(&mut model, &mut gallery, &texts, &options);
        Ok::<_, blip2_wgpu::Error>((found, known, model.images_encoded() - before))
    };
    let (plain, ..) = search(&images, None, 3).expect("finds");
    // Five images first; two more later, between the others.
    let few: Vec<_> = images
        .iter()
        .filter(|image| !image.name.ends_with("1.png"))
        .cloned()
        .collect();
    assert_eq!(few.len(), 6);
    let (_, known, encoded) = search(&few, Some(&index), 4).expect("finds");
    assert_eq!((known, encoded), (0, 6));
    let (found, known, encoded) = search(&images, Some(&index), 2).expect("finds");
    assert_eq!((known, encoded), (6, 1));
    assert_eq!(found, plain);
    let (found, known, encoded) = search(&images, Some(&index), 8).expect("finds");
    assert_eq!((known, encoded), (7, 0));
    assert_eq!(found, plain);
    // An image that changed.
    let GallerySource::Path(path) = &images[3].source else {
        panic!("a file");
    };
    std::fs::copy(data("boat.png"), path).expect("copied");
    let error = search(&images, Some(&index), 8)
        .expect_err("refused")
        .to_string();
    assert!(
        error.contains("03.png") && error.contains("has changed"),
        "{error}"
    );
}

#[test]
fn an_index_of_another_model_is_refused() {
    let mut model = default_model();
    let folder = tempfile::tempdir().expect("a folder");
    let index = folder.path().join("images.index");
    let images = gallery_images(folder.path(), 2);
    encode_gallery(&mut model, images.clone(), Some(&index), 8).expect("a gallery");
    // One bit of one weight differs.
    let other = folder.path().join("model");
    std::fs::create_dir(&other).expect("a folder");
    for file in std::fs::read_dir(data("tiny-itm")).expect("the checkpoint") {
        let file = file.expect("an entry").path();
        std::fs::copy(&file, other.join(file.file_name().expect("a name"))).expect("a copy");
    }
    let weights = other.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).expect("weights");
    let (length, metadata) = SafeTensors::read_metadata(&bytes).expect("a header");
    let info = metadata
        .info("vision_model.encoder.layers.1.mlp.fc1.weight")
        .expect("a tensor");
    bytes[8 + length + info.data_offsets.0 + 11] ^= 1;
    std::fs::write(&weights, bytes).expect("written");
    let options = OpenOptions {
        device: Some(model.gpu().clone()),
        ..OpenOptions::default()
    };
    let mut other = pollster::block_on(Retriever::open(&other, options)).expect("a model");
    let error = encode_gallery(&mut other, images, Some(&index), 8).expect_err("refused");
    assert!(error.to_string().contains("another model"), "{error}");
}

#[test]
fn long_and_odd_texts() {
    let mut model = default_model();
    let most = model.config().qformer.max_position_embeddings;
    let mut tokens = |text: &str, preset, text_use| {
        let texts = pollster::block_on(model.encode_texts(&[text], preset, text_use))?;
        assert!(texts[0].features.iter().all(|value| value.is_finite()));
        Ok::<_, blip2_wgpu::Error>(texts[0].tokens.clone())
    };
    let long = "a red boat ".repeat(3400);
    for (preset, text_use, kept) in [
        (Preset::Hf, TextUse::Match, most),
        (Preset::Lavis, TextUse::Match, 32),
        (Preset::Lavis, TextUse::Retrieve, 35),
        (Preset::Mmpretrain, TextUse::Match, 35),
    ] {
        let ids = tokens(&long, preset, text_use).expect("cut");
        assert_eq!(ids.len(), kept);
        let short = tokens("a", preset, text_use).expect("short");
        assert_eq!(ids.last(), short.last(), "[SEP] ends it");
    }
    for odd in ["🦊🚲", "a\0b", "\u{feff}été", "a\u{301}"] {
        tokens(odd, Preset::Hf, TextUse::Match).expect("a text");
    }
    for empty in ["", "  \n", "\0"] {
        let error = tokens(empty, Preset::Hf, TextUse::Match).expect_err("empty");
        assert!(error.to_string().contains("is empty"), "{error}");
    }
    let error = tokens("?!", Preset::Mmpretrain, TextUse::Match).expect_err("empty");
    assert!(error.to_string().contains("is empty"), "{error}");
}

#[test]
fn a_generative_checkpoint_is_named() {
    let options = OpenOptions {
        device: Some(default_model().gpu().clone()),
        ..OpenOptions::default()
    };
    let error = pollster::block_on(Retriever::open(data("tiny"), options)).expect_err("refused");
    let error = error.to_string();
    for part in ["generative", "blip2-itm-vit-g", "tiny"] {
        assert!(error.contains(part), "{error}");
    }
}
