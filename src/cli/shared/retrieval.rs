//! What `match`, `retrieve` and `embed` share: the model, the texts, and how images are named.

use std::path::Path;

use crate::Error;
use crate::files::bounded::{self, MAX_TEXT_BYTES};
use crate::files::text::{self, NotText};
use crate::image::Rgb8Image;
use crate::task::{GalleryImage, GallerySource, Preset, Retriever, TextFeatures, TextUse, Work};

use super::Shared;
use super::generation::{BatchSize, parse_batch_size};
use super::inputs::{ImageInput, ImageSource};
use super::output::{Output, load_progress};

/// Texts encoded between two looks at the progress, so that a long list needs little memory at a
/// time.
const TEXTS_AT_A_TIME: usize = 512;

/// What is said of the demo model: its scores of photographs are worth nothing.
#[cfg(feature = "demo-model")]
const DEMO_NOTE: &str = "demo model: it knows drawings of coloured shapes (see examples/) and nothing of the real world; \
     for photographs pass --model DIR, a published checkpoint such as Salesforce/blip2-itm-vit-g";

/// What is said where a texts file cannot be used.
#[derive(Debug, thiserror::Error)]
enum TextsError {
    /// It cannot be read.
    #[error("{file}: cannot be read ({cause}); check the path and its permissions")]
    Read {
        /// The file.
        file: String,
        /// What the system answered.
        cause: std::io::Error,
    },
    /// None of its lines is text.
    #[error("{file}: {problem}; save it as UTF-8")]
    Encoding {
        /// The file.
        file: String,
        /// What it is instead.
        problem: NotText,
    },
    /// It has no line.
    #[error("{file}: has no texts; write one a line")]
    NoTexts {
        /// The file.
        file: String,
    },
    /// A line is not text.
    #[error("{file}, line {line}: {problem}; it is passed over")]
    Line {
        /// The file.
        file: String,
        /// Its number, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
}

impl Shared {
    /// Opens the retrieval checkpoint with a progress bar; where none is named, the retrieval demo
    /// model.
    pub async fn open_retriever(
        &self,
        image_size: Option<u32>,
        batch_size: Option<usize>,
        output: &Output,
    ) -> Result<Retriever, Error> {
        let started = std::time::Instant::now();
        let work = Work {
            batch_size,
            ..Work::default()
        };
        let options = self.open_options(image_size, work)?;
        let model = match self.checkpoint()? {
            #[cfg(feature = "demo-model")]
            None => {
                output.note(DEMO_NOTE);
                Retriever::demo(options).await?
            }
            #[cfg(not(feature = "demo-model"))]
            None => return Err(Error::NoModel),
            Some(path) => {
                let mut progress = load_progress(output);
                Retriever::open_with_progress(path, options, &mut |done, total| {
                    progress(done, total);
                })
                .await?
            }
        };
        output.detail(&format!(
            "loaded on {} in {:.2} s",
            model.gpu().info().name,
            started.elapsed().as_secs_f64()
        ));
        Ok(model)
    }
}

/// How images and texts are encoded to be compared.
#[derive(Debug, Clone, clap::Args)]
pub struct EncodeArgs {
    /// Whose defaults to follow: image size, how images are opened, how texts are cleaned and cut
    #[arg(long, value_enum, default_value_t)]
    pub preset: Preset,
    /// Side of the images in pixels, if not the checkpoint's
    #[arg(long, value_name = "PIXELS")]
    image_size: Option<u32>,
    /// Images at a time
    #[arg(long, value_name = "N|auto", default_value = "auto", value_parser = parse_batch_size)]
    pub batch_size: BatchSize,
}

impl EncodeArgs {
    /// Side of the images in pixels, where it is not the checkpoint's.
    pub fn image_size(&self) -> Option<u32> {
        image_size(self.image_size, self.preset)
    }
}

/// The image size that `preset` compares images at, where it is not the checkpoint's.
pub fn image_size(asked: Option<u32>, preset: Preset) -> Option<u32> {
    asked.or((preset == Preset::Mmpretrain).then_some(364))
}

/// The texts of a file, one a line, and what is wrong with the others. Empty lines at the end are
/// none.
fn read_texts(file: &Path) -> Result<(Vec<String>, Vec<TextsError>), TextsError> {
    let name = file.display().to_string();
    let bytes = bounded::read(file, MAX_TEXT_BYTES).map_err(|cause| TextsError::Read {
        file: name.clone(),
        cause,
    })?;
    // A line that is no text spoils only itself.
    let (text, whole_problem) = match text::decode(&bytes) {
        Ok(text) => (text, None),
        // Not a line but the whole is in another encoding.
        Err(problem) if std::str::from_utf8(&bytes).is_ok() => {
            return Err(TextsError::Encoding {
                file: name,
                problem,
            });
        }
        Err(problem) => ("".into(), Some(problem)),
    };
    let bytes = match whole_problem {
        None => text.as_bytes(),
        Some(_) => bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&bytes),
    };
    let lines = bytes.trim_ascii_end().split(|&byte| byte == b'\n');
    let (mut texts, mut errors) = (Vec::new(), Vec::new());
    for (index, line) in lines.enumerate() {
        let problem = match std::str::from_utf8(line) {
            Ok(text) if text.trim().is_empty() => "the line is empty".into(),
            Ok(text) => {
                texts.push(text.trim_end_matches('\r').to_owned());
                continue;
            }
            Err(_) => {
                "not UTF-8 text; it may be Latin-1, or damaged: save the file as UTF-8".into()
            }
        };
        errors.push(TextsError::Line {
            file: name.clone(),
            line: index + 1,
            problem,
        });
    }
    if texts.is_empty() {
        return Err(match whole_problem {
            Some(problem) => TextsError::Encoding {
                file: name,
                problem,
            },
            None => TextsError::NoTexts { file: name },
        });
    }
    Ok((texts, errors))
}

/// Texts given as they are and those of a file; everything wrong is reported, and whether nothing
/// was is returned.
pub fn texts_given(texts: &[String], file: Option<&Path>, output: &Output) -> (Vec<String>, bool) {
    let (more, well) = file.map_or((Vec::new(), true), |file| texts_of(file, output));
    ([texts, &more].concat(), well)
}

/// [`read_texts`] with everything wrong reported: the texts there are, and whether nothing was
/// wrong.
pub fn texts_of(file: &Path, output: &Output) -> (Vec<String>, bool) {
    match read_texts(file) {
        Ok((texts, errors)) => {
            errors.iter().for_each(|error| output.error(error));
            (texts, errors.is_empty())
        }
        Err(error) => {
            output.error(&error);
            (Vec::new(), false)
        }
    }
}

/// Encodes texts; each that cannot be used is reported and passed over. Returns those that can, in
/// order.
pub async fn encode_texts(
    model: &mut Retriever,
    texts: Vec<String>,
    preset: Preset,
    text_use: TextUse,
    output: &Output,
) -> Result<(Vec<String>, Vec<TextFeatures>), Error> {
    let (mut good, mut features) = (Vec::new(), Vec::new());
    let bar = output.items(texts.len(), "texts", false);
    for chunk in texts.chunks(TEXTS_AT_A_TIME) {
        let mut usable = Vec::new();
        for text in chunk {
            match model.check_text(text, preset) {
                Ok(()) => usable.push(text.clone()),
                Err(error) => output.error(&error),
            }
        }
        features.extend(model.encode_texts(&usable, preset, text_use).await?);
        good.extend(usable);
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
    Ok((good, features))
}

/// The images that can be read; each other one is reported.
pub fn decode_all(
    inputs: &[ImageInput],
    preset: Preset,
    output: &Output,
) -> (Vec<String>, Vec<Rgb8Image>) {
    let policy = preset.decode_policy();
    let mut names = Vec::new();
    let mut images = Vec::new();
    for input in inputs {
        match input.decode(policy) {
            Ok(image) => {
                names.push(input.name.clone());
                images.push(image);
            }
            Err(error) => output.error(&error),
        }
    }
    (names, images)
}

/// An image of the command line as one of a gallery.
pub fn gallery_image(input: ImageInput) -> GalleryImage {
    GalleryImage {
        name: input.name,
        source: match input.source {
            ImageSource::Path(path) => GallerySource::Path(path),
            ImageSource::Bytes(bytes) => GallerySource::Bytes(bytes),
        },
    }
}

/// Reads the texts in `file`.
#[cfg(feature = "fuzzing")]
pub fn fuzz(file: &Path) {
    let _ = read_texts(file);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts_of(bytes: &[u8]) -> Result<(Vec<String>, Vec<String>), String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("t.txt");
        std::fs::write(&file, bytes).unwrap();
        let (texts, errors) = read_texts(&file).map_err(|error| error.to_string())?;
        let errors = errors.iter().map(ToString::to_string).collect();
        Ok((texts, errors))
    }

    #[test]
    fn a_text_a_line() {
        let (texts, errors) = texts_of("\u{feff}a cat\r\n  b\0 🦊\n\nc\n\n \n".as_bytes()).unwrap();
        assert_eq!(texts, ["a cat", "  b\0 🦊", "c"]);
        assert_eq!(errors.len(), 1);
        assert!(errors[0].contains("t.txt, line 3: the line is empty"));
        let (texts, errors) = texts_of(b"a\n\xFF\xFE\nb").unwrap();
        assert_eq!(texts, ["a", "b"]);
        assert!(errors[0].contains("line 2: not UTF-8"), "{errors:?}");
        for none in [&b""[..], b"\n\n", b"\xEF\xBB\xBF"] {
            assert!(texts_of(none).unwrap_err().contains("no texts"));
        }
    }
}
