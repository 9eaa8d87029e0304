//! Tiles of `matmul_cooperative`: how fragments and subgroups cover the result, and which tiles a device can run.

use crate::gpu::Capabilities;

/// A tile of `matmul_cooperative`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CooperativeTile {
    /// Rows and columns of a fragment: 16 (Vulkan) or 8 (Metal).
    size: u32,
    /// Lanes of the narrowest and the widest subgroup.
    lanes: (u32, u32),
    /// Fragments of a subgroup, down and across.
    fragments: (u32, u32),
    /// Subgroups beside each other, down and across.
    subgroups: (u32, u32),
    /// Subgroups that share one place, each with its part of K.
    splits: u32,
}

/// Fragments, subgroups and splits: see [`CooperativeTile`].
type TileSizes = ((u32, u32), (u32, u32), u32);

/// Fragments, subgroups and splits of the tiles, the largest first. With fragments of 16: 128×128, 64×128, 64×64, 32×128;
/// and for few rows 32×64, 32×32 and 32×16, which four subgroups at a place share.
const TILES: [TileSizes; 7] = [
    ((4, 4), (2, 2), 1),
    ((2, 4), (2, 2), 1),
    ((2, 2), (2, 2), 1),
    ((2, 2), (1, 4), 1),
    ((2, 2), (1, 2), 4),
    ((2, 2), (1, 1), 4),
    ((2, 1), (1, 1), 4),
];

/// Rows up to which the tiles whose subgroups share K are offered: more rows fill a GPU without.
const SPLIT_ROWS: usize = 96;

/// Rows from which the largest tiles come first.
const MANY_ROWS: usize = 1024;

impl CooperativeTile {
    /// Rows of the tile.
    #[must_use]
    pub fn rows(self) -> u32 {
        self.size * self.fragments.0 * self.subgroups.0
    }

    /// Columns of the tile.
    #[must_use]
    pub fn columns(self) -> u32 {
        self.size * self.fragments.1 * self.subgroups.1
    }

    /// Rows and columns of a fragment.
    #[must_use]
    pub fn size(self) -> u32 {
        self.size
    }

    /// Whether the sums have `other`'s order. Where the driver chooses how wide subgroups are, only the same pipeline's
    /// do.
    pub(super) fn has_sums_of(self, other: Self) -> bool {
        let is_fixed = self.lanes.0 == self.lanes.1;
        self == other || is_fixed && self.splits == other.splits && self.size == other.size
    }

    fn invocations(self) -> u32 {
        self.subgroups.0 * self.subgroups.1 * self.splits * self.lanes.1
    }

    /// Subgroups that the workgroup can have at most.
    fn most_subgroups(self) -> u32 {
        self.invocations() / self.lanes.0
    }

    /// Columns of K a step: a fragment for every split and 32 at least, or 16 where a thread would otherwise bring more
    /// than four times eight values.
    fn depth(self) -> u32 {
        let depth = (self.size * self.splits).max(32);
        let units = self.rows().max(self.columns()) * depth / 8;
        if units <= 4 * self.invocations() {
            depth
        } else {
            16
        }
    }

    /// Bytes of workgroup memory.
    fn workgroup_bytes(self) -> u32 {
        2 * (self.depth() + 8) * (self.rows() + self.columns())
            + 4 * self.size * self.size * self.most_subgroups()
    }

    /// The shader's constants.
    pub(super) fn constants(self) -> Vec<(&'static str, f64)> {
        let is_fixed = self.lanes.0 == self.lanes.1;
        [
            ("WORKGROUP_SIZE", self.invocations()),
            ("MOST_SUBGROUPS", self.most_subgroups()),
            ("FRAGMENT_ROWS", self.fragments.0),
            ("FRAGMENT_COLUMNS", self.fragments.1),
            ("SUBGROUP_ROWS", self.subgroups.0),
            ("SUBGROUP_COLUMNS", self.subgroups.1),
            ("SPLITS", if is_fixed { self.splits } else { 0 }),
            ("DEPTH", self.depth()),
        ]
        .map(|(name, value)| (name, f64::from(value)))
        .to_vec()
    }
}

impl std::fmt::Display for CooperativeTile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}x{}", self.size, self.rows(), self.columns())?;
        if self.splits > 1 {
            write!(f, " split {}", self.splits)?;
        }
        Ok(())
    }
}

/// The tiles that a device can run, for `rows` rows the one to take unmeasured first; none without cooperative matrices.
pub(super) fn cooperative_tiles(capabilities: &Capabilities, rows: usize) -> Vec<CooperativeTile> {
    let (Some(size), Some(lanes)) = (capabilities.cooperative_size(), capabilities.subgroups)
    else {
        return Vec::new();
    };
    let tile = |(fragments, subgroups, splits)| CooperativeTile {
        size,
        lanes,
        fragments,
        subgroups,
        splits,
    };
    let mut tiles: Vec<_> = TILES
        .into_iter()
        .map(tile)
        .filter(|tile| tile.splits == 1 || rows <= SPLIT_ROWS)
        .filter(|tile| tile.workgroup_bytes() <= capabilities.workgroup_bytes)
        .filter(|tile| tile.invocations() <= capabilities.invocations)
        .collect();
    if rows < MANY_ROWS {
        // Many small tiles fill a GPU that few large ones would leave half idle.
        tiles.reverse();
    }
    tiles
}
