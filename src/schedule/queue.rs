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

use std::collections::VecDeque;
use std::sync::Arc;

use crate::Error;
use crate::generate::Generated;
use crate::gpu::GpuError;
use crate::kernels::row_rules_words;

use super::decode_loop::{Decoder, DeviceRows};
use super::device_state::{DeviceState, MAX_BATCH, MAX_PREFILL_ROWS, Shape};
use super::engine::Engine;
use super::pages::PagePool;
use super::request::{Event, Pixels, Request};
use super::sequence::{Prompt, SequenceGroup, cache_rows_of, sequences_of};
use super::timings::Timings;

/// Requests on their way through one engine. Dropping it cancels them.
#[derive(Debug)]
pub struct Queue<'e> {
    engine: &'e mut Engine,
    /// Requests decoded at once, and images encoded at once.
    batch: usize,
    waiting: VecDeque<(usize, Request)>,
    active: Vec<SequenceGroup>,
    pages: PagePool,
    device: DeviceRows,
    pushed: usize,
    timings: Timings,
}

impl<'e> Queue<'e> {
    /// An empty queue that works on up to `batch` requests at once.
    pub fn new(engine: &'e mut Engine, batch: usize) -> Self {
        // What an earlier queue has left in the state is nobody's.
        let cache_rows = engine.state.as_mut().map_or(0, |state| {
            state.images.clear();
            state.shape.cache_rows
        });
        Self {
            engine,
            batch: batch.clamp(1, MAX_BATCH),
            waiting: VecDeque::new(),
            active: Vec::new(),
            pages: PagePool::new(cache_rows),
            device: DeviceRows::default(),
            pushed: 0,
            timings: Timings::default(),
        }
    }

    /// Adds a request and gives its number, counted from 0.
    ///
    /// # Errors
    /// Options that do not go together, a prompt too long, or a request that the model cannot be trusted with. It has no
    /// number then.
    pub fn push(&mut self, request: Request) -> Result<usize, Error> {
        request.options.validate()?;
        self.engine.check_request(&request)?;
        let number = self.pushed;
        self.pushed += 1;
        self.waiting.push_back((number, request));
        Ok(number)
    }

    /// Requests decoded at once: fewer than were asked for once it shows that the device has no room for so many.
    #[must_use]
    pub fn batch_size(&self) -> usize {
        self.batch
    }

    /// Whether another request would find a place soon. A caller that feeds the queue while this holds keeps it busy
    /// and its memory bounded.
    #[must_use]
    pub fn wants_more(&self) -> bool {
        self.waiting.len() < 2 * self.batch
    }

    /// Whether a turn would encode or prefill with a full batch, or has something to decode: where not, it is worth
    /// waiting for requests that are about to come.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.active.is_empty() || self.waiting.len() >= self.batch
    }

    /// Whether nothing is left to do.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.active.is_empty()
    }

    /// How long the parts took so far.
    #[must_use]
    pub fn timings(&self) -> Timings {
        self.timings
    }

    /// Does the next piece of work: images, prompts, and a few steps of decoding. Without any it returns at once.
    ///
    /// # Errors
    /// The device failed, or has no room even for one request at a time. The queue is of no use then.
    pub async fn turn(&mut self) -> Result<Vec<Event>, Error> {
        let mut events = Vec::new();
        if self.is_idle() {
            return Ok(events);
        }
        let at_once = self.batch.min(self.waiting.len()).max(1);
        self.engine.tune(at_once.next_power_of_two()).await?;
        let mut state = self.take_state()?;
        // A turn that fails or is cancelled leaves no state: what the device still does with it is nobody's concern.
        self.encode(&mut state).await?;
        self.prefill(&mut state, &mut events).await?;
        if !self.active.is_empty() {
            let Engine { gpu, model, .. } = &*self.engine;
            let mut decoder = Decoder {
                gpu,
                model,
                state: &mut state,
                timings: &mut self.timings,
            };
            let ended = decoder
                .decode(&mut self.active, &mut self.device, &mut events)
                .await?;
            let mut groups: Vec<Option<SequenceGroup>> = self.active.drain(..).map(Some).collect();
            self.end(&mut groups, ended, &mut events);
            self.active.extend(groups.into_iter().flatten());
        }
        self.engine.state = Some(state);
        self.engine.timings = self.timings;
        Ok(events)
    }

    /// Runs everything to its end and gives the texts of every request, in order.
    ///
    /// # Errors
    /// As [`Queue::turn`], or the first request that failed.
    pub async fn finish(mut self) -> Result<Vec<Vec<Generated>>, Error> {
        let mut all = vec![Vec::new(); self.pushed];
        while !self.is_idle() {
            for event in self.turn().await? {
                match event {
                    Event::Token { .. } => {}
                    Event::Done { request, texts } => all[request] = texts,
                    Event::Failed { error, .. } => return Err(error),
                }
            }
        }
        Ok(all)
    }

    /// The state, grown if the next request does not fit and nothing is in it.
    fn take_state(&mut self) -> Result<DeviceState, Error> {
        let wanted = self.wanted_shape();
        let state = self.engine.state.take();
        match state {
            Some(state) if !self.active.is_empty() || state.shape.covers(&wanted) => Ok(state),
            old => {
                let shape = old.map_or(wanted, |old| old.shape.joined(&wanted));
                // The old state's memory has gone back before the new one asks for its own.
                let state = self.engine.new_state(shape);
                match state {
                    Err(Error::Gpu(GpuError::OutOfMemory { .. } | GpuError::TooLarge { .. }))
                        if self.batch > 1 =>
                    {
                        self.batch /= 2;
                        log::info!("no room for more than {} requests at once", self.batch);
                        self.engine.state = None;
                        self.take_state()
                    }
                    state => {
                        let state = state?;
                        self.pages = PagePool::new(state.shape.cache_rows);
                        Ok(state)
                    }
                }
            }
        }
    }

    /// A state that fits a batch of what is waiting.
    fn wanted_shape(&self) -> Shape {
        let mut shape = Shape {
            rows: 1,
            images: 2 * self.images_at_once(),
            ..Shape::default()
        };
        for (_, request) in self.waiting.iter().take(self.batch) {
            let prompt = self.engine.prompt_length(request);
            let options = &request.options;
            shape = shape.joined(&Shape {
                rows: sequences_of(options),
                max_length: prompt + options.max_new_tokens,
                cache_rows: cache_rows_of(prompt, options),
                rules_stride: row_rules_words(options),
                images: 0,
            });
        }
        shape.rows *= self.batch;
        shape.cache_rows *= self.batch;
        shape.rounded(self.engine.model.language_model.max_positions())
    }

    fn images_at_once(&self) -> usize {
        let at_most = self.batch.min(self.engine.max_batch());
        1 << at_most.ilog2()
    }

    /// Whether the next request may be admitted: there is room for it, and for enough others to make a batch of it.
    fn has_room(&self, state: &DeviceState) -> bool {
        let Some((_, next)) = self.waiting.front() else {
            return false;
        };
        let free = self.batch.saturating_sub(self.active.len());
        self.active.is_empty() || (free >= self.batch.div_ceil(4) && self.fits(next, state))
    }

    /// Whether there are rows of the right size for `request`.
    fn fits(&self, request: &Request, state: &DeviceState) -> bool {
        let used: usize = self
            .active
            .iter()
            .map(|group| sequences_of(&group.options))
            .sum();
        let prompt = self.engine.prompt_length(request);
        used + sequences_of(&request.options) <= state.shape.rows
            && prompt + request.options.max_new_tokens <= state.shape.max_length
            && row_rules_words(&request.options) <= state.shape.rules_stride
    }

    /// Encodes the next images, if the next request waits for one and could go on with it.
    async fn encode(&mut self, state: &mut DeviceState) -> Result<(), Error> {
        if !self.has_room(state) {
            return Ok(());
        }
        let mut here: Vec<Pixels> = Vec::new();
        let mut new: Vec<Pixels> = Vec::new();
        for (_, request) in &self.waiting {
            let image = &request.image;
            let is_new = state.images.row_of(image).is_none();
            if is_new && new.is_empty() && !here.is_empty() {
                return Ok(()); // the next request can go on already
            }
            let list = if is_new { &mut new } else { &mut here };
            if !list.iter().any(|other| Arc::ptr_eq(other, image)) {
                list.push(Arc::clone(image));
            }
            if new.len() >= self.images_at_once() {
                break;
            }
        }
        let mut rest = new.as_slice();
        while !rest.is_empty() {
            // Few different programs: full batches, then halves of them.
            let count = 1 << rest.len().ilog2();
            let places = state.images.vacant(count, &here);
            let (images, others) = rest.split_at(count);
            self.engine
                .encode(images, &state.images, &places, &mut self.timings)
                .await?;
            for (&place, image) in places.iter().zip(images) {
                state.images.hold(place, image);
            }
            here.extend(images.iter().cloned());
            rest = others;
        }
        Ok(())
    }

    /// Admits and prefills the next requests whose images are there.
    async fn prefill(
        &mut self,
        state: &mut DeviceState,
        events: &mut Vec<Event>,
    ) -> Result<(), Error> {
        if !self.has_room(state) {
            return Ok(());
        }
        let mut groups = self.admit(state)?;
        if groups.is_empty() {
            return Ok(());
        }
        let Engine { gpu, model, .. } = &*self.engine;
        let mut decoder = Decoder {
            gpu,
            model,
            state,
            timings: &mut self.timings,
        };
        let ended = decoder.prefill(&mut groups, events).await?;
        let mut groups: Vec<Option<SequenceGroup>> = groups.into_iter().map(Some).collect();
        self.end(&mut groups, ended, events);
        self.active.extend(groups.into_iter().flatten());
        self.device.forget();
        Ok(())
    }

    /// Takes requests from the queue, in order, as long as there is room.
    fn admit(&mut self, state: &mut DeviceState) -> Result<Vec<SequenceGroup>, Error> {
        let mut admitted: Vec<SequenceGroup> = Vec::new();
        let mut rows: usize = self
            .active
            .iter()
            .map(|group| sequences_of(&group.options))
            .sum();
        let mut prefill_rows = 0;
        while let Some((_, request)) = self.waiting.front() {
            let options = &request.options;
            let prompt = self.engine.prompt_length(request);
            rows += sequences_of(options);
            prefill_rows += prompt;
            if self.active.len() + admitted.len() >= self.batch
                || rows > state.shape.rows
                || !self.fits(request, state)
                || (prefill_rows > MAX_PREFILL_ROWS && !admitted.is_empty())
            {
                break;
            }
            let Some(visual_row) = state.images.row_of(&request.image) else {
                break;
            };
            let Some(pages) = self.pages.take(cache_rows_of(prompt, options)) else {
                break;
            };
            let Some((number, request)) = self.waiting.pop_front() else {
                break; // it was looked at above
            };
            let prompt = Prompt {
                visual_row,
                visual_count: self.engine.model.qformer.queries(),
                text: request.text,
                decoder_start: self.engine.model.language_model.decoder_start(),
            };
            let group =
                SequenceGroup::new(number, prompt, request.history, request.options, pages)?;
            admitted.push(group);
        }
        Ok(admitted)
    }

    /// Reports the groups that have ended and takes their rows of the cache back.
    fn end(
        &mut self,
        groups: &mut [Option<SequenceGroup>],
        ended: Vec<(usize, Result<(), Error>)>,
        events: &mut Vec<Event>,
    ) {
        for (index, result) in ended {
            let Some(group) = groups[index].take() else {
                continue;
            };
            let request = group.request;
            let (texts, pages) = group.finish();
            self.pages.give_back(pages);
            events.push(match result {
                Ok(()) => {
                    self.timings.tokens +=
                        texts.iter().map(|text| text.tokens.len()).sum::<usize>();
                    Event::Done { request, texts }
                }
                Err(error) => Event::Failed { request, error },
            });
        }
    }
}
