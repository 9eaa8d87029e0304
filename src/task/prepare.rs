//! Images from wherever they are to the values that the model takes, on other threads.

use std::path::PathBuf;
use std::sync::Arc;

use futures_channel::oneshot;

use crate::Error;
use crate::gpu::Profiler;
use crate::image::{DecodePolicy, Preprocessor, Rgb8Image, decode, decode_file};
use crate::schedule::Pixels;

/// Where an image comes from.
#[derive(Debug, Clone)]
pub enum ImageSource {
    /// A file, read when its turn comes.
    File(PathBuf),
    /// A file's bytes.
    Bytes {
        /// What errors call it.
        name: String,
        /// The bytes.
        bytes: Arc<[u8]>,
    },
    /// An image that is decoded already.
    Decoded(Arc<Rgb8Image>),
}

impl ImageSource {
    /// Whether both are the same image for certain: it is then prepared and encoded once.
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File(a), Self::File(b)) => a == b,
            (Self::Bytes { bytes: a, .. }, Self::Bytes { bytes: b, .. }) => Arc::ptr_eq(a, b),
            (Self::Decoded(a), Self::Decoded(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// What errors call it.
    fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Bytes { name, .. } => name.clone(),
            Self::Decoded(_) => "image".into(),
        }
    }

    fn prepare(&self, policy: DecodePolicy, preprocessor: &Preprocessor) -> Result<Pixels, Error> {
        let pixels = match self {
            Self::File(path) => preprocessor.apply(&decode_file(path, policy)?),
            Self::Bytes { name, bytes } => preprocessor.apply(&decode(bytes, name, policy)?),
            Self::Decoded(image) => preprocessor.apply(image),
        };
        Ok(Arc::new(pixels?))
    }
}

/// The images asked for last, being prepared or ready.
#[derive(Debug)]
pub(super) struct Preparation {
    preprocessor: Arc<Preprocessor>,
    profiler: Option<Profiler>,
    /// Oldest first, numbered on from `first`.
    pictures: std::collections::VecDeque<Picture>,
    first: usize,
    /// Pictures kept for those who ask for the same image again.
    kept: usize,
}

#[derive(Debug)]
struct Picture {
    source: ImageSource,
    policy: DecodePolicy,
    state: State,
}

#[derive(Debug)]
enum State {
    Loading(oneshot::Receiver<Result<Pixels, Error>>),
    Ready(Result<Pixels, Arc<Error>>),
}

impl Preparation {
    pub(super) fn new(
        preprocessor: &Preprocessor,
        kept: usize,
        profiler: Option<&Profiler>,
    ) -> Self {
        Self {
            profiler: profiler.cloned(),
            preprocessor: Arc::new(preprocessor.clone()),
            pictures: std::collections::VecDeque::new(),
            first: 0,
            kept,
        }
    }

    /// Starts on an image, unless it is under way or ready, and gives the number to ask for it by.
    pub(super) fn start(&mut self, source: ImageSource, policy: DecodePolicy) -> usize {
        let same = |picture: &Picture| picture.policy == policy && picture.source.is_same(&source);
        if let Some(index) = self.pictures.iter().rposition(same) {
            return self.first + index;
        }
        let (sender, receiver) = oneshot::channel();
        let (work, preprocessor) = (source.clone(), Arc::clone(&self.preprocessor));
        let profiler = self.profiler.clone();
        crate::platform::spawn(move || {
            let phase = profiler.as_ref().map(|it| it.worker_phase("preprocess"));
            // A decoder that panics must not take the process with it; the dropped sender tells of it.
            let prepare = || work.prepare(policy, &preprocessor);
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(prepare));
            drop(phase); // it is over before anybody hears of the result
            if let Ok(result) = result {
                let _ = sender.send(result);
            }
        });
        self.pictures.push_back(Picture {
            source,
            policy,
            state: State::Loading(receiver),
        });
        self.first + self.pictures.len() - 1
    }

    /// The image `number` if it is ready; its failure is every asker's.
    pub(super) fn poll(&mut self, number: usize) -> Option<Result<Pixels, Arc<Error>>> {
        let picture = self.pictures.get_mut(number.checked_sub(self.first)?)?;
        if let State::Loading(receiver) = &mut picture.state {
            let result = match receiver.try_recv() {
                Ok(None) => return None,
                Ok(Some(result)) => result,
                Err(oneshot::Canceled) => Err(undecodable(&picture.source)),
            };
            picture.state = State::Ready(result.map_err(Arc::new));
        }
        match &picture.state {
            State::Ready(result) => Some(result.clone()),
            State::Loading(_) => None,
        }
    }

    /// Waits until the image `number` is ready.
    pub(super) async fn ready(&mut self, number: usize) {
        let index = number.checked_sub(self.first);
        let Some(picture) = index.and_then(|index| self.pictures.get_mut(index)) else {
            return;
        };
        if let State::Loading(receiver) = &mut picture.state {
            let result = receiver.await;
            let result = result.unwrap_or_else(|_| Err(undecodable(&picture.source)));
            picture.state = State::Ready(result.map_err(Arc::new));
        }
    }

    /// Forgets the oldest images below `number`, but for the last few.
    pub(super) fn forget_before(&mut self, number: usize) {
        while self.pictures.len() > self.kept && self.first < number {
            self.pictures.pop_front();
            self.first += 1;
        }
    }
}

fn undecodable(source: &ImageSource) -> Error {
    Error::Undecodable {
        image: source.name(),
    }
}
