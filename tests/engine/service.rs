//! The door of the service: requests from anywhere at any time, refusals, cancelling, draining, a device that is lost.

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use blip2_wgpu::generate::{FinishReason, GenerationOptions, GenerationOverrides};
use blip2_wgpu::gpu::{GpuError, GpuOptions};
use blip2_wgpu::schedule::{
    Event, Image, ImageInput, Load, Refusal, Service, ServiceOptions, ServiceState, StopRule,
    Ticket,
};
use blip2_wgpu::task::{
    Ask, Handle, ImageSource, Item, ItemEvent, RunOptions, ServeOptions, Texts, TicketEvent,
};
use blip2_wgpu::{Blip2, CaptionOptions, Error};
use futures_channel::oneshot;
use futures_util::StreamExt;
use futures_util::future::join_all;

use crate::common::{caption, data, device, images, open};
use crate::queue::{END, of_length, requests};
use crate::served::{Asked, Served, another, engine_on, outcome, pixels, tokens};

fn served() -> Served {
    Served::open(&data("tiny"), &GpuOptions::default())
}

/// A service of `batch` requests at once and a queue of `queue`, and an image.
fn with_queue(batch_size: usize, queue: usize) -> Served {
    let engine = engine_on(&device(&GpuOptions::default()), &data("tiny"));
    let options = ServiceOptions {
        batch_size,
        queue,
        image_places: 0,
    };
    let (service, handle) = Service::new(engine, options);
    Served { service, handle }
}

/// Asserts that no request has left anything behind.
#[track_caller]
fn assert_empty(load: &Load) {
    let held = [
        load.queued,
        load.images_waiting,
        load.active,
        load.rows,
        load.pages,
    ];
    assert_eq!(held, [0; 5], "{load:?}");
}

/// Numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) as usize % most
    }
}

#[test]
fn a_thousand_requests_come_and_go_and_leave_nothing_behind() {
    let mut served = served();
    // Forty requests of every way, cut to a few tokens, whose texts are known.
    let mut asked = requests(&pixels(&data("tiny")));
    asked.truncate(40);
    for asked in &mut asked {
        let mut options = (*asked.request.options).clone();
        options.max_new_tokens = options.max_new_tokens.min(6);
        options.min_new_tokens = options.min_new_tokens.min(3);
        asked.request.options = Arc::new(options);
    }
    let alone = served.alone(&asked);
    served.service.set_batch_size(7);

    let handle = served.handle.clone();
    let mut dice = Dice(7);
    let (mut submitted, mut dropped, mut spoilt) = (0, 0, 0);
    let mut open: Vec<(usize, Ticket)> = Vec::new();
    let mut preparing = Vec::new();
    let mut survivors = Vec::new();
    served.drive_while(async {
        while submitted < 1000 {
            match dice.below(8) {
                // Some come with their image, some before it.
                0..4 => {
                    let which = dice.below(asked.len());
                    let Asked { request, image } = asked[which].clone();
                    let image = Image::from(image);
                    let image = if dice.below(2) == 0 {
                        ImageInput::Ready(image)
                    } else {
                        let (sender, receiver) = oneshot::channel();
                        preparing.push((sender, image));
                        ImageInput::Pending(receiver)
                    };
                    let ticket = handle.submit(request, image).expect("room");
                    open.push((which, ticket));
                    submitted += 1;
                }
                // Images become ready in any order, and some never do.
                4..6 if !preparing.is_empty() => {
                    let (sender, image) = preparing.swap_remove(dice.below(preparing.len()));
                    if dice.below(20) == 0 {
                        spoilt += 1;
                    } else {
                        let _ = sender.send(Ok(image));
                    }
                }
                6 if !open.is_empty() => {
                    drop(open.swap_remove(dice.below(open.len())));
                    dropped += 1;
                }
                7 if !open.is_empty() => {
                    let which = dice.below(open.len());
                    let (_, ticket) = &mut open[which];
                    // Something may come, or not: the driver has its turn either way.
                    let mut turns = dice.below(3);
                    std::future::poll_fn(|context| {
                        let _ = ticket.poll_next_unpin(context);
                        if turns == 0 {
                            return Poll::Ready(());
                        }
                        turns -= 1;
                        context.waker().wake_by_ref();
                        Poll::Pending
                    })
                    .await;
                }
                _ => {}
            }
        }
        for (sender, image) in preparing.drain(..) {
            let _ = sender.send(Ok(image));
        }
        for (which, ticket) in open.drain(..) {
            survivors.push((which, outcome_if_any(ticket).await));
        }
    });
    // What is dropped last is found at the next turn.
    served.texts(&asked[..1], 7);
    let load = served.handle.load();
    assert_empty(&load);
    assert!(
        dropped > 100 && spoilt > 5,
        "{dropped} dropped, {spoilt} spoilt"
    );
    assert!(
        load.cancelled > 50 && load.cancelled <= dropped as u64,
        "{load:?}"
    );
    assert!(load.page_places > 0 && load.images_kept > 0);
    let mut finished = 0;
    for (which, outcome) in &survivors {
        match outcome {
            Some(Ok((texts, _))) => {
                finished += 1;
                assert_eq!(tokens(texts), tokens(&alone[*which]), "request {which}");
            }
            // Its last event was heard while the dice were thrown.
            None => {}
            Some(Err(error)) => {
                assert!(matches!(**error, Error::GivenUp { .. }), "{error}");
            }
        }
    }
    assert!(finished > 300, "{finished}");
}

/// What becomes of a request whose end may have been heard already.
async fn outcome_if_any(mut ticket: Ticket) -> Option<crate::served::Outcome> {
    while let Some(event) = ticket.next().await {
        match event {
            Event::Token { .. } => {}
            Event::Done { texts, timings } => return Some(Ok((texts, timings))),
            Event::Failed { error } => return Some(Err(error)),
        }
    }
    None
}

#[test]
fn threads_share_a_service_that_a_thread_of_its_own_drives() {
    let mut alone = served();
    let asked = requests(&pixels(&data("tiny")));
    let expected = alone.alone(&asked[..60]);
    let sequential = alone.handle.load().timings.steps;

    let Served {
        mut service,
        handle,
    } = served();
    service.set_batch_size(16);
    let driver = std::thread::spawn(move || pollster::block_on(service.drive()));
    let ask = |numbers: std::ops::Range<usize>| {
        let (handle, asked) = (handle.clone(), asked[numbers].to_vec());
        std::thread::spawn(move || {
            let tickets: Vec<Ticket> = asked
                .into_iter()
                .map(|it| handle.submit(it.request, it.image).expect("room"))
                .collect();
            pollster::block_on(join_all(tickets.into_iter().map(outcome)))
        })
    };
    let threads = [ask(0..30), ask(30..60)];
    let outcomes = threads
        .map(|thread| thread.join().expect("no panic"))
        .concat();
    for (number, (outcome, expected)) in outcomes.into_iter().zip(&expected).enumerate() {
        let (texts, _) = outcome.expect("texts");
        assert_eq!(tokens(&texts), tokens(expected), "request {number}");
    }
    let load = handle.load();
    assert_empty(&load);
    // They were batched together.
    assert!(
        3 * load.timings.steps < sequential,
        "{load:?}, {sequential} alone"
    );
    // Without a handle there is nothing left to do.
    drop(handle);
    driver.join().expect("no panic").expect("no error");
}

/// Counts how often it is woken.
#[derive(Default)]
struct Counter(AtomicUsize);

impl Wake for Counter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn an_idle_service_sleeps_until_something_comes() {
    let Served {
        mut service,
        handle,
    } = served();
    let counter = Arc::new(Counter::default());
    let wakes = || counter.0.load(Ordering::SeqCst);
    let waker = Waker::from(Arc::clone(&counter));
    let mut context = Context::from_waker(&waker);
    let asked = of_length(2, 0, &pixels(&data("tiny"))[0]);
    let mut drive = pin!(service.drive());
    assert!(drive.as_mut().poll(&mut context).is_pending());
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(wakes(), 0);
    // A request whose image is not there is no reason to do more than look.
    let (image, pending) = oneshot::channel();
    let submitted = handle.submit(asked.request, ImageInput::Pending(pending));
    let ticket = submitted.expect("room");
    assert_eq!(wakes(), 1);
    assert!(drive.as_mut().poll(&mut context).is_pending());
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(wakes(), 1);
    assert_eq!((handle.load().queued, handle.load().images_waiting), (1, 0));
    drop(ticket);
    assert_eq!(wakes(), 2);
    assert!(drive.as_mut().poll(&mut context).is_pending());
    assert_empty(&handle.load());
    assert!(image.is_canceled());
}

#[test]
fn a_full_queue_refuses_and_says_when_there_is_room() {
    let mut served = with_queue(1, 3);
    let asked = of_length(30, 0, &pixels(&data("tiny"))[0]);
    let submit = |served: &Served| {
        let Asked { request, image } = asked.clone();
        served.handle.submit(request, image)
    };
    let mut tickets: Vec<Ticket> = (0..3).map(|_| submit(&served).expect("room")).collect();
    let refused = submit(&served);
    assert!(matches!(refused, Err(Refusal::Full { limit: 3 })));
    let message = refused.expect_err("full").to_string();
    assert!(message.contains('3'), "{message}");
    assert!(matches!(served.handle.check(), Err(Refusal::Full { .. })));
    assert_eq!(served.handle.load().queued, 3);
    let handle = served.handle.clone();
    served.drive_while(handle.room());
    tickets.push(submit(&served).expect("one is being decoded"));
    for outcome in served.outcomes(tickets) {
        assert_eq!(outcome.expect("a text").0[0].tokens.len(), 30);
    }
}

#[test]
fn a_drained_service_ends_what_it_has_and_takes_no_more() {
    let Served {
        mut service,
        handle,
    } = with_queue(2, 10);
    let asked = of_length(10, 0, &pixels(&data("tiny"))[0]);
    let submit = || handle.submit(asked.request.clone(), Arc::clone(&asked.image));
    let tickets: Vec<Ticket> = (0..5).map(|_| submit().expect("room")).collect();
    handle.drain(Duration::MAX);
    assert!(matches!(submit(), Err(Refusal::Draining)));
    assert_eq!(handle.load().state, ServiceState::Draining);
    pollster::block_on(service.drive()).expect("all are finished");
    for outcome in pollster::block_on(join_all(tickets.into_iter().map(outcome))) {
        assert_eq!(outcome.expect("a text").0[0].tokens.len(), 10);
    }
    assert_eq!(handle.load().state, ServiceState::Closed);
    assert_empty(&handle.load());
    assert!(matches!(submit(), Err(Refusal::Closed)));
    drop(service);
    assert!(matches!(submit(), Err(Refusal::Closed)));
}

#[test]
fn what_is_not_done_when_a_drain_ends_is_given_up() {
    let Served {
        mut service,
        handle,
    } = with_queue(2, 10);
    let asked = of_length(10, 0, &pixels(&data("tiny"))[0]);
    // Its image never comes, and nobody else wakes the driver.
    let (_image, pending) = oneshot::channel();
    let never = handle.submit(asked.request.clone(), ImageInput::Pending(pending));
    let never = never.expect("room");
    let done = handle.submit(asked.request.clone(), Arc::clone(&asked.image));
    let done = done.expect("room");
    let started = Instant::now();
    let limit = Duration::from_secs(3);
    handle.drain(limit);
    pollster::block_on(service.drive()).expect("an end");
    assert!(started.elapsed() >= limit);
    let (never, done) = (outcome(never), outcome(done));
    pollster::block_on(done).expect("a text");
    let error = pollster::block_on(never).expect_err("no image");
    assert!(matches!(*error, Error::GivenUp { .. }), "{error}");
    assert_empty(&handle.load());
    assert_eq!(handle.load().cancelled, 1);
}

#[test]
fn a_service_that_is_dropped_tells_everyone() {
    let Served { service, handle } = with_queue(2, 10);
    let asked = of_length(10, 0, &pixels(&data("tiny"))[0]);
    let ticket = handle.submit(asked.request, asked.image).expect("room");
    drop(service);
    let error = pollster::block_on(outcome(ticket)).expect_err("no text");
    assert!(matches!(*error, Error::GivenUp { .. }), "{error}");
}

#[test]
fn a_lost_device_is_told_to_all_and_the_service_opened_again() {
    let Served {
        mut service,
        handle,
    } = with_queue(2, 10);
    let asked = of_length(40, 0, &pixels(&data("tiny"))[0]);
    let submit = || handle.submit(asked.request.clone(), Arc::clone(&asked.image));
    let mut tickets: Vec<Ticket> = (0..4).map(|_| submit().expect("room")).collect();
    let (_image, pending) = oneshot::channel();
    let preparing = handle.submit(asked.request.clone(), ImageInput::Pending(pending));
    tickets.push(preparing.expect("room"));
    let gpu = service.engine().gpu().clone();
    // In the middle of the first texts.
    let mut first = tickets.remove(0);
    let ended = pollster::block_on(async {
        let mut drive = pin!(service.drive());
        let mut heard = 0;
        std::future::poll_fn(|context| {
            while heard < 5
                && let Poll::Ready(event) = first.poll_next_unpin(context)
            {
                assert!(matches!(event, Some(Event::Token { .. })), "{event:?}");
                heard += 1;
                if heard == 5 {
                    gpu.device().destroy();
                }
            }
            drive.as_mut().poll(context)
        })
        .await
    });
    let is_lost = |error: &Error| match error {
        Error::Shared(error) => matches!(**error, Error::Gpu(GpuError::Lost { .. })),
        other => matches!(other, Error::Gpu(GpuError::Lost { .. })),
    };
    let error = ended.expect_err("no device");
    assert!(is_lost(&error), "{error}");
    tickets.push(first);
    for outcome in pollster::block_on(join_all(tickets.into_iter().map(outcome))) {
        let error = outcome.expect_err("no device");
        assert!(is_lost(&error), "{error}");
    }
    assert_empty(&handle.load());
    assert_eq!(handle.load().state, ServiceState::Lost);
    assert!(matches!(submit(), Err(Refusal::Lost(_))));
    // It stays so until it is opened again.
    assert!(pollster::block_on(service.drive()).is_err());
    assert!(matches!(submit(), Err(Refusal::Lost(_))));

    let other = Served::open(&data("tiny-t5"), &GpuOptions::default());
    service.reopen(other.service).expect_err("another model");
    service
        .reopen(with_queue(1, 1).service)
        .expect("the same model");
    let mut again = Served { service, handle };
    let texts = again.texts(&[asked.clone(), asked.clone()], 2);
    assert_eq!(tokens(&texts[0]), tokens(&served().texts(&[asked], 1)[0]));
    assert_eq!(again.handle.load().queue_limit, 10);
}

#[test]
fn texts_say_why_they_end() {
    let mut served = served();
    let image = &pixels(&data("tiny"))[0];
    let mut ask = |change: &dyn Fn(&mut GenerationOptions), stop: Option<StopRule>| {
        let mut asked = of_length(12, 0, image);
        let mut options = (*asked.request.options).clone();
        change(&mut options);
        asked.request.options = Arc::new(options);
        asked.request.stop = stop;
        served.texts(&[asked], 1).remove(0)
    };
    let plain = ask(&|_| {}, None).remove(0);
    assert_eq!(plain.finish, FinishReason::Length);
    assert_eq!(plain.tokens.len(), 12);
    let third = plain.tokens[2];
    let before = plain.tokens.iter().position(|&token| token == third);
    let length = before.expect("it is there") + 1;
    let ended = ask(&|options| options.eos_token_ids = vec![third], None).remove(0);
    assert_eq!(ended.finish, FinishReason::EndToken);
    assert_eq!(ended.tokens, plain.tokens[..length]);
    // A rule of the asker's own, for every way of choosing tokens.
    let stop = |tokens: usize| {
        let rule = move |said: &[u32]| said.len() >= tokens;
        Some(StopRule(Arc::new(rule)))
    };
    let stopped = ask(&|_| {}, stop(5)).remove(0);
    assert_eq!(stopped.finish, FinishReason::StopString);
    assert_eq!(stopped.tokens, plain.tokens[..5]);
    let at_the_end = ask(&|_| {}, stop(12)).remove(0);
    assert_eq!(at_the_end.finish, FinishReason::StopString);
    let beams: &dyn Fn(&mut GenerationOptions) = &|options| {
        options.num_beams = 3;
        options.num_return_sequences = 3;
    };
    for text in ask(beams, stop(4)) {
        assert_eq!(
            (text.tokens.len(), text.finish),
            (4, FinishReason::StopString)
        );
    }
    for text in ask(beams, None) {
        assert_eq!((text.tokens.len(), text.finish), (12, FinishReason::Length));
    }
    let drawn: &dyn Fn(&mut GenerationOptions) = &|options| {
        options.do_sample = true;
        options.num_return_sequences = 3;
        options.eos_token_ids = vec![END];
    };
    let whole = ask(drawn, None);
    for (text, whole) in ask(drawn, stop(4)).iter().zip(&whole) {
        assert_eq!(text.tokens, whole.tokens[..4.min(whole.tokens.len())]);
        let ended = text.tokens.last() == Some(&END);
        let expected = if ended {
            FinishReason::EndToken
        } else {
            FinishReason::StopString
        };
        assert_eq!(text.finish, expected);
    }
}

#[test]
fn timings_add_up() {
    let mut served = served();
    let image = another(&pixels(&data("tiny"))[0], 0.75);
    served.service.set_batch_size(1);
    let started = Instant::now();
    let tickets = [12, 12].map(|tokens| served.submit(&of_length(tokens, 0, &image)));
    let outcomes = served.outcomes(tickets.into());
    let all = started.elapsed();
    let [first, second] = [0, 1].map(|index: usize| outcomes[index].as_ref().expect("a text").1);
    for timings in [first, second] {
        let parts = timings.queue + timings.encode + timings.prefill;
        assert_eq!(parts, timings.first_token);
        assert_eq!(timings.first_token + timings.decode, timings.total());
        assert!(timings.total() <= all, "{timings:?} of {all:?}");
        assert!(
            !timings.prefill.is_zero() && !timings.decode.is_zero(),
            "{timings:?}"
        );
    }
    // One encodes the image, on which both wait; then one has to wait for the other.
    assert!(!first.encode.is_zero(), "{first:?}");
    assert_eq!(first.encode, second.encode);
    assert!(
        second.queue >= first.prefill + first.decode,
        "{first:?} {second:?}"
    );
    // What is submitted together is done together, or later.
    assert!(
        second.total() + Duration::from_millis(200) > all,
        "{second:?} of {all:?}"
    );
    let again = served.submit(&of_length(3, 1, &image));
    let timings = served.outcomes(vec![again])[0].as_ref().expect("a text").1;
    assert!(timings.encode.is_zero(), "{timings:?}");
}

#[test]
fn load_tells_what_is_on_the_device() {
    let mut served = served();
    let load = served.handle.load();
    assert_eq!((load.batch_size, load.queue_limit), (4, 2000));
    assert_eq!((load.page_places, load.image_places), (0, 0));
    let weights = load.memory.weights;
    assert!(weights > 0);
    let asked = of_length(10, 0, &pixels(&data("tiny"))[0]);
    let ticket = served.submit(&asked);
    let handle = served.handle.clone();
    let mut ticket = ticket.map(|_| handle.load());
    let during = served.drive_while(ticket.next()).expect("a token");
    assert_eq!((during.active, during.rows), (1, 1), "{during:?}");
    assert!(during.pages >= 10 && during.pages <= during.page_places);
    assert_eq!((during.images_kept, during.image_misses), (1, 1));
    assert!(during.memory.cache > 0 && during.memory.images > 0);
    assert!(during.memory.activations > 0);
    assert_eq!(during.memory.weights, weights);
    served.drive_while(ticket.collect::<Vec<_>>());
    let after = served.handle.load();
    assert_empty(&after);
    assert_eq!(after.timings.tokens, 10);
    assert!(after.prompt_tokens > 2);
}

// ---- items ----------------------------------------------------------------------------------------------------------

fn item(name: &str, generation: GenerationOverrides) -> Item {
    Item {
        image: ImageSource::File(data(name)),
        ask: Ask::Caption(Arc::new(CaptionOptions {
            generation,
            ..CaptionOptions::default()
        })),
    }
}

/// What was said of an item, and the pieces of each text.
async fn answer(mut ticket: blip2_wgpu::task::Ticket) -> (Texts, Vec<String>) {
    let mut pieces: HashMap<usize, String> = HashMap::new();
    while let Some(event) = ticket.next().await {
        match event {
            TicketEvent::Piece { text, piece } => pieces.entry(text).or_default().push_str(&piece),
            TicketEvent::Done { texts, .. } => {
                let pieces = (0..texts.texts.len()).map(|text| pieces.remove(&text));
                let pieces = pieces.map(Option::unwrap_or_default).collect();
                return (texts, pieces);
            }
            TicketEvent::Failed { error } => panic!("{error}"),
        }
    }
    panic!("a ticket without an end")
}

/// A thread that drives `model`; it ends when the handle and its clones are dropped.
fn serve(model: Blip2) -> (Handle, std::thread::JoinHandle<Result<(), Error>>) {
    let (mut service, handle) = model.serve(ServeOptions::default());
    let driver = std::thread::spawn(move || pollster::block_on(service.drive()));
    (handle, driver)
}

#[test]
fn items_come_in_from_any_thread_and_are_answered_as_by_the_model() {
    let gpu = device(&GpuOptions::default());
    let expected = caption(&mut open(&gpu, None), &images(), &CaptionOptions::default());
    let (handle, driver) = serve(open(&gpu, None));
    let threads = [0, 1, 2, 3].map(|number: usize| {
        let handle = handle.clone();
        std::thread::spawn(move || {
            let name = ["house.png", "boat.png"][number % 2];
            let ticket = handle.submit(item(name, GenerationOverrides::default()));
            pollster::block_on(answer(ticket.expect("room")))
        })
    });
    for (number, thread) in threads.into_iter().enumerate() {
        let (texts, pieces) = thread.join().expect("no panic");
        let expected = &expected[number % 2];
        assert_eq!(texts.texts[0].text, expected.text);
        assert_eq!(texts.texts[0].tokens, expected.tokens);
        assert_eq!(pieces[0], expected.text);
    }
    let load = handle.load();
    assert_eq!((load.image_misses, load.timings.images), (2, 2), "{load:?}");
    // A run beside others, and of more items than the queue holds.
    let items = (0..600).map(|number| {
        let few = GenerationOverrides {
            max_new_tokens: Some(1),
            ..GenerationOverrides::default()
        };
        item(["house.png", "boat.png", "none.png"][number % 3], few)
    });
    let mut run = handle.run(items, RunOptions::default());
    let (mut done, mut failed) = (0, 0);
    while let Some(event) = pollster::block_on(run.next()) {
        match event.expect("a working device") {
            ItemEvent::Piece { .. } => panic!("nobody wanted pieces"),
            ItemEvent::Done { .. } => done += 1,
            ItemEvent::Failed { error, .. } => {
                assert!(error.names_its_image());
                failed += 1;
            }
        }
    }
    drop(run);
    assert_eq!((done, failed), (400, 200));
    let refused = handle.submit(item(
        "house.png",
        GenerationOverrides {
            num_beams: Some(0),
            ..GenerationOverrides::default()
        },
    ));
    assert!(matches!(refused, Err(Refusal::Invalid(Error::Generate(_)))));
    handle.drain(Duration::ZERO);
    driver.join().expect("no panic").expect("an end");
    let refused = handle.submit(item("house.png", GenerationOverrides::default()));
    assert!(matches!(refused, Err(Refusal::Closed)));
}

/// The text of a caption ends before each text that it may be stopped by, wherever its tokens part it, and what was shown
/// of it is never taken back.
#[cfg(feature = "demo-model")]
#[test]
fn stop_strings_end_texts_wherever_tokens_part_them() {
    let scene = |name: &str| ImageSource::File(data("demo").join(name));
    let model = pollster::block_on(Blip2::demo(Default::default())).expect("the demo model");
    let (handle, driver) = serve(model);
    let ask = |stop: Vec<String>, beams: usize, scene: ImageSource| {
        let options = CaptionOptions {
            generation: GenerationOverrides {
                stop: Some(stop),
                num_beams: Some(beams),
                ..GenerationOverrides::default()
            },
            ..CaptionOptions::default()
        };
        let ask = Ask::Caption(Arc::new(options));
        handle.submit(Item { image: scene, ask }).expect("room")
    };
    for beams in [1, 3] {
        let whole = ask(Vec::new(), beams, scene("scene_12.png"));
        let (whole, _) = pollster::block_on(answer(whole));
        let whole = &whole.texts[0];
        assert_eq!(whole.finish, FinishReason::EndToken);
        assert!(whole.text.len() > 20, "{:?}", whole.text);
        let starts = (1..whole.text.len() - 4).step_by(3);
        let stops: Vec<String> = starts
            .flat_map(|at| [1, 4].map(|length| whole.text[at..at + length].to_owned()))
            .collect();
        let tickets = stops.iter().map(|stop| {
            // One that never comes up, one that begins as this one does, and this one.
            let stops = vec!["🐱".to_owned(), format!("{stop}🐱"), stop.clone()];
            ask(stops, beams, scene("scene_12.png"))
        });
        let answers = join_all(tickets.collect::<Vec<_>>().into_iter().map(answer));
        for (stop, (texts, pieces)) in stops.iter().zip(pollster::block_on(answers)) {
            let text = &texts.texts[0];
            assert!(!text.text.contains(stop), "{stop:?}: {:?}", text.text);
            if beams == 1 {
                assert_eq!(text.finish, FinishReason::StopString, "{stop:?}");
                let expected = whole.text.split(stop).next().expect("a first part");
                assert_eq!(text.text, expected.trim(), "{stop:?}");
                assert_eq!(pieces[0], text.text, "{stop:?}");
                // Nothing is generated behind it.
                assert!(whole.tokens.starts_with(&text.tokens));
                assert!(text.tokens.len() < whole.tokens.len());
            }
        }
    }
    drop(handle);
    driver.join().expect("no panic").expect("an end");
}

#[test]
fn a_model_is_opened_again_behind_the_same_door() {
    let open = || open(&device(&GpuOptions::default()), None);
    let expected = caption(&mut open(), &images(), &CaptionOptions::default());
    let model = open();
    let gpu = model.gpu().clone();
    let (mut service, handle) = model.serve(ServeOptions::default());
    let submit = || handle.submit(item("boat.png", GenerationOverrides::default()));
    let mut ticket = submit().expect("room");
    gpu.device().destroy();
    let error = pollster::block_on(service.drive()).expect_err("no device");
    assert!(error.is_of_device(), "{error}");
    let event = pollster::block_on(ticket.next());
    assert!(
        matches!(event, Some(TicketEvent::Failed { .. })),
        "{event:?}"
    );
    assert!(matches!(submit(), Err(Refusal::Lost(_))));
    service.reopen(open()).expect("the same model");
    let ticket = submit().expect("it is open");
    let driver = std::thread::spawn(move || pollster::block_on(service.drive()));
    let (texts, _) = pollster::block_on(answer(ticket));
    assert_eq!(texts.texts[0].text, expected[1].text);
    drop(handle);
    driver.join().expect("no panic").expect("an end");
}

#[test]
fn an_image_that_cannot_be_read_fails_its_own_item_only() {
    let (handle, driver) = serve(open(&device(&GpuOptions::default()), None));
    let missing = Item {
        image: ImageSource::File(PathBuf::from("no/such/file.png")),
        ..item("house.png", GenerationOverrides::default())
    };
    let bad = handle.submit(missing).expect("room");
    let good = handle.submit(item("house.png", GenerationOverrides::default()));
    let events: Vec<_> = pollster::block_on(bad.collect());
    match &events[..] {
        [TicketEvent::Failed { error }] => {
            assert!(error.names_its_image());
            assert!(error.to_string().contains("no/such/file.png"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    let (texts, _) = pollster::block_on(answer(good.expect("room")));
    assert_eq!(texts.texts.len(), 1);
    drop(handle);
    driver.join().expect("no panic").expect("an end");
}
