//! The kernels of linear layers, and which of them a device can run.

use crate::gpu::{Capabilities, Kernel, READ, WRITE};

use super::{ACTIVATE, MATVEC_ROWS};

/// Parameters, bindings and the end of a sum, put before each of the kernels.
const LINEAR: &str = include_str!("../../../shaders/linear.wgsl");

static MATMUL_TILE: Kernel = Kernel {
    name: "matmul_tile",
    wgsl: &[
        ACTIVATE,
        LINEAR,
        include_str!("../../../shaders/matmul_tile.wgsl"),
    ],
    bindings: &[READ, READ, READ, WRITE],
};

static MATMUL_REGISTER: Kernel = Kernel {
    name: "matmul_register",
    wgsl: &[
        ACTIVATE,
        LINEAR,
        include_str!("../../../shaders/matmul_register.wgsl"),
    ],
    bindings: &[READ, READ, READ, WRITE],
};

static MATVEC: Kernel = Kernel {
    name: "matvec",
    wgsl: &[
        ACTIVATE,
        LINEAR,
        include_str!("../../../shaders/matvec.wgsl"),
    ],
    bindings: &[READ, READ, READ, WRITE],
};

static MATVEC_SUBGROUP: Kernel = Kernel {
    name: "matvec_subgroup",
    wgsl: &[
        ACTIVATE,
        LINEAR,
        include_str!("../../../shaders/matvec_subgroup.wgsl"),
    ],
    bindings: &[READ, READ, READ, WRITE],
};

/// All of them.
pub(crate) static KERNELS: &[&Kernel] =
    &[&MATMUL_TILE, &MATMUL_REGISTER, &MATVEC, &MATVEC_SUBGROUP];

/// A kernel for linear layers. [`candidates`] lists those that serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinearVariant {
    /// `matmul_tile`: a 64×64 tile in workgroup memory; any GPU.
    Tile,
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
        /// Lanes a subgroup.
        lanes: u32,
    },
}

impl std::fmt::Display for LinearVariant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tile => write!(f, "tile"),
            Self::Register { lanes, height } => write!(f, "register {height}x{}", 8 * lanes),
            Self::Vector => write!(f, "vector"),
            Self::VectorSubgroup { lanes } => write!(f, "vector_subgroup {lanes}"),
        }
    }
}

/// Subgroups up to this wide are vector units of a CPU, where workgroup memory is ordinary memory and staging tiles in
/// it costs more than it saves; wider ones share weights through it.
const NARROW_LANES: u32 = 16;

/// The kernels that can multiply `rows` rows on a device, the one to take unmeasured first.
#[must_use]
pub fn candidates(capabilities: &Capabilities, rows: usize) -> Vec<LinearVariant> {
    use LinearVariant::{Register, Tile, Vector, VectorSubgroup};
    let any = if rows <= MATVEC_ROWS { Vector } else { Tile };
    let Some(lanes) = capabilities.fixed_subgroup_size() else {
        return vec![any];
    };
    let register = register_heights(rows).map(|height| Register { lanes, height });
    let subgroup = (rows <= MATVEC_ROWS).then_some(VectorSubgroup { lanes });
    if lanes <= NARROW_LANES {
        register.chain(subgroup).chain([any]).collect()
    } else {
        subgroup.into_iter().chain([any]).chain(register).collect()
    }
}

/// A kernel and how its grid covers the result.
pub(super) struct Shape {
    pub kernel: &'static Kernel,
    pub constants: Vec<(&'static str, f64)>,
    pub tile_rows: usize,
    pub tile_columns: usize,
}

impl LinearVariant {
    /// Whether this kernel may stand in for `other`: its sums run in the same order, or one choice serves all rows.
    pub(super) fn has_sums_of(self, other: Self) -> bool {
        use LinearVariant::{Register, VectorSubgroup};
        match (self, other) {
            (Register { .. }, Register { .. }) | (VectorSubgroup { .. }, VectorSubgroup { .. }) => {
                true
            }
            _ => self == other,
        }
    }

    /// How the kernel covers a product of `rows` rows.
    pub(super) fn shape(self, rows: usize) -> Shape {
        let row_constant = ("ROWS", rows.next_power_of_two() as f64);
        match self {
            Self::Tile => Shape {
                kernel: &MATMUL_TILE,
                constants: vec![],
                tile_rows: 64,
                tile_columns: 64,
            },
            Self::Register { lanes, height } => Shape {
                kernel: &MATMUL_REGISTER,
                constants: vec![
                    ("ROWS", f64::from(height)),
                    ("COLUMNS", 8.0),
                    ("WORKGROUP_SIZE", f64::from(lanes)),
                ],
                tile_rows: height as usize,
                tile_columns: 8 * lanes as usize,
            },
            Self::Vector => Shape {
                kernel: &MATVEC,
                constants: vec![row_constant],
                tile_rows: MATVEC_ROWS,
                tile_columns: 8,
            },
            Self::VectorSubgroup { lanes } => Shape {
                kernel: &MATVEC_SUBGROUP,
                constants: vec![row_constant, ("WORKGROUP_SIZE", f64::from(lanes))],
                tile_rows: MATVEC_ROWS,
                tile_columns: 8,
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
