//! Any number of images and questions as a stream: prepared on other threads, batched on the device, answered as they
//! are done.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::FutureExt;
use futures_util::stream::{SelectAll, Stream, StreamExt};

use crate::Error;
use crate::platform::{BoxFuture, BoxIterator, MaybeSend};
use crate::schedule::{MAX_BATCH, Refusal};

use super::Blip2;
use super::ask::{Item, Texts};
use super::service::{Handle, Ticket, TicketEvent};

/// Requests worked on at once unless asked otherwise: four times the throughput of one on the software adapter, where 64
/// at once reach 4.9 times (benches/RESULTS.md).
pub(super) const DEFAULT_BATCH: usize = 16;

/// Items in the hands of the service, for each that is decoded: as many again may wait for their image, and as many for
/// their turn, twice.
const ITEMS_A_PLACE: usize = 5;

/// How to run items.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunOptions {
    /// Requests worked on at once, at most [`MAX_BATCH`]; fewer where the device has no room. `None` chooses.
    pub batch_size: Option<usize>,
    /// Whether to hand over the pieces of each text as they come.
    pub pieces: bool,
}

/// What becomes of an item, by its number from 0.
#[derive(Debug)]
pub enum ItemEvent {
    /// The next piece of its first text (greedy and sampling; a beam search knows its text only at the end).
    Piece {
        /// Number of the item.
        item: usize,
        /// Text to append.
        text: String,
    },
    /// It is finished.
    Done {
        /// Number of the item.
        item: usize,
        /// What was said.
        texts: Texts,
    },
    /// It cannot be finished; the others can.
    Failed {
        /// Number of the item.
        item: usize,
        /// Why: the same allocation for all items that the same thing has befallen.
        error: Arc<Error>,
    },
}

/// The events of a run, in the order in which they come about. An error ends it: the device is gone or full. Dropping it
/// cancels what is not done.
pub struct Run<'a> {
    handle: Handle,
    items: Option<BoxIterator<'a, Item>>,
    items_taken: usize,
    /// An item that has found the queue full.
    outside: Option<Item>,
    /// Items in the hands of the service at once.
    most: usize,
    pieces: bool,
    tickets: SelectAll<Numbered>,
    /// The service, where nobody else drives it. `None` once it has ended.
    driving: Option<BoxFuture<'a, Result<(), Error>>>,
}

/// A ticket and the number of its item.
struct Numbered {
    item: usize,
    ticket: Ticket,
}

impl Stream for Numbered {
    type Item = (usize, TicketEvent);

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let event = ready!(this.ticket.poll_next_unpin(context));
        Poll::Ready(event.map(|event| (this.item, event)))
    }
}

impl std::fmt::Debug for Run<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run").finish_non_exhaustive()
    }
}

impl Blip2 {
    /// Runs items, any number of them with flat memory: they are taken as there is room, their images read and prepared
    /// on other threads, and each is answered when it is done, which need not be in order. What is said of an item does
    /// not depend on the others.
    pub fn run<'a>(
        &'a mut self,
        items: impl IntoIterator<Item = Item, IntoIter: MaybeSend + 'a>,
        options: RunOptions,
    ) -> Run<'a> {
        let batch = options.batch_size.unwrap_or(self.batch);
        let batch = batch.clamp(1, MAX_BATCH);
        let handle = self.handle.clone();
        self.service.begin_run(batch);
        let driving = Box::pin(self.service.drive());
        Run::new(
            handle,
            Box::new(items.into_iter()),
            batch,
            options,
            Some(driving),
        )
    }
}

impl Handle {
    /// As [`Blip2::run`], beside whatever else the service does, at its batch size and with somebody else driving it.
    pub fn run<'a>(
        &self,
        items: impl IntoIterator<Item = Item, IntoIter: MaybeSend + 'a>,
        options: RunOptions,
    ) -> Run<'a> {
        let batch = self.load().batch_size;
        Run::new(
            self.clone(),
            Box::new(items.into_iter()),
            batch,
            options,
            None,
        )
    }
}

impl<'a> Run<'a> {
    fn new(
        handle: Handle,
        items: BoxIterator<'a, Item>,
        batch: usize,
        options: RunOptions,
        driving: Option<BoxFuture<'a, Result<(), Error>>>,
    ) -> Self {
        Self {
            handle,
            items: Some(items),
            items_taken: 0,
            outside: None,
            most: ITEMS_A_PLACE * batch,
            pieces: options.pieces,
            tickets: SelectAll::new(),
            driving,
        }
    }

    /// The next event; `None` when all items are done.
    pub async fn next(&mut self) -> Option<Result<ItemEvent, Error>> {
        StreamExt::next(self).await
    }

    /// The texts of all `count` items in order, if none fails.
    pub(super) async fn collect(
        mut self,
        count: usize,
        on_piece: &mut (dyn FnMut(usize, &str) + Send),
    ) -> Result<Vec<Texts>, Error> {
        let mut all = vec![Texts::default(); count];
        while let Some(event) = self.next().await {
            match event? {
                ItemEvent::Piece { item, text } => on_piece(item, &text),
                ItemEvent::Done { item, texts } => all[item] = texts,
                ItemEvent::Failed { error, .. } => return Err(owned(error)),
            }
        }
        Ok(all)
    }

    /// Submits the next items, as long as there is room. The outcome of the first that is refused.
    fn take_items(&mut self, context: &mut Context<'_>) -> Result<Option<ItemEvent>, Error> {
        while self.tickets.len() < self.most {
            let next = self.outside.take();
            let next = next.or_else(|| self.items.as_mut().and_then(Iterator::next));
            let Some(next) = next else {
                self.items = None;
                break;
            };
            match self.handle.try_submit(&next) {
                Ok(ticket) => self.tickets.push(Numbered {
                    item: self.items_taken,
                    ticket: if self.pieces {
                        ticket
                    } else {
                        ticket.without_pieces()
                    },
                }),
                Err(Refusal::Full { .. }) => {
                    self.outside = Some(next);
                    if self.handle.door.poll_room(context).is_pending() {
                        break;
                    }
                    continue;
                }
                Err(Refusal::Invalid(error)) => {
                    let (item, error) = (self.items_taken, Arc::new(error));
                    self.items_taken += 1;
                    return Ok(Some(ItemEvent::Failed { item, error }));
                }
                Err(refusal) => return Err(refusal.into()),
            }
            self.items_taken += 1;
        }
        Ok(None)
    }

    /// What an item's ticket tells, if anyone is to hear it.
    fn hear(&self, item: usize, event: TicketEvent) -> Option<Result<ItemEvent, Error>> {
        match event {
            TicketEvent::Piece { text: 0, piece } => {
                let text = piece;
                Some(Ok(ItemEvent::Piece { item, text }))
            }
            TicketEvent::Piece { .. } => None,
            TicketEvent::Done { texts, .. } => Some(Ok(ItemEvent::Done { item, texts })),
            TicketEvent::Failed { error } if error.is_of_device() => Some(Err(owned(error))),
            TicketEvent::Failed { error } => Some(Ok(ItemEvent::Failed { item, error })),
        }
    }

    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<ItemEvent, Error>>> {
        loop {
            match self.take_items(context) {
                Ok(None) => {}
                Ok(Some(event)) => return Poll::Ready(Some(Ok(event))),
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
            match self.tickets.poll_next_unpin(context) {
                Poll::Ready(Some((item, event))) => match self.hear(item, event) {
                    None => continue,
                    event => return Poll::Ready(event),
                },
                Poll::Ready(None) if self.items.is_none() => return Poll::Ready(None),
                Poll::Ready(None) | Poll::Pending => {}
            }
            // A turn that ends wakes the tickets that it brings something for.
            let Some(driving) = &mut self.driving else {
                return Poll::Pending;
            };
            ready!(driving.poll_unpin(context)).ok();
            self.driving = None;
        }
    }
}

impl Stream for Run<'_> {
    type Item = Result<ItemEvent, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let event = ready!(this.poll_event(context));
        if let Some(Err(_)) = event {
            // The rest is cancelled.
            this.items = None;
            this.outside = None;
            this.tickets = SelectAll::new();
        }
        Poll::Ready(event)
    }
}

/// The error itself, if nobody else has it.
fn owned(error: Arc<Error>) -> Error {
    Arc::try_unwrap(error).unwrap_or_else(Error::Shared)
}
