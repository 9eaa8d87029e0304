//! `matmul_cooperative`: a tile of fragments on cooperative matrices, x rounded to f16.

use crate::gpu::{Capabilities, Constants, Kernel, kernels};
use crate::kernels::select::{self, invariance::Order};

use super::{BINDINGS, Kind, LinearVariant, MATVEC_ROWS, NARROW_LANES, Params};

/// The kernel for fragments of a size, x as it is or rounded before, and workgroup memory of vectors
/// or scalars: one a weight format. f16 weights are multiplied as they lie, others are rounded first.
macro_rules! by_format {
    ($name:literal, $size:literal, $x:literal, $tile:literal) => {
        [
            by_format!($name, "", "f16", "f16", $size, $x, $tile),
            by_format!($name, "_q8", "q8", "quantised", $size, $x, $tile),
            by_format!($name, "_q4", "q4", "quantised", $size, $x, $tile),
        ]
    };
    ($name:literal, $format:literal, $weights:literal, $halves:literal, $size:literal, $x:literal, $tile:literal) => {
        Kernel::new::<Params>("linear/matmul_cooperative", BINDINGS).named(
            concat!("matmul_cooperative_", $name, $format),
            &[
                ("size", $size),
                ("weights", $weights),
                ("weight_halves", $halves),
                ("x", $x),
                ("tile", $tile),
            ],
        )
    };
}

kernels! {
    static VECTORS_16: [Kernel; 3] = by_format!("16", "16", "x", "vectors");
    static VECTORS_16_ROUNDED: [Kernel; 3] = by_format!("16_rounded", "16", "x_rounded", "vectors");
    static VECTORS_8: [Kernel; 3] = by_format!("8", "8", "x", "vectors");
    static VECTORS_8_ROUNDED: [Kernel; 3] = by_format!("8_rounded", "8", "x_rounded", "vectors");
    static SCALARS_8: [Kernel; 3] = by_format!("8_scalars", "8", "x", "scalars");
    static SCALARS_8_ROUNDED: [Kernel; 3] =
        by_format!("8_scalars_rounded", "8", "x_rounded", "scalars");
}

pub(super) static KIND: Kind = Kind {
    kind: select::Kind {
        name: "cooperative",
        kernel: "matmul_cooperative",
        is_experimental: true,
        fits,
    },
    variants,
};

fn fits(capabilities: &Capabilities) -> Result<(), &'static str> {
    let is_wide = |(least, _)| least > NARROW_LANES;
    if capabilities.cooperative_size().is_none() {
        Err("it needs cooperative matrices of f16 into f32, square, of 16 or 8")
    } else if !capabilities.subgroups.is_some_and(is_wide) {
        Err("it needs subgroups of more than 16 lanes")
    } else {
        Ok(())
    }
}

fn variants(capabilities: &Capabilities, rows: usize) -> Vec<LinearVariant> {
    match rows {
        ..=MATVEC_ROWS => Vec::new(),
        _ => tiles(capabilities, rows)
            .into_iter()
            .map(CooperativeTile::variant)
            .collect(),
    }
}

/// Those for any number of rows: which of them serve depends on it.
pub(super) fn all_variants(capabilities: &Capabilities) -> Vec<LinearVariant> {
    match fits(capabilities) {
        Ok(()) => all_tiles(capabilities)
            .into_iter()
            .map(CooperativeTile::variant)
            .collect(),
        Err(_) => Vec::new(),
    }
}

/// A tile of `matmul_cooperative`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CooperativeTile {
    /// Rows and columns of a fragment: 16 (Vulkan) or 8 (Metal).
    size: u32,
    /// Lanes of the narrowest and the widest subgroup.
    lanes: (u32, u32),
    /// Whether fragments are loaded from vectors in workgroup memory: everywhere but on Metal.
    vectors: bool,
    layout: Layout,
}

/// A tile in fragments and subgroups, whatever their sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    /// Fragments of a subgroup, down and across.
    fragments: (u32, u32),
    /// Subgroups beside each other, down and across.
    subgroups: (u32, u32),
    /// Subgroups that share one place, each with its part of K.
    splits: u32,
    /// Columns of K that workgroup memory has at a time, at most.
    depth: u32,
    /// How many times workgroup memory has room for that: 1 or 2.
    stages: u32,
    /// Whether x is rounded to f16 by a dispatch of its own, instead of by every workgroup that reads it.
    rounded: bool,
}

impl Layout {
    const fn new(fragments: (u32, u32), subgroups: (u32, u32)) -> Self {
        Self {
            fragments,
            subgroups,
            splits: 1,
            depth: 32,
            stages: 1,
            rounded: false,
        }
    }

    const fn deep(self, depth: u32) -> Self {
        Self { depth, ..self }
    }

    const fn split(self, splits: u32) -> Self {
        Self { splits, ..self }
    }

    const fn two_stages(self) -> Self {
        Self { stages: 2, ..self }
    }

    const fn rounded(self) -> Self {
        Self {
            rounded: true,
            ..self
        }
    }
}

// Sizes in names are those with fragments of 16.
const L32X64: Layout = Layout::new((1, 2), (2, 2));
const L64X64: Layout = Layout::new((2, 2), (2, 2));
const L64X128: Layout = Layout::new((2, 4), (2, 2));
const L96X128: Layout = Layout::new((3, 4), (2, 2));
const L128X128: Layout = Layout::new((4, 4), (2, 2));
const L128X256: Layout = Layout::new((4, 4), (2, 4));
const L256X128: Layout = Layout::new((4, 4), (4, 2));

/// For more rows than [`SPLIT_ROWS`]: small tiles fill a GPU that few large ones would leave half idle, and of 257 rows those
/// of 96 leave fewer empty than those of 128.
const SOME_ROWS: [Layout; 10] = [
    L64X64.deep(64),
    L64X64,
    L64X64.two_stages(),
    L64X64.deep(64).rounded(),
    L32X64.deep(64),
    L64X128,
    L96X128,
    L96X128.rounded(),
    L128X128,
    L128X128.rounded(),
];

/// From [`MANY_ROWS`] rows on: what decides is how often x and the weights are read from the GPU's cache.
const MANY_ROWS_LAYOUTS: [Layout; 9] = [
    L128X128,
    L128X128.rounded(),
    L128X128.rounded().two_stages(),
    L128X256,
    L128X256.rounded(),
    L256X128,
    L256X128.rounded(),
    L64X128,
    L64X64,
];

/// Layouts `height` fragments high, for few rows: 64, 32 and 128 columns, which four subgroups at a place share. What
/// decides is how much weight is under way.
const fn few_rows(height: u32) -> [Layout; 4] {
    let columns_64 = Layout::new((height, 2), (1, 2)).split(4);
    [
        columns_64.deep(64),
        columns_64.deep(128),
        Layout::new((height, 1), (1, 2)).split(4).deep(64),
        Layout::new((height, 4), (1, 2)).split(4).deep(64),
    ]
}

/// Fragments that a subgroup can have below each other.
const MOST_FRAGMENTS: u32 = 4;

/// Rows up to which subgroups share K: more rows fill a GPU without.
const SPLIT_ROWS: usize = 96;

/// Rows from which the largest tiles come first.
const MANY_ROWS: usize = 1024;

/// The layouts for `rows` rows in fragments of `size`, the one to take unmeasured first.
fn layouts(rows: usize, size: u32) -> Vec<Layout> {
    if rows >= MANY_ROWS {
        MANY_ROWS_LAYOUTS.to_vec()
    } else if rows > SPLIT_ROWS {
        SOME_ROWS.to_vec()
    } else {
        // As few tiles below each other as can be, for each reads the weights, and those no higher than they must.
        let fragments = rows.div_ceil(size as usize) as u32;
        let tiles = fragments.div_ceil(MOST_FRAGMENTS);
        few_rows(fragments.div_ceil(tiles)).to_vec()
    }
}

impl CooperativeTile {
    fn new(capabilities: &Capabilities, layout: Layout) -> Option<Self> {
        let mut tile = Self {
            size: capabilities.cooperative_size()?,
            lanes: capabilities.subgroups?,
            vectors: !cfg!(target_vendor = "apple"),
            layout,
        };
        // Where the driver chooses how wide subgroups are, a workgroup for the widest has as many more of the narrowest.
        let (narrowest, widest) = tile.lanes;
        tile.layout.splits = (layout.splits * narrowest / widest).max(1);
        // No thread brings more than four times eight values of x or of the weights.
        while tile.rows().max(tile.columns()) * tile.layout.depth / 8 > 4 * tile.invocations() {
            tile.layout.depth /= 2;
        }
        let most_splits = tile.layout.splits * widest / narrowest;
        let is_fit = tile.layout.depth >= 8
            && tile.layout.depth.is_multiple_of(tile.size * most_splits)
            && tile.workgroup_bytes() <= capabilities.workgroup_bytes
            && tile.invocations() <= capabilities.invocations;
        is_fit.then_some(tile)
    }

    /// Rows of the tile.
    fn rows(self) -> u32 {
        self.size * self.layout.fragments.0 * self.layout.subgroups.0
    }

    /// Columns of the tile.
    fn columns(self) -> u32 {
        self.size * self.layout.fragments.1 * self.layout.subgroups.1
    }

    /// The same with workgroup memory of scalars, as on Metal.
    #[cfg(test)]
    pub(super) fn of_scalars(self) -> Self {
        Self {
            vectors: false,
            ..self
        }
    }

    pub(super) fn variant(self) -> LinearVariant {
        LinearVariant {
            kind: KIND.kind,
            size: self.to_string(),
            kernels: match (self.size, self.vectors, self.layout.rounded) {
                (16, _, false) => &VECTORS_16,
                (16, _, true) => &VECTORS_16_ROUNDED,
                (_, true, false) => &VECTORS_8,
                (_, true, true) => &VECTORS_8_ROUNDED,
                (_, false, false) => &SCALARS_8,
                (_, false, true) => &SCALARS_8_ROUNDED,
            },
            constants: self.constants(),
            tile: [self.rows() as usize, self.columns() as usize],
            order: self.order(),
            is_built_for_rows: false,
            rounds_x: self.layout.rounded,
            range_of_k: Some(range_of_k),
        }
    }

    /// Sums of all tiles with as many splits run alike. Where the driver chooses how wide subgroups
    /// are, only the same pipeline's do.
    fn order(self) -> Order {
        if self.lanes.0 == self.lanes.1 {
            return Order::by("matmul_cooperative", vec![self.size, self.layout.splits]);
        }
        let constants = self.constants().into_iter().map(|(_, value)| value as u32);
        Order::by(
            "matmul_cooperative",
            constants
                .chain([self.size, self.vectors.into(), self.layout.rounded.into()])
                .collect(),
        )
    }

    fn invocations(self) -> u32 {
        let Layout {
            subgroups, splits, ..
        } = self.layout;
        subgroups.0 * subgroups.1 * splits * self.lanes.1
    }

    /// Subgroups that the workgroup can have at most.
    fn most_subgroups(self) -> u32 {
        self.invocations() / self.lanes.0
    }

    /// Bytes of workgroup memory.
    fn workgroup_bytes(self) -> u32 {
        let slice = 2 * (self.layout.depth + 8) * (self.rows() + self.columns());
        slice * self.layout.stages + 4 * self.size * self.size * self.most_subgroups()
    }

    /// The shader's constants.
    fn constants(self) -> Constants {
        let is_fixed = self.lanes.0 == self.lanes.1;
        let Layout {
            fragments,
            subgroups,
            splits,
            depth,
            stages,
            rounded: _,
        } = self.layout;
        [
            ("WORKGROUP_SIZE", self.invocations()),
            ("MOST_SUBGROUPS", self.most_subgroups()),
            ("FRAGMENT_ROWS", fragments.0),
            ("FRAGMENT_COLUMNS", fragments.1),
            ("SUBGROUP_ROWS", subgroups.0),
            ("SUBGROUP_COLUMNS", subgroups.1),
            ("SPLITS", if is_fixed { splits } else { 0 }),
            ("DEPTH", depth),
            ("STAGES", stages),
        ]
        .map(|(name, value)| (name, f64::from(value)))
        .to_vec()
    }
}

impl std::fmt::Display for CooperativeTile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Layout {
            splits,
            depth,
            stages,
            rounded,
            ..
        } = self.layout;
        write!(
            f,
            "{} {}x{}x{depth}",
            self.size,
            self.rows(),
            self.columns()
        )?;
        if splits > 1 {
            write!(f, " split {splits}")?;
        }
        if stages > 1 {
            write!(f, " two stages")?;
        }
        if rounded {
            write!(f, " rounded")?;
        }
        if !self.vectors && !cfg!(target_vendor = "apple") {
            write!(f, " scalars")?;
        }
        Ok(())
    }
}

/// The tiles that a device can run, for `rows` rows the one to take unmeasured first; none without cooperative matrices.
pub(super) fn tiles(capabilities: &Capabilities, rows: usize) -> Vec<CooperativeTile> {
    let size = capabilities.cooperative_size().unwrap_or(16);
    distinct(capabilities, layouts(rows, size))
}

/// The tiles that a device can run for any number of rows.
pub(super) fn all_tiles(capabilities: &Capabilities) -> Vec<CooperativeTile> {
    let few = (1..=MOST_FRAGMENTS).flat_map(few_rows);
    let layouts = few.chain(SOME_ROWS).chain(MANY_ROWS_LAYOUTS);
    distinct(capabilities, layouts)
}

fn distinct(
    capabilities: &Capabilities,
    layouts: impl IntoIterator<Item = Layout>,
) -> Vec<CooperativeTile> {
    let mut tiles = Vec::new();
    for layout in layouts {
        match CooperativeTile::new(capabilities, layout) {
            Some(tile) if !tiles.contains(&tile) => tiles.push(tile),
            _ => {}
        }
    }
    tiles
}

/// Tiles of 64 × 64 that fill a large GPU (132 multiprocessors, about three workgroups each).
const FULL: usize = 384;

/// Of K, for a workgroup to be worth starting.
const LEAST_RANGE: usize = 512;

/// Ranges of K at most: each leaves a sum of every result to be added up.
const MOST_RANGES: usize = 16;

/// A range is a multiple of this, and so of any tile's depth.
const RANGE_UNIT: usize = 128;

/// How much of K a workgroup takes: all of it where the tiles fill a GPU. Depends on the weight alone up to [`SPLIT_ROWS`]
/// rows, and beyond them on nothing: a row's result must not depend on which tile is fastest, nor on the rows beside it.
fn range_of_k(rows: usize, out_features: usize, in_features: usize) -> usize {
    let tiles = out_features.div_ceil(64);
    let ranges = match rows {
        0..=SPLIT_ROWS => (FULL / tiles).min(in_features / LEAST_RANGE),
        _ => 1,
    };
    let ranges = ranges.clamp(1, MOST_RANGES);
    in_features.div_ceil(ranges).next_multiple_of(RANGE_UNIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_few_tiles_are_spread_along_k() {
        let ranges = |rows, out, k: usize| k.div_ceil(range_of_k(rows, out, k));
        // OPT-2.7B: fc2, the attention's output, fc1, logits.
        assert_eq!(ranges(40, 2560, 10240), 9);
        assert_eq!(ranges(40, 2560, 2560), 5);
        assert_eq!(ranges(40, 10240, 2560), 2);
        assert_eq!(ranges(32, 50272, 2560), 1);
        // The ViT's fc2: one image as in a batch.
        assert_eq!(ranges(257, 1408, 6144), 1);
        // Nothing to share.
        assert_eq!(ranges(40, 64, 96), 1);
    }

    #[test]
    fn a_few_rows_are_one_tile_high() {
        let heights = |rows| layouts(rows, 16)[0].fragments.0 * 16;
        assert_eq!(
            [9, 16, 17, 33, 48, 64].map(heights),
            [16, 16, 32, 48, 48, 64]
        );
        // Two tiles, as low as can be.
        assert_eq!([65, 96].map(heights), [48, 48]);
    }
}
