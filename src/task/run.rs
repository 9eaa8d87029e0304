//! Any number of images and questions as a stream: prepared on other threads, batched on the device, answered as they
//! are done.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::stream::{self, Stream};

use crate::Error;
use crate::generate::Generated;
use crate::schedule::{Event, MAX_BATCH, Queue, Request};
use crate::text::TextStream;

use super::caption::CaptionOptions;
use super::prepare::{ImageSource, Preparation};
use super::prompt::{PromptIds, Prompter};
use super::question::{AnswerPieces, Echo};
use super::{Blip2, Preset, Text, VqaOptions};

/// Requests worked on at once unless asked otherwise: four times the throughput of one on the software adapter, where 64
/// at once reach 4.9 times (benches/RESULTS.md).
pub(super) const DEFAULT_BATCH: usize = 16;

/// One thing to say about an image.
#[derive(Debug, Clone)]
pub struct Item {
    /// The image. Items about the same image that follow each other closely share its encoding.
    pub image: ImageSource,
    /// What to say about it.
    pub ask: Ask,
}

/// What to say about an image. Items that share their options share the allocation.
#[derive(Debug, Clone)]
pub enum Ask {
    /// What is on it.
    Caption(Arc<CaptionOptions>),
    /// The answer to a question.
    Question {
        /// The question as it is asked; the preset cleans it.
        question: String,
        /// How to ask and answer.
        options: Arc<VqaOptions>,
    },
}

impl Ask {
    /// Whose defaults it follows.
    fn preset(&self) -> Preset {
        match self {
            Self::Caption(options) => options.preset,
            Self::Question { options, .. } => options.preset,
        }
    }
}

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
        /// Why: the same allocation for all items about an image that cannot be read.
        error: Arc<Error>,
    },
}

/// What is said of an item.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Texts {
    /// Its texts, best first; at least one of an item that is done.
    pub texts: Vec<Text>,
    /// Tokens that the prompt lost to fit what the model or the preset takes: 0 where it was given whole.
    pub prompt_tokens_cut: usize,
}

/// The events of a run, in the order in which they come about. An error ends it: the device is gone or full. Dropping it
/// cancels what is not done.
pub struct Run<'a> {
    events: Pin<Box<dyn Stream<Item = Result<ItemEvent, Error>> + Send + 'a>>,
}

impl std::fmt::Debug for Run<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run").finish_non_exhaustive()
    }
}

impl Stream for Run<'_> {
    type Item = Result<ItemEvent, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().events.as_mut().poll_next(context)
    }
}

impl Run<'_> {
    /// The next event; `None` when all items are done.
    pub async fn next(&mut self) -> Option<Result<ItemEvent, Error>> {
        stream::StreamExt::next(self).await
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
                ItemEvent::Failed { error, .. } => {
                    return Err(Arc::try_unwrap(error).unwrap_or_else(Error::Shared));
                }
            }
        }
        Ok(all)
    }
}

impl Blip2 {
    /// Runs items, any number of them with flat memory: they are taken as there is room, their images read and prepared
    /// on other threads, and each is answered when it is done, which need not be in order. What is said of an item does
    /// not depend on the others.
    pub fn run<'a>(
        &'a mut self,
        items: impl IntoIterator<Item = Item, IntoIter: Send + 'a>,
        options: RunOptions,
    ) -> Run<'a> {
        let batch = options.batch_size.unwrap_or(self.batch);
        let batch = batch.clamp(1, MAX_BATCH);
        let prompter = Prompter {
            config: &self.config,
            tokenizer: &self.tokenizer,
            generation: &self.generation,
        };
        let runner = Runner {
            preparation: Preparation::new(
                &self.preprocessor,
                4 * batch,
                self.engine.gpu().profiler(),
            ),
            prompter,
            queue: Queue::new(&mut self.engine, batch),
            items: Box::new(items.into_iter()),
            items_taken: 0,
            ended: false,
            preparing: VecDeque::new(),
            look_ahead: 2 * batch,
            in_flight: HashMap::new(),
            events: VecDeque::new(),
            pieces: options.pieces,
            prompt: None,
        };
        let events = stream::unfold(Some(runner), |runner| async {
            let mut runner = runner?;
            match runner.next_event().await {
                Ok(event) => event.map(|event| (Ok(event), Some(runner))),
                Err(error) => Some((Err(error), None)),
            }
        });
        Run {
            events: Box::pin(events),
        }
    }
}

/// A run in progress.
struct Runner<'a> {
    queue: Queue<'a>,
    prompter: Prompter<'a>,
    preparation: Preparation,
    items: Box<dyn Iterator<Item = Item> + Send + 'a>,
    items_taken: usize,
    /// Whether the last item has been taken.
    ended: bool,
    preparing: VecDeque<Preparing>,
    look_ahead: usize,
    /// By number of the request.
    in_flight: HashMap<usize, InFlight<'a>>,
    events: VecDeque<ItemEvent>,
    pieces: bool,
    /// The last caption's, which most often is the next one's too.
    prompt: Option<(Arc<CaptionOptions>, PromptIds)>,
}

/// An item whose image is being prepared.
struct Preparing {
    item: usize,
    /// Number of its image.
    image: usize,
    prompt: PromptIds,
}

/// An item in the queue.
struct InFlight<'a> {
    item: usize,
    pieces: Option<Pieces<'a>>,
    tokens_cut: usize,
    echo: Option<Arc<Echo>>,
}

/// The pieces of an item's first text.
struct Pieces<'a> {
    stream: TextStream<'a>,
    /// Holds back what may be a repetition of the question.
    answer: Option<AnswerPieces>,
}

impl Pieces<'_> {
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

impl Runner<'_> {
    async fn next_event(&mut self) -> Result<Option<ItemEvent>, Error> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            self.take_items();
            self.feed_queue();
            let is_coming = !self.preparing.is_empty() && self.queue.wants_more();
            if is_coming && !self.queue.is_busy() {
                // A fuller batch is worth the wait for an image that is being read.
                if let Some(next) = self.preparing.front() {
                    self.preparation.ready(next.image).await;
                }
            } else if self.queue.is_idle() {
                if self.ended && self.events.is_empty() {
                    return Ok(None);
                }
            } else {
                for event in self.queue.turn().await? {
                    self.hear(event)?;
                }
            }
        }
    }

    /// Takes items and starts on their images.
    fn take_items(&mut self) {
        while !self.ended && self.preparing.len() < self.look_ahead {
            let Some(item) = self.items.next() else {
                self.ended = true;
                return;
            };
            let number = self.items_taken;
            self.items_taken += 1;
            match self.prompt_of(&item.ask) {
                Ok(prompt) => {
                    let policy = item.ask.preset().decode_policy();
                    self.preparing.push_back(Preparing {
                        item: number,
                        image: self.preparation.start(item.image, policy),
                        prompt,
                    });
                }
                Err(error) => self.fail(number, Arc::new(error)),
            }
        }
    }

    /// Hands the queue what is ready, in order.
    fn feed_queue(&mut self) {
        while self.queue.wants_more() {
            let Some(next) = self.preparing.front() else {
                return;
            };
            let Some(image) = self.preparation.poll(next.image) else {
                return;
            };
            let Some(Preparing {
                item,
                image: number,
                prompt,
            }) = self.preparing.pop_front()
            else {
                return; // it was looked at above
            };
            self.preparation.forget_before(number);
            let PromptIds {
                tokens_cut, echo, ..
            } = prompt.clone();
            let pushed = image.and_then(|image| {
                let request = Request {
                    image,
                    text: prompt.text,
                    history: prompt.history,
                    options: prompt.options,
                };
                self.queue.push(request).map_err(Arc::new)
            });
            match pushed {
                Ok(request) => {
                    let pieces = self.pieces.then(|| Pieces {
                        stream: TextStream::new(self.prompter.tokenizer),
                        answer: echo.clone().map(AnswerPieces::new),
                    });
                    let in_flight = InFlight {
                        item,
                        pieces,
                        tokens_cut,
                        echo,
                    };
                    self.in_flight.insert(request, in_flight);
                }
                Err(error) => self.fail(item, error),
            }
        }
    }

    fn prompt_of(&mut self, ask: &Ask) -> Result<PromptIds, Error> {
        match ask {
            Ask::Caption(options) => {
                if let Some((last, prompt)) = &self.prompt
                    && Arc::ptr_eq(last, options)
                {
                    return Ok(prompt.clone());
                }
                let prompt = self.prompter.caption(options)?;
                self.prompt = Some((Arc::clone(options), prompt.clone()));
                Ok(prompt)
            }
            Ask::Question { question, options } => self.prompter.question(question, options),
        }
    }

    /// Turns what the queue says of a request into what it means for its item.
    fn hear(&mut self, event: Event) -> Result<(), Error> {
        match event {
            Event::Token {
                request,
                text: 0,
                token,
            } => {
                if let Some(InFlight { item, pieces, .. }) = self.in_flight.get_mut(&request)
                    && let Some(text) = pieces.as_mut().and_then(|pieces| pieces.push(token))
                {
                    let item = *item;
                    self.events.push_back(ItemEvent::Piece { item, text });
                }
            }
            Event::Token { .. } => {}
            Event::Done { request, texts } => {
                if let Some(mut in_flight) = self.in_flight.remove(&request) {
                    let item = in_flight.item;
                    if let Some(text) = in_flight.pieces.take().and_then(Pieces::finish) {
                        self.events.push_back(ItemEvent::Piece { item, text });
                    }
                    match self.texts(&in_flight, texts) {
                        Ok(texts) => self.events.push_back(ItemEvent::Done { item, texts }),
                        Err(error) => self.fail(item, Arc::new(error)),
                    }
                }
            }
            Event::Failed { request, error } => {
                if let Some(InFlight { item, .. }) = self.in_flight.remove(&request) {
                    self.fail(item, Arc::new(error));
                }
            }
        }
        Ok(())
    }

    fn texts(&self, item: &InFlight, generated: Vec<Generated>) -> Result<Texts, Error> {
        let text = |generated| {
            let mut text = self.prompter.text(generated)?;
            if let Some(echo) = &item.echo {
                text.text = echo.strip(&text.text).to_owned();
            }
            Ok(text)
        };
        Ok(Texts {
            texts: generated
                .into_iter()
                .map(text)
                .collect::<Result<_, Error>>()?,
            prompt_tokens_cut: item.tokens_cut,
        })
    }

    fn fail(&mut self, item: usize, error: Arc<Error>) {
        self.events.push_back(ItemEvent::Failed { item, error });
    }
}
