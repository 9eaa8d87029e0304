//! The fastest of several kernels that do the same, measured in turns.

use std::time::Duration;

use crate::gpu::{ActivationPool, Gpu, GpuError, Program, ProgramBuilder};
use crate::platform::Instant;

use super::verdict::relative_error;

/// Rows at either end of two results that are compared: the rest is computed by the same code.
const COMPARED_ROWS: usize = 64;

/// Rounds in which the kernels take turns; their medians count. Slow ones, which noise tells less
/// about, have one.
const ROUNDS: usize = 4;

/// A round of fast kernels repeats them for about this long.
const ROUND_TIME: Duration = Duration::from_millis(4);

/// A kernel this much slower than the best in its first run is not measured further.
const HOPELESS: f64 = 2.0;

/// What takes this long is not measured: its kernels are alike, and a first caption should not wait
/// for it.
const TOO_LONG: f64 = 0.25;

/// Another kernel than the first must be faster by this factor: less is noise.
const GAIN: f64 = 0.97;

/// Largest relative difference between kernels' results.
const TOLERANCE: f64 = 2e-3;

/// Kernels that do the same work in turns.
pub(in crate::kernels) struct Race {
    entries: Vec<Entry>,
    /// `[rows, columns]`, of whoever ran last.
    result: wgpu::Buffer,
    rows: usize,
    columns: usize,
}

struct Entry {
    /// Its number in the race.
    number: usize,
    name: String,
    program: Program,
    times: Vec<f64>,
}

impl Race {
    /// A race between programs of these names, which all write `[rows, columns]` to `result`.
    ///
    /// # Errors
    /// The device failed.
    pub fn new(
        programs: Vec<(String, ProgramBuilder)>,
        result: wgpu::Buffer,
        [rows, columns]: [usize; 2],
    ) -> Result<Self, GpuError> {
        ProgramBuilder::compile_all(programs.iter().map(|(_, program)| program));
        let mut entries = Vec::new();
        for (number, (name, program)) in programs.into_iter().enumerate() {
            match program.finish(&ActivationPool::default()) {
                Ok(program) => entries.push(Entry {
                    number,
                    name,
                    program,
                    times: Vec::new(),
                }),
                // Its self-check compiled with other constants.
                Err(error @ GpuError::Internal { .. }) => {
                    log::warn!("kernel {name} is left out: {error}");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Self {
            entries,
            result,
            rows,
            columns,
        })
    }

    /// The number of the fastest of those that agree with the first.
    ///
    /// # Errors
    /// The device failed.
    pub async fn winner(mut self, gpu: &Gpu) -> Result<usize, GpuError> {
        const FIRST: usize = 0;
        let Some(entry) = self.entries.first() else {
            return Ok(FIRST);
        };
        entry.run(gpu, 1).await?; // warms it up
        if entry.run(gpu, 1).await? > TOO_LONG {
            return Ok(FIRST);
        }
        self.drop_dissenters(gpu).await?;
        for entry in &mut self.entries {
            let time = entry.run(gpu, 1).await?;
            entry.times.push(time);
        }
        let best = self.best_time();
        self.entries.retain(|entry| entry.time() <= HOPELESS * best);
        let repeats = ((ROUND_TIME.as_secs_f64() / best) as usize).clamp(1, 100);
        let rounds = if repeats > 1 { ROUNDS } else { 1 };
        for _ in 0..rounds {
            for entry in &mut self.entries {
                let time = entry.run(gpu, repeats).await?;
                entry.times.push(time);
            }
        }
        let times = self.entries.iter().map(|it| (it.number, it.time()));
        Ok(fastest(FIRST, times))
    }

    /// Runs all once, which also warms them up, and leaves out those whose result is not the first
    /// one's.
    async fn drop_dissenters(&mut self, gpu: &Gpu) -> Result<(), GpuError> {
        let mut expected: Option<Vec<f32>> = None;
        let mut agreeing = Vec::new();
        for entry in std::mem::take(&mut self.entries) {
            // A kernel that writes nothing must not be praised for the one before.
            let mut encoder = gpu.device().create_command_encoder(&Default::default());
            encoder.clear_buffer(&self.result, 0, None);
            entry.program.encode(&mut encoder);
            gpu.submit([encoder.finish()]);
            let result = self.some_rows(gpu).await?;
            let expected = expected.get_or_insert_with(|| result.clone());
            let error = relative_error(&result, expected);
            if error <= TOLERANCE {
                agreeing.push(entry);
            } else {
                log::warn!(
                    "kernel {} differs by {error:.1e} and is left out",
                    entry.name
                );
            }
        }
        self.entries = agreeing;
        Ok(())
    }

    /// The rows of the result that are compared.
    async fn some_rows(&self, gpu: &Gpu) -> Result<Vec<f32>, GpuError> {
        let head = self.rows.min(COMPARED_ROWS);
        let tail = (self.rows - head).min(COMPARED_ROWS);
        let mut values: Vec<f32> = gpu.read(&self.result, head * self.columns).await?;
        if tail > 0 {
            let first = (self.rows - tail) * self.columns;
            let end = gpu.read_from(&self.result, first, tail * self.columns);
            values.extend::<Vec<f32>>(end.await?);
        }
        Ok(values)
    }

    fn best_time(&self) -> f64 {
        let times = self.entries.iter().map(Entry::time);
        times.fold(f64::INFINITY, f64::min)
    }
}

impl Entry {
    /// Seconds a run, over `repeats` in one submit.
    async fn run(&self, gpu: &Gpu, repeats: usize) -> Result<f64, GpuError> {
        let started = Instant::now();
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        for _ in 0..repeats {
            self.program.encode(&mut encoder);
        }
        gpu.submit([encoder.finish()]);
        gpu.finish("measuring kernels").await?;
        Ok(started.elapsed().as_secs_f64() / repeats as f64)
    }

    /// The median.
    fn time(&self) -> f64 {
        let mut times = self.times.clone();
        times.sort_by(f64::total_cmp);
        times.get(times.len() / 2).copied().unwrap_or(f64::INFINITY)
    }
}

/// The fastest of `times`, unless `first` is nearly as fast.
fn fastest(first: usize, times: impl Iterator<Item = (usize, f64)> + Clone) -> usize {
    let of_first = times.clone().find(|(number, _)| *number == first);
    let time_of_first = of_first.map_or(f64::INFINITY, |(_, time)| time);
    let best = times.min_by(|a, b| a.1.total_cmp(&b.1));
    best.filter(|(_, time)| *time < GAIN * time_of_first)
        .map_or(first, |(number, _)| number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::copy;
    use crate::kernels::testing::{gpu, upload};

    #[test]
    fn another_kernel_must_be_clearly_faster() {
        let winner = |first: f64, other: f64| fastest(0, [(0, first), (1, other)].into_iter());
        assert_eq!(winner(1.0, 0.99), 0);
        assert_eq!(winner(1.0, 0.9), 1);
        assert_eq!(winner(1.0, 1.1), 0);
        // The first one may have been left out.
        assert_eq!(fastest(0, [(1, 1.0)].into_iter()), 1);
        assert_eq!(fastest(0, std::iter::empty()), 0);
    }

    /// With a buffer that is larger than the result, as the largest product's is for the others.
    #[test]
    fn kernels_that_differ_at_either_end_are_left_out() {
        let gpu = gpu();
        let (rows, columns) = (300, 32);
        let values = vec![1.0; rows * columns];
        let result = gpu.storage("result", 1 << 20).expect("small");
        let wrong_at = |row: Option<usize>| {
            let mut values = values.clone();
            if let Some(row) = row {
                values[row * columns] = 9e3;
            }
            let x = upload(gpu, &values, rows, columns);
            let mut program = ProgramBuilder::new(gpu, "test");
            copy(&mut program, &x, &result);
            program
        };
        let rows_wrong = [None, Some(299), None, Some(0), Some(150)];
        let programs = rows_wrong.map(|row| (format!("{row:?}"), wrong_at(row)));
        let race = Race::new(programs.into(), result.clone(), [rows, columns]);
        let mut race = race.expect("it compiles");
        pollster::block_on(race.drop_dissenters(gpu)).expect("it runs");
        let left: Vec<usize> = race.entries.iter().map(|entry| entry.number).collect();
        // In the middle no one looks.
        assert_eq!(left, [0, 2, 4]);
    }
}
