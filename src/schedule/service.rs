//! The service: a queue with a door. Whoever has a [`Handle`] submits requests, from any thread and at any time; whoever
//! has a thread drives the [`Service`].
//!
//! ```text
//! Handle::submit → inbox → (image in preparation) → Queue → Event → Ticket
//! ```

mod door;

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use futures_channel::{mpsc, oneshot};
use futures_util::FutureExt;
use futures_util::future::{Either, poll_fn, select};
use futures_util::stream::StreamExt;
use futures_util::task::AtomicWaker;

use crate::Error;
use crate::generate::Generated;
use crate::platform::Instant;

use super::engine::Engine;
use super::queue::Queue;
use super::request::{Event, Events, Request, RequestId};
use super::timings::Timings;
use door::{Door, Phase, Preparing, Shared, Submitted, given_up};

pub use door::{DeviceMemory, Handle, ImageInput, Load, Refusal, ServiceState, Ticket};

/// How a service works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceOptions {
    /// Requests worked on at once, at most [`MAX_BATCH`](super::MAX_BATCH); fewer where the device has no room.
    pub batch_size: usize,
    /// Requests that may wait, those whose image is being prepared included; more are refused.
    pub queue: usize,
    /// Encoded images that are kept at least for further requests about them, as far as one buffer holds them.
    pub image_places: usize,
}

/// A queue and those who wait for its answers. Dropping it fails them.
#[derive(Debug)]
pub struct Service {
    queue: Queue,
    options: ServiceOptions,
    shared: Arc<Shared>,
    /// Whether a batch is worth the wait for images in preparation, where nothing is being decoded.
    fills_batches: bool,
    preparing: Vec<Preparing>,
    tickets: HashMap<RequestId, mpsc::UnboundedSender<Event>>,
    cancelled: u64,
    /// Of the queue, when [`Service::timings`] began.
    timed_from: Timings,
}

impl Service {
    /// A service over `engine`, and its door. Nothing is done before [`Service::drive`].
    #[must_use]
    pub fn new(engine: Engine, options: ServiceOptions) -> (Self, Handle) {
        let limits = engine.limits().clone();
        let door = Door {
            phase: Phase::Open,
            handles: 1,
            inbox: Vec::new(),
            next_id: 0,
            load: Load::default(),
            outside: Vec::new(),
        };
        let shared = Arc::new(Shared {
            limits,
            door: Mutex::new(door),
            driver: AtomicWaker::new(),
        });
        let mut service = Self {
            queue: Queue::new(engine, options.batch_size, options.image_places),
            options,
            shared: Arc::clone(&shared),
            fills_batches: false,
            preparing: Vec::new(),
            tickets: HashMap::new(),
            cancelled: 0,
            timed_from: Timings::default(),
        };
        service.publish();
        (service, Handle { shared })
    }

    /// The engine.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        self.queue.engine()
    }

    /// Has an idle service work otherwise from now on.
    pub(crate) fn configure(&mut self, options: ServiceOptions) {
        self.options = options;
        self.queue.set_image_places(options.image_places);
        self.fills_batches = false;
        self.set_batch_size(options.batch_size);
    }

    /// How long the parts of the last run took, or all since the service was made.
    #[must_use]
    pub fn timings(&self) -> Timings {
        self.queue.counts().timings.since(&self.timed_from)
    }

    /// Works on up to `batch` requests at once from now on.
    pub fn set_batch_size(&mut self, batch: usize) {
        self.options.batch_size = batch;
        self.queue.set_batch(batch);
        self.publish();
    }

    /// Times what follows, works on up to `batch` requests at once, and waits for images in preparation where that makes
    /// a fuller batch: for a run of many items, where it is all that counts when the last is done.
    pub(crate) fn begin_run(&mut self, batch: usize) {
        self.set_batch_size(batch);
        self.fills_batches = true;
        self.timed_from = self.queue.counts().timings;
    }

    /// Works until all handles are dropped, or one of them has had the service drained, and nothing is left to do. It
    /// sleeps while there is nothing to do. Dropped half done, it can be called again, but fails what was being decoded.
    ///
    /// # Errors
    /// The device is gone: every ticket has been told, and requests are refused until [`Service::reopen`].
    pub async fn drive(&mut self) -> Result<(), Error> {
        while self.next().await {
            let events = self.queue.turn().await;
            match self.queue.lost().cloned() {
                None => {
                    self.publish(); // who hears of an end finds its rows free
                    self.deliver(events);
                }
                Some(error) => self.lose(&error),
            }
            // Those who listen on this thread have their turn too, even where the device is never waited for.
            yield_now().await;
        }
        match &self.shared.door().phase {
            Phase::Lost(error) => Err(Error::Shared(Arc::clone(error))),
            _ => Ok(()),
        }
    }

    /// Has one request answered. The service is driven meanwhile, but no longer: whatever else is being decoded then
    /// fails.
    ///
    /// # Errors
    /// A request that cannot be served, or a device that fails.
    pub async fn answer(
        &mut self,
        handle: &Handle,
        request: Request,
        image: impl Into<ImageInput>,
    ) -> Result<Vec<Generated>, Error> {
        let ticket = handle.submit(request, image);
        let mut ticket = ticket.map_err(Error::from)?;
        let answer = async move {
            while let Some(event) = ticket.next().await {
                match event {
                    Event::Token { .. } => {}
                    Event::Done { texts, .. } => return Ok(texts),
                    Event::Failed { error } => return Err(Error::Shared(error)),
                }
            }
            Err(Error::GivenUp {
                why: "its ticket ended",
            })
        };
        match select(pin!(answer), pin!(self.drive())).await {
            Either::Left((answer, _)) => answer,
            Either::Right((ended, answer)) => {
                ended?;
                answer.await
            }
        }
    }

    /// Goes on with the engine of `fresh`, a new service over the same model, in the place of one whose device is gone.
    /// Handles stay valid.
    ///
    /// # Errors
    /// Another model.
    pub fn reopen(&mut self, mut fresh: Self) -> Result<(), Error> {
        if fresh.shared.limits != self.shared.limits {
            let problem = "a service can be opened again only with the model it had".into();
            return Err(Error::Request { problem });
        }
        self.abandon("the service was opened anew");
        std::mem::swap(&mut self.queue, &mut fresh.queue);
        self.queue.set_batch(self.options.batch_size);
        self.queue.set_image_places(self.options.image_places);
        self.timed_from = self.queue.counts().timings;
        self.shared.door().phase = Phase::Open;
        self.publish();
        Ok(())
    }

    /// Waits until a turn is due; `false` when there is nothing left to wait for.
    async fn next(&mut self) -> bool {
        poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        self.shared.driver.register(context.waker());
        self.take_inbox();
        self.poll_images(context);
        self.drop_cancelled();
        let phase = self.shared.door().phase.clone();
        if let Phase::Draining { until } = phase
            && Instant::now() >= until
        {
            self.cancelled += self.tickets.len() as u64;
            self.abandon("the service was shut down before it was done");
        }
        self.publish();
        let is_coming = !self.preparing.is_empty() && self.queue.wants_more();
        let waits = self.fills_batches && is_coming && !self.queue.is_busy();
        if !self.queue.is_idle() && !waits {
            return Poll::Ready(true);
        }
        let mut door = self.shared.door();
        let takes_more = matches!(door.phase, Phase::Open) && door.handles > 0;
        if takes_more || !self.tickets.is_empty() || !door.inbox.is_empty() {
            return Poll::Pending;
        }
        if !matches!(door.phase, Phase::Lost(_)) {
            door.phase = Phase::Closed;
        }
        Poll::Ready(false)
    }

    /// Lets in what stands at the door.
    fn take_inbox(&mut self) {
        let submitted = std::mem::take(&mut self.shared.door().inbox);
        for Submitted {
            id,
            request,
            image,
            clock,
            events,
        } in submitted
        {
            self.tickets.insert(id, events);
            match image {
                ImageInput::Ready(image) => self.queue.push(id, request, image, clock),
                ImageInput::Pending(image) => self.preparing.push(Preparing {
                    id,
                    request,
                    image,
                    clock,
                }),
            }
        }
    }

    /// Hands the queue the requests whose images are prepared now.
    fn poll_images(&mut self, context: &mut Context<'_>) {
        let mut failed = Events::new();
        for mut preparing in std::mem::take(&mut self.preparing) {
            let Poll::Ready(image) = preparing.image.poll_unpin(context) else {
                self.preparing.push(preparing);
                continue;
            };
            let Preparing {
                id, request, clock, ..
            } = preparing;
            let image = match image {
                Ok(Ok(image)) => self.shared.limits.check_image(&image).map(|()| image),
                Ok(Err(error)) => {
                    failed.push((id, Event::Failed { error }));
                    continue;
                }
                Err(oneshot::Canceled) => Err(Error::GivenUp {
                    why: "its image was given up",
                }),
            };
            match image {
                Ok(image) => self.queue.push(id, request, image, clock),
                Err(error) => {
                    let error = Arc::new(error);
                    failed.push((id, Event::Failed { error }));
                }
            }
        }
        self.deliver(failed);
    }

    /// Forgets the requests whose tickets are gone.
    fn drop_cancelled(&mut self) {
        let gone = self.tickets.iter().filter(|(_, events)| events.is_closed());
        for id in gone.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.tickets.remove(&id);
            self.preparing.retain(|preparing| preparing.id != id);
            self.queue.cancel(id);
            self.cancelled += 1;
        }
    }

    /// Tells those who ask.
    fn deliver(&mut self, events: Events) {
        for (id, event) in events {
            let is_last = !matches!(event, Event::Token { .. });
            if let Some(ticket) = self.tickets.get(&id) {
                // One that nobody holds any more is found when the next turn begins.
                let _ = ticket.unbounded_send(event);
            }
            if is_last {
                self.tickets.remove(&id);
            }
        }
    }

    /// The device is gone: fails all that was accepted, and refuses what comes.
    fn lose(&mut self, error: &Arc<Error>) {
        self.shared.door().phase = Phase::Lost(Arc::clone(error));
        self.fail_all(&Event::Failed {
            error: Arc::clone(error),
        });
    }

    /// Gives up all that was accepted.
    fn abandon(&mut self, why: &'static str) {
        self.fail_all(&given_up(why));
    }

    fn fail_all(&mut self, event: &Event) {
        self.take_inbox();
        self.preparing.clear();
        let tickets = std::mem::take(&mut self.tickets);
        for id in tickets.keys() {
            self.queue.cancel(*id);
        }
        self.publish();
        for ticket in tickets.into_values() {
            let _ = ticket.unbounded_send(event.clone());
        }
    }

    /// Makes public what [`Handle::load`] tells.
    fn publish(&mut self) {
        let (holds, counts) = (self.queue.holds(), self.queue.counts());
        let engine = self.queue.engine();
        let load = Load {
            state: ServiceState::default(), // the door knows
            queued: self.preparing.len() + holds.waiting,
            queue_limit: self.options.queue,
            images_waiting: holds.waiting,
            active: holds.active,
            batch_size: self.queue.batch_size(),
            rows: holds.rows,
            pages: holds.pages,
            page_places: holds.page_places,
            images_kept: holds.images,
            image_places: holds.image_places,
            image_hits: counts.image_hits,
            image_misses: counts.image_misses,
            prompt_tokens: counts.prompt_tokens,
            cancelled: self.cancelled,
            timings: counts.timings,
            memory: DeviceMemory {
                weights: engine.weight_bytes(),
                activations: engine.activation_bytes(),
                cache: holds.cache_bytes,
                images: holds.image_bytes,
            },
        };
        let mut door = self.shared.door();
        door.load = load;
        if door.queued() < load.queue_limit {
            let outside = std::mem::take(&mut door.outside);
            drop(door);
            outside.into_iter().for_each(Waker::wake);
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.shared.door().phase = Phase::Closed;
        self.abandon("the service was dropped");
    }
}

/// Lets the executor do something else. It is then sure to come back: an executor that sleeps by parking its thread may
/// miss who was woken during a turn, where that parked the thread too (as `std::thread::scope` does).
async fn yield_now() {
    let mut is_due = false;
    poll_fn(|context| {
        if std::mem::replace(&mut is_due, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
