//! How weight matrices lie on the device: as f16, or as blocks of small integers with a scale each.

use half::f16;

/// Columns that share a scale.
pub const QUANT_BLOCK: usize = 32;

/// Rows whose scales of one block lie together: kernels work on eight rows at a time and load their scales at once.
const SCALE_ROWS: usize = 8;

/// How a weight matrix is stored. The quantised formats take columns in multiples of [`QUANT_BLOCK`]; a part of such a
/// matrix is its rows' values, then the scales as `[⌈rows / 8⌉, columns / 32, 8]` f16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum WeightFormat {
    /// IEEE half precision.
    #[default]
    F16,
    /// A signed byte a value and an f16 scale a block: 8.5 bits a value.
    Q8,
    /// Four bits a value, -8 to 7 in two's complement, and an f16 scale a block: 4.5 bits a value.
    Q4,
}

impl WeightFormat {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F16, Self::Q8, Self::Q4];

    /// The name that the command line and errors have for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Q8 => "q8",
            Self::Q4 => "q4",
        }
    }

    /// The format of this [`WeightFormat::name`].
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// Whether values have scales.
    #[must_use]
    pub fn is_quantised(self) -> bool {
        self != Self::F16
    }

    /// Bits of a value without its scale.
    #[must_use]
    pub fn bits(self) -> usize {
        match self {
            Self::F16 => 16,
            Self::Q8 => 8,
            Self::Q4 => 4,
        }
    }

    /// Bytes of a row's values, without scales.
    #[must_use]
    pub fn row_bytes(self, columns: usize) -> usize {
        columns * self.bits() / 8
    }

    /// Scales of a row.
    #[must_use]
    pub fn row_scales(self, columns: usize) -> usize {
        if self.is_quantised() {
            columns / QUANT_BLOCK
        } else {
            0
        }
    }

    /// Bytes of `rows` rows in one buffer.
    #[must_use]
    pub fn part_bytes(self, rows: usize, columns: usize) -> u64 {
        let scale_rows = rows.next_multiple_of(SCALE_ROWS);
        (rows * self.row_bytes(columns) + scale_rows * self.row_scales(columns) * size_of::<f16>())
            as u64
    }

    /// Most rows that fit `limit` bytes, at least one.
    pub(super) fn most_rows(self, columns: usize, limit: u64) -> usize {
        let row = (self.row_bytes(columns) + self.row_scales(columns) * size_of::<f16>()) as u64;
        let rows = usize::try_from(limit / row.max(1)).unwrap_or(usize::MAX);
        // Whole groups of rows, whose scales need no padding.
        match rows / SCALE_ROWS * SCALE_ROWS {
            0 => rows.max(1),
            whole if self.is_quantised() => whole,
            _ => rows,
        }
    }
}

impl std::fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The scales `[rows, blocks]` of a part as they lie behind its values: `[⌈rows / 8⌉, blocks, 8]`, zeros for rows that
/// are not there.
#[must_use]
pub fn grouped_scales(scales: &[f16], blocks: usize) -> Vec<f16> {
    let rows = scales.len() / blocks.max(1);
    let mut grouped = vec![f16::ZERO; rows.next_multiple_of(SCALE_ROWS) * blocks];
    for (row, scales) in scales.chunks_exact(blocks.max(1)).enumerate() {
        let group = row / SCALE_ROWS * blocks * SCALE_ROWS + row % SCALE_ROWS;
        for (block, scale) in scales.iter().enumerate() {
            grouped[group + block * SCALE_ROWS] = *scale;
        }
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_count_values_and_padded_scales() {
        assert_eq!(WeightFormat::F16.part_bytes(3, 40), 240);
        assert_eq!(WeightFormat::Q8.part_bytes(16, 64), 16 * 64 + 16 * 2 * 2);
        assert_eq!(WeightFormat::Q4.part_bytes(3, 64), 3 * 32 + 8 * 2 * 2);
        assert_eq!(WeightFormat::Q8.most_rows(64, 68 * 20), 16);
        assert_eq!(WeightFormat::Q8.most_rows(64, 68 * 3), 3);
        assert_eq!(WeightFormat::F16.most_rows(64, 128 * 20 + 5), 20);
        assert_eq!(WeightFormat::parse("q4"), Some(WeightFormat::Q4));
        assert_eq!(WeightFormat::parse("q5"), None);
    }

    #[test]
    fn scales_of_eight_rows_lie_together() {
        let scale = |value: usize| f16::from_f32(value as f32);
        let scales: Vec<f16> = (0..10 * 3).map(scale).collect(); // [10, 3]
        let grouped = grouped_scales(&scales, 3);
        assert_eq!(grouped.len(), 16 * 3);
        for row in 0..16 {
            for block in 0..3 {
                let at = (row / 8 * 3 + block) * 8 + row % 8;
                let expected = if row < 10 {
                    scale(row * 3 + block)
                } else {
                    f16::ZERO
                };
                assert_eq!(grouped[at], expected, "row {row}, block {block}");
            }
        }
    }
}
