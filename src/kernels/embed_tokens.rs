//! `embed_tokens.wgsl`: the decoder's input rows.

use crate::gpu::{
    Activation, GpuError, Kernel, Matrix, Operand, ProgramBuilder, READ, WRITE, params,
};

use super::weights::{by_format, of_format};
use super::{groups, word};

/// The kernels for a token embedding in each format.
pub(super) static KERNELS: [Kernel; 3] = by_format!(
    Params,
    "ops",
    "embed_tokens",
    &[READ, READ, READ, READ, READ, WRITE]
);

/// Flag of a token that stands for a visual row: `VISUAL | row`.
pub const VISUAL: u32 = 0x8000_0000;

/// Position of a row that holds nothing (padding of a batch, a finished sequence).
pub const INACTIVE: u32 = u32::MAX;

/// Inputs of [`embed_tokens`].
#[derive(Debug)]
pub struct EmbedTokens<'a> {
    /// Token id or `VISUAL | row`, u32 `[rows]`.
    pub tokens: &'a wgpu::Buffer,
    /// `(sequence, position)`, u32 `[rows]`.
    pub row_info: &'a wgpu::Buffer,
    /// Number of rows.
    pub rows: usize,
    /// Token embedding `[vocabulary, width]`.
    pub embedding: &'a Matrix,
    /// What is added for a row's position, if anything.
    pub positions: Option<Positions<'a>>,
    /// Projected queries `[any, width]`.
    pub visual: &'a Activation,
}

/// A position embedding.
#[derive(Debug, Clone, Copy)]
pub struct Positions<'a> {
    /// `[positions, width]` f16, in one part.
    pub table: &'a Matrix,
    /// Added to a position to find its row.
    pub offset: usize,
}

params! {
    struct Params {
        width: u32,
        first_row: u32,
        part_rows: u32,
    }
}

/// Embeddings plus positions, `[rows, width]`; zero for inactive rows. One dispatch a part of the embedding.
///
/// Fails the program with [`GpuError::TooLarge`] if the position embedding is not in one part.
pub fn embed_tokens(program: &mut ProgramBuilder, inputs: &EmbedTokens) -> Activation {
    let width = inputs.embedding.columns;
    debug_assert_eq!(inputs.visual.columns, width);
    let x = program.activation(inputs.rows, width);
    let positions = match inputs.positions {
        None => None,
        Some(positions) => match positions.table.parts.as_slice() {
            [part] => Some((positions.offset, part)),
            parts => {
                program.fail(GpuError::TooLarge {
                    what: "the decoder's position embedding".into(),
                    bytes: positions.table.bytes(),
                    limit: parts.first().map_or(0, |part| part.buffer.size()),
                });
                return x;
            }
        },
    };
    let mut constants = vec![("HAS_POSITIONS", f64::from(u8::from(positions.is_some())))];
    if let Some((offset, _)) = positions {
        constants.push(("POSITION_OFFSET", offset as f64));
    }
    for part in &inputs.embedding.parts {
        program.dispatch(
            of_format(&KERNELS, inputs.embedding.format),
            constants.clone(),
            &Params {
                width: word(width),
                first_row: word(part.first_row),
                part_rows: word(part.rows),
            },
            vec![
                Operand::from(inputs.tokens),
                Operand::from(inputs.row_info),
                Operand::from(&part.buffer),
                // Without positions something must be bound, and is not read.
                Operand::from(&positions.map_or(part, |(_, table)| table).buffer),
                inputs.visual.operand(),
                x.operand(),
            ],
            [groups(width, 512), word(inputs.rows), 1],
        );
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{Gpu, MatrixPart, WeightFormat};
    use crate::kernels::testing::{Random, gpus, run, upload};
    use crate::weights::{dequantise, quantise};

    const WIDTH: usize = 160;
    const VOCABULARY: usize = 11;

    /// A token embedding in two parts, and its values.
    fn embedding(gpu: &Gpu, format: WeightFormat, random: &mut Random) -> (Matrix, Vec<f32>) {
        let halves = random.f16_vec(VOCABULARY * WIDTH);
        let mut table: Vec<f32> = halves.iter().map(|half| half.to_f32()).collect();
        let (row_bytes, row_scales) = (format.row_bytes(WIDTH), format.row_scales(WIDTH));
        let mut values = bytemuck::cast_slice(&halves).to_vec();
        let mut scales = vec![half::f16::ZERO; VOCABULARY * row_scales];
        if format.is_quantised() {
            values.truncate(VOCABULARY * row_bytes);
            quantise(format, &halves, &mut values, &mut scales);
            dequantise(format, &values, &scales, &mut table);
        }
        let parts = [(0, 6), (6, 5)].map(|(first_row, rows)| {
            let values = &values[first_row * row_bytes..][..rows * row_bytes];
            let scales = &scales[first_row * row_scales..][..rows * row_scales];
            let mut part = gpu
                .weight_matrix_with("part", format, [rows, WIDTH], values, scales)
                .expect("small");
            MatrixPart {
                first_row,
                ..part.parts.remove(0)
            }
        });
        let matrix = Matrix {
            format,
            parts: parts.to_vec(),
            rows: VOCABULARY,
            columns: WIDTH,
        };
        (matrix, table)
    }

    #[test]
    fn equals_its_twin_over_a_parted_embedding() {
        let formats = |gpu| WeightFormat::ALL.map(|format| (gpu, format));
        for (gpu, format) in gpus().into_iter().flat_map(formats) {
            let mut random = Random(4);
            let (embedding, table) = embedding(gpu, format, &mut random);
            let position_table = random.f16_vec(9 * WIDTH);
            let visual = random.vec(3 * WIDTH);
            let tokens = [10, VISUAL | 2, 0, 6, 5, 3];
            let row_info = [[0, 0], [0, 1], [0, 6], [1, 2], [1, INACTIVE], [1, 3]];
            let positions = gpu
                .matrix_with("positions", 9, WIDTH, &position_table)
                .expect("small");
            let token_buffer = gpu.storage_with("tokens", &tokens).expect("small");
            let row_buffer = gpu.storage_with("row_info", &row_info).expect("small");
            let visual_rows = upload(gpu, &visual, 3, WIDTH);
            for has_positions in [true, false] {
                let ours = run(gpu, |program| {
                    let inputs = EmbedTokens {
                        tokens: &token_buffer,
                        row_info: &row_buffer,
                        rows: tokens.len(),
                        embedding: &embedding,
                        positions: has_positions.then_some(Positions {
                            table: &positions,
                            offset: 2,
                        }),
                        visual: &visual_rows,
                    };
                    embed_tokens(program, &inputs)
                });
                let mut twin = Vec::new();
                for (&token, &[_, position]) in tokens.iter().zip(&row_info) {
                    for column in 0..WIDTH {
                        let value = if token & VISUAL != 0 {
                            visual[(token & !VISUAL) as usize * WIDTH + column]
                        } else {
                            table[token as usize * WIDTH + column]
                        };
                        let added = if has_positions && position != INACTIVE {
                            position_table[(position as usize + 2) * WIDTH + column].to_f32()
                        } else {
                            0.0
                        };
                        let is_active = position != INACTIVE;
                        twin.push(if is_active { value + added } else { 0.0 });
                    }
                }
                assert_eq!(ours, twin, "{format}");
            }
        }
    }
}
