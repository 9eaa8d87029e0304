use super::*;
use crate::gpu::{ActivationPool, Gpu};
use crate::kernels::testing::{Random, assert_close, gpu, gpus, run, upload};

struct Case {
    x: Vec<f32>,
    weight: Vec<half::f16>,
    bias: Vec<f32>,
    old: Vec<f32>,
    rows: usize,
    out_features: usize,
    in_features: usize,
}

impl Case {
    fn new(rows: usize, out_features: usize, in_features: usize) -> Self {
        let mut random = Random((rows * 7919 + out_features * 31 + in_features) as u64);
        Self {
            x: random.vec(rows * in_features),
            weight: random.f16_vec(out_features * in_features),
            bias: random.vec(out_features),
            old: random.vec(rows * out_features),
            rows,
            out_features,
            in_features,
        }
    }

    fn layer(&self, gpu: &Gpu, biased: bool) -> Linear {
        Linear {
            weight: gpu
                .matrix_with("weight", self.out_features, self.in_features, &self.weight)
                .expect("small"),
            bias: biased.then(|| gpu.vector("bias", &self.bias).expect("small")),
        }
    }

    fn run(
        &self,
        gpu: &Gpu,
        variant: LinearVariant,
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

/// Every kernel that `gpu` can multiply `rows` rows with.
fn variants(gpu: &Gpu, rows: usize) -> Vec<LinearVariant> {
    candidates(gpu.capabilities(), rows)
}

#[test]
fn matmul_equals_its_twin_at_odd_sizes() {
    for gpu in gpus() {
        for (m, n, k) in [
            (1, 1, 8),
            (3, 5, 24),
            (17, 33, 40),
            (65, 31, 1032),
            (33, 257, 24),
            (130, 129, 64),
        ] {
            let case = Case::new(m, n, k);
            for variant in variants(gpu, m) {
                let ours = case.run(gpu, variant, Activate::Identity, false, true);
                let twin = case.twin(Activate::Identity, false, true);
                assert_close(&ours, &twin, 1e-5, &format!("{variant:?} {m}x{n}x{k}"));
            }
        }
    }
}

#[test]
fn matvec_equals_its_twin_at_odd_sizes() {
    for gpu in gpus() {
        for rows in 1..=MATVEC_ROWS {
            for (n, k) in [(1, 8), (5, 24), (33, 1032), (257, 40)] {
                let case = Case::new(rows, n, k);
                for variant in variants(gpu, rows) {
                    let ours = case.run(gpu, variant, Activate::Identity, false, true);
                    let twin = case.twin(Activate::Identity, false, true);
                    assert_close(&ours, &twin, 1e-5, &format!("{variant:?} {rows}x{n}x{k}"));
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
            let case = Case::new(rows, 37, 48);
            for variant in variants(gpu, rows) {
                for (activate, accumulate, biased) in epilogues {
                    let ours = case.run(gpu, variant, activate, accumulate, biased);
                    let twin = case.twin(activate, accumulate, biased);
                    let what = format!("{variant} {activate:?} {accumulate} {biased}");
                    assert_close(&ours, &twin, 1e-5, &what);
                }
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_the_rows_beside_it() {
    let (n, k) = (67, 264);
    for gpu in gpus() {
        let case = Case::new(30, n, k);
        let rows = |first: usize, count: usize| Case {
            x: case.x[first * k..][..count * k].to_vec(),
            weight: case.weight.clone(),
            bias: case.bias.clone(),
            old: vec![0.0; count * n],
            rows: count,
            ..case
        };
        let product =
            |case: &Case, variant| case.run(gpu, variant, Activate::Identity, false, true);
        // The n-th kernel for one row and the n-th for eight are the same one, if not of the same tile height.
        for (one, many) in variants(gpu, 1).into_iter().zip(variants(gpu, 8)) {
            let eight = product(&rows(0, 8), many);
            for row in 0..8 {
                let alone = product(&rows(row, 1), one);
                assert_eq!(alone, eight[row * n..][..n], "{one} row {row}: bit for bit");
            }
            if !matches!(many, LinearVariant::Register { .. }) {
                continue;
            }
            let registers = variants(gpu, 30)
                .into_iter()
                .filter(|variant| matches!(variant, LinearVariant::Register { .. }));
            for variant in registers {
                let all = product(&case, variant);
                assert_eq!(eight, all[..8 * n], "in prefill as in decode, bit for bit");
            }
        }
    }
}

#[test]
fn a_weight_in_several_parts_gives_the_same_product() {
    let gpu = gpu();
    for rows in [2, 20] {
        let case = Case::new(rows, 50, 16);
        let whole = case.layer(gpu, true);
        let mut parted = whole.clone();
        parted.weight.parts = [(0, 21), (21, 21), (42, 8)]
            .map(|(first_row, rows)| crate::gpu::MatrixPart {
                buffer: gpu
                    .storage_with("part", &case.weight[first_row * 16..][..rows * 16])
                    .expect("small"),
                first_row,
                rows,
            })
            .to_vec();
        let x = upload(gpu, &case.x, rows, 16);
        let product =
            |layer: &Linear| run(gpu, |program| linear(program, &x, layer, Activate::Relu));
        assert_eq!(product(&whole), product(&parted));
    }
}

#[test]
fn programs_reuse_pipelines_and_replay() {
    let gpu = gpu();
    let case = Case::new(4, 9, 16);
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
