//! What the model computes on the way to a text, stage by stage: to find where two devices, builds or
//! kernels part.

use std::sync::Arc;

use crate::Error;
use crate::gpu::Tap;
use crate::image::Rgb8Image;

use super::parity::{ParityReport, ParityRow, compare, same_tokens};
use super::{Ask, Blip2, Text};

/// A hidden state or the logits.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    /// Its name, as reference dumps have it: `vit.block.0`, `opt.layer.1`, `logits`. Those of the steps
    /// that decode further tokens are `step.1.opt.layer.1`, `step.1.logits` and so on.
    pub name: String,
    /// Rows: image tokens, queries, or positions of the prompt.
    pub rows: usize,
    /// Columns: the width.
    pub columns: usize,
    /// `[rows, columns]`.
    pub values: Vec<f32>,
}

/// All stages of one image and prompt, in order of computation, and the text that comes of them.
#[derive(Debug, Clone, PartialEq)]
pub struct StageRun {
    /// The stages.
    pub stages: Vec<Stage>,
    /// The best text.
    pub text: Text,
}

impl StageRun {
    /// This run beside an `earlier` one: a row a stage of either, in order, then the tokens.
    #[must_use]
    pub fn compare(&self, earlier: &Self) -> ParityReport {
        let mut rows: Vec<ParityRow> = Vec::new();
        for stage in &self.stages {
            let theirs = earlier.stages.iter().find(|it| it.name == stage.name);
            let shape = (stage.rows, stage.columns);
            rows.push(match theirs {
                Some(theirs) if (theirs.rows, theirs.columns) == shape => ParityRow {
                    note: format!("{} × {}", stage.rows, stage.columns),
                    ..compare(stage.name.clone(), &stage.values, &theirs.values)
                },
                Some(theirs) => failed(
                    &stage.name,
                    format!(
                        "{} × {} here, {} × {} there",
                        stage.rows, stage.columns, theirs.rows, theirs.columns
                    ),
                ),
                None => failed(&stage.name, "not there".into()),
            });
        }
        let is_ours = |theirs: &&Stage| self.stages.iter().any(|it| it.name == theirs.name);
        let others = earlier.stages.iter().filter(|it| !is_ours(it));
        rows.extend(others.map(|it| failed(&it.name, "only there".into())));
        rows.push(same_tokens(&self.text, &earlier.text));
        ParityReport { rows }
    }
}

fn failed(stage: &str, note: String) -> ParityRow {
    ParityRow {
        stage: stage.into(),
        relative_error: f64::NAN,
        max_error: f64::NAN,
        pass: false,
        note,
    }
}

impl Blip2 {
    /// Answers a request as any is, then computes its text once more with every stage kept: the
    /// image's, the prompt's, and those of each step but the first, whose logits are the prompt's.
    ///
    /// # Errors
    /// What cannot be asked of the model, or a device that fails.
    pub async fn stages(&mut self, image: &Rgb8Image, ask: &Ask) -> Result<StageRun, Error> {
        let prompter = Arc::clone(&self.handle.prompter);
        let prompt = prompter.prompt(ask)?;
        let pixels = self.handle.preparation.preprocessor().apply(image)?;
        let pixels = Arc::new(pixels);
        let (door, request) = (&self.handle.door, prompter.request(&prompt));
        let mut texts = self
            .service
            .answer(door, request, Arc::clone(&pixels))
            .await?;
        let text = prompter.text(texts.swap_remove(0), &prompt)?;
        let engine = self.service.engine();
        let said = text.tokens.split_last().map_or(&[][..], |(_, said)| said);
        let taps = engine.stages(&pixels, &prompt.text, said).await?;
        let mut stages = Vec::with_capacity(taps.len());
        for tap in taps {
            stages.push(self.read_stage(tap).await?);
        }
        Ok(StageRun { stages, text })
    }

    /// Whether the checkpoint's own options choose tokens otherwise than greedily.
    #[must_use]
    pub fn generates_otherwise(&self) -> bool {
        let generation = &self.prompter().generation;
        generation.num_beams > 1 || generation.do_sample
    }

    async fn read_stage(&self, tap: Tap) -> Result<Stage, Error> {
        let values = self.gpu().read(&tap.buffer, tap.rows * tap.columns).await?;
        Ok(Stage {
            name: tap.name,
            rows: tap.rows,
            columns: tap.columns,
            values,
        })
    }
}
