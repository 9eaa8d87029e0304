//! Which kernel is fastest for a linear layer, measured on the device, once for a shape, and kept.
//!
//! Only kernels that have passed their self-check are measured, and of those only the ones whose sums have the order of
//! the one that would be taken unmeasured: tuning changes how fast an answer comes, never a bit of it. (How many
//! slices of K a matrix–vector product is summed in does change its order; one number is chosen for all its rows.) What
//! is not measured within [`MOST_TIME`] takes the default and is left for the next start.

use std::time::Duration;

use crate::platform::Instant;

use crate::gpu::{
    Activation, ActivationPool, Gpu, GpuError, Matrix, Product, Program, ProgramBuilder,
    WeightFormat,
};
use crate::kernels::self_check::{finding, relative_error, scattered};
use crate::kernels::{Activate, Linear, LinearVariant, MATVEC_ROWS};

use super::check::usable;
use super::record_with;

/// Multiply-adds below which a product is not worth measuring: any kernel is done within microseconds.
const LEAST_WORK: usize = 1 << 26;

/// Values of a weight below which a matrix–vector product is not worth measuring: of a decode step every layer counts.
const LEAST_WEIGHT: usize = 1 << 20;

/// Time for all measuring of one start.
const MOST_TIME: Duration = Duration::from_secs(10);

/// Weights of a shape that a matrix–vector product is measured with have so many bytes together, where there are so many:
/// more than caches hold. A decode step, too, finds none of its weights in a cache.
const UNCACHED_BYTES: u64 = 256 << 20;

/// Rows at either end of two results that are compared: the rest is computed by the same code.
const COMPARED_ROWS: usize = 64;

/// Rows up to which every number of them has a choice of its own.
const FEW_ROWS: usize = 128;

/// Rounds in which the kernels take turns; their medians count. Slow products, which noise tells less about, have one.
const ROUNDS: usize = 4;

/// A round of fast kernels repeats them for about this long.
const ROUND_TIME: Duration = Duration::from_millis(4);

/// A kernel this much slower than the best in its first run is not measured further.
const HOPELESS: f64 = 2.0;

/// A product that takes this long is not measured: its kernels are alike, and a first caption should not wait for it.
const TOO_LONG: f64 = 0.25;

/// Another kernel than the first must be faster by this factor: less is noise.
const GAIN: f64 = 0.97;

/// Largest relative difference between kernels' results.
const TOLERANCE: f64 = 2e-3;

/// The kernel for `rows` rows times a weight: the measured one, or the first that is right.
#[must_use]
pub fn chosen(gpu: &Gpu, rows: usize, weight: &Matrix) -> LinearVariant {
    let usable = usable(gpu, rows, weight.format);
    let found = gpu.choices().get(&name_of(gpu, rows, weight));
    usable
        .iter()
        .copied()
        .find(|variant| found.as_deref() == Some(variant.to_string().as_str()))
        .unwrap_or(usable[0])
}

/// Measures the kernels for those of `products` that have no choice yet and are worth it, while there is time.
///
/// # Errors
/// The device failed or has no room for the largest product's input and output.
pub async fn tune(gpu: &Gpu, products: &[Product]) -> Result<(), GpuError> {
    let mut buffers = Buffers::default();
    for (index, product) in products.iter().enumerate() {
        let weight = &product.weight;
        let name = name_of(gpu, product.rows, weight);
        let variants = contestants(gpu, product.rows, weight.format);
        if !is_worth_it(product) || variants.len() < 2 || gpu.choices().get(&name).is_some() {
            continue;
        }
        if gpu.choices().spent() >= MOST_TIME {
            log::debug!("{name}: not measured for want of time");
            continue;
        }
        let started = Instant::now();
        let weights = alike(&products[index..]);
        let contest = Contest::new(gpu, product.rows, &weights, &variants, &mut buffers)?;
        let best = contest.winner(gpu).await?;
        gpu.choices().spend(started.elapsed());
        log::debug!("{name}: {best}");
        gpu.choices().set(name, best.to_string());
    }
    Ok(())
}

fn is_worth_it(product: &Product) -> bool {
    let values = product.weight.rows * product.weight.columns;
    if product.rows <= MATVEC_ROWS {
        values >= LEAST_WEIGHT
    } else {
        product.rows * values >= LEAST_WORK
    }
}

/// The weights to measure the first of `products` with: its own, and of a matrix–vector product others of its shape, up to
/// [`UNCACHED_BYTES`].
fn alike(products: &[Product]) -> Vec<Matrix> {
    let Some(first) = products.first() else {
        return Vec::new();
    };
    let shape = |it: &Product| (it.rows, it.weight.rows, it.weight.columns, it.weight.format);
    let most = if first.rows <= MATVEC_ROWS {
        (UNCACHED_BYTES / first.weight.bytes().max(1)).max(1) as usize
    } else {
        1
    };
    let same = products.iter().filter(|it| shape(it) == shape(first));
    same.take(most).map(|it| it.weight.clone()).collect()
}

/// The kernels that give the result of the one taken unmeasured, bit for bit, or that serve all rows of a decode step.
fn contestants(gpu: &Gpu, rows: usize, format: WeightFormat) -> Vec<LinearVariant> {
    let mut variants = usable(gpu, rows, format);
    let first = variants[0];
    variants.retain(|variant| variant.has_sums_of(first));
    variants
}

/// What the choice for a shape is kept under. Up to [`MATVEC_ROWS`] rows have one choice, so that a row's result does not
/// depend on the number of rows beside it. Few rows have one for each number, as a tile's height must suit it; many have
/// one for each power of two.
fn name_of(gpu: &Gpu, rows: usize, weight: &Matrix) -> String {
    let class = if rows <= FEW_ROWS {
        rows.max(MATVEC_ROWS)
    } else {
        rows.next_power_of_two()
    };
    let first = usable(gpu, rows, weight.format)[0];
    let kernel = first.shape(rows, weight.format).kernel;
    let shape = format!("{class}x{}x{}", weight.rows, weight.columns);
    finding(gpu, kernel, &shape)
}

/// Input and output of the products measured, which share them: at least as large as any needs so far.
#[derive(Default)]
struct Buffers {
    x: Option<wgpu::Buffer>,
    y: Option<wgpu::Buffer>,
}

impl Buffers {
    /// A buffer with `count` values to multiply.
    fn x(&mut self, gpu: &Gpu, count: usize) -> Result<wgpu::Buffer, GpuError> {
        /// Values that are made by the host; more repeat them.
        const VALUES: usize = 1 << 20;
        if let Some(x) = large_enough(&self.x, count) {
            return Ok(x);
        }
        let x = gpu.storage("x", (count * 4) as u64)?;
        let values = gpu.storage_with("values", &scattered(count.min(VALUES), 4))?;
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        for first in (0..count).step_by(VALUES) {
            let bytes = (VALUES.min(count - first) * 4) as u64;
            encoder.copy_buffer_to_buffer(&values, 0, &x, (first * 4) as u64, bytes);
        }
        gpu.submit([encoder.finish()]);
        Ok(self.x.insert(x).clone())
    }

    /// A buffer for `count` values of a result.
    fn y(&mut self, gpu: &Gpu, count: usize) -> Result<wgpu::Buffer, GpuError> {
        if let Some(y) = large_enough(&self.y, count) {
            return Ok(y);
        }
        let y = gpu.storage("y", (count * 4) as u64)?;
        Ok(self.y.insert(y).clone())
    }
}

fn large_enough(buffer: &Option<wgpu::Buffer>, count: usize) -> Option<wgpu::Buffer> {
    let buffer = buffer.as_ref()?;
    (buffer.size() >= (count * 4) as u64).then(|| buffer.clone())
}

/// Kernels that do the same product in turns.
struct Contest {
    first: LinearVariant,
    entries: Vec<Entry>,
    /// `[rows, columns]`, of whoever ran last.
    result: wgpu::Buffer,
    rows: usize,
    columns: usize,
}

struct Entry {
    variant: LinearVariant,
    program: Program,
    times: Vec<f64>,
}

impl Contest {
    /// `weights` are of one shape; a run multiplies by one after another.
    fn new(
        gpu: &Gpu,
        rows: usize,
        weights: &[Matrix],
        variants: &[LinearVariant],
        buffers: &mut Buffers,
    ) -> Result<Self, GpuError> {
        let (columns, in_features) = (weights[0].rows, weights[0].columns);
        let x = Activation::external(&buffers.x(gpu, rows * in_features)?, rows, in_features);
        let result = buffers.y(gpu, rows * columns)?;
        let y = Activation::external(&result, rows, columns);
        let record = |&variant: &LinearVariant| {
            let mut program = ProgramBuilder::new(gpu, "tune");
            for weight in weights {
                let layer = Linear {
                    weight: weight.clone(),
                    bias: None,
                };
                let activate = Activate::Identity;
                record_with(&mut program, variant, &x, &layer, activate, &y, false);
            }
            program
        };
        let programs: Vec<_> = variants.iter().map(record).collect();
        ProgramBuilder::compile_all(&programs);
        let mut entries = Vec::new();
        for (&variant, program) in variants.iter().zip(programs) {
            match program.finish(&ActivationPool::default()) {
                Ok(program) => entries.push(Entry {
                    variant,
                    program,
                    times: Vec::new(),
                }),
                // Its self-check compiled with other constants.
                Err(error @ GpuError::Internal { .. }) => {
                    log::warn!("kernel {variant} is left out: {error}");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Self {
            first: variants[0],
            entries,
            result,
            rows,
            columns,
        })
    }

    /// The fastest of those that agree with the first.
    async fn winner(mut self, gpu: &Gpu) -> Result<LinearVariant, GpuError> {
        let first = self.first;
        let Some(entry) = self.entries.first() else {
            return Ok(first);
        };
        entry.run(gpu, 1).await?; // warms it up
        if entry.run(gpu, 1).await? > TOO_LONG {
            return Ok(first);
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
        let times = self
            .entries
            .iter()
            .map(|entry| (entry.variant, entry.time()));
        Ok(fastest(first, times))
    }

    /// Runs all once, which also warms them up, and leaves out those whose result is not the first one's.
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
                    entry.variant
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
            let end: Vec<f32> = gpu
                .read_from(&self.result, first, tail * self.columns)
                .await?;
            values.extend(end);
        }
        Ok(values)
    }

    fn best_time(&self) -> f64 {
        self.entries
            .iter()
            .map(Entry::time)
            .fold(f64::INFINITY, f64::min)
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
fn fastest(
    first: LinearVariant,
    times: impl Iterator<Item = (LinearVariant, f64)> + Clone,
) -> LinearVariant {
    let time_of_first = times
        .clone()
        .find(|(variant, _)| *variant == first)
        .map_or(f64::INFINITY, |(_, time)| time);
    times
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .filter(|(_, time)| *time < GAIN * time_of_first)
        .map_or(first, |(variant, _)| variant)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::gpu;

    const TILE: LinearVariant = LinearVariant::Tile {
        rows: 64,
        columns: 64,
    };
    const OTHER: LinearVariant = LinearVariant::Vector;

    #[test]
    fn another_kernel_must_be_clearly_faster() {
        let winner =
            |first: f64, other: f64| fastest(TILE, [(TILE, first), (OTHER, other)].into_iter());
        assert_eq!(winner(1.0, 0.99), TILE);
        assert_eq!(winner(1.0, 0.9), OTHER);
        assert_eq!(winner(1.0, 1.1), TILE);
        // The first one may have been left out.
        assert_eq!(fastest(TILE, [(OTHER, 1.0)].into_iter()), OTHER);
        assert_eq!(fastest(TILE, std::iter::empty()), TILE);
    }

    #[test]
    fn a_choice_is_measured_once_kept_and_followed() {
        // A device of its own: what is found here must not reach other tests.
        let gpu = pollster::block_on(Gpu::open(&Default::default())).expect("an adapter");
        let (rows, out_features, in_features) = (40, 1536, 1152);
        let weight = gpu
            .matrix("weight", out_features, in_features)
            .expect("small");
        let before = chosen(&gpu, rows, &weight);
        pollster::block_on(tune(
            &gpu,
            &[Product {
                rows,
                weight: weight.clone(),
            }],
        ))
        .expect("it runs");
        let name = name_of(&gpu, rows, &weight);
        let contestants = contestants(&gpu, rows, weight.format);
        if contestants.len() < 2 {
            assert_eq!(gpu.choices().get(&name), None);
            return;
        }
        let found = gpu.choices().get(&name).expect("measured");
        let follows = |variant: LinearVariant| {
            gpu.choices().set(name.clone(), variant.to_string());
            chosen(&gpu, rows, &weight)
        };
        assert!(
            contestants
                .iter()
                .any(|variant| variant.to_string() == found)
        );
        for &variant in &contestants {
            assert_eq!(follows(variant), variant);
        }
        // What is no kernel of this device, or has other sums, is not followed.
        gpu.choices().set(name, "warp_drive".into());
        assert_eq!(chosen(&gpu, rows, &weight), before);
    }

    #[test]
    fn without_time_the_default_is_taken_and_nothing_kept() {
        let gpu = pollster::block_on(Gpu::open(&Default::default())).expect("an adapter");
        let weight = gpu.matrix("weight", 1536, 1152).expect("small");
        let product = Product { rows: 40, weight };
        let before = chosen(&gpu, product.rows, &product.weight);
        gpu.choices().spend(MOST_TIME);
        pollster::block_on(tune(&gpu, std::slice::from_ref(&product))).expect("nothing to do");
        let name = name_of(&gpu, product.rows, &product.weight);
        assert_eq!(gpu.choices().get(&name), None);
        assert_eq!(chosen(&gpu, product.rows, &product.weight), before);
    }

    #[test]
    fn every_layer_of_a_decode_step_is_measured_with_weights_enough() {
        let gpu = gpu();
        let product = |rows, out_features, in_features| Product {
            rows,
            weight: gpu
                .matrix("weight", out_features, in_features)
                .expect("small"),
        };
        assert!(is_worth_it(&product(1, 1024, 1024)));
        assert!(!is_worth_it(&product(1, 512, 1024)));
        assert!(!is_worth_it(&product(9, 1024, 1024)));
        assert!(is_worth_it(&product(64, 1024, 1024)));

        let layers =
            [(1, 64), (1, 128), (1, 64), (9, 64), (9, 64)].map(|it| product(it.0, 32, it.1));
        assert_eq!(alike(&layers).len(), 2);
        assert_eq!(alike(&layers[1..]).len(), 1);
        assert_eq!(alike(&layers[3..]).len(), 1);
    }

    /// As on a large GPU, whatever this one's own choice: with a buffer that is larger than the result.
    #[test]
    fn kernels_that_differ_at_either_end_are_left_out() {
        let gpu = gpu();
        let mut buffers = Buffers::default();
        buffers.y(gpu, 1 << 20).expect("small");
        let weight = gpu
            .matrix_with("weight", 32, 64, &vec![half::f16::ONE; 32 * 64])
            .expect("small");
        let variants = contestants(gpu, 300, weight.format);
        let two = [variants[0], variants[0]];
        let mut contest =
            Contest::new(gpu, 300, &[weight], &two, &mut buffers).expect("it compiles");
        // The second one has an input of its own, which differs in the last row.
        let x = gpu
            .storage_with("x", &scattered(300 * 64, 4))
            .expect("small");
        gpu.write(&x, 299 * 64 * 4, &[9.0_f32; 64]);
        let mut other = Buffers {
            x: Some(x),
            y: buffers.y.clone(),
        };
        let weight = gpu
            .matrix_with("weight", 32, 64, &vec![half::f16::ONE; 32 * 64])
            .expect("small");
        let wrong = Contest::new(gpu, 300, &[weight], &two[..1], &mut other).expect("as before");
        contest.entries.extend(wrong.entries);
        pollster::block_on(contest.drop_dissenters(gpu)).expect("it runs");
        assert_eq!(contest.entries.len(), 2);
    }

    #[test]
    fn what_can_be_chosen_gives_the_same_bits() {
        let gpu = gpu();
        for rows in [9, 33, 40, 100] {
            let x = crate::kernels::testing::upload(gpu, &scattered(rows * 96, 5), rows, 96);
            let weight: Vec<half::f16> = scattered(75 * 96, 6)
                .into_iter()
                .map(half::f16::from_f32)
                .collect();
            let layer = Linear {
                weight: gpu.matrix_with("weight", 75, 96, &weight).expect("small"),
                bias: None,
            };
            let product = |variant| {
                crate::kernels::testing::run(gpu, |program| {
                    super::super::linear_with(program, variant, &x, &layer)
                })
            };
            let variants = contestants(gpu, rows, layer.weight.format);
            let first = product(variants[0]);
            for &variant in &variants[1..] {
                assert_eq!(first, product(variant), "{variant}, {rows} rows");
            }
        }
    }
}
