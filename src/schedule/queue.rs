//! The queue: requests of any kind, batched through the image encoder, the prefill and the decoder.
//!
//! A request waits, has its image encoded (once, however many ask about it), is prefilled, and is decoded beside whatever
//! else is there; when it ends, its rows and cache go to the next. What a request gets does not depend on its company:
//! every row follows its own rules, and no kernel mixes rows.
//!
//! How exactly that holds is the kernels' affair, as the number of rows, which is the company's, decides between them. On
//! narrow subgroups a row has the same bits in any company. On wide ones products of up to
//! [`MATVEC_ROWS`](crate::kernels::MATVEC_ROWS) rows add up in another order than those of more; and with cooperative
//! matrices these also round their inputs to f16 (and, from some number of rows on, split sums otherwise), so that a token
//! may be another where two are nearly as likely. [`Disabled::f16`](crate::gpu::Disabled) leaves cooperative matrices out:
//! all is f32 then, and what remains is the order of sums.
//!
//! # Whose turn it is
//! Requests are admitted in the order in which they came. The device state is as large as the batch that it was opened
//! for, and can only be opened anew when nothing is being decoded. A request that needs a larger one (more beams, a longer
//! text) therefore waits until the batch has run out; until then a younger request is admitted only if it must end no
//! later than the longest of those that are being decoded. So rows are not idle meanwhile, and the large request waits no
//! longer than it would with nobody behind it: at most for as many steps as the longest text that was there before it.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::Error;
use crate::gpu::GpuError;
use crate::platform::Instant;

use super::decode_loop::{Decoder, DeviceRows, Ended};
use super::device_state::{DeviceState, MAX_BATCH, MAX_PREFILL_ROWS, Shape};
use super::engine::Engine;
use super::pages::PagePool;
use super::request::{
    Event, Events, Image, ImageKey, Request, RequestId, cache_rows_of, sequences_of,
};
use super::sequence::{Prompt, SequenceGroup};
use super::tables::rules_words;
use super::timings::{Clock, Timings};

/// Requests on their way through an engine.
#[derive(Debug)]
pub(super) struct Queue {
    engine: Engine,
    /// Requests decoded at once, and images encoded at once, that were asked for.
    batch: usize,
    /// As many as the device has room for.
    at_once: usize,
    /// Images whose query rows are kept at least.
    image_places: usize,
    /// In the order in which they came.
    waiting: VecDeque<Waiting>,
    active: Vec<SequenceGroup>,
    /// There is one whenever something is active.
    state: Option<DeviceState>,
    /// The last shape that the device had no room for.
    refused: Option<Shape>,
    pages: PagePool,
    rows: DeviceRows,
    /// Whether a turn has begun and not ended: one that was dropped on its way leaves the device in an unknown state.
    in_turn: bool,
    lost: Option<Arc<Error>>,
    counts: Counts,
}

/// A request that is not admitted yet.
#[derive(Debug)]
struct Waiting {
    id: RequestId,
    request: Request,
    image: Image,
    clock: Clock,
    /// Whether its image had to be encoded for it.
    missed: bool,
}

/// What has been done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub timings: Timings,
    /// Requests whose image was encoded already when its turn came.
    pub image_hits: u64,
    /// Requests whose image had to be encoded.
    pub image_misses: u64,
    /// Positions of prompts, the images' included.
    pub prompt_tokens: u64,
}

/// What the queue holds now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Holds {
    pub waiting: usize,
    pub active: usize,
    pub rows: usize,
    pub pages: usize,
    pub page_places: usize,
    pub images: usize,
    pub image_places: usize,
    pub cache_bytes: u64,
    pub image_bytes: u64,
}

impl Queue {
    /// An empty queue that works on up to `batch` requests at once and keeps the query rows of at least `image_places`
    /// images, or of as many as one buffer holds.
    pub(super) fn new(engine: Engine, batch: usize, image_places: usize) -> Self {
        let mut queue = Self {
            engine,
            batch: 1,
            at_once: 1,
            image_places: 0,
            waiting: VecDeque::new(),
            active: Vec::new(),
            state: None,
            refused: None,
            pages: PagePool::new(0),
            rows: DeviceRows::default(),
            in_turn: false,
            lost: None,
            counts: Counts::default(),
        };
        queue.set_batch(batch);
        queue.set_image_places(image_places);
        queue
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Works on up to `batch` requests at once from now on.
    pub(super) fn set_batch(&mut self, batch: usize) {
        self.batch = batch.clamp(1, MAX_BATCH);
        self.at_once = self.batch;
    }

    /// Keeps the query rows of at least so many images from now on, or of as many as one buffer holds.
    pub(super) fn set_image_places(&mut self, places: usize) {
        self.image_places = places.min(self.engine.most_image_places());
    }

    /// Adds a request that [`super::request::RequestLimits`] has passed.
    pub(super) fn push(&mut self, id: RequestId, request: Request, image: Image, clock: Clock) {
        let waiting = Waiting {
            id,
            request,
            image,
            clock,
            missed: false,
        };
        // Images become ready in another order than they came in.
        let place = self.waiting.partition_point(|other| other.id < id);
        self.waiting.insert(place, waiting);
    }

    /// Forgets a request; its rows and pages are free.
    pub(super) fn cancel(&mut self, id: RequestId) {
        self.waiting.retain(|waiting| waiting.id != id);
        if let Some(index) = self.active.iter().position(|group| group.id == id) {
            let (_, pages) = self.active.remove(index).finish();
            self.pages.give_back(pages);
            self.rows.forget();
        }
    }

    /// Requests decoded at once: fewer than were asked for once it shows that the device has no room for so many.
    pub(super) fn batch_size(&self) -> usize {
        self.at_once
    }

    /// Whether another request would find a place soon.
    pub(super) fn wants_more(&self) -> bool {
        self.waiting.len() < 2 * self.at_once
    }

    /// Whether a turn would encode or prefill with a full batch, or has something to decode: where not, it is worth
    /// waiting for requests that are about to come.
    pub(super) fn is_busy(&self) -> bool {
        !self.active.is_empty() || self.waiting.len() >= self.at_once
    }

    /// Whether nothing is left to do.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.active.is_empty()
    }

    /// What has been done so far.
    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// What it holds now.
    pub(super) fn holds(&self) -> Holds {
        let state = self.state.as_ref();
        let images = state.map(|state| &state.images);
        let row_bytes = self.engine.model().language_model.cache_row_bytes();
        Holds {
            waiting: self.waiting.len(),
            active: self.active.len(),
            rows: self.active.iter().map(SequenceGroup::rows).sum(),
            pages: self.pages.used(),
            page_places: self.pages.rows(),
            images: images.map_or(0, |images| images.len()),
            image_places: images.map_or(0, |images| images.places()),
            cache_bytes: self.pages.rows() as u64 * row_bytes,
            image_bytes: images.map_or(0, |images| images.bytes()),
        }
    }

    /// Why the device is of no use any more, if it is not. Everything has failed then.
    pub(super) fn lost(&self) -> Option<&Arc<Error>> {
        self.lost.as_ref()
    }

    /// Does the next piece of work: images, prompts, and a few steps of decoding. Without any it returns at once. Where
    /// something fails, whatever was under way does; the rest goes on, if the device is still there.
    pub(super) async fn turn(&mut self) -> Events {
        let mut events = Vec::new();
        if self.in_turn {
            let why = "the work was dropped half done";
            self.start_over(Error::GivenUp { why }, &mut events);
        }
        if self.is_idle() {
            return events;
        }
        self.in_turn = true;
        if let Err(error) = self.work(&mut events).await {
            self.give_up(error, &mut events);
        }
        self.in_turn = false;
        events
    }

    async fn work(&mut self, events: &mut Events) -> Result<(), Error> {
        let at_once = self.at_once.min(self.waiting.len()).max(1);
        self.engine.tune(at_once.next_power_of_two()).await?;
        if self.active.is_empty() {
            self.open_state()?;
        }
        self.encode().await?;
        self.prefill(events).await?;
        if self.active.is_empty() {
            return Ok(());
        }
        let (mut decoder, active, rows) = self.decoder()?;
        let ended = decoder.decode(active, rows, events).await?;
        self.end(ended, events);
        Ok(())
    }

    /// What decodes, and what it decodes.
    fn decoder(
        &mut self,
    ) -> Result<(Decoder<'_>, &mut Vec<SequenceGroup>, &mut DeviceRows), Error> {
        let state = self.state.as_mut();
        let decoder = Decoder {
            gpu: self.engine.gpu(),
            model: self.engine.model(),
            state: state.ok_or_else(no_state)?,
            timings: &mut self.counts.timings,
        };
        Ok((decoder, &mut self.active, &mut self.rows))
    }

    /// Fails what was under way: what is active, or the request whose turn it was; everything if the device is gone.
    fn give_up(&mut self, error: Error, events: &mut Events) {
        let is_lost = matches!(error, Error::Gpu(GpuError::Lost { .. }));
        let mut failed = Vec::new();
        if is_lost {
            failed.extend(self.waiting.drain(..));
        } else if self.active.is_empty() {
            failed.extend(self.waiting.pop_front());
        }
        let error = self.start_over(error, events);
        for Waiting { id, .. } in failed {
            let error = Arc::clone(&error);
            events.push((id, Event::Failed { error }));
        }
        if is_lost {
            self.lost = Some(error);
        }
    }

    /// Fails what is active and forgets what is on the device.
    fn start_over(&mut self, error: Error, events: &mut Events) -> Arc<Error> {
        let error = Arc::new(error);
        for group in self.active.drain(..) {
            let error = Arc::clone(&error);
            events.push((group.id, Event::Failed { error }));
        }
        self.state = None;
        self.pages = PagePool::new(0);
        self.rows.forget();
        error
    }

    /// Sees to it that there is a device state that the oldest requests fit, for as many at once as there is room for.
    /// Nothing is active.
    fn open_state(&mut self) -> Result<(), Error> {
        let mut at_once = self.batch;
        loop {
            let wanted = self.wanted_shape(at_once);
            if let Some(state) = &self.state
                && state.shape.covers(&wanted)
            {
                self.at_once = at_once;
                return Ok(());
            }
            let joined = self.state.as_ref().map(|old| old.shape.joined(&wanted));
            for shape in joined
                .filter(|joined| *joined != wanted)
                .into_iter()
                .chain([wanted])
            {
                let is_hopeless = self.refused.is_some_and(|refused| shape.covers(&refused));
                if is_hopeless && (at_once > 1 || shape != wanted) {
                    continue;
                }
                match self.make_state(shape) {
                    Ok(()) => {
                        self.at_once = at_once;
                        return Ok(());
                    }
                    Err(Error::Gpu(GpuError::OutOfMemory { .. } | GpuError::TooLarge { .. }))
                        if at_once > 1 || shape != wanted =>
                    {
                        self.refused = Some(shape);
                    }
                    Err(error) => return Err(error),
                }
            }
            at_once /= 2;
            log::info!("no room for more than {at_once} requests at once");
        }
    }

    /// Puts a state of `shape` in the place of the old one, whose memory goes back first.
    fn make_state(&mut self, shape: Shape) -> Result<(), Error> {
        let images = self.state.take().map(|old| old.images);
        self.rows.forget();
        self.pages = PagePool::new(0);
        self.state = Some(self.engine.new_state(shape, images)?);
        self.pages = PagePool::new(shape.cache_rows);
        Ok(())
    }

    /// A state that fits `at_once` of what is waiting.
    fn wanted_shape(&self, at_once: usize) -> Shape {
        let mut shape = Shape {
            rows: 1,
            images: self.image_places.max(2 * self.images_at_once(at_once)),
            ..Shape::default()
        };
        for waiting in self.waiting.iter().take(at_once) {
            shape = shape.joined(&self.shape_of(&waiting.request));
        }
        shape.rows *= at_once;
        shape.cache_rows *= at_once;
        shape.rounded(self.engine.model().language_model.max_positions())
    }

    /// What a request takes of a state.
    fn shape_of(&self, request: &Request) -> Shape {
        let (prompt, options) = (self.prompt_length(request), &request.options);
        Shape {
            rows: sequences_of(options),
            max_length: prompt + options.max_new_tokens,
            cache_rows: cache_rows_of(prompt, options),
            rules_stride: rules_words(options),
            images: 0,
        }
    }

    fn prompt_length(&self, request: &Request) -> usize {
        self.engine.limits().prompt_length(request.text.len())
    }

    fn images_at_once(&self, at_once: usize) -> usize {
        1 << at_once.min(self.engine.max_batch()).ilog2()
    }

    /// Of the requests that wait, by index, those that may be admitted while the state is what it is, in order: see
    /// "Whose turn it is".
    fn line(&self, shape: &Shape) -> Vec<usize> {
        let left = self.active.iter().map(SequenceGroup::tokens_left);
        let mut longest = left.max().unwrap_or(0);
        let mut is_held_up = false;
        let mut line = Vec::new();
        for (index, waiting) in self.waiting.iter().enumerate() {
            let steps = waiting.request.options.max_new_tokens;
            if !shape.covers(&self.shape_of(&waiting.request)) {
                is_held_up = true;
            } else if !is_held_up || steps <= longest {
                longest = longest.max(steps);
                line.push(index);
            }
        }
        line
    }

    /// Those whose turn it is, if there is room for the first, and for enough others to make a batch of it.
    fn next_in_line(&self) -> Vec<usize> {
        let Some(state) = &self.state else {
            return Vec::new();
        };
        let mut line = self.line(&state.shape);
        let free = self.at_once.saturating_sub(self.active.len());
        let has_room = line.first().is_some_and(|&first| {
            let rows = sequences_of(&self.waiting[first].request.options);
            let used: usize = self.active.iter().map(SequenceGroup::rows).sum();
            free >= self.at_once.div_ceil(4) && used + rows <= state.shape.rows
        });
        if !has_room && !self.active.is_empty() {
            line.clear();
        }
        line
    }

    /// Encodes the next images, if the next request waits for one and could go on with it.
    async fn encode(&mut self) -> Result<(), Error> {
        let line = self.next_in_line();
        let most = self.images_at_once(self.at_once);
        let Some(state) = &mut self.state else {
            return Ok(());
        };
        let mut here: Vec<ImageKey> = Vec::new();
        let mut new: Vec<Image> = Vec::new();
        for index in line {
            let Waiting { image, missed, .. } = &mut self.waiting[index];
            let is_new = state.images.row_of(image.key).is_none();
            if !is_new && !here.contains(&image.key) {
                here.push(image.key);
            }
            if is_new && new.is_empty() && !here.is_empty() {
                return Ok(()); // the next request can go on already
            }
            if is_new && !new.iter().any(|other| other.key == image.key) {
                new.push(image.clone());
                *missed = true;
            }
            if new.len() >= most {
                break;
            }
        }
        let mut rest = new.as_slice();
        while !rest.is_empty() {
            // Few different programs: full batches, then halves of them.
            let (images, others) = rest.split_at(1 << rest.len().ilog2());
            let started = Instant::now();
            let places = state.images.vacate(images.len(), &here);
            let timings = &mut self.counts.timings;
            self.engine
                .encode(images, &state.images, &places, timings)
                .await?;
            for (&place, image) in places.iter().zip(images) {
                state.images.hold(place, image.key);
                here.push(image.key);
            }
            let took = started.elapsed();
            let is_of_these = |it: &&mut Waiting| images.iter().any(|i| i.key == it.image.key);
            for waiting in self.waiting.iter_mut().filter(is_of_these) {
                waiting.clock.encoded(took);
            }
            rest = others;
        }
        Ok(())
    }

    /// Admits and prefills the next requests whose images are there.
    async fn prefill(&mut self, events: &mut Events) -> Result<(), Error> {
        let before = self.active.len();
        self.admit(events);
        if self.active.len() == before {
            return Ok(());
        }
        let started = Instant::now();
        let (mut decoder, active, rows) = self.decoder()?;
        let new = &mut active[before..];
        let ended = decoder.prefill(new, events).await?;
        rows.forget();
        for group in new {
            group.clock.prefilled(started.elapsed());
        }
        let ended = ended.into_iter();
        let ended = ended.map(|(index, result)| (before + index, result));
        self.end(ended.collect(), events);
        Ok(())
    }

    /// Takes requests from those that wait, in order, as long as there is room.
    fn admit(&mut self, events: &mut Events) {
        let line = self.next_in_line();
        let Some(state) = &mut self.state else {
            return;
        };
        let mut rows: usize = self.active.iter().map(SequenceGroup::rows).sum();
        let (mut prefill_rows, mut admitted) = (0, 0);
        for index in line {
            let index = index - admitted; // those before it have left
            let Waiting {
                id, request, image, ..
            } = &self.waiting[index];
            let (id, options) = (*id, &request.options);
            let prompt = self.engine.limits().prompt_length(request.text.len());
            rows += sequences_of(options);
            prefill_rows += prompt;
            if self.active.len() >= self.at_once
                || rows > state.shape.rows
                || (prefill_rows > MAX_PREFILL_ROWS && admitted > 0)
            {
                break;
            }
            let Some(visual_row) = state.images.row_of(image.key) else {
                break;
            };
            let Some(pages) = self.pages.take(cache_rows_of(prompt, options)) else {
                break;
            };
            let Some(waiting) = self.waiting.remove(index) else {
                break; // it was looked at above
            };
            admitted += 1;
            self.counts.prompt_tokens += prompt as u64;
            if waiting.missed {
                self.counts.image_misses += 1;
            } else {
                self.counts.image_hits += 1;
            }
            let model = self.engine.model();
            let prompt = Prompt {
                visual_row,
                visual_count: model.qformer.queries(),
                text: waiting.request.text.clone(),
                decoder_start: model.language_model.decoder_start(),
            };
            match SequenceGroup::new(id, prompt, &waiting.request, waiting.clock) {
                Ok(mut group) => {
                    group.lend(pages);
                    self.active.push(group);
                }
                Err(error) => {
                    self.pages.give_back(pages);
                    let error = Arc::new(error.into());
                    events.push((id, Event::Failed { error }));
                }
            }
        }
    }

    /// Reports the groups that have ended and takes their rows of the cache back.
    fn end(&mut self, ended: Vec<Ended>, events: &mut Events) {
        for (removed, (index, result)) in ended.into_iter().enumerate() {
            let group = self.active.remove(index - removed);
            let (id, clock) = (group.id, group.clock);
            let (texts, pages) = group.finish();
            self.pages.give_back(pages);
            let event = match result {
                Ok(()) => {
                    let tokens = texts.iter().map(|text| text.tokens.len());
                    self.counts.timings.tokens += tokens.sum::<usize>();
                    let timings = clock.finish();
                    Event::Done { texts, timings }
                }
                Err(error) => Event::Failed {
                    error: Arc::new(error),
                },
            };
            events.push((id, event));
        }
    }
}

/// There is a state whenever something is active; this says so if ever there is not.
fn no_state() -> Error {
    Error::Request {
        problem: "nothing is open on the device".into(),
    }
}
