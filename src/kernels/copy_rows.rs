//! `copy_rows.wgsl`: joins and parts the rows of sequences.

use crate::gpu::{Activation, Kernel, ProgramBuilder, READ, WRITE, params};

use super::{groups, word};

pub(super) static COPY_ROWS: Kernel = Kernel::new::<Params>("ops/copy_rows", &[READ, WRITE]);

params! {
    struct Params {
        width: u32,
        x_rows: u32,
        x_first: u32,
        y_rows: u32,
        y_first: u32,
    }
}

/// Rows of every group of an activation `[groups · rows, width]`.
#[derive(Debug, Clone, Copy)]
pub struct GroupRows<'a> {
    /// The activation.
    pub of: &'a Activation,
    /// First row within each group.
    pub first: usize,
}

/// `to[g, to.first + i, :] = from[g, from.first + i, :]` for `i < count` and each of `number` groups.
pub fn copy_rows(
    program: &mut ProgramBuilder,
    from: GroupRows,
    to: GroupRows,
    count: usize,
    number: usize,
) {
    let (x, y) = (from.of, to.of);
    debug_assert_eq!(x.columns, y.columns);
    let (x_rows, y_rows) = (x.rows / number, y.rows / number);
    debug_assert!(from.first + count <= x_rows && to.first + count <= y_rows);
    program.dispatch(
        &COPY_ROWS,
        vec![],
        &Params {
            width: word(x.columns),
            x_rows: word(x_rows),
            x_first: word(from.first),
            y_rows: word(y_rows),
            y_first: word(to.first),
        },
        vec![x.operand(), y.operand()],
        [groups(x.columns, 64), word(count), word(number)],
    );
}

/// The rows `first .. first + count` of each of `number` groups, `[number · count, width]`.
pub fn rows_of_groups(
    program: &mut ProgramBuilder,
    x: &Activation,
    first: usize,
    count: usize,
    number: usize,
) -> Activation {
    let y = program.activation(number * count, x.columns);
    let from = GroupRows { of: x, first };
    copy_rows(program, from, GroupRows { of: &y, first: 0 }, count, number);
    y
}

/// `a` and `b`, both `[number · rows, width]`, joined group by group: the rows of `a` before those of `b`.
pub fn join_rows(
    program: &mut ProgramBuilder,
    a: &Activation,
    b: &Activation,
    number: usize,
) -> Activation {
    let y = program.activation(a.rows + b.rows, a.columns);
    let a_rows = a.rows / number;
    for (part, first) in [(a, 0), (b, a_rows)] {
        let from = GroupRows { of: part, first: 0 };
        let to = GroupRows { of: &y, first };
        copy_rows(program, from, to, part.rows / number, number);
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{Random, gpus, run, upload};

    /// Plain-Rust twin of [`join_rows`].
    fn join_reference(a: &[f32], b: &[f32], number: usize) -> Vec<f32> {
        let (a_len, b_len) = (a.len() / number, b.len() / number);
        a.chunks(a_len)
            .zip(b.chunks(b_len))
            .flat_map(|(a, b)| a.iter().chain(b))
            .copied()
            .collect()
    }

    /// Plain-Rust twin of [`rows_of_groups`].
    fn rows_reference(x: &[f32], group: usize, range: std::ops::Range<usize>) -> Vec<f32> {
        let rows = |group: &[f32]| group[range.clone()].to_vec();
        x.chunks(group).flat_map(rows).collect()
    }

    #[test]
    fn equal_their_twins() {
        for gpu in gpus() {
            for (number, a_rows, b_rows, width) in [(1, 1, 1, 1), (3, 8, 5, 24), (2, 3, 7, 129)] {
                let mut random = Random(width as u64);
                let a = random.vec(number * a_rows * width);
                let b = random.vec(number * b_rows * width);
                let x = upload(gpu, &a, number * a_rows, width);
                let y = upload(gpu, &b, number * b_rows, width);
                let joined = run(gpu, |program| join_rows(program, &x, &y, number));
                let twin = join_reference(&a, &b, number);
                assert_eq!(joined, twin);
                let whole = upload(gpu, &joined, number * (a_rows + b_rows), width);
                let parted = run(gpu, |program| {
                    rows_of_groups(program, &whole, a_rows, b_rows, number)
                });
                assert_eq!(parted, b);
                let group = (a_rows + b_rows) * width;
                assert_eq!(
                    parted,
                    rows_reference(&joined, group, a_rows * width..group)
                );
            }
        }
    }
}
