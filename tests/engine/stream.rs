//! The stream of items as a program uses it: any number, any kind, in flat memory; dropping it cancels.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use blip2_wgpu::generate::GenerationOverrides;
use blip2_wgpu::gpu::GpuOptions;
use blip2_wgpu::task::{Ask, ImageSource, Item, ItemEvent, RunOptions, Texts};
use blip2_wgpu::{Blip2, CaptionOptions, Question, VqaOptions};

use crate::common::{caption_singly, data, device, images, open};

/// The one model of this binary.
fn model() -> MutexGuard<'static, Blip2> {
    static MODEL: OnceLock<Mutex<Blip2>> = OnceLock::new();
    MODEL
        .get_or_init(|| Mutex::new(open(&device(&GpuOptions::default()), None)))
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

fn file(name: &str) -> ImageSource {
    ImageSource::File(data(name))
}

fn caption(image: ImageSource) -> Item {
    let options = Arc::new(CaptionOptions::default());
    let ask = Ask::Caption(options);
    Item { image, ask }
}

fn question(image: ImageSource, text: &str) -> Item {
    let question = text.into();
    let options = Arc::new(VqaOptions::default());
    Item {
        image,
        ask: Ask::Question { question, options },
    }
}

/// What becomes of `items`: what was said, or the error's text; and the pieces that came before.
fn run(
    model: &mut Blip2,
    items: impl IntoIterator<Item = Item, IntoIter: Send>,
    options: RunOptions,
) -> Vec<(Result<Texts, String>, String)> {
    let mut outcomes: Vec<Option<Result<Texts, String>>> = Vec::new();
    let mut pieces: Vec<String> = Vec::new();
    let mut room = |item: usize| {
        outcomes.resize(outcomes.len().max(item + 1), None);
        pieces.resize(outcomes.len(), String::new());
    };
    let mut events = Vec::new();
    let mut stream = model.run(items, options);
    while let Some(event) = pollster::block_on(stream.next()) {
        events.push(event.expect("a working device"));
    }
    for event in &events {
        match event {
            ItemEvent::Piece { item, .. }
            | ItemEvent::Done { item, .. }
            | ItemEvent::Failed { item, .. } => room(*item),
        }
    }
    for event in events {
        match event {
            ItemEvent::Piece { item, text } => {
                assert!(outcomes[item].is_none(), "a piece after the end");
                pieces[item] += &text;
            }
            ItemEvent::Done { item, texts } => {
                assert!(outcomes[item].replace(Ok(texts)).is_none());
            }
            ItemEvent::Failed { item, error } => {
                let error = error.to_string();
                assert!(outcomes[item].replace(Err(error)).is_none());
            }
        }
    }
    let outcome = |outcome: Option<_>| outcome.expect("every item has an end");
    outcomes.into_iter().map(outcome).zip(pieces).collect()
}

#[test]
fn items_of_all_kinds_are_answered_and_bad_ones_are_named() {
    let model = &mut *model();
    let [house, boat] = images();
    let captions = caption_singly(model, &[house.clone(), boat], &CaptionOptions::default());
    let asked = [Question {
        image: 0,
        text: "what is this?".into(),
    }];
    let (house, options) = ([house], VqaOptions::default());
    let answer = pollster::block_on(model.answer(&house, &asked, &options));
    let answer = answer.expect("an answer").remove(0);

    let bytes: Arc<[u8]> = std::fs::read(data("boat.png")).expect("a file").into();
    let in_memory = ImageSource::Bytes {
        name: "boat in memory".into(),
        bytes,
    };
    let broken = ImageSource::Bytes {
        name: "broken.png".into(),
        bytes: Arc::from(*b"not an image"),
    };
    let missing = ImageSource::File(PathBuf::from("no/such/file.png"));
    let items = [
        caption(file("house.png")),
        question(missing.clone(), "what?"),
        question(file("house.png"), "what is this?"),
        question(file("house.png"), "  "),
        caption(in_memory),
        caption(broken),
        question(missing, "why?"),
        caption(file("house.png")),
    ];
    for batch_size in [Some(1), Some(3), None] {
        let options = RunOptions {
            batch_size,
            pieces: true,
        };
        let outcomes = run(model, items.clone(), options);
        assert_eq!(outcomes.len(), items.len());
        for (number, expected) in [(0, &captions[0]), (4, &captions[1]), (7, &captions[0])] {
            let (texts, pieces) = &outcomes[number];
            let texts = texts.as_ref().expect("a caption");
            assert_eq!(texts.texts[0].tokens, expected.tokens);
            assert_eq!(*pieces, expected.text);
        }
        let (texts, pieces) = &outcomes[2];
        let texts = texts.as_ref().expect("an answer");
        assert_eq!(texts.texts[0].tokens, answer.tokens);
        assert_eq!(*pieces, answer.text);
        for (number, name) in [
            (1, "no/such/file.png"),
            (3, "question"),
            (5, "broken.png"),
            (6, "no/such/file.png"),
        ] {
            let error = outcomes[number].0.as_ref().expect_err("no outcome");
            assert!(error.contains(name), "{error}");
        }
    }
    assert!(run(model, [], RunOptions::default()).is_empty());
}

#[test]
fn items_are_taken_as_there_is_room() {
    let model = &mut *model();
    let taken = AtomicUsize::new(0);
    let short = Arc::new(CaptionOptions {
        generation: GenerationOverrides {
            max_new_tokens: Some(3),
            ..GenerationOverrides::default()
        },
        ..CaptionOptions::default()
    });
    let items = (0..500).map(|number: usize| {
        taken.fetch_add(1, Ordering::Relaxed);
        let name = ["house.png", "boat.png"][number % 2];
        Item {
            image: file(name),
            ask: Ask::Caption(Arc::clone(&short)),
        }
    });
    let options = RunOptions {
        batch_size: Some(4),
        ..RunOptions::default()
    };
    let mut stream = model.run(items, options);
    let (mut done, mut most_ahead) = (0, 0);
    while let Some(event) = pollster::block_on(stream.next()) {
        if let ItemEvent::Done { .. } = event.expect("a working device") {
            done += 1;
        }
        most_ahead = most_ahead.max(taken.load(Ordering::Relaxed) - done);
    }
    drop(stream);
    assert_eq!(done, 500);
    // Those being prepared, those waiting and those decoded: five times four.
    assert!(most_ahead <= 24, "{most_ahead}");
    // The same two images over and over are encoded once each, if no other test has asked about them.
    assert!(model.timings().images <= 2, "{:?}", model.timings());
}

#[test]
fn dropping_the_stream_cancels_the_rest() {
    let model = &mut *model();
    let taken = AtomicUsize::new(0);
    let items = std::iter::repeat_with(|| {
        taken.fetch_add(1, Ordering::Relaxed);
        caption(file("house.png"))
    });
    let expected = caption_singly(model, &images(), &CaptionOptions::default());
    let mut stream = model.run(items, RunOptions::default());
    for _ in 0..20 {
        pollster::block_on(stream.next())
            .expect("it never ends")
            .expect("a working device");
    }
    drop(stream);
    let so_far = taken.load(Ordering::Relaxed);
    assert_eq!(
        caption_singly(model, &images(), &CaptionOptions::default()),
        expected
    );
    assert_eq!(taken.load(Ordering::Relaxed), so_far);
}
