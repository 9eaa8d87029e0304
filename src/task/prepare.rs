//! Images from wherever they are to the values that the model takes, on other threads.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_channel::oneshot;

use crate::Error;
use crate::gpu::Profiler;
use crate::image::{DecodePolicy, Preprocessor, Rgb8Image, decode, read_file};
use crate::schedule::{Image, ImageKey};

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

/// What an image is made from.
enum Content<'a> {
    File(Cow<'a, [u8]>),
    Decoded(&'a Rgb8Image),
}

impl ImageSource {
    /// What errors call it.
    fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Bytes { name, .. } => name.clone(),
            Self::Decoded(_) => "image".into(),
        }
    }

    fn read(&self) -> Result<Content<'_>, Error> {
        Ok(match self {
            Self::File(path) => Content::File(read_file(path, &self.name())?.into()),
            Self::Bytes { bytes, .. } => Content::File((&**bytes).into()),
            Self::Decoded(image) => Content::Decoded(image),
        })
    }
}

impl Content<'_> {
    /// What it is known by when it is decoded as `policy` says.
    fn key(&self, policy: DecodePolicy) -> ImageKey {
        match self {
            Self::File(bytes) => ImageKey::of_content(&[format!("{policy:?}").as_bytes(), bytes]),
            Self::Decoded(image) => {
                let size = [image.width().to_le_bytes(), image.height().to_le_bytes()];
                ImageKey::of_content(&[size.as_flattened(), image.data()])
            }
        }
    }

    fn prepare(
        &self,
        name: &str,
        policy: DecodePolicy,
        preprocessor: &Preprocessor,
    ) -> Result<Vec<f32>, Error> {
        Ok(match self {
            Self::File(bytes) => preprocessor.apply(&decode(bytes, name, policy)?)?,
            Self::Decoded(image) => preprocessor.apply(image)?,
        })
    }
}

/// An image, or why there is none.
type Prepared = Result<Image, Arc<Error>>;

type Reply = oneshot::Sender<Prepared>;

/// Prepares images. What has the same content is prepared once while it is remembered. All clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Preparation {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    preprocessor: Preprocessor,
    profiler: Option<Profiler>,
    memory: Mutex<Memory>,
}

/// Bytes of prepared images that are remembered: some fifty of 364 × 364 pixels.
const MOST_REMEMBERED: usize = 64 << 20;

#[derive(Debug, Default)]
struct Memory {
    /// The images asked for last, that asked for longest ago first.
    ready: VecDeque<Image>,
    /// Of their values.
    bytes: usize,
    /// Who waits for the images being prepared. Those with the same content and another name are apart: errors have the
    /// name in them.
    under_way: HashMap<(ImageKey, String), Vec<Reply>>,
}

impl Memory {
    /// The image `key`, if it is remembered; it is then the one asked for last.
    fn find(&mut self, key: ImageKey) -> Option<Image> {
        let place = self.ready.iter().position(|image| image.key == key)?;
        let image = self.ready.remove(place)?;
        self.ready.push_back(image.clone());
        Some(image)
    }

    fn remember(&mut self, image: Image) {
        if self.find(image.key).is_some() {
            return; // it was prepared by another name meanwhile
        }
        self.bytes += size_of_val(image.pixels.as_slice());
        self.ready.push_back(image);
        while self.bytes > MOST_REMEMBERED
            && let Some(oldest) = self.ready.pop_front()
        {
            self.bytes -= size_of_val(oldest.pixels.as_slice());
        }
    }
}

impl Preparation {
    pub(super) fn new(preprocessor: Preprocessor, profiler: Option<Profiler>) -> Self {
        Self {
            inner: Arc::new(Inner {
                preprocessor,
                profiler,
                memory: Mutex::default(),
            }),
        }
    }

    pub(super) fn preprocessor(&self) -> &Preprocessor {
        &self.inner.preprocessor
    }

    /// Prepares an image for whoever waits for `reply`.
    pub(super) fn start(&self, source: ImageSource, policy: DecodePolicy, reply: Reply) {
        let inner = Arc::clone(&self.inner);
        crate::platform::spawn(move || inner.prepare(&source, policy, reply));
    }
}

impl Inner {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn prepare(&self, source: &ImageSource, policy: DecodePolicy, reply: Reply) {
        if reply.is_canceled() {
            return;
        }
        let phase = self
            .profiler
            .as_ref()
            .map(|it| it.worker_phase("preprocess"));
        let content = match source.read() {
            Ok(content) => content,
            Err(error) => {
                drop(phase); // it is over before anybody hears of the result
                let _ = reply.send(Err(Arc::new(error)));
                return;
            }
        };
        let (key, name) = (content.key(policy), source.name());
        if !self.begin(key, &name, reply) {
            return;
        }
        // A decoder that panics must not take the process with it.
        let prepare = || content.prepare(&name, policy, &self.preprocessor);
        let pixels = catch_unwind(AssertUnwindSafe(prepare)).unwrap_or_else(|_| {
            let image = name.clone();
            Err(Error::Undecodable { image })
        });
        drop(phase);
        let image = pixels.map(|pixels| Image {
            key,
            pixels: Arc::new(pixels),
        });
        self.end(key, name, image.map_err(Arc::new));
    }

    /// Whether the image has to be prepared. If not, `reply` has it, or will have it when those who prepare it are done.
    fn begin(&self, key: ImageKey, name: &str, reply: Reply) -> bool {
        let mut memory = self.memory();
        if let Some(image) = memory.find(key) {
            let _ = reply.send(Ok(image));
            return false;
        }
        let waiting = memory.under_way.entry((key, name.to_owned())).or_default();
        waiting.push(reply);
        waiting.len() == 1
    }

    /// Gives the image to all who wait for it.
    fn end(&self, key: ImageKey, name: String, image: Prepared) {
        let mut memory = self.memory();
        let waiting = memory.under_way.remove(&(key, name));
        if let Ok(image) = &image {
            memory.remember(image.clone());
        }
        drop(memory);
        for reply in waiting.into_iter().flatten() {
            let _ = reply.send(image.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preparation() -> Preparation {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tiny");
        let preprocessor = Preprocessor::from_files(folder.as_ref(), 42).expect("a file");
        Preparation::new(preprocessor, None)
    }

    fn prepare(preparation: &Preparation, source: ImageSource, policy: DecodePolicy) -> Prepared {
        let (sender, receiver) = oneshot::channel();
        preparation.start(source, policy, sender);
        pollster::block_on(receiver).expect("an answer")
    }

    fn house() -> PathBuf {
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/house.png").into()
    }

    #[test]
    fn the_same_content_is_prepared_once_wherever_it_comes_from() {
        let preparation = preparation();
        let hf = DecodePolicy::hf();
        let from_file = prepare(&preparation, ImageSource::File(house()), hf).expect("a picture");
        let bytes = ImageSource::Bytes {
            name: "bytes".into(),
            bytes: std::fs::read(house()).expect("a file").into(),
        };
        let from_bytes = prepare(&preparation, bytes.clone(), hf).expect("a picture");
        assert_eq!(from_file.key, from_bytes.key);
        assert!(Arc::ptr_eq(&from_file.pixels, &from_bytes.pixels));
        let otherwise = prepare(&preparation, bytes, DecodePolicy::lavis()).expect("a picture");
        assert_ne!(otherwise.key, from_file.key);
    }

    #[test]
    fn errors_have_the_name_that_was_asked_for() {
        let preparation = preparation();
        let broken = |name: &str| ImageSource::Bytes {
            name: name.into(),
            bytes: Arc::from(*b"not an image"),
        };
        for name in ["one.png", "another.png"] {
            let error = prepare(&preparation, broken(name), DecodePolicy::hf());
            let error = error.expect_err("no picture").to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn what_was_asked_for_longest_ago_is_forgotten() {
        let values = MOST_REMEMBERED / 4 / 3;
        let image = |content: u8| Image {
            key: ImageKey::of_content(&[&[content]]),
            pixels: Arc::new(vec![0.0; values]),
        };
        let mut memory = Memory::default();
        (0..3).for_each(|content| memory.remember(image(content)));
        assert!(memory.find(image(0).key).is_some());
        memory.remember(image(3));
        let found = [0, 1, 2, 3].map(|content| memory.find(image(content).key).is_some());
        assert_eq!(found, [true, false, true, true]);
        assert_eq!(memory.bytes, 3 * values * 4);
    }
}
