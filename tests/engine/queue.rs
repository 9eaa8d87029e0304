//! The queue: what a request gets does not depend on what it is batched with, and nothing is lost on the way. (On a GPU
//! with cooperative matrices the first holds within rounding to f16 only: docs/performance.md.)

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use blip2_wgpu::Error;
use blip2_wgpu::generate::{EarlyStopping, Generated, GenerationOptions};
use blip2_wgpu::gpu::{Disabled, GpuOptions};
use blip2_wgpu::image::Preprocessor;
use blip2_wgpu::model::{Blip2Config, Blip2Model};
use blip2_wgpu::schedule::{Engine, Event, Pixels, Queue, Request};
use blip2_wgpu::weights::{Checkpoint, Outline};

use crate::common::{data, device, images};

/// The token that ends a text of the tiny checkpoint.
const END: u32 = 202;

/// The engine of this binary, and five images.
fn engine() -> MutexGuard<'static, (Engine, Vec<Pixels>)> {
    static ENGINE: OnceLock<Mutex<(Engine, Vec<Pixels>)>> = OnceLock::new();
    ENGINE
        .get_or_init(|| Mutex::new((load(), pixels())))
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

fn load() -> Engine {
    load_on(&GpuOptions::default())
}

fn load_on(options: &GpuOptions) -> Engine {
    let gpu = device(options);
    let config = Blip2Config::open(data("tiny")).expect("a config");
    let decoder = config.language_model().expect("generative").clone();
    let checkpoint = Checkpoint::open(data("tiny")).expect("weights");
    let outline = Outline::new(&gpu, &checkpoint, None, |tensors| {
        Blip2Model::load(tensors, &config, &decoder, 42)
    });
    let mut progress = |_, _| {};
    let filling = outline.expect("all tensors").fill(&mut progress);
    let model = pollster::block_on(filling).expect("room");
    Engine::new(gpu, model)
}

/// Both pictures, and three mixtures of them.
fn pixels() -> Vec<Pixels> {
    let preprocessor = Preprocessor::from_files(&data("tiny"), 42).expect("a preprocessor file");
    let [house, boat] = images().map(|image| preprocessor.apply(&image).expect("pixels"));
    [0.0, 0.25, 0.5, 0.75, 1.0]
        .map(|share: f32| {
            let mixed = house.iter().zip(&boat);
            Arc::new(mixed.map(|(a, b)| a + share * (b - a)).collect())
        })
        .to_vec()
}

/// Twenty ways of choosing tokens.
fn ways() -> Vec<Arc<GenerationOptions>> {
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
fn requests(pixels: &[Pixels]) -> Vec<Request> {
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
            Request {
                image: Arc::clone(image),
                text,
                history,
                options: Arc::clone(&ways[number % ways.len()]),
            }
        })
        .collect()
}

/// The texts of `requests`, `batch` at once, pushed in the `order` given but returned in their own.
fn run(
    engine: &mut Engine,
    requests: &[Request],
    order: &[usize],
    batch: usize,
) -> Vec<Vec<Generated>> {
    let mut queue = Queue::new(engine, batch);
    let mut texts = vec![Vec::new(); requests.len()];
    let mut waiting = order.iter();
    loop {
        while queue.wants_more()
            && let Some(&next) = waiting.next()
        {
            queue.push(requests[next].clone()).expect("a good request");
        }
        if queue.is_idle() {
            return texts;
        }
        for event in pollster::block_on(queue.turn()).expect("a working device") {
            match event {
                Event::Token { .. } => {}
                Event::Done {
                    request,
                    texts: done,
                } => texts[order[request]] = done,
                Event::Failed { request, error } => panic!("{request}: {error}"),
            }
        }
    }
}

#[track_caller]
fn assert_equal(ours: &[Vec<Generated>], expected: &[Vec<Generated>], what: &str) {
    for (number, (ours, expected)) in ours.iter().zip(expected).enumerate() {
        let tokens = |texts: &[Generated]| -> Vec<Vec<u32>> {
            texts.iter().map(|text| text.tokens.clone()).collect()
        };
        assert!(!ours.is_empty(), "{what}: request {number} has no text");
        assert_eq!(tokens(ours), tokens(expected), "{what}: request {number}");
        for (a, b) in ours.iter().zip(expected) {
            assert!((a.score - b.score).abs() < 2e-4, "{what}: {a:?} {b:?}");
        }
    }
}

/// The texts of `requests`, one at a time.
fn alone(engine: &mut Engine, requests: &[Request]) -> Vec<Vec<Generated>> {
    let one = |request: &Request| {
        let mut queue = Queue::new(engine, 1);
        queue.push(request.clone()).expect("a good request");
        let texts = pollster::block_on(queue.finish()).expect("a text");
        texts.into_iter().next().expect("one request")
    };
    requests.iter().map(one).collect()
}

/// As `--disable f16` leaves a GPU: few rows and many go through different kernels, whose sums have another order.
#[test]
fn without_f16_company_changes_no_token_where_kernels_differ() {
    let mut engine = load_on(&GpuOptions {
        disabled: Disabled {
            f16: true,
            subgroups: true,
            limits: false,
        },
        ..GpuOptions::default()
    });
    let requests = &requests(&pixels())[..60];
    let in_order: Vec<usize> = (0..requests.len()).collect();
    let alone = alone(&mut engine, requests);
    let together = run(&mut engine, requests, &in_order, 32);
    assert_equal(&together, &alone, "thirty-two at once");
}

#[test]
fn a_request_gets_the_same_in_any_company() {
    let (engine, pixels) = &mut *engine();
    let requests = requests(pixels);
    let in_order: Vec<usize> = (0..requests.len()).collect();
    let alone = alone(engine, &requests);
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
        let together = run(engine, &requests, order, batch);
        assert_equal(&together, &alone, what);
    }
}

#[test]
fn rows_go_to_the_next_request_as_texts_end() {
    let (engine, pixels) = &mut *engine();
    // Lengths 1 and 40 in turn: waiting for the longest of each batch would take far more steps.
    let of_length = |max_new_tokens| {
        Arc::new(GenerationOptions {
            max_new_tokens,
            ..GenerationOptions::default()
        })
    };
    let (short, long) = (of_length(2), of_length(40));
    let requests: Vec<Request> = (0..32)
        .map(|number: usize| Request {
            image: Arc::clone(&pixels[0]),
            text: vec![2, 4 + number as u32],
            history: Vec::new(),
            options: Arc::clone(if number.is_multiple_of(4) {
                &long
            } else {
                &short
            }),
        })
        .collect();
    let mut queue = Queue::new(engine, 8);
    for request in &requests {
        queue.push(request.clone()).expect("a good request");
    }
    let mut lengths = vec![0; requests.len()];
    while !queue.is_idle() {
        for event in pollster::block_on(queue.turn()).expect("a working device") {
            if let Event::Done { request, texts } = event {
                lengths[request] = texts[0].tokens.len();
            }
        }
    }
    let expected: Vec<usize> = requests.iter().map(|r| r.options.max_new_tokens).collect();
    assert_eq!(lengths, expected);
    let timings = queue.timings();
    assert_eq!(timings.images, 1, "one image, encoded once");
    // Four batches of eight would take 4 × 39 steps one after another.
    assert!(timings.steps <= 100, "{}", timings.steps);
}

#[test]
fn what_cannot_be_served_is_refused_and_the_others_are_served() {
    let (engine, pixels) = &mut *engine();
    let good = Request {
        image: Arc::clone(&pixels[0]),
        text: vec![2],
        history: Vec::new(),
        options: Arc::default(),
    };
    let mut queue = Queue::new(engine, 4);
    queue.push(good.clone()).expect("a good request");
    let refused = [
        Request {
            text: vec![2, 9999],
            ..good.clone()
        },
        Request {
            text: Vec::new(),
            ..good.clone()
        },
        Request {
            image: Arc::new(vec![0.0; 7]),
            ..good.clone()
        },
        Request {
            history: vec![1; 5000],
            ..good.clone()
        },
    ];
    for request in refused {
        let error = queue.push(request).expect_err("not a request");
        assert!(matches!(error, Error::Request { .. }), "{error}");
    }
    let too_long = Request {
        text: vec![2; 4000],
        ..good.clone()
    };
    assert!(matches!(queue.push(too_long), Err(Error::TooLong { .. })));
    assert_eq!(queue.push(good).expect("a good request"), 1);
    let texts = pollster::block_on(queue.finish()).expect("two texts");
    assert_eq!(texts.len(), 2);
    assert_eq!(texts[0], texts[1]);
}

#[test]
fn a_queue_dropped_at_any_turn_leaves_the_next_one_right() {
    let (engine, pixels) = &mut *engine();
    let requests: Vec<Request> = requests(pixels).into_iter().take(24).collect();
    let order: Vec<usize> = (0..requests.len()).collect();
    let expected = run(engine, &requests, &order, 4);
    for turns in [0, 1, 2, 5] {
        let mut queue = Queue::new(engine, 5);
        for request in requests.iter().rev() {
            queue.push(request.clone()).expect("a good request");
        }
        for _ in 0..turns {
            pollster::block_on(queue.turn()).expect("a working device");
        }
        drop(queue);
        assert_equal(
            &run(engine, &requests, &order, 4),
            &expected,
            &format!("dropped after {turns} turns"),
        );
    }
}

#[test]
fn a_device_without_room_gets_fewer_requests_at_once() {
    const ROOM: u64 = 128 << 10;
    let mut small = load_on(&GpuOptions {
        max_binding_bytes: Some(ROOM),
        ..GpuOptions::default()
    });
    let pixels = pixels();
    let mut large = engine();
    // One of each way of choosing tokens.
    let requests = &requests(&pixels)[..20];
    let order: Vec<usize> = (0..requests.len()).collect();
    let expected = run(&mut large.0, requests, &order, 16);
    let ours = run(&mut small, requests, &order, 16);
    for (number, (ours, expected)) in ours.iter().zip(&expected).enumerate() {
        let tokens = |texts: &[Generated]| -> Vec<Vec<u32>> {
            texts.iter().map(|text| text.tokens.clone()).collect()
        };
        // The number of rows, and with it the order of sums, is another.
        assert_eq!(tokens(ours), tokens(expected), "request {number}");
    }
    // The most demanding of them sixteen times: logits and cache of all would take more than one binding.
    let hungry = requests.iter().max_by_key(|request| {
        let options = &request.options;
        options.num_beams.max(options.num_return_sequences) * options.max_new_tokens
    });
    let mut queue = Queue::new(&mut small, 16);
    for _ in 0..16 {
        let request = hungry.expect("requests").clone();
        queue.push(request).expect("a good request");
    }
    assert_eq!(queue.batch_size(), 16);
    pollster::block_on(queue.turn()).expect("room for some");
    let batch = queue.batch_size();
    assert!((1..16).contains(&batch), "{batch}");
    // Not even one image: what is refused says what would be needed.
    let mut tiny = load_on(&GpuOptions {
        max_binding_bytes: Some(20 << 10),
        ..GpuOptions::default()
    });
    let mut queue = Queue::new(&mut tiny, 16);
    queue
        .push(hungry.expect("requests").clone())
        .expect("a good request");
    let error = pollster::block_on(queue.finish()).expect_err("no room");
    assert!(error.to_string().contains("bytes"), "{error}");
}
