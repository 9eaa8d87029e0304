//! The kernels of linear layers, and which of them a device can run.

use crate::gpu::{Access, Capabilities, Kernel, READ, WRITE, WeightFormat};
use crate::kernels::weights::{by_format, of_format};

use super::cooperative::{CooperativeTile, all_cooperative_tiles, cooperative_tiles};
use super::cooperative_kernels;
use super::{MATVEC_ROWS, Params};

const BINDINGS: &[Access] = &[READ, READ, READ, WRITE];

static MATMUL_TILE: [Kernel; 3] = by_format!(Params, "linear", "matmul_tile", BINDINGS);
static MATMUL_REGISTER: [Kernel; 3] = by_format!(Params, "linear", "matmul_register", BINDINGS);
static MATVEC: [Kernel; 3] = by_format!(Params, "linear", "matvec", BINDINGS);
static MATVEC_SUBGROUP: [Kernel; 3] = by_format!(Params, "linear", "matvec_subgroup", BINDINGS);

/// All of them.
#[cfg(test)]
pub(crate) static KERNELS: &[&[Kernel; 3]] = &[
    &MATMUL_TILE,
    &cooperative_kernels::VECTORS_16,
    &cooperative_kernels::VECTORS_16_ROUNDED,
    &cooperative_kernels::VECTORS_8,
    &cooperative_kernels::VECTORS_8_ROUNDED,
    &cooperative_kernels::SCALARS_8,
    &cooperative_kernels::SCALARS_8_ROUNDED,
    &MATMUL_REGISTER,
    &MATVEC,
    &MATVEC_SUBGROUP,
];

/// A kernel for linear layers. [`candidates`] lists those that serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinearVariant {
    /// `matmul_tile`: a tile in workgroup memory; any GPU. Sums have one order whatever its size.
    Tile {
        /// Rows of the tile: 32, 64 or 128.
        rows: u32,
        /// Columns of the tile: 32 or 64.
        columns: u32,
    },
    /// `matmul_cooperative`: fragments on cooperative matrices, x rounded to f16.
    Cooperative(CooperativeTile),
    /// `matmul_register`: `height` rows × (8 · lanes) columns in registers, spread by subgroup broadcasts. Sums have one
    /// order whatever the height: a row gets the same bits in decode as in prefill.
    Register {
        /// Lanes a subgroup.
        lanes: u32,
        /// Rows of the tile, one of `REGISTER_ROWS`.
        height: u32,
    },
    /// `matvec`: up to [`MATVEC_ROWS`] rows, reduction in workgroup memory; any GPU.
    Vector,
    /// `matvec_subgroup`: up to [`MATVEC_ROWS`] rows, reduction by subgroup operations.
    VectorSubgroup {
        /// Lanes of the widest subgroup; without fixed `splits` those of a workgroup.
        lanes: u32,
        /// Subgroups that share eight columns, each with its slice of K; 0 where the driver chooses how wide subgroups
        /// are: all those of a workgroup then share them.
        splits: u32,
        /// Columns of a subgroup: 8, or 4 where that many would leave a large GPU without enough subgroups.
        columns: u32,
    },
}

impl std::fmt::Display for LinearVariant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tile { rows, columns } => write!(f, "tile {rows}x{columns}"),
            Self::Cooperative(tile) => write!(f, "cooperative {tile}"),
            Self::Register { lanes, height } => write!(f, "register {height}x{}", 8 * lanes),
            Self::Vector => write!(f, "vector"),
            Self::VectorSubgroup {
                lanes,
                splits,
                columns,
            } => {
                write!(f, "vector_subgroup {lanes}")?;
                match splits {
                    0 => write!(f, " split")?,
                    1 => {}
                    _ => write!(f, " split {splits}")?,
                }
                match columns {
                    8 => Ok(()),
                    _ => write!(f, " {columns} columns"),
                }
            }
        }
    }
}

/// Subgroups up to this wide are vector units of a CPU, where workgroup memory is ordinary memory and staging tiles in
/// it costs more than it saves; wider ones share weights through it. Register tiles are for narrow ones alone: 32×8 sums
/// a lane do not fit the registers of a GPU, and no kernel takes longer to compile.
pub(crate) const NARROW_LANES: u32 = 16;

/// Subgroups that share the columns of a matrix–vector product, and how many columns those are; the one to take unmeasured
/// first. With one subgroup there are too few loads under way on a large GPU; four columns double the subgroups, and halve the
/// registers where there are many rows.
const SPLITS: [(u32, u32); 6] = [(4, 8), (2, 8), (8, 8), (1, 8), (4, 4), (2, 4)];

/// The kernels that can multiply `rows` rows on a device, the one to take unmeasured first.
#[must_use]
pub fn candidates(capabilities: &Capabilities, rows: usize) -> Vec<LinearVariant> {
    if rows <= MATVEC_ROWS {
        vector_candidates(capabilities, rows)
    } else {
        matrix_candidates(capabilities, rows)
    }
}

fn vector_candidates(capabilities: &Capabilities, rows: usize) -> Vec<LinearVariant> {
    use LinearVariant::{Register, Vector, VectorSubgroup};
    let register = |lanes| register_heights(rows).map(move |height| Register { lanes, height });
    let subgroup = |lanes, splits, columns| VectorSubgroup {
        lanes,
        splits,
        columns,
    };
    match capabilities.subgroups {
        Some((least, lanes)) if least == lanes && lanes <= NARROW_LANES => {
            let registers = register_lanes(capabilities).into_iter().flat_map(register);
            registers.chain([subgroup(lanes, 1, 8), Vector]).collect()
        }
        Some((least, lanes)) if least == lanes => SPLITS
            .into_iter()
            .filter(|(splits, _)| splits * lanes <= capabilities.invocations)
            .map(|(splits, columns)| subgroup(lanes, splits, columns))
            .chain([Vector])
            .collect(),
        // All subgroups of a workgroup share its columns, however many they are.
        Some((least, lanes)) if least > NARROW_LANES => [(1, 8), (2, 8), (4, 8), (1, 4)]
            .into_iter()
            .map(|(times, columns)| (times * lanes, columns))
            .filter(|&(workgroup, _)| workgroup <= capabilities.invocations)
            .map(|(workgroup, columns)| subgroup(workgroup, 0, columns))
            .chain([Vector])
            .collect(),
        _ => vec![Vector],
    }
}

/// What [`candidates`] leaves out for some numbers of rows and offers for others: tiles of `matmul_cooperative`.
pub(super) fn more_candidates(capabilities: &Capabilities) -> Vec<LinearVariant> {
    if !has_wide_subgroups(capabilities) {
        return Vec::new();
    }
    let tiles = all_cooperative_tiles(capabilities).into_iter();
    tiles.map(LinearVariant::Cooperative).collect()
}

/// Lanes of the subgroups of a device that `matmul_register` serves: it hands round what eight lanes hold.
fn register_lanes(capabilities: &Capabilities) -> Option<u32> {
    let lanes = capabilities.fixed_subgroup_size()?;
    (8..=NARROW_LANES).contains(&lanes).then_some(lanes)
}

fn has_wide_subgroups(capabilities: &Capabilities) -> bool {
    let is_wide = |(least, _)| least > NARROW_LANES;
    capabilities.subgroups.is_some_and(is_wide)
}

fn matrix_candidates(capabilities: &Capabilities, rows: usize) -> Vec<LinearVariant> {
    use LinearVariant::{Cooperative, Register};
    let register = |lanes| register_heights(rows).map(move |height| Register { lanes, height });
    if let Some(lanes) = register_lanes(capabilities) {
        return register(lanes).chain([SQUARE_TILE]).collect();
    }
    let cooperative = if has_wide_subgroups(capabilities) {
        cooperative_tiles(capabilities, rows)
    } else {
        Vec::new()
    };
    cooperative
        .into_iter()
        .map(Cooperative)
        .chain(tiles(rows))
        .collect()
}

const SQUARE_TILE: LinearVariant = LinearVariant::Tile {
    rows: 64,
    columns: 64,
};

/// Sizes of the portable tile, for `rows` rows the one to take unmeasured first.
fn tiles(rows: usize) -> impl Iterator<Item = LinearVariant> {
    let sizes = if rows <= 32 {
        [(32, 32), (32, 64), (64, 64), (128, 64)]
    } else {
        [(64, 64), (32, 64), (128, 64), (32, 32)]
    };
    sizes
        .into_iter()
        .map(|(rows, columns)| LinearVariant::Tile { rows, columns })
}

/// A kernel and how its grid covers the result.
pub(crate) struct Shape {
    pub kernel: &'static Kernel,
    pub constants: Vec<(&'static str, f64)>,
    pub tile_rows: usize,
    pub tile_columns: usize,
}

impl LinearVariant {
    /// Whether this kernel may stand in for `other`: its sums run in the same order, or one choice serves all rows.
    pub(super) fn has_sums_of(self, other: Self) -> bool {
        use LinearVariant::{Cooperative, Register, Tile, VectorSubgroup};
        match (self, other) {
            (Register { .. }, Register { .. })
            | (Tile { .. }, Tile { .. })
            | (VectorSubgroup { .. }, VectorSubgroup { .. }) => true,
            (Cooperative(tile), Cooperative(other)) => tile.has_sums_of(other),
            _ => self == other,
        }
    }

    /// How the kernel covers a product of `rows` rows and weights in `format`.
    pub(crate) fn shape(self, rows: usize, format: WeightFormat) -> Shape {
        let row_constant = ("ROWS", rows.next_power_of_two() as f64);
        match self {
            Self::Tile { rows, columns } => Shape {
                kernel: of_format(&MATMUL_TILE, format),
                constants: vec![
                    ("TILE_ROWS", f64::from(rows)),
                    ("TILE_COLUMNS", f64::from(columns)),
                    ("WORKGROUP_SIZE", f64::from(4 * columns)),
                ],
                tile_rows: rows as usize,
                tile_columns: columns as usize,
            },
            Self::Cooperative(tile) => Shape {
                kernel: cooperative_kernels::kernel(tile, format),
                constants: tile.constants(),
                tile_rows: tile.rows() as usize,
                tile_columns: tile.columns() as usize,
            },
            Self::Register { lanes, height } => Shape {
                kernel: of_format(&MATMUL_REGISTER, format),
                constants: vec![
                    ("ROWS", f64::from(height)),
                    ("COLUMNS", 8.0),
                    ("WORKGROUP_SIZE", f64::from(lanes)),
                ],
                tile_rows: height as usize,
                tile_columns: 8 * lanes as usize,
            },
            Self::Vector => Shape {
                kernel: of_format(&MATVEC, format),
                constants: vec![row_constant],
                tile_rows: MATVEC_ROWS,
                tile_columns: 8,
            },
            Self::VectorSubgroup {
                lanes,
                splits,
                columns,
            } => Shape {
                kernel: of_format(&MATVEC_SUBGROUP, format),
                constants: vec![
                    row_constant,
                    ("WORKGROUP_SIZE", f64::from(lanes * splits.max(1))),
                    ("SPLITS", f64::from(splits)),
                    ("COLUMNS", f64::from(columns)),
                ],
                tile_rows: MATVEC_ROWS,
                tile_columns: columns as usize,
            },
        }
    }
}

/// Heights of the register tile: few, so that there are few pipelines to compile.
const REGISTER_ROWS: [u32; 14] = [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 24, 28, 32];

/// How many heights of the register tile are worth measuring.
const REGISTER_CHOICES: usize = 3;

/// Heights of the register tile that suit `rows`, the best first: a step costs about `height + 8` (eight columns a lane
/// are unpacked whatever the height), so the best one makes `⌈rows / height⌉ · (height + 8)` smallest.
fn register_heights(rows: usize) -> impl Iterator<Item = u32> {
    let cost = |height: u32| rows.div_ceil(height as usize) * (height as usize + 8);
    let mut heights = REGISTER_ROWS;
    heights.sort_by_key(|&height| cost(height));
    let count = if rows <= MATVEC_ROWS {
        1
    } else {
        REGISTER_CHOICES
    };
    heights.into_iter().take(count)
}
