//! Which images are still to be captioned, and what is to be kept of each.

use crate::cli::shared::delivery::{Keep, Summary};
use crate::cli::shared::inputs::ImageInput;
use crate::cli::shared::results::{Columns, EarlierResults, Sidecars, Sieve, Standing};

/// The images to caption.
#[derive(Debug)]
pub struct Plan {
    pub images: Vec<ImageInput>,
    /// What to keep of each.
    pub keeps: Vec<Keep>,
    /// Counts the images that are not among them.
    pub summary: Summary,
    /// Why some are not.
    pub errors: Vec<String>,
}

impl Plan {
    /// All images, each as often as it was given: for results that are only printed.
    pub fn all(images: Vec<ImageInput>, summary: Summary) -> Self {
        Self {
            keeps: vec![Keep::default(); images.len()],
            images,
            summary,
            errors: Vec::new(),
        }
    }

    /// The images that lack a line in `results` or a text beside them, each once.
    pub fn new(
        images: Vec<ImageInput>,
        results: Option<&EarlierResults>,
        sidecars: Option<&Sidecars>,
        summary: Summary,
    ) -> Self {
        let mut plan = Self::all(Vec::new(), summary);
        let texts = sidecars.map(|sidecars| sidecars.missing(&images));
        let mut texts = texts.into_iter().flatten();
        let mut sieve = Sieve::new(results);
        for image in images {
            let text = texts.next().unwrap_or(Ok(None));
            let line = match sieve.standing(&image, &Columns::key([image.name.as_str()])) {
                Standing::Missing => results.is_some(),
                Standing::Done => false,
                Standing::Repeated => {
                    plan.summary.repeated += 1;
                    continue;
                }
                Standing::Unclear(error) => {
                    plan.errors.push(error);
                    continue;
                }
            };
            match text {
                Ok(None) if !line => plan.summary.done += 1,
                Ok(sidecar) => {
                    plan.images.push(image);
                    plan.keeps.push(Keep { line, sidecar });
                }
                Err(error) => plan.errors.push(error.to_string()),
            }
        }
        plan.summary.failed += plan.errors.len();
        plan
    }
}
