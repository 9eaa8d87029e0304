//! The queue: what a request gets does not depend on what it is batched with, and nothing is lost on the way. (On a GPU
//! with cooperative matrices the first holds within rounding to f16 only: docs/performance.md.)

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use blip2_wgpu::Error;
use blip2_wgpu::generate::{EarlyStopping, Generated, GenerationOptions};
use blip2_wgpu::gpu::{Disabled, GpuOptions};
use blip2_wgpu::schedule::{Event, Pixels, Refusal, Request};
use futures_util::StreamExt;
use futures_util::stream::SelectAll;

use crate::common::data;
use crate::served::{Asked, Served, another, pixels, tokens};

/// The token that ends a text of the tiny checkpoint.
pub const END: u32 = 202;

/// The service of these tests, and five images.
fn served() -> MutexGuard<'static, (Served, Vec<Pixels>)> {
    static SERVED: OnceLock<Mutex<(Served, Vec<Pixels>)>> = OnceLock::new();
    SERVED
        .get_or_init(|| Mutex::new((open(&GpuOptions::default()), pixels(&data("tiny")))))
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

fn open(options: &GpuOptions) -> Served {
    Served::open(&data("tiny"), options)
}

/// Twenty ways of choosing tokens.
pub fn ways() -> Vec<Arc<GenerationOptions>> {
    let greedy = |max_new_tokens| GenerationOptions {
        max_new_tokens,
        eos_token_ids: vec![END],
        pad_token_id: Some(1),
        ..GenerationOptions::default()
    };
    let beams = |num_beams, max_new_tokens| GenerationOptions {
        num_beams,
        ..greedy(max_new_tokens)
    };
    let draws = |seed, top_k| GenerationOptions {
        do_sample: true,
        seed,
        top_k,
        ..greedy(9)
    };
    [
        greedy(1),
        greedy(6),
        greedy(14),
        GenerationOptions {
            repetition_penalty: 1.5,
            ..greedy(10)
        },
        GenerationOptions {
            no_repeat_ngram_size: 2,
            ..greedy(12)
        },
        GenerationOptions {
            min_new_tokens: 8,
            ..greedy(9)
        },
        GenerationOptions {
            suppress_tokens: vec![3, 50, 51, 52],
            ..greedy(7)
        },
        GenerationOptions {
            eos_token_ids: vec![END, 7, 100],
            ..greedy(12)
        },
        beams(2, 5),
        beams(3, 12),
        beams(5, 8),
        GenerationOptions {
            num_return_sequences: 3,
            length_penalty: -1.0,
            ..beams(4, 6)
        },
        GenerationOptions {
            repetition_penalty: 1.15,
            length_penalty: 0.0,
            ..beams(5, 10)
        },
        GenerationOptions {
            early_stopping: EarlyStopping::True,
            no_repeat_ngram_size: 3,
            min_new_tokens: 3,
            ..beams(3, 9)
        },
        draws(1, 50),
        draws(2, 3),
        draws(3, 0),
        GenerationOptions {
            num_return_sequences: 4,
            temperature: 1.7,
            ..draws(4, 20)
        },
        GenerationOptions {
            top_p: 0.8,
            repetition_penalty: 1.3,
            ..draws(5, 0)
        },
        GenerationOptions {
            min_new_tokens: 4,
            num_return_sequences: 2,
            ..draws(6, 100)
        },
    ]
    .map(Arc::new)
    .to_vec()
}

/// Two hundred requests: every way, with prompts of many lengths, about images in no order.
pub fn requests(pixels: &[Pixels]) -> Vec<Asked> {
    let ways = ways();
    (0..200)
        .map(|number: usize| {
            let image = &pixels[(number * 7 + number / 20) % pixels.len()];
            let length = (number * 5) % 13;
            let words = (0..length).map(|word| (number * 31 + word * 17) as u32 % 190 + 4);
            let text: Vec<u32> = std::iter::once(2).chain(words).collect();
            let history = if number.is_multiple_of(3) {
                text.clone()
            } else {
                Vec::new()
            };
            let options = Arc::clone(&ways[number % ways.len()]);
            Asked {
                request: Request {
                    text,
                    history,
                    options,
                    stop: None,
                },
                image: Arc::clone(image),
            }
        })
        .collect()
}

#[track_caller]
fn assert_equal(ours: &[Vec<Generated>], expected: &[Vec<Generated>], what: &str) {
    for (number, (ours, expected)) in ours.iter().zip(expected).enumerate() {
        assert!(!ours.is_empty(), "{what}: request {number} has no text");
        assert_eq!(tokens(ours), tokens(expected), "{what}: request {number}");
        for (a, b) in ours.iter().zip(expected) {
            assert!((a.score - b.score).abs() < 2e-4, "{what}: {a:?} {b:?}");
        }
    }
}

/// As `--disable f16` leaves a GPU: few rows and many go through different kernels, whose sums have another order.
#[test]
fn without_f16_company_changes_no_token_where_kernels_differ() {
    let mut served = open(&GpuOptions {
        disabled: Disabled {
            f16: true,
            subgroups: true,
            limits: false,
        },
        ..GpuOptions::default()
    });
    let asked = &requests(&pixels(&data("tiny")))[..60];
    let alone = served.alone(asked);
    let together = served.texts(asked, 32);
    assert_equal(&together, &alone, "thirty-two at once");
}

#[test]
fn a_request_gets_the_same_in_any_company() {
    let (served, pixels) = &mut *served();
    let asked = requests(pixels);
    let in_order: Vec<usize> = (0..asked.len()).collect();
    let alone = served.alone(&asked);
    // The requests are not all alike.
    let different: std::collections::HashSet<_> =
        alone.iter().map(|texts| texts[0].tokens.clone()).collect();
    assert!(different.len() > 60, "{}", different.len());

    let reversed: Vec<usize> = in_order.iter().rev().copied().collect();
    let shuffled: Vec<usize> = in_order.iter().map(|&i| (i * 77 + 13) % 200).collect();
    for (what, order, batch) in [
        ("three at once", &in_order, 3),
        ("backwards, eight at once", &reversed, 8),
        ("shuffled, thirty-two at once", &shuffled, 32),
    ] {
        let together = served.texts_in(&asked, order, batch);
        assert_equal(&together, &alone, what);
    }
}

/// A greedy request of exactly so many tokens.
pub fn of_length(tokens: usize, word: usize, image: &Pixels) -> Asked {
    Asked {
        request: Request {
            text: vec![2, 4 + word as u32],
            history: Vec::new(),
            options: Arc::new(GenerationOptions {
                max_new_tokens: tokens,
                ..GenerationOptions::default()
            }),
            stop: None,
        },
        image: Arc::clone(image),
    }
}

#[test]
fn rows_go_to_the_next_request_as_texts_end() {
    let (served, pixels) = &mut *served();
    let image = another(&pixels[0], 0.5);
    // Lengths 2 and 40 in turn: waiting for the longest of each batch would take far more steps.
    let length = |number: usize| if number.is_multiple_of(4) { 40 } else { 2 };
    let asked: Vec<Asked> = (0..32)
        .map(|number| of_length(length(number), number, &image))
        .collect();
    let before = served.handle.load();
    let texts = served.texts(&asked, 8);
    for (number, texts) in texts.iter().enumerate() {
        assert_eq!(texts[0].tokens.len(), length(number));
    }
    let after = served.handle.load();
    let timings = after.timings.since(&before.timings);
    assert_eq!(timings.images, 1, "one image, encoded once");
    assert_eq!(after.image_misses - before.image_misses, 1);
    assert_eq!(after.image_hits - before.image_hits, 31);
    // Four batches of eight would take 4 × 39 steps one after another.
    assert!(timings.steps <= 100, "{}", timings.steps);
}

#[test]
fn the_same_image_is_encoded_once_whoever_sends_it() {
    let (served, pixels) = &mut *served();
    let image = another(&pixels[1], 0.25);
    let copy = another(&pixels[1], 0.25);
    assert!(!Arc::ptr_eq(&image, &copy));
    let encoded = |served: &Served| served.handle.load().timings.images;
    let before = encoded(served);
    let first = served.texts(&[of_length(5, 0, &image)], 4);
    let second = served.texts(&[of_length(5, 0, &copy), of_length(5, 1, &image)], 4);
    assert_eq!(encoded(served) - before, 1);
    assert_eq!(first[0], second[0]);
    // There is room for a few images. What was asked for longest ago gives way, and is encoded again.
    let places = served.handle.load().image_places;
    for number in 0..places {
        let new = another(&pixels[1], 1.0 + number as f32);
        served.texts(&[of_length(1, 0, &new)], 4);
    }
    let load = served.handle.load();
    assert_eq!((load.images_kept, load.image_places), (places, places));
    let before = encoded(served);
    assert_eq!(served.texts(&[of_length(5, 0, &image)], 4), first);
    assert_eq!(encoded(served) - before, 1);
}

#[test]
fn what_cannot_be_served_is_refused_and_the_others_are_served() {
    let (served, pixels) = &mut *served();
    let good = of_length(20, 0, &pixels[0]);
    let first = served.submit(&good);
    let bad = |change: &dyn Fn(&mut Asked)| {
        let mut asked = good.clone();
        change(&mut asked);
        match served.handle.submit(asked.request, asked.image) {
            Err(Refusal::Invalid(error)) => error,
            other => panic!("{other:?}"),
        }
    };
    let changes: [&dyn Fn(&mut Asked); 4] = [
        &|asked| asked.request.text = vec![2, 9999],
        &|asked| asked.request.text = Vec::new(),
        &|asked| asked.image = Arc::new(vec![0.0; 7]),
        &|asked| asked.request.history = vec![1; 5000],
    ];
    for change in changes {
        let error = bad(change);
        assert!(matches!(error, Error::Request { .. }), "{error}");
    }
    let error = bad(&|asked| asked.request.text = vec![2; 4000]);
    assert!(matches!(error, Error::TooLong { .. }), "{error}");
    let error = bad(&|asked| {
        asked.request.options = Arc::new(GenerationOptions {
            num_beams: 0,
            ..GenerationOptions::default()
        });
    });
    assert!(error.to_string().contains("num_beams"), "{error}");
    let second = served.submit(&good);
    let outcomes = served.outcomes(vec![first, second]);
    let texts = outcomes
        .into_iter()
        .map(|outcome| outcome.expect("a text").0);
    let texts: Vec<_> = texts.collect();
    assert_eq!(texts[0], texts[1]);
}

#[test]
fn work_dropped_half_done_leaves_what_follows_right() {
    let (served, pixels) = &mut *served();
    let asked = &requests(pixels)[..24];
    let expected = served.texts(asked, 4);
    for events in [0, 1, 2, 20, 50] {
        served.service.set_batch_size(5);
        let mut tickets: SelectAll<_> = asked.iter().rev().map(|it| served.submit(it)).collect();
        served.drive_while(async {
            for _ in 0..events {
                tickets.next().await.expect("many requests");
            }
        });
        if events == 20 {
            // Those that are still wanted are told.
            let outcomes = served.drive_while(tickets.by_ref().collect::<Vec<_>>());
            // (A device may be done whenever it is asked, and a turn never be half done.)
            let is_well = |event: &Event| match event {
                Event::Failed { error } => matches!(**error, Error::GivenUp { .. }),
                _ => true,
            };
            assert!(outcomes.iter().all(is_well), "{outcomes:?}");
            let is_done = |event: &Event| matches!(event, Event::Done { .. });
            assert!(outcomes.iter().any(is_done));
        }
        drop(tickets);
        let texts = served.texts(asked, 4);
        assert_equal(&texts, &expected, &format!("dropped after {events} events"));
    }
}

#[test]
fn a_device_without_room_gets_fewer_requests_at_once() {
    const ROOM: u64 = 128 << 10;
    let mut small = open(&GpuOptions {
        max_binding_bytes: Some(ROOM),
        ..GpuOptions::default()
    });
    let (large, pixels) = &mut *served();
    // One of each way of choosing tokens.
    let asked = &requests(pixels)[..20];
    let expected = large.texts(asked, 16);
    let ours = small.texts(asked, 16);
    for (number, (ours, expected)) in ours.iter().zip(&expected).enumerate() {
        // The number of rows, and with it the order of sums, is another.
        assert_eq!(tokens(ours), tokens(expected), "request {number}");
    }
    // The most demanding of them sixteen times: logits and cache of all would take more than one binding.
    let hungry = asked.iter().max_by_key(|asked| {
        let options = &asked.request.options;
        options.num_beams.max(options.num_return_sequences) * options.max_new_tokens
    });
    let hungry = hungry.expect("requests");
    small.service.set_batch_size(16);
    assert_eq!(small.handle.load().batch_size, 16);
    small.texts(&vec![hungry.clone(); 16], 16);
    let batch = small.handle.load().batch_size;
    assert!((1..16).contains(&batch), "{batch}");
    // Less demanding ones have the room that there is.
    let modest: Vec<Asked> = (0..32).map(|word| of_length(3, word, &pixels[0])).collect();
    small.texts(&modest, 8);
    assert_eq!(small.handle.load().batch_size, 8);
    // Not even one image: what fails says what would be needed.
    let mut tiny = open(&GpuOptions {
        max_binding_bytes: Some(20 << 10),
        ..GpuOptions::default()
    });
    let modest = tiny.submit(&modest[0]);
    let error = tiny.outcomes(vec![modest]).remove(0).expect_err("no room");
    assert!(
        error.is_of_device() && error.to_string().contains("bytes"),
        "{error}"
    );
    // Not even the scores of its texts: what can never be served is refused by name.
    let mut greedy = hungry.clone();
    greedy.request.options = Arc::new(GenerationOptions {
        num_beams: 32,
        max_new_tokens: 4,
        ..GenerationOptions::default()
    });
    match tiny.handle.submit(greedy.request, greedy.image) {
        Err(Refusal::Invalid(error @ Error::TooLarge { .. })) => {
            assert!(error.to_string().contains("`num_beams`"), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

/// A large request waits for the batch to run out; of the younger ones only those pass it that end by then.
#[test]
fn a_large_request_is_neither_starved_nor_in_the_way() {
    let (_, pixels) = &*served();
    let mut served = open(&GpuOptions::default());
    let long = of_length(30, 0, &pixels[0]);
    let mut large = of_length(50, 1, &pixels[0]);
    large.request.options = Arc::new(GenerationOptions {
        num_beams: 5,
        ..(*large.request.options).clone()
    });
    let (short, longer) = (of_length(4, 2, &pixels[0]), of_length(50, 3, &pixels[0]));
    let alone = served.texts(&[long.clone(), short.clone()], 1);
    // A state of the small ones' size, and the long one under way in it.
    served.service.set_batch_size(4);
    let first = served.submit(&long);
    let mut first = first.enumerate();
    served.drive_while(first.next());
    let others = [&large, &longer, &short, &short, &short].map(|asked| served.submit(asked));
    let mut order = Vec::new();
    let mut all = SelectAll::new();
    all.push(first.map(|(_, event)| (0, event)).boxed());
    for (number, ticket) in others.into_iter().enumerate() {
        all.push(ticket.map(move |event| (1 + number, event)).boxed());
    }
    let mut texts = vec![Vec::new(); 6];
    served.drive_while(async {
        while let Some((number, event)) = all.next().await {
            match event {
                Event::Done { texts: done, .. } => {
                    order.push(number);
                    texts[number] = done;
                }
                Event::Token { .. } => assert!(number != 2 || order.len() >= 4, "{order:?}"),
                Event::Failed { error } => panic!("{number}: {error}"),
            }
        }
    });
    // The short ones passed it, and then the long one, on which it waited, was done: before the longer one had begun.
    assert_eq!(order[..4], [3, 4, 5, 0], "{order:?}");
    assert_eq!(tokens(&texts[0]), tokens(&alone[0]));
    assert_eq!(tokens(&texts[3]), tokens(&alone[1]));
    let expected = served.texts(&[large, longer], 1);
    assert_eq!(tokens(&texts[1]), tokens(&expected[0]));
    assert_eq!(tokens(&texts[2]), tokens(&expected[1]));
}
