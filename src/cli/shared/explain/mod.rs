//! `--explain FILE`: where the model looks, as a page or a picture.

mod font;
mod heat;
mod html;
mod png;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::Error;
use crate::files::atomic::AtomicFile;
use crate::image::{DecodePolicy, Rgb8Image};
use crate::task::{Ask, Blip2, ExplainedWord, Explanation, Texts, WrittenText};

use super::inputs::ImageInput;
use super::output::Output;

/// What `--explain` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExplainFile {
    path: PathBuf,
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Html,
    Png,
}

/// `--explain`'s value; the ending says what to write.
pub fn parse_file(text: &str) -> Result<ExplainFile, String> {
    let path = PathBuf::from(text);
    let ending = path.extension().and_then(|ending| ending.to_str());
    let format = match ending.map(str::to_ascii_lowercase).as_deref() {
        Some("html" | "htm") => Format::Html,
        Some("png") => Format::Png,
        _ => return Err("name a file that ends in .html or .png".into()),
    };
    Ok(ExplainFile { path, format })
}

/// One image with what there is to show of it.
pub struct Page<'a> {
    /// The image's file.
    pub name: &'a str,
    /// As it was decoded, upright.
    pub image: &'a Rgb8Image,
    /// One part, or one for each text that the queries read together with the image.
    pub parts: &'a [Part],
}

/// Where the queries look in an image, and the words of texts about it.
pub struct Part {
    pub explanation: Explanation,
    /// A line for each text; without words to it, what the queries read beside the image.
    pub titles: Vec<String>,
}

impl Part {
    /// Each text's title and words.
    fn texts(&self) -> impl Iterator<Item = (&str, &[ExplainedWord])> {
        let words = self.explanation.texts.iter().map(Vec::as_slice);
        let words = words.chain(std::iter::repeat(&[][..]));
        self.titles.iter().map(String::as_str).zip(words)
    }
}

/// A text that a run wrote.
struct Written {
    /// Its place among all.
    item: usize,
    /// The image it is about, by index.
    image: usize,
    ask: Ask,
    /// The line above its words.
    title: String,
    tokens: Vec<u32>,
}

/// Explains what a run wrote once it is over: before that, the model is busy.
pub struct Explainer {
    report: ExplainWriter,
    written: Vec<Written>,
}

impl Explainer {
    /// Starts the file, as [`ExplainWriter::create`].
    pub fn create(file: &ExplainFile, images: usize) -> Result<Self, Error> {
        Ok(Self {
            report: ExplainWriter::create(file, images)?,
            written: Vec::new(),
        })
    }

    /// Takes the first of what was written for item `item`, about the image of an index.
    pub fn push(&mut self, (item, image): (usize, usize), ask: Ask, texts: &Texts) {
        let Some(text) = texts.texts.first() else {
            return;
        };
        let title = match &ask {
            Ask::Caption(_) => text.text.clone(),
            Ask::Question { question, .. } => format!("{} {}", question.trim(), text.text),
        };
        self.written.push(Written {
            item,
            image,
            ask,
            title,
            tokens: text.tokens.clone(),
        });
    }

    /// Explains all texts, image by image; an image that fails is reported, and the outcome is then
    /// `false`.
    ///
    /// # Errors
    /// [`Error::Output`] where the file cannot be written.
    pub async fn explain_all(
        mut self,
        model: &Blip2,
        images: &[ImageInput],
        policy: DecodePolicy,
        output: &Output,
    ) -> Result<bool, Error> {
        let mut all_done = true;
        let mut written = std::mem::take(&mut self.written);
        written.sort_by_key(|text| (text.image, text.item));
        let bar = output.items(images.len(), "images", false);
        for texts in written.chunk_by(|a, b| a.image == b.image) {
            let input = &images[texts[0].image];
            if let Err(error) = self.explain(model, input, texts, policy).await {
                output.error(&if error.names_its_image() {
                    error.to_string()
                } else {
                    format!("{}: {error}", input.name)
                });
                all_done = false;
            }
            bar.inc(1);
        }
        self.report.finish()?;
        Ok(all_done)
    }

    async fn explain(
        &mut self,
        model: &Blip2,
        input: &ImageInput,
        texts: &[Written],
        policy: DecodePolicy,
    ) -> Result<(), Error> {
        let image = input.decode(policy)?;
        let prompts = texts.iter().map(|text| model.prompt_tokens(&text.ask));
        let prompts = prompts.collect::<Result<Vec<_>, _>>()?;
        let written: Vec<WrittenText<'_>> = prompts
            .iter()
            .zip(texts)
            .map(|(prompt, text)| WrittenText {
                prompt,
                generated: &text.tokens,
            })
            .collect();
        let part = Part {
            explanation: model.explain(&image, &written).await?,
            titles: texts.iter().map(|text| text.title.clone()).collect(),
        };
        self.report.add(&Page {
            name: &input.name,
            image: &image,
            parts: &[part],
        })
    }
}

/// The file being written.
pub struct ExplainWriter {
    file: ExplainFile,
    part: AtomicFile,
    pages: usize,
    /// The picture, where that is what is written.
    canvas: png::Canvas,
}

impl ExplainWriter {
    /// Starts the file for so many images, so that one that cannot be written is known before any
    /// work is done.
    ///
    /// # Errors
    /// [`Error::Usage`] for a picture of several images, [`Error::Output`] where the file cannot be
    /// written.
    pub fn create(file: &ExplainFile, images: usize) -> Result<Self, Error> {
        let path = &file.path;
        if file.format == Format::Png && images > 1 {
            let problem = format!(
                "--explain {}: a picture shows one image and {images} are given; name an .html file, which shows all",
                path.display()
            );
            return Err(Error::Usage { problem });
        }
        let mut report = Self {
            part: AtomicFile::create(path).map_err(|cause| unwritable(path, cause))?,
            file: file.clone(),
            pages: 0,
            canvas: png::Canvas::default(),
        };
        if file.format == Format::Html {
            report.write(html::HEAD.as_bytes())?;
        }
        Ok(report)
    }

    /// Adds an image.
    ///
    /// # Errors
    /// [`Error::Output`] where the file cannot be written.
    pub fn add(&mut self, page: &Page<'_>) -> Result<(), Error> {
        self.pages += 1;
        match self.file.format {
            Format::Html => {
                let section = html::section(page, self.pages);
                let section = section.map_err(|error| undrawable(&self.file.path, error))?;
                self.write(section.as_bytes())
            }
            Format::Png => {
                self.canvas.draw(page);
                Ok(())
            }
        }
    }

    /// Gives the file its name, if it explains anything.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn finish(mut self) -> Result<(), Error> {
        if self.pages == 0 {
            return Ok(());
        }
        let end = match self.file.format {
            Format::Html => html::TAIL.into(),
            Format::Png => std::mem::take(&mut self.canvas)
                .encode()
                .map_err(|error| undrawable(&self.file.path, error))?,
        };
        self.write(&end)?;
        let path = self.file.path;
        self.part
            .sync_and_finish()
            .map_err(|cause| unwritable(&path, cause))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let written = self.part.write_all(bytes);
        written.map_err(|cause| unwritable(&self.file.path, cause))
    }
}

fn undrawable(file: &Path, cause: image::ImageError) -> Error {
    unwritable(file, io::Error::other(cause))
}

fn unwritable(file: &Path, cause: io::Error) -> Error {
    Error::Output {
        file: file.into(),
        cause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ending_says_what_to_write() {
        let format = |text| parse_file(text).map(|file| file.format).ok();
        assert_eq!(format("a/b.html"), Some(Format::Html));
        assert_eq!(format("B.HTM"), Some(Format::Html));
        assert_eq!(format("out.Png"), Some(Format::Png));
        for other in ["out", "out.pdf", "png", ".png", ""] {
            assert_eq!(format(other), None, "{other:?}");
        }
    }
}
