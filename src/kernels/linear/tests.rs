use super::reference::reference;
use super::*;
use crate::gpu::WeightFormat::{self, F16, Q4, Q8};
use crate::gpu::{ActivationPool, Gpu, Matrix};
use crate::kernels::testing::{Random, assert_close, gpu, gpus, run, upload};
use crate::weights::{dequantise, quantise};

#[derive(Clone)]
struct Case {
    x: Vec<f32>,
    format: WeightFormat,
    /// Of the weight, in `format`; scales `[out_features, in_features / 32]`.
    values: Vec<u8>,
    scales: Vec<half::f16>,
    /// What values and scales stand for.
    weight: Vec<f32>,
    bias: Vec<f32>,
    old: Vec<f32>,
    rows: usize,
    out_features: usize,
    in_features: usize,
}

impl Case {
    fn new(format: WeightFormat, rows: usize, out_features: usize, in_features: usize) -> Self {
        let mut random = Random((rows * 7919 + out_features * 31 + in_features) as u64);
        let x = random.vec(rows * in_features);
        let halves = random.f16_vec(out_features * in_features);
        let mut weight: Vec<f32> = halves.iter().map(|half| half.to_f32()).collect();
        let mut values = bytemuck::cast_slice(&halves).to_vec();
        let mut scales = vec![half::f16::ZERO; out_features * format.row_scales(in_features)];
        if format.is_quantised() {
            values.truncate(out_features * format.row_bytes(in_features));
            quantise(format, &halves, &mut values, &mut scales);
            dequantise(format, &values, &scales, &mut weight);
        }
        Self {
            x,
            format,
            values,
            scales,
            weight,
            bias: random.vec(out_features),
            old: random.vec(rows * out_features),
            rows,
            out_features,
            in_features,
        }
    }

    /// Rows of the weight.
    fn matrix(&self, gpu: &Gpu, first: usize, rows: usize) -> Matrix {
        let row_bytes = self.format.row_bytes(self.in_features);
        let blocks = self.format.row_scales(self.in_features);
        gpu.weight_matrix_with(
            "weight",
            self.format,
            [rows, self.in_features],
            &self.values[first * row_bytes..][..rows * row_bytes],
            &self.scales[first * blocks..][..rows * blocks],
        )
        .expect("small")
    }

    fn layer(&self, gpu: &Gpu, biased: bool) -> Linear {
        Linear {
            weight: self.matrix(gpu, 0, self.out_features),
            bias: biased.then(|| gpu.vector("bias", &self.bias).expect("small")),
        }
    }

    fn run(
        &self,
        gpu: &Gpu,
        variant: &LinearVariant,
        activate: Activate,
        accumulate: bool,
        biased: bool,
    ) -> Vec<f32> {
        let x = upload(gpu, &self.x, self.rows, self.in_features);
        let y = upload(gpu, &self.old, self.rows, self.out_features);
        let layer = self.layer(gpu, biased);
        run(gpu, |program| {
            record_with(program, variant, &x, &layer, activate, &y, accumulate);
            y.clone()
        })
    }

    fn twin(&self, activate: Activate, accumulate: bool, biased: bool) -> Vec<f32> {
        reference(
            &self.x,
            &self.weight,
            biased.then_some(&self.bias),
            self.in_features,
            activate,
            accumulate.then_some(&self.old),
        )
    }
}

/// Every variant that `gpu` can multiply `rows` rows with, those included that are not worth offering on it.
fn variants(gpu: &Gpu, rows: usize) -> Vec<LinearVariant> {
    let capabilities = gpu.capabilities();
    let more: Vec<_> = if rows <= MATVEC_ROWS {
        let lanes = capabilities.fixed_subgroup_size().into_iter();
        let sizes = |lanes| {
            [
                (lanes, 4, 8),
                (4 * lanes, 0, 8),
                (lanes, 1, 4),
                (lanes, 2, 4),
            ]
        };
        let sizes = lanes.flat_map(sizes);
        sizes
            .map(|(lanes, splits, columns)| matvec_subgroup::variant(lanes, splits, columns))
            .collect()
    } else {
        let tiles = [[32, 32], [32, 64], [128, 64]].map(tile::variant);
        let cooperative = cooperative::tiles(capabilities, rows);
        let scalars = cooperative.first().map(|tile| tile.of_scalars());
        let cooperative = cooperative.into_iter().chain(scalars);
        let cooperative = cooperative.map(|tile| tile.variant());
        tiles.into_iter().chain(cooperative).collect()
    };
    let mut variants = candidates(capabilities, rows);
    for variant in more {
        if !variants
            .iter()
            .any(|it| it.to_string() == variant.to_string())
        {
            variants.push(variant);
        }
    }
    variants
}

/// Relative error of a product: cooperative matrices take x rounded to f16.
fn tolerance(variant: &LinearVariant) -> f64 {
    if variant.is_cooperative() { 1e-3 } else { 1e-5 }
}

#[test]
fn matmul_equals_its_twin_at_odd_sizes() {
    for (index, gpu) in gpus().into_iter().enumerate() {
        for (format, m, n, k) in [
            (F16, 1, 1, 8),
            (F16, 3, 5, 24),
            (F16, 17, 33, 40),
            (F16, 65, 31, 1032),
            (F16, 33, 257, 24),
            (F16, 130, 129, 64),
            (F16, 1030, 65, 40),
            (F16, 40, 70, 1352), // K in two ranges, the second shorter
            (Q8, 12, 45, 1056),
            (Q8, 17, 33, 32),
            (Q8, 65, 129, 1056),
            (Q4, 17, 33, 32),
            (Q4, 65, 129, 1056),
        ] {
            if index > 0 && m > 1000 {
                continue; // the largest tiles take long to compile where fragments are emulated
            }
            let case = Case::new(format, m, n, k);
            for variant in variants(gpu, m) {
                let ours = case.run(gpu, &variant, Activate::Identity, false, true);
                let twin = case.twin(Activate::Identity, false, true);
                let what = format!("{variant} {format} {m}x{n}x{k}");
                assert_close(&ours, &twin, tolerance(&variant), &what);
            }
        }
    }
}

#[test]
fn matvec_equals_its_twin_at_odd_sizes() {
    for gpu in gpus() {
        for rows in 1..=MATVEC_ROWS {
            for (format, n, k) in [
                (F16, 1, 8),
                (F16, 5, 24),
                (F16, 33, 1032),
                (F16, 257, 40),
                (Q8, 1, 32),
                (Q8, 77, 1056),
                (Q4, 1, 32),
                (Q4, 77, 1056),
            ] {
                if format.is_quantised() && ![1, 3, MATVEC_ROWS].contains(&rows) {
                    continue; // a pipeline for every number of rows takes long to compile
                }
                let case = Case::new(format, rows, n, k);
                for variant in variants(gpu, rows) {
                    let ours = case.run(gpu, &variant, Activate::Identity, false, true);
                    let twin = case.twin(Activate::Identity, false, true);
                    let what = format!("{variant} {format} {rows}x{n}x{k}");
                    assert_close(&ours, &twin, tolerance(&variant), &what);
                }
            }
        }
    }
}

#[test]
fn every_epilogue_equals_its_twin() {
    let epilogues = [
        (Activate::Identity, false, false),
        (Activate::Identity, true, false),
        (Activate::Identity, true, true),
        (Activate::GeluErf, false, true),
        (Activate::GeluTanh, false, true),
        (Activate::Relu, false, true),
    ];
    for gpu in gpus() {
        for rows in [3, 19] {
            let case = Case::new(F16, rows, 37, 48);
            let mut variants = variants(gpu, rows);
            // All cooperative tiles end alike, and take long where they are emulated.
            let last = variants.iter().rposition(LinearVariant::is_cooperative);
            let mut index = 0..;
            variants.retain(|v| index.next() == last || !v.is_cooperative());
            for variant in variants {
                for (activate, accumulate, biased) in epilogues {
                    let ours = case.run(gpu, &variant, activate, accumulate, biased);
                    let twin = case.twin(activate, accumulate, biased);
                    let what = format!("{variant} {activate:?} {accumulate} {biased}");
                    assert_close(&ours, &twin, tolerance(&variant), &what);
                }
            }
        }
    }
}

/// `select::invariance`: what may stand in for each other gives the same bits.
#[test]
fn variants_of_one_order_give_the_same_bits() {
    for (gpu, format) in gpus().into_iter().flat_map(|gpu| [(gpu, F16), (gpu, Q4)]) {
        for rows in [9, 33, 40, 100] {
            let case = Case::new(format, rows, 75, 96);
            let mut results: Vec<(LinearVariant, Vec<f32>)> = Vec::new();
            for variant in variants(gpu, rows) {
                let ours = case.run(gpu, &variant, Activate::Identity, false, true);
                let alike = results.iter().find(|(other, _)| variant.may_replace(other));
                if let Some((other, expected)) = alike {
                    assert_eq!(ours, *expected, "{variant} and {other}, {rows} rows");
                }
                results.push((variant, ours));
            }
        }
    }
}

/// `select::invariance`: a row has the same bits alone and among eight, and where one order serves any number of rows, in
/// prefill, too.
#[test]
fn a_row_does_not_depend_on_the_rows_beside_it() {
    let formats = |gpu| WeightFormat::ALL.map(|format| (gpu, format));
    for (gpu, format) in gpus().into_iter().flat_map(formats) {
        let (n, k) = (67, if format.is_quantised() { 288 } else { 264 });
        let case = Case::new(format, 30, n, k);
        let rows = |first: usize, count: usize| Case {
            x: case.x[first * k..][..count * k].to_vec(),
            old: vec![0.0; count * n],
            rows: count,
            ..case.clone()
        };
        let product = |case: &Case, variant: &LinearVariant| {
            case.run(gpu, variant, Activate::Identity, false, true)
        };
        // The n-th variant for one row and the n-th for eight are the same one, if not of the same tile height.
        for (one, many) in variants(gpu, 1).iter().zip(&variants(gpu, 8)) {
            let eight = product(&rows(0, 8), many);
            for row in 0..8 {
                let alone = product(&rows(row, 1), one);
                assert_eq!(alone, eight[row * n..][..n], "{one} row {row}: bit for bit");
            }
            for variant in variants(gpu, 30).iter().filter(|it| it.may_replace(many)) {
                let all = product(&case, variant);
                assert_eq!(eight, all[..8 * n], "in prefill as in decode, bit for bit");
            }
        }
    }
}

#[test]
fn few_rows_have_the_same_bits_in_every_cooperative_tile() {
    let gpu = gpu();
    let (n, k) = (33, 1352);
    let case = Case::new(F16, 70, n, k);
    let mut expected = None; // stays so without cooperative matrices
    for rows in [9, 12, 20, 30, 70] {
        let part = Case {
            x: case.x[..rows * k].to_vec(),
            old: vec![0.0; rows * n],
            rows,
            ..case.clone()
        };
        for tile in cooperative::tiles(gpu.capabilities(), rows) {
            let variant = tile.variant();
            let all = part.run(gpu, &variant, Activate::GeluErf, false, true);
            let first = all[..9 * n].to_vec();
            let expected = expected.get_or_insert_with(|| first.clone());
            assert_eq!(first, *expected, "{variant}, {rows} rows: bit for bit");
        }
    }
}

#[test]
fn tiles_have_names_of_their_own() {
    let tiles = cooperative::all_tiles(gpu().capabilities());
    let names: std::collections::BTreeSet<_> = tiles.iter().map(ToString::to_string).collect();
    assert_eq!(names.len(), tiles.len());
}

#[test]
fn a_weight_in_several_parts_gives_the_same_product() {
    let gpu = gpu();
    for (format, rows) in [(F16, 2), (F16, 20), (Q8, 2), (Q4, 20)] {
        let case = Case::new(format, rows, 50, 32);
        let whole = case.layer(gpu, true);
        let mut parted = whole.clone();
        parted.weight.parts = [(0, 21), (21, 21), (42, 8)]
            .map(|(first_row, rows)| crate::gpu::MatrixPart {
                first_row,
                ..case.matrix(gpu, first_row, rows).parts.remove(0)
            })
            .to_vec();
        let x = upload(gpu, &case.x, rows, 32);
        let product =
            |layer: &Linear| run(gpu, |program| linear(program, &x, layer, Activate::Relu));
        assert_eq!(product(&whole), product(&parted));
    }
}

#[test]
fn programs_reuse_pipelines_and_replay() {
    let gpu = gpu();
    let case = Case::new(F16, 4, 9, 16);
    let layer = case.layer(gpu, true);
    let x = upload(gpu, &case.x, 4, 16);
    let target = gpu.storage("y", 4 * 9 * 4).expect("small");
    let y = Activation::external(&target, 4, 9);
    let mut program = ProgramBuilder::new(gpu, "twice");
    linear_into(&mut program, &x, &layer, &y);
    let program = program.finish(&ActivationPool::default()).expect("valid");
    program.run(gpu);
    program.run(gpu);
    let ours: Vec<f32> = pollster::block_on(gpu.read(&target, 36)).expect("readable");
    let once = case.twin(Activate::Identity, false, true);
    let twice: Vec<f32> = once.iter().map(|v| 2.0 * v).collect();
    assert_close(&ours, &twice, 1e-5, "two replays add twice");
}

#[test]
fn each_width_of_subgroups_has_its_kernels() {
    let all = |subgroups| {
        let mut capabilities = gpu().capabilities().clone();
        capabilities.subgroups = subgroups;
        capabilities.invocations = 256;
        capabilities.cooperative_matrices.clear();
        [1, 5, 40, 300].map(|rows| {
            let candidates = candidates(&capabilities, rows);
            candidates
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        })
    };
    let has_registers = |names: &Vec<String>| names.iter().any(|it| it.starts_with("register"));
    assert!(all(Some((8, 8))).iter().all(has_registers));
    let others = [
        Some((4, 4)),
        Some((32, 32)),
        Some((64, 64)),
        Some((32, 64)),
        None,
    ];
    for subgroups in others {
        assert!(!all(subgroups).iter().any(has_registers), "{subgroups:?}");
    }
    let one_row = |subgroups| all(subgroups)[0].join(", ");
    assert_eq!(
        one_row(Some((8, 8))),
        "register 1x64, vector_subgroup 8, vector"
    );
    assert_eq!(one_row(Some((4, 4))), "vector_subgroup 4, vector");
    assert_eq!(
        one_row(Some((32, 32))),
        "vector_subgroup 32 split 4, vector_subgroup 32 split 2, vector_subgroup 32 split 8, vector_subgroup 32, \
         vector_subgroup 32 split 4 4 columns, vector_subgroup 32 split 2 4 columns, vector"
    );
    // Where the driver chooses between 32 and 64 lanes: workgroups of one, two and four of the widest.
    assert_eq!(
        one_row(Some((32, 64))),
        "vector_subgroup 64 split, vector_subgroup 128 split, vector_subgroup 256 split, \
         vector_subgroup 64 split 4 columns, vector"
    );
    assert_eq!(
        all(Some((8, 8)))[2..],
        [
            [
                "register 20x64",
                "register 24x64",
                "register 16x64",
                "tile 64x64"
            ],
            [
                "register 28x64",
                "register 32x64",
                "register 24x64",
                "tile 64x64"
            ],
        ]
    );
    assert_eq!(
        all(None)[3],
        ["tile 64x64", "tile 32x64", "tile 128x64", "tile 32x32"]
    );
}

#[test]
fn without_f16_no_kernel_rounds_what_it_multiplies() {
    use crate::gpu::Disabled;
    use crate::kernels::attention_candidates;
    let mut gpu = gpu().capabilities().clone();
    gpu.f16 = true;
    gpu.subgroups = Some((32, 32));
    gpu.workgroup_bytes = 48 << 10;
    gpu.invocations = 1024;
    gpu.cooperative_matrices = vec![wgpu::CooperativeMatrixProperties {
        m_size: 16,
        n_size: 16,
        k_size: 16,
        ab_type: wgpu::CooperativeScalarType::F16,
        cr_type: wgpu::CooperativeScalarType::F32,
        saturating_accumulation: false,
    }];
    let rounds = |capabilities: &crate::gpu::Capabilities| {
        let linear = candidates(capabilities, 300);
        let attention = attention_candidates(capabilities);
        [
            linear.iter().any(|it| it.is_cooperative()),
            attention
                .iter()
                .any(|it| it.to_string().starts_with("cooperative")),
        ]
    };
    assert_eq!(rounds(&gpu), [true, true]);
    let f16 = true;
    let disabled = Disabled {
        f16,
        ..Disabled::default()
    };
    assert_eq!(rounds(&gpu.without(disabled)), [false, false]);
}
