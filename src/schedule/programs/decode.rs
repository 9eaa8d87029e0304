//! A step of the decoder: tokens → logits.

use crate::gpu::{Activation, ActivationPool, Gpu, GpuError, Program};
use crate::model::{Decoder, InputRows, KvCache};
use crate::schedule::tables::{RowTables, StepTables};

use super::image::Keep;

/// What programs of the language model are recorded over.
#[derive(Debug, Clone, Copy)]
pub(in crate::schedule) struct LanguageSide<'a> {
    pub model: &'a dyn Decoder,
    /// Projected queries of the images that are kept, `[any, hidden]`.
    pub visual: &'a Activation,
    pub cache: &'a KvCache,
    pub tables: &'a RowTables,
    /// `[rows, vocabulary]`, of which the first rows are written.
    pub logits: &'a Activation,
}

/// Records the step that decodes `rows` rows.
pub(in crate::schedule) fn record_decode(
    gpu: &Gpu,
    side: LanguageSide<'_>,
    step: &StepTables,
    rows: usize,
    keep: Keep,
    pool: &ActivationPool,
) -> Result<Program, GpuError> {
    let mut program = keep.builder(gpu, "decode");
    let inputs = InputRows {
        tokens: &step.tokens,
        count: rows,
        visual: side.visual,
        cache: side.cache,
        pages: &side.tables.pages(&step.row_info),
        prompt_lengths: &side.tables.prompt_lengths,
    };
    let hidden = side.model.decode(&mut program, &inputs);
    let logits = side.logits.reshaped(rows, side.logits.columns);
    side.model.logits(&mut program, &hidden, &logits);
    program.finish(pool)
}
