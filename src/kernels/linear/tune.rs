//! Which variant is fastest for a linear layer, measured on the device, once for a shape, and kept.
//!
//! Only variants that have passed their self-check are measured, and of those only the ones that may
//! stand in for the one that would be taken unmeasured (`select::invariance`). What is not measured
//! within [`MOST_TIME`] takes the default and is left for the next start.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::gpu::{Activation, Gpu, GpuError, Matrix, Product, ProgramBuilder, WeightFormat};
use crate::kernels::select::VariantKey;
use crate::kernels::select::race::Race;
use crate::kernels::select::table::Table;
use crate::kernels::select::verdict::scattered;
use crate::platform::Instant;

use super::{Activate, Linear, LinearVariant, MATVEC_ROWS, record_with, usable};

/// Multiply-adds below which a product is not worth measuring: any kernel is done within microseconds.
const LEAST_WORK: usize = 1 << 26;

/// Values of a weight below which a matrix–vector product is not worth measuring: of a decode step
/// every layer counts.
const LEAST_WEIGHT: usize = 1 << 20;

/// Time for all measuring of one start.
const MOST_TIME: Duration = Duration::from_secs(10);

/// Weights of a shape that a matrix–vector product is measured with have so many bytes together, where
/// there are so many: more than caches hold. A decode step, too, finds none of its weights in a cache.
const UNCACHED_BYTES: u64 = 256 << 20;

/// Rows up to which every number of them has a choice of its own.
const FEW_ROWS: usize = 128;

/// What a winner is kept under: a shape, and the variant that would be taken without it. Up to
/// [`MATVEC_ROWS`] rows have one choice, so that a row's result does not depend on the number of rows
/// beside it. Few rows have one for each number, as a tile's height must suit it; many have one for
/// each power of two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::kernels) struct ProductKey {
    rows: usize,
    out_features: usize,
    in_features: usize,
    first: VariantKey,
}

impl ProductKey {
    fn new(gpu: &Gpu, rows: usize, weight: &Matrix, first: &LinearVariant) -> Self {
        Self {
            rows: if rows <= FEW_ROWS {
                rows.max(MATVEC_ROWS)
            } else {
                rows.next_power_of_two()
            },
            out_features: weight.rows,
            in_features: weight.columns,
            first: VariantKey::new(gpu, first, weight.format).of_any_height(),
        }
    }
}

/// The winner of the race for a product, or the first variant that is right.
pub(super) fn fastest(gpu: &Gpu, rows: usize, weight: &Matrix) -> LinearVariant {
    let mut variants = contestants(gpu, rows, weight.format);
    let key = ProductKey::new(gpu, rows, weight, &variants[0]);
    let winner = Table::of(gpu).winner(&key).and_then(|winner| {
        let is_winner = |it: &LinearVariant| VariantKey::new(gpu, it, weight.format) == winner;
        variants.iter().position(is_winner)
    });
    variants.swap_remove(winner.unwrap_or(0))
}

/// Measures the variants for those of `products` that have no winner yet and are worth it, while there
/// is time.
///
/// # Errors
/// The device failed or has no room for the largest product's input and output.
pub async fn tune(gpu: &Gpu, products: &[Product]) -> Result<(), GpuError> {
    let table = Table::of(gpu);
    let mut buffers = Buffers::default();
    for (index, product) in products.iter().enumerate() {
        let (rows, weight) = (product.rows, &product.weight);
        if !is_worth_it(product) {
            continue;
        }
        let variants = contestants(gpu, rows, weight.format);
        let key = ProductKey::new(gpu, rows, weight, &variants[0]);
        if variants.len() < 2 || table.winner(&key).is_some() {
            continue;
        }
        let shape = format!(
            "{rows}x{}x{} {}",
            weight.rows, weight.columns, weight.format
        );
        if table.spent() >= MOST_TIME {
            log::debug!("{shape}: not measured for want of time");
            continue;
        }
        let started = Instant::now();
        let race = race(
            gpu,
            rows,
            &alike(&products[index..]),
            &variants,
            &mut buffers,
        )?;
        let winner = &variants[race.winner(gpu).await?];
        table.spend(started.elapsed());
        log::debug!("{shape}: {winner}");
        table.set_winner(&key, VariantKey::new(gpu, winner, weight.format));
    }
    table.save(gpu);
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

/// The weights to measure the first of `products` with: its own, and of a matrix–vector product others
/// of its shape, up to [`UNCACHED_BYTES`].
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

/// The variants that may stand in for the one taken unmeasured, which is the first.
fn contestants(gpu: &Gpu, rows: usize, format: WeightFormat) -> Vec<LinearVariant> {
    let mut variants = usable(gpu, rows, format);
    let first = variants[0].clone();
    variants.retain(|variant| variant.may_replace(&first));
    variants
}

/// A race of `variants`. `weights` are of one shape; a run multiplies by one after another.
fn race(
    gpu: &Gpu,
    rows: usize,
    weights: &[Matrix],
    variants: &[LinearVariant],
    buffers: &mut Buffers,
) -> Result<Race, GpuError> {
    let (columns, in_features) = (weights[0].rows, weights[0].columns);
    let x = Activation::external(&buffers.x(gpu, rows * in_features)?, rows, in_features);
    let result = buffers.y(gpu, rows * columns)?;
    let y = Activation::external(&result, rows, columns);
    let record = |variant: &LinearVariant| {
        let mut program = ProgramBuilder::new(gpu, "tune");
        for weight in weights {
            let layer = Linear {
                weight: weight.clone(),
                bias: None,
            };
            let activate = Activate::Identity;
            record_with(&mut program, variant, &x, &layer, activate, &y, false);
        }
        (variant.to_string(), program)
    };
    let programs = variants.iter().map(record).collect();
    Race::new(programs, result, [rows, columns])
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::linear::chosen;
    use crate::kernels::testing::gpu;

    #[test]
    fn a_winner_is_measured_once_kept_and_followed() {
        // A device of its own: what is found here must not reach other tests.
        let gpu = pollster::block_on(Gpu::open(&Default::default())).expect("an adapter");
        let (rows, out_features, in_features) = (40, 1536, 1152);
        let weight = gpu
            .matrix("weight", out_features, in_features)
            .expect("small");
        let product = Product {
            rows,
            weight: weight.clone(),
        };
        pollster::block_on(tune(&gpu, &[product])).expect("it runs");
        let contestants = contestants(&gpu, rows, weight.format);
        let key = ProductKey::new(&gpu, rows, &weight, &contestants[0]);
        let table = Table::of(&gpu);
        if contestants.len() < 2 {
            assert_eq!(table.winner(&key), None);
            return;
        }
        let key_of = |variant| VariantKey::new(&gpu, variant, weight.format);
        let winner = table.winner(&key).expect("measured");
        assert!(contestants.iter().any(|it| key_of(it) == winner));
        for variant in &contestants {
            table.set_winner(&key, key_of(variant));
            let chosen = chosen(&gpu, rows, &weight);
            assert_eq!(chosen.to_string(), variant.to_string());
        }
        // What may not stand in for the first is not followed.
        let of_few_rows = usable(&gpu, 1, weight.format);
        table.set_winner(&key, key_of(of_few_rows.last().expect("there is one")));
        let chosen = chosen(&gpu, rows, &weight);
        assert_eq!(chosen.to_string(), contestants[0].to_string());
    }

    #[test]
    fn without_time_the_default_is_taken_and_nothing_kept() {
        let gpu = pollster::block_on(Gpu::open(&Default::default())).expect("an adapter");
        let weight = gpu.matrix("weight", 1536, 1152).expect("small");
        let product = Product { rows: 40, weight };
        let chosen = || chosen(&gpu, product.rows, &product.weight).to_string();
        let before = chosen();
        Table::of(&gpu).spend(MOST_TIME);
        pollster::block_on(tune(&gpu, std::slice::from_ref(&product))).expect("nothing to do");
        let first = &usable(&gpu, product.rows, product.weight.format)[0];
        let key = ProductKey::new(&gpu, product.rows, &product.weight, first);
        assert_eq!(Table::of(&gpu).winner(&key), None);
        assert_eq!(chosen(), before);
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

    /// Up to eight rows have one choice: see `select::invariance`.
    #[test]
    fn all_rows_of_a_decode_step_have_one_winner() {
        let gpu = gpu();
        let weight = gpu.matrix("weight", 64, 32).expect("small");
        let key = |rows| {
            let first = &usable(gpu, rows, weight.format)[0];
            ProductKey::new(gpu, rows, &weight, first)
        };
        for rows in 1..MATVEC_ROWS {
            assert_eq!(key(rows), key(MATVEC_ROWS));
        }
        assert_ne!(key(MATVEC_ROWS), key(MATVEC_ROWS + 1));
    }
}
