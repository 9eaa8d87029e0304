//! Position embeddings for an image size that the checkpoint was not trained at.

/// Cubic convolution's parameter in PyTorch's `interpolate(mode="bicubic")` (Pillow's resize has
/// −0.5).
const A: f64 = -0.75;

/// Interpolates the patch rows of `positions` `[1 + from², width]` to a grid of `to` × `to`, the
/// class token's row kept: PyTorch's `F.interpolate(mode="bicubic", align_corners=False)` without
/// antialiasing, in f32 as transformers has it (`interpolate_pos_encoding`). Equal grids are
/// returned as they are.
#[must_use]
pub fn interpolate_positions(positions: &[f32], width: usize, from: usize, to: usize) -> Vec<f32> {
    if from == to {
        return positions.to_vec();
    }
    let (class, table) = positions.split_at(width);
    let taps: Vec<_> = (0..to).map(|index| taps(index, from, to)).collect();
    let mut out = class.to_vec();
    out.reserve(to * to * width);
    for (rows, row_weights) in &taps {
        for (columns, column_weights) in &taps {
            for channel in 0..width {
                let mut value = 0.0;
                for (&row, row_weight) in rows.iter().zip(row_weights) {
                    let mut across = 0.0;
                    for (&column, column_weight) in columns.iter().zip(column_weights) {
                        let at = (row * from + column) * width + channel;
                        across += f64::from(table[at]) * column_weight;
                    }
                    value += across * row_weight;
                }
                out.push(value as f32);
            }
        }
    }
    out
}

/// The four source cells of target cell `index` and their weights; cells beyond the border repeat
/// it.
fn taps(index: usize, from: usize, to: usize) -> ([usize; 4], [f64; 4]) {
    let source = (index as f64 + 0.5) * from as f64 / to as f64 - 0.5;
    let base = source.floor();
    let t = source - base;
    let cell = |offset: f64| (base + offset).clamp(0.0, from as f64 - 1.0) as usize;
    (
        [cell(-1.0), cell(0.0), cell(1.0), cell(2.0)],
        [outer(t + 1.0), inner(t), inner(1.0 - t), outer(2.0 - t)],
    )
}

/// The kernel for |x| ≤ 1 (Keys, 1981).
fn inner(x: f64) -> f64 {
    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
}

/// The kernel for 1 < |x| < 2.
fn outer(x: f64) -> f64 {
    ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_grids_are_untouched() {
        let table: Vec<f32> = (0..5 * 3).map(|v| v as f32).collect();
        assert_eq!(interpolate_positions(&table, 3, 2, 2), table);
    }

    #[test]
    fn equals_pytorch() {
        // torch.nn.functional.interpolate(torch.arange(9.).view(1, 1, 3, 3) ** 2, size=(2, 2),
        // mode="bicubic") and size=(4, 4).
        let table: Vec<f32> = std::iter::once(-1.0)
            .chain((0..9).map(|v| (v * v) as f32))
            .collect();
        let small = interpolate_positions(&table, 1, 3, 2);
        let expected = [-1.0, 1.430_755_6, 6.522_369_4, 32.397_37, 53.180_756];
        assert_close(&small, &expected);
        let large = interpolate_positions(&table, 1, 3, 4);
        let expected = [
            -1.0,
            -0.686_861_5,
            -0.564_096_9,
            0.911_753_2,
            2.677_096,
            2.490_590_8,
            4.784_619_3,
            9.654_833,
            13.591_441,
            19.013_315,
            24.701_708,
            34.878_37,
            42.209_34,
            36.973_97,
            44.833_63,
            58.404_655,
            67.906_89,
        ];
        assert_close(&large, &expected);
    }

    fn assert_close(ours: &[f32], theirs: &[f32]) {
        assert_eq!(ours.len(), theirs.len());
        for (a, b) in ours.iter().zip(theirs) {
            assert!((a - b).abs() < 1e-4, "{ours:?}");
        }
    }
}
