//! `copy.wgsl`: keeps a stage of a program.

use crate::gpu::{Activation, Kernel, Operand, ProgramBuilder, READ, WRITE, params};

use super::{groups, word};

pub(super) static COPY: Kernel = Kernel::new::<Params>("ops/copy", &[READ, WRITE]);

/// Workgroups in a row of the grid: keeps both dimensions below the limit of 65535.
const GROUPS_PER_ROW: usize = 1024;

params! {
    struct Params {
        count: u32,
        threads_per_row: u32,
    }
}

/// Copies `x` to the start of `target`.
pub fn copy(program: &mut ProgramBuilder, x: &Activation, target: &wgpu::Buffer) {
    let count = x.rows * x.columns;
    let across = count.div_ceil(256).min(GROUPS_PER_ROW);
    program.dispatch(
        &COPY,
        vec![],
        &Params {
            count: word(count),
            threads_per_row: word(across * 256),
        },
        vec![x.operand(), Operand::from(target)],
        [word(across), groups(count, across.max(1) * 256), 1],
    );
}

/// Keeps stage `name` if the program keeps stages, else does nothing.
pub fn tap(program: &mut ProgramBuilder, x: &Activation, name: impl FnOnce() -> String) {
    if let Some(target) = program.tap(name, x.rows, x.columns) {
        copy(program, x, &target);
    }
}

#[cfg(test)]
mod tests {
    use crate::kernels::testing::{Random, gpus, run, upload};

    #[test]
    fn copies_every_value() {
        for gpu in gpus() {
            for (rows, columns) in [(1, 1), (3, 257), (1031, 259)] {
                let values = Random(5).vec(rows * columns);
                let x = upload(gpu, &values, rows, columns);
                assert_eq!(run(gpu, |_| x), values);
            }
        }
    }
}
