//! A retrieval model's stages and scores against a dump of `weights-tools/retrieval_dump.py`.

use std::path::Path;

use serde::Deserialize;

use crate::Error;
use crate::gpu::Tap;

use super::dump::{self, Dump, Pictures, RETRIEVAL};
use super::{ParityReport, compare};
use crate::task::{Preset, Retriever, TextUse};

#[derive(Debug, Deserialize)]
struct Reference {
    #[serde(flatten)]
    pictures: Pictures,
    texts: Vec<ReferenceText>,
}

#[derive(Debug, Deserialize)]
struct ReferenceText {
    text: String,
    input_ids: Vec<u32>,
}

impl Retriever {
    /// Runs every image, text and pair of the dump `file` and compares all stages it holds, then the scores.
    ///
    /// # Errors
    /// A dump that cannot be read or belongs to another model, or a failing device.
    pub async fn parity(&mut self, file: &Path) -> Result<ParityReport, Error> {
        let bytes = dump::read_file(file)?;
        let (dump, reference) = Dump::read::<Reference>(file, &bytes, RETRIEVAL)?;
        let pixels = dump.pixels(&reference.pictures, &self.preprocessor)?;
        let thinned = |tap: &Tap, ours: &[f32]| {
            let pictures = &reference.pictures;
            pictures.thinned(&tap.name, ours, tap.columns)
        };
        let mut report = ParityReport::default();
        let mut images = Vec::with_capacity(pixels.len());
        for pixels in &pixels {
            images.extend(self.encode_pixels(&[pixels.as_slice()]).await?);
        }
        for (image, pixels) in pixels.iter().enumerate() {
            for tap in self.matcher.image_stages(pixels).await? {
                if let Some(expected) = dump.of_image(&tap.name, image, images.len())? {
                    let ours = thinned(&tap, &self.read(&tap).await?);
                    let stage = format!("image {image}, {}", tap.name);
                    report.rows.push(compare(stage, &ours, &expected));
                }
            }
        }
        let texts: Vec<&str> = reference.texts.iter().map(|text| &*text.text).collect();
        let texts = self
            .encode_texts(&texts, Preset::Hf, TextUse::Match)
            .await?;
        for (number, (text, theirs)) in texts.iter().zip(&reference.texts).enumerate() {
            if text.tokens != theirs.input_ids {
                return Err(dump.error(format!(
                    "text {:?} is {:?} there and {:?} by this model's tokenizer",
                    theirs.text, theirs.input_ids, text.tokens
                )));
            }
            for mut tap in self.matcher.text_stages(&text.tokens).await? {
                let stage = tap.name.trim_start_matches("text.").to_owned();
                tap.name = format!("text.{number}.{stage}");
                tap.rows = tap.rows.min(text.tokens.len()); // without the padding
                if let Some(mut expected) = dump.find(&tap.name)? {
                    if stage == "text_embeds" {
                        expected.truncate(tap.columns); // that of [CLS]
                    }
                    let ours = self.read(&tap).await?;
                    report.rows.push(compare(tap.name, &ours, &expected));
                }
            }
            let stage = format!("text.{number}.output");
            if let Some(mut expected) = dump.find(&stage)? {
                expected.truncate(text.cls.len());
                report.rows.push(compare(stage, &text.cls, &expected));
            }
        }
        let pairs: Vec<(usize, usize)> = (0..images.len())
            .flat_map(|image| (0..texts.len()).map(move |text| (image, text)))
            .collect();
        let scores = self.match_pairs(&images, &texts, &pairs).await?;
        for (&(image, text), score) in pairs.iter().zip(&scores) {
            let (tokens, ids) = (&images[image].tokens, &texts[text].tokens);
            for mut tap in self.matcher.pair_stages(tokens, ids).await? {
                let stage = tap.name.trim_start_matches("pair.");
                tap.name = format!("pair.{image}.{text}.{stage}");
                if let Some(expected) = dump.find(&tap.name)? {
                    let ours = thinned(&tap, &self.read(&tap).await?);
                    report.rows.push(compare(tap.name, &ours, &expected));
                }
            }
            let label = |score: &str| format!("pair.{image}.{text}.{score}");
            for (name, ours) in [("itm", &score.itm_logits[..]), ("itc", &[score.itc])] {
                let Some(all) = dump.find(name)? else {
                    return Err(dump.error(format!("tensor {name:?} is missing")));
                };
                let at = (image * texts.len() + text) * ours.len();
                let expected = all.get(at..at + ours.len()).unwrap_or_default();
                report.rows.push(compare(label(name), ours, expected));
            }
        }
        Ok(report)
    }

    async fn read(&self, tap: &Tap) -> Result<Vec<f32>, Error> {
        let values = self.gpu().read(&tap.buffer, tap.rows * tap.columns).await?;
        Ok(values)
    }
}
