//! The service: a model that any number of askers share. Whoever has a [`Handle`] submits items, from any thread and at any
//! time; whoever has a thread drives the [`Service`].

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_channel::oneshot;
use futures_util::stream::{Stream, StreamExt};

use crate::Error;
use crate::generate::Generated;
use crate::schedule::{self, Event, ImageInput, Load, Refusal, RequestTimings};
use crate::text::{StopStrings, TextStream, Tokenizer};

use super::Blip2;
use super::ask::{Item, Texts};
use super::prepare::Preparation;
use super::prompt::{PromptIds, Prompter};
use super::question::AnswerPieces;

/// How to serve a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServeOptions {
    /// Requests worked on at once, at most [`MAX_BATCH`](super::MAX_BATCH); fewer where the device has no room. `None`:
    /// what the model was opened for.
    pub batch_size: Option<usize>,
    /// Requests that may wait; more are refused.
    pub queue: usize,
    /// Encoded images that are kept for further questions about them.
    pub image_places: usize,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            batch_size: None,
            queue: 256,
            image_places: 64,
        }
    }
}

/// A model that is served. Dropping it fails what was accepted.
#[derive(Debug)]
pub struct Service {
    inner: schedule::Service,
}

impl Blip2 {
    /// Opens the door: the model now answers whoever has the handle or a clone of it, all of them batched together, as long
    /// as somebody drives the service.
    ///
    /// ```no_run
    /// # fn example(model: blip2_wgpu::Blip2, item: blip2_wgpu::task::Item) {
    /// use blip2_wgpu::task::{ServeOptions, TicketEvent};
    /// use futures_util::StreamExt;
    ///
    /// let (mut service, handle) = model.serve(ServeOptions::default());
    /// let driver = std::thread::spawn(move || pollster::block_on(service.drive()));
    /// let mut ticket = handle.submit(item).expect("room in the queue");
    /// while let Some(event) = pollster::block_on(ticket.next()) {
    ///     if let TicketEvent::Piece { piece, .. } = event {
    ///         print!("{piece}");
    ///     }
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn serve(self, options: ServeOptions) -> (Service, Handle) {
        let Self {
            mut service,
            handle,
            batch,
        } = self;
        service.configure(schedule::ServiceOptions {
            batch_size: options.batch_size.unwrap_or(batch),
            queue: options.queue,
            image_places: options.image_places,
        });
        (Service { inner: service }, handle)
    }
}

impl Service {
    /// Works until all handles are dropped, or one of them has had the service drained, and nothing is left to do. It
    /// sleeps while there is nothing to do. Dropped half done, it can be called again, but fails what was being decoded.
    ///
    /// # Errors
    /// The device is gone: every ticket has been told, and items are refused until [`Service::reopen`].
    pub async fn drive(&mut self) -> Result<(), Error> {
        self.inner.drive().await
    }

    /// Puts a model, opened anew from the same checkpoint, in the place of one whose device is gone. Handles stay valid.
    ///
    /// # Errors
    /// Another model.
    pub fn reopen(&mut self, model: Blip2) -> Result<(), Error> {
        self.inner.reopen(model.service)
    }
}

/// The door of a served model. Cheap to clone; all clones lead to the same service, which ends when none is left.
#[derive(Debug, Clone)]
pub struct Handle {
    pub(super) door: schedule::Handle,
    pub(super) prompter: Arc<Prompter>,
    pub(super) preparation: Preparation,
}

impl Handle {
    /// Submits an item. It never waits: what cannot be accepted is refused at once. (In a browser, which has no other
    /// thread to do it, the image is prepared before this returns.)
    ///
    /// # Errors
    /// [`Refusal`]
    pub fn submit(&self, item: Item) -> Result<Ticket, Refusal> {
        self.try_submit(&item)
    }

    pub(super) fn try_submit(&self, item: &Item) -> Result<Ticket, Refusal> {
        self.door.check()?; // before any work
        let prompt = self.prompter.prompt(&item.ask)?;
        let request = self.prompter.request(&prompt);
        let (image, pending) = oneshot::channel();
        let events = self.door.submit(request, ImageInput::Pending(pending))?;
        let policy = item.ask.preset().decode_policy();
        self.preparation.start(item.image.clone(), policy, image);
        Ok(Ticket::new(events, Arc::clone(&self.prompter), prompt))
    }

    /// Waits while the queue is full.
    pub async fn room(&self) {
        self.door.room().await;
    }

    /// How busy the service is, and what it has done.
    #[must_use]
    pub fn load(&self) -> Load {
        self.door.load()
    }

    /// Has the service end: what it has accepted is finished, anything else refused. What is not finished within `limit`
    /// is given up. [`Service::drive`] returns when all is done.
    pub fn drain(&self, limit: Duration) {
        self.door.drain(limit);
    }
}

/// What becomes of an item.
#[derive(Debug, Clone)]
pub enum TicketEvent {
    /// The next piece of a text (greedy and sampling; a beam search knows its texts only at the end).
    Piece {
        /// Number of the text, where several are drawn.
        text: usize,
        /// Text to append.
        piece: String,
    },
    /// It is finished.
    Done {
        /// What was said.
        texts: Texts,
        /// How long it took.
        timings: RequestTimings,
    },
    /// It cannot be finished; others may.
    Failed {
        /// Why: the same allocation for all items that the same thing has befallen.
        error: Arc<Error>,
    },
}

/// What becomes of an item, as a stream of events that ends with [`TicketEvent::Done`] or [`TicketEvent::Failed`]. Dropping
/// it cancels the item.
#[derive(Debug)]
pub struct Ticket {
    events: schedule::Ticket,
    prompter: Arc<Prompter>,
    prompt: PromptIds,
    /// Of each text that has begun; `None`: nobody wants them.
    pieces: Option<Vec<Pieces>>,
    /// What comes before the next event.
    next: VecDeque<TicketEvent>,
}

impl Ticket {
    fn new(events: schedule::Ticket, prompter: Arc<Prompter>, prompt: PromptIds) -> Self {
        Self {
            events,
            prompter,
            prompt,
            pieces: Some(Vec::new()),
            next: VecDeque::new(),
        }
    }

    /// The ticket without the pieces of its texts, which take a little time.
    #[must_use]
    pub fn without_pieces(mut self) -> Self {
        self.pieces = None;
        self
    }

    /// What to tell of an event, if anything.
    fn hear(&mut self, event: Event) -> Option<TicketEvent> {
        match event {
            Event::Token { text, token } => {
                let pieces = self.pieces.as_mut()?;
                while pieces.len() <= text {
                    pieces.push(Pieces::new(&self.prompter.tokenizer, &self.prompt));
                }
                let piece = pieces[text].push(token)?;
                Some(TicketEvent::Piece { text, piece })
            }
            Event::Done { texts, timings } => {
                for (text, pieces) in self.pieces.take().into_iter().flatten().enumerate() {
                    if let Some(piece) = pieces.finish() {
                        self.next.push_back(TicketEvent::Piece { text, piece });
                    }
                }
                self.next.push_back(match self.texts(texts) {
                    Ok(texts) => TicketEvent::Done { texts, timings },
                    Err(error) => TicketEvent::Failed {
                        error: Arc::new(error),
                    },
                });
                self.next.pop_front()
            }
            Event::Failed { error } => Some(TicketEvent::Failed { error }),
        }
    }

    fn texts(&self, generated: Vec<Generated>) -> Result<Texts, Error> {
        let text = |generated| self.prompter.text(generated, &self.prompt);
        Ok(Texts {
            texts: generated.into_iter().map(text).collect::<Result<_, _>>()?,
            prompt_tokens_cut: self.prompt.tokens_cut,
        })
    }
}

impl Stream for Ticket {
    type Item = TicketEvent;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<TicketEvent>> {
        let this = self.get_mut();
        if let Some(event) = this.next.pop_front() {
            return Poll::Ready(Some(event));
        }
        loop {
            let Poll::Ready(event) = this.events.poll_next_unpin(context) else {
                return Poll::Pending;
            };
            let Some(event) = event else {
                return Poll::Ready(None);
            };
            if let Some(event) = this.hear(event) {
                return Poll::Ready(Some(event));
            }
        }
    }
}

/// The pieces of a text.
#[derive(Debug)]
struct Pieces {
    stream: TextStream<Arc<Tokenizer>>,
    /// Holds back what may be a repetition of the question.
    answer: Option<AnswerPieces>,
}

impl Pieces {
    fn new(tokenizer: &Arc<Tokenizer>, prompt: &PromptIds) -> Self {
        let stop = StopStrings::new(&prompt.options.stop);
        Self {
            stream: TextStream::new(Arc::clone(tokenizer)).until(stop),
            answer: prompt.echo.clone().map(AnswerPieces::new),
        }
    }

    fn push(&mut self, token: u32) -> Option<String> {
        let piece = self.stream.push(token)?;
        match &mut self.answer {
            Some(answer) => answer.push(&piece),
            None => Some(piece),
        }
    }

    fn finish(self) -> Option<String> {
        let last = self.stream.finish();
        let Some(mut answer) = self.answer else {
            return last;
        };
        let last = last.and_then(|piece| answer.push(&piece));
        let held = answer.finish();
        Some([last, held].into_iter().flatten().collect::<String>()).filter(|text| !text.is_empty())
    }
}
