//! A row gets the same bits whatever rows are beside it.
//!
//! Kernels are chosen by the number of rows, which the company of a request makes, and by measuring,
//! which noise makes. Neither may show in what a row gets:
//!
//! - A variant may stand in for another only if its sums run in the same [`Order`].
//! - Up to [`MATVEC_ROWS`](super::super::MATVEC_ROWS) rows have one choice together: a row has the same
//!   bits alone and among eight, since a kernel adds up a row by itself whatever the others are.
//!   `matvec_subgroup` counts as one order although the number of slices of K shows in the last bits:
//!   the race chooses one for all these rows, and the tuning cache keeps it.
//! - Beyond them the variant taken unmeasured has one order for all numbers of rows, so that those that
//!   may stand in for it have it too. `matmul_cooperative` has two: it splits K up to 96 rows. Where
//!   the driver chooses the width of subgroups, its order is only that of one size of tile.
//! - `register`, which serves any number of rows, has one order for all of them: there a row has the same
//!   bits in prefill as in decode.
//!
//! The tests here go over the lists of candidates; those of `linear` compare the bits.
//!
//! What the user forces ([`crate::gpu::GpuOptions::kernels`]) does change bits, for all rows alike.

/// The order in which a variant's sums run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::kernels) struct Order {
    kernel: &'static str,
    /// The constants that the order depends on.
    depends_on: Vec<u32>,
}

impl Order {
    /// One order for all sizes of a kernel, or one choice for all rows that could tell them apart.
    pub const fn of(kernel: &'static str) -> Self {
        Self {
            kernel,
            depends_on: Vec::new(),
        }
    }

    /// An order that changes with some constants of a kernel's size.
    pub fn by(kernel: &'static str, depends_on: Vec<u32>) -> Self {
        Self { kernel, depends_on }
    }
}

#[cfg(test)]
mod tests {
    use crate::gpu::Capabilities;
    use crate::kernels::linear::{LinearVariant, candidates};
    use crate::kernels::validate::imagined_gpus;
    use crate::kernels::{MATVEC_ROWS, select::Variant};

    /// What a variant is called without the height of its tile, and the constants that make it.
    fn without_height(variant: &LinearVariant) -> (&'static str, Vec<(&'static str, f64)>) {
        let size = variant.size().iter().copied();
        let is_other = |(name, _): &(&str, f64)| *name != "ROWS";
        (variant.kind().name, size.filter(is_other).collect())
    }

    /// The first candidate for any of these numbers of rows may stand in for that of any other.
    fn assert_one_order(gpu: &Capabilities, rows: impl Iterator<Item = usize>) {
        let firsts: Vec<_> = rows.map(|it| (it, candidates(gpu, it).remove(0))).collect();
        let (_, one) = &firsts[0];
        for (rows, other) in &firsts {
            assert!(other.may_replace(one), "{other}, {rows} rows: not as {one}");
        }
    }

    #[test]
    fn up_to_eight_rows_have_the_same_candidates() {
        for gpu in imagined_gpus() {
            let of = |rows| {
                let candidates = candidates(&gpu, rows);
                candidates.iter().map(without_height).collect::<Vec<_>>()
            };
            for rows in 1..MATVEC_ROWS {
                assert_eq!(of(rows), of(MATVEC_ROWS), "{:?}", gpu.subgroups);
            }
            assert_one_order(&gpu, 1..=MATVEC_ROWS);
        }
    }

    #[test]
    fn beyond_them_the_order_does_not_depend_on_the_rows() {
        let is_fixed = |gpu: &Capabilities| gpu.subgroups.is_none_or(|(least, most)| least == most);
        for gpu in imagined_gpus().into_iter().filter(is_fixed) {
            assert_one_order(&gpu, MATVEC_ROWS + 1..=96);
            assert_one_order(&gpu, 97..3000);
            if gpu.cooperative_matrices.is_empty() {
                assert_one_order(&gpu, MATVEC_ROWS + 1..3000);
            }
        }
    }

    #[test]
    fn a_cpu_has_one_order_for_decode_and_prefill() {
        let narrow = |it: &Capabilities| it.subgroups == Some((8, 8));
        let cpu = imagined_gpus().into_iter().find(narrow);
        assert_one_order(&cpu.expect("one is narrow"), 1..3000);
    }
}
