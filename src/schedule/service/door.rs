//! The door of a service: what its handles and tickets share with it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_channel::{mpsc, oneshot};
use futures_util::future::poll_fn;
use futures_util::stream::{Stream, StreamExt};
use futures_util::task::AtomicWaker;

use crate::Error;
use crate::platform::{self, Instant};
use crate::schedule::request::{Event, Image, Request, RequestId, RequestLimits};
use crate::schedule::timings::{Clock, Timings};

/// Why a request was not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Too many requests wait.
    #[error("{limit} requests are waiting already; ask again later")]
    Full {
        /// As many as may.
        limit: usize,
    },
    /// The service ends what it has accepted and takes nothing more.
    #[error("the service is shutting down; ask another one")]
    Draining,
    /// The service has ended.
    #[error("the service has ended; start another one")]
    Closed,
    /// The device is gone; the service may be opened again.
    #[error("{0}")]
    Lost(Arc<Error>),
    /// The request cannot be served, by anyone.
    #[error(transparent)]
    Invalid(#[from] Error),
}

/// What a service is up to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ServiceState {
    /// It takes requests.
    #[default]
    Open,
    /// It ends what it has accepted.
    Draining,
    /// Its device is gone.
    Lost,
    /// It has ended.
    Closed,
}

/// Bytes on the device, by what they are for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Weights.
    pub weights: u64,
    /// Activations.
    pub activations: u64,
    /// Keys and values.
    pub cache: u64,
    /// Encoded images.
    pub images: u64,
}

/// How busy a service is, and what it has done since it was opened. As of its last turn, but for `state` and `queued`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// What it is up to.
    pub state: ServiceState,
    /// Requests that wait, those whose image is being prepared included.
    pub queued: usize,
    /// As many as may.
    pub queue_limit: usize,
    /// Of those that wait, how many hold a prepared image in the host's memory.
    pub images_waiting: usize,
    /// Requests being decoded.
    pub active: usize,
    /// As many as may be, for want of memory perhaps fewer than were asked for.
    pub batch_size: usize,
    /// Rows of the decoder that they have: one a text or a beam.
    pub rows: usize,
    /// Rows of the cache that they have.
    pub pages: usize,
    /// Rows of the cache.
    pub page_places: usize,
    /// Encoded images that are kept.
    pub images_kept: usize,
    /// As many as may be.
    pub image_places: usize,
    /// Requests whose image was encoded already.
    pub image_hits: u64,
    /// Requests whose image had to be encoded.
    pub image_misses: u64,
    /// Positions of prompts, the images' included.
    pub prompt_tokens: u64,
    /// Requests that were given up, by their owners or at the end of [`Handle::drain`].
    pub cancelled: u64,
    /// Images encoded, tokens generated, and how long the parts took.
    pub timings: Timings,
    /// What is on the device.
    pub memory: DeviceMemory,
}

/// An image that a request is about.
#[derive(Debug)]
pub enum ImageInput {
    /// It is prepared.
    Ready(Image),
    /// It is being prepared.
    Pending(oneshot::Receiver<Result<Image, Arc<Error>>>),
}

impl<I: Into<Image>> From<I> for ImageInput {
    fn from(image: I) -> Self {
        Self::Ready(image.into())
    }
}

/// What handles and tickets share with the service.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) limits: RequestLimits,
    pub(super) door: Mutex<Door>,
    /// Of whoever drives the service.
    pub(super) driver: AtomicWaker,
}

#[derive(Debug)]
pub(super) struct Door {
    pub(super) phase: Phase,
    pub(super) handles: usize,
    pub(super) inbox: Vec<Submitted>,
    pub(super) next_id: RequestId,
    pub(super) load: Load,
    /// Those who wait for room in the queue.
    pub(super) outside: Vec<Waker>,
}

#[derive(Debug, Clone)]
pub(super) enum Phase {
    Open,
    Draining { until: Instant },
    Lost(Arc<Error>),
    Closed,
}

/// A request that the driver has not seen yet.
#[derive(Debug)]
pub(super) struct Submitted {
    pub(super) id: RequestId,
    pub(super) request: Request,
    pub(super) image: ImageInput,
    pub(super) clock: Clock,
    pub(super) events: mpsc::UnboundedSender<Event>,
}

/// A request whose image is being prepared.
#[derive(Debug)]
pub(super) struct Preparing {
    pub(super) id: RequestId,
    pub(super) request: Request,
    pub(super) image: oneshot::Receiver<Result<Image, Arc<Error>>>,
    pub(super) clock: Clock,
}

impl Shared {
    pub(super) fn door(&self) -> MutexGuard<'_, Door> {
        self.door.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Door {
    /// Whether a request may come in.
    fn check(&self) -> Result<(), Refusal> {
        match &self.phase {
            Phase::Open => {}
            Phase::Draining { .. } => return Err(Refusal::Draining),
            Phase::Lost(error) => return Err(Refusal::Lost(Arc::clone(error))),
            Phase::Closed => return Err(Refusal::Closed),
        }
        let limit = self.load.queue_limit;
        if self.queued() >= limit {
            return Err(Refusal::Full { limit });
        }
        Ok(())
    }

    pub(super) fn queued(&self) -> usize {
        self.inbox.len() + self.load.queued
    }
}

/// The door of a service. Cheap to clone; all clones lead to the same one, which ends when none is left.
#[derive(Debug)]
pub struct Handle {
    pub(super) shared: Arc<Shared>,
}

impl Clone for Handle {
    fn clone(&self) -> Self {
        self.shared.door().handles += 1;
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.door().handles -= 1;
        self.shared.driver.wake();
    }
}

impl Handle {
    /// Submits a request. It never waits: what cannot be accepted is refused at once.
    ///
    /// # Errors
    /// [`Refusal`]
    pub fn submit(
        &self,
        request: Request,
        image: impl Into<ImageInput>,
    ) -> Result<Ticket, Refusal> {
        let image = image.into();
        self.shared.limits.check(&request)?;
        if let ImageInput::Ready(image) = &image {
            self.shared.limits.check_image(image)?;
        }
        let (sender, receiver) = mpsc::unbounded();
        let mut door = self.shared.door();
        door.check()?;
        let id = door.next_id;
        door.next_id += 1;
        door.inbox.push(Submitted {
            id,
            request,
            image,
            clock: Clock::start(),
            events: sender,
        });
        drop(door);
        self.shared.driver.wake();
        Ok(Ticket {
            shared: Arc::clone(&self.shared),
            events: Some(receiver),
        })
    }

    /// Errs where [`Handle::submit`] would refuse any request.
    ///
    /// # Errors
    /// [`Refusal`]
    pub fn check(&self) -> Result<(), Refusal> {
        self.shared.door().check()
    }

    /// Waits while the queue is full.
    pub async fn room(&self) {
        poll_fn(|context| self.poll_room(context)).await;
    }

    /// Whether the queue has room; if not, the task is woken when it may have.
    pub(crate) fn poll_room(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut door = self.shared.door();
        if matches!(door.check(), Err(Refusal::Full { .. })) {
            door.outside.push(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    /// How busy the service is, and what it has done.
    #[must_use]
    pub fn load(&self) -> Load {
        let door = self.shared.door();
        Load {
            state: match door.phase {
                Phase::Open => ServiceState::Open,
                Phase::Draining { .. } => ServiceState::Draining,
                Phase::Lost(_) => ServiceState::Lost,
                Phase::Closed => ServiceState::Closed,
            },
            queued: door.queued(),
            ..door.load
        }
    }

    /// Has the service end: what it has accepted is finished, anything else refused. What is not finished within `limit`
    /// is given up. [`Service::drive`](super::Service::drive) returns when all is done.
    pub fn drain(&self, limit: Duration) {
        let mut door = self.shared.door();
        const A_YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
        let limit = limit.min(A_YEAR); // a clock may not go on for ever
        let mut until = Instant::now() + limit;
        match door.phase {
            Phase::Open => {}
            Phase::Draining { until: earlier } => until = until.min(earlier),
            Phase::Lost(_) | Phase::Closed => return,
        }
        door.phase = Phase::Draining { until };
        drop(door);
        self.shared.driver.wake();
        let shared = Arc::clone(&self.shared);
        platform::after(limit, move || shared.driver.wake());
    }

    /// What of the model decides whether a request can be served.
    pub(crate) fn limits(&self) -> &RequestLimits {
        &self.shared.limits
    }
}

/// What becomes of a request, as a stream of events that ends with [`Event::Done`] or [`Event::Failed`]. Dropping it
/// cancels the request: its rows, pages and image are free at the next turn.
#[derive(Debug)]
pub struct Ticket {
    shared: Arc<Shared>,
    /// `None` after the last event.
    events: Option<mpsc::UnboundedReceiver<Event>>,
}

impl Stream for Ticket {
    type Item = Event;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        let this = self.get_mut();
        let Some(events) = &mut this.events else {
            return Poll::Ready(None);
        };
        let event = match events.poll_next_unpin(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(event)) => event,
            Poll::Ready(None) => given_up("the service was dropped"),
        };
        if !matches!(event, Event::Token { .. }) {
            this.events = None;
        }
        Poll::Ready(Some(event))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.events.take().is_some() {
            self.shared.driver.wake();
        }
    }
}

pub(super) fn given_up(why: &'static str) -> Event {
    let error = Arc::new(Error::GivenUp { why });
    Event::Failed { error }
}
