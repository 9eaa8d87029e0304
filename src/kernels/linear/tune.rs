//! Which kernel is fastest for a linear layer, measured on the device, once for a shape, and kept.
//!
//! Only kernels that have passed their self-check are measured, and of those only the ones whose sums have the order of
//! the one that would be taken unmeasured: tuning changes how fast an answer comes, never a bit of it. (How many
//! slices of K a matrix–vector product is summed in does change its order; one number is chosen for all its rows.)

use std::time::{Duration, Instant};

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

/// Measures the kernels for those of `products` that have no choice yet and are worth it.
///
/// # Errors
/// The device failed or has no room for the largest product's input and output.
pub async fn tune(gpu: &Gpu, products: &[Product]) -> Result<(), GpuError> {
    for product in products {
        let weight = &product.weight;
        let name = name_of(gpu, product.rows, weight);
        let work = product.rows * weight.rows * weight.columns;
        let variants = contestants(gpu, product.rows, weight.format);
        if work < LEAST_WORK || variants.len() < 2 || gpu.choices().get(&name).is_some() {
            continue;
        }
        let best = Contest::new(gpu, product, &variants)?.winner(gpu).await?;
        log::debug!("{name}: {best}");
        gpu.choices().set(name, best.to_string());
    }
    Ok(())
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

/// Kernels that do the same product in turns.
struct Contest {
    entries: Vec<Entry>,
}

struct Entry {
    variant: LinearVariant,
    program: Program,
    result: wgpu::Buffer,
    values: usize,
    times: Vec<f64>,
}

impl Contest {
    fn new(gpu: &Gpu, product: &Product, variants: &[LinearVariant]) -> Result<Self, GpuError> {
        let layer = Linear {
            weight: product.weight.clone(),
            bias: None,
        };
        let in_features = layer.weight.columns;
        let input = gpu.storage_with("x", &scattered(product.rows * in_features, 4))?;
        let x = Activation::external(&input, product.rows, in_features);
        let values = product.rows * layer.weight.rows;
        let entries = variants.iter().map(|&variant| {
            let result = gpu.storage("y", (values * 4) as u64)?;
            let mut program = ProgramBuilder::new(gpu, "tune");
            let y = Activation::external(&result, product.rows, layer.weight.rows);
            record_with(
                &mut program,
                variant,
                &x,
                &layer,
                Activate::Identity,
                &y,
                false,
            );
            Ok(Entry {
                variant,
                program: program.finish(&ActivationPool::default())?,
                result,
                values,
                times: Vec::new(),
            })
        });
        Ok(Self {
            entries: entries.collect::<Result<_, GpuError>>()?,
        })
    }

    /// The fastest of those that agree with the first.
    async fn winner(mut self, gpu: &Gpu) -> Result<LinearVariant, GpuError> {
        let first = self.entries[0].variant;
        self.entries[0].run(gpu, 1).await?; // warms it up
        if self.entries[0].run(gpu, 1).await? > TOO_LONG {
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
            entry.program.run(gpu);
            let result: Vec<f32> = gpu.read(&entry.result, entry.values).await?;
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
