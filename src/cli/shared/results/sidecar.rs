//! A text beside each image, named as the image, as trainers of image models read captions.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::{ResultsError, failed};
use crate::cli::shared::inputs::{ImageInput, ImageSource};
use crate::files::atomic;

/// Writes a text file beside each image.
#[derive(Debug, Clone)]
pub struct Sidecars {
    extension: String,
    overwrite: bool,
}

/// Why an image cannot have a text beside it.
#[derive(Debug, thiserror::Error)]
pub enum SidecarError {
    /// Standard input lies nowhere.
    #[error("-: standard input has no place beside which to put a text; give a file, or --out")]
    Stdin,
    /// The image is named as its text would be.
    #[error(
        "{name}: its text would replace the image itself; rename the image, or give another --sidecar=EXTENSION"
    )]
    Itself {
        /// The image.
        name: String,
    },
    /// Two images, one text.
    #[error("{name}: its text {} would be that of {other} too; rename one of them", file.display())]
    Shared {
        /// The image.
        name: String,
        /// The text's file.
        file: PathBuf,
        /// The image before it that has the same.
        other: String,
    },
}

/// Takes `txt` and `.txt`; an extension of images would replace them.
pub fn parse_extension(text: &str) -> Result<String, String> {
    let extension = text.strip_prefix('.').unwrap_or(text);
    let lower = extension.to_ascii_lowercase();
    if extension.is_empty() || extension.contains(['/', '\\']) {
        return Err("give an extension such as txt or caption".into());
    }
    if crate::cli::shared::inputs::EXTENSIONS.contains(&lower.as_str()) {
        return Err("that is an extension of images; give one such as txt or caption".into());
    }
    Ok(extension.into())
}

impl Sidecars {
    pub fn new(extension: &str, overwrite: bool) -> Self {
        Self {
            extension: extension.into(),
            overwrite,
        }
    }

    /// The text's file of each image, `None` where it is there already. An image that is there
    /// twice has one; two images of one name but for the extension are an error for the second.
    pub fn missing(&self, images: &[ImageInput]) -> Vec<Result<Option<PathBuf>, SidecarError>> {
        let mut owners: HashMap<PathBuf, &ImageInput> = HashMap::new();
        images
            .iter()
            .map(|image| {
                let ImageSource::Path(path) = &image.source else {
                    return Err(SidecarError::Stdin);
                };
                let file = path.with_extension(&self.extension);
                if file == *path {
                    let name = image.name.clone();
                    return Err(SidecarError::Itself { name });
                }
                let owner = *owners.entry(file.clone()).or_insert(image);
                if owner.source == image.source {
                    return Ok(Some(file).filter(|file| !self.has(file)));
                }
                Err(SidecarError::Shared {
                    name: image.name.clone(),
                    file,
                    other: owner.name.clone(),
                })
            })
            .collect()
    }

    /// Whether the text is there already and stays. An empty file, which a power cut may leave,
    /// does not count.
    fn has(&self, file: &Path) -> bool {
        !self.overwrite && std::fs::metadata(file).is_ok_and(|metadata| metadata.len() > 0)
    }

    /// Writes the texts of an image, one a line.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn write(file: &Path, texts: &[String]) -> Result<(), ResultsError> {
        let mut lines = String::new();
        for text in texts {
            lines.push_str(&text.replace(char::is_control, " "));
            lines.push('\n');
        }
        atomic::write(file, lines.as_bytes()).map_err(failed(file, "written"))
    }
}
