//! Every stage and token of the tiny checkpoint against transformers, on every kind of device this adapter can be,
//! and those devices against each other.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use blip2_wgpu::gpu::{Capabilities, Disabled, Gpu, GpuOptions};
use blip2_wgpu::task::ParityReport;
use blip2_wgpu::{Blip2, Caption, CaptionOptions};

use crate::common::{
    PROMPTS, assert_captions_close, beams, caption, data, device, images, open, options,
};

/// Measured 0.9e-6 to 1.5e-6 on the tiny checkpoint: a value rounded to f16 anywhere shows (5e-4).
const STAGE_TOLERANCE: f64 = 5e-5;

/// Greedy scores are sums of up to 20 log-probabilities of about −1.5.
const SCORE_TOLERANCE: f64 = 2e-4;

/// The reports of both dumps, at 42 pixels (the stored positions) and at 70 (interpolated ones), on `model`'s device.
fn reports(model: &mut Blip2) -> [ParityReport; 2] {
    let parity = |model: &mut Blip2, dump: &str| {
        pollster::block_on(model.parity(&data(dump))).expect("the dump fits the checkpoint")
    };
    let mut wide_model = open(&model.gpu().clone(), Some(70));
    [
        parity(model, "tiny_dump.safetensors"),
        parity(&mut wide_model, "tiny_dump_70px.safetensors"),
    ]
}

/// Both images in one batch, greedy and with 3 beams.
fn captions(model: &mut Blip2) -> Vec<Caption> {
    let mut of = |num_beams| {
        let options = options(PROMPTS[1], beams(num_beams));
        caption(model, &images(), &options)
    };
    [of(1), of(3)].concat()
}

/// Against transformers: every stage within tolerance, every token equal.
fn check(reports: &[ParityReport; 2]) {
    check_report(&reports[0], &expected_stages(2, 3, &[3, 5]));
    check_report(&reports[1], &expected_stages(1, 1, &[]));
}

/// Opens a device with `disabled`, has `is_without` look at what it can do, and compares with transformers.
fn check_without(disabled: Disabled, is_without: impl Fn(&Capabilities) -> bool) {
    let gpu = device(&GpuOptions {
        disabled,
        ..GpuOptions::default()
    });
    assert!(is_without(gpu.capabilities()), "{:?}", gpu.capabilities());
    check(&reports(&mut open(&gpu, None)));
}

/// The stages that a report must hold, for the tiny checkpoint.
fn expected_stages(images: usize, prompts: usize, beams: &[usize]) -> Vec<String> {
    let mut stages = Vec::new();
    for image in 0..images {
        let of_image = ["vit.embeddings", "vit.output", "projection"].map(String::from);
        let qformer = ["qformer.embeddings", "qformer.output"].map(String::from);
        let blocks = (0..3).map(|block| format!("vit.block.{block}"));
        let layers = (0..4).map(|layer| format!("qformer.layer.{layer}"));
        let once = of_image
            .into_iter()
            .chain(qformer)
            .chain(blocks)
            .chain(layers);
        stages.extend(once.map(|stage| format!("image {image}, {stage}")));
        for prompt in 0..prompts {
            let fixed = ["opt.embeddings_with_positions", "opt.final_norm"];
            let fixed = fixed.into_iter().chain(["logits", "greedy"]);
            let each = fixed
                .map(String::from)
                .chain((0..3).map(|layer| format!("opt.layer.{layer}")))
                .chain(beams.iter().map(|beams| format!("beams.{beams}")));
            stages.extend(each.map(|stage| format!("image {image}, prompt.{prompt}.{stage}")));
        }
    }
    stages
}

/// Every expected stage once, each within tolerance, and no other that fails.
fn check_report(report: &ParityReport, expected: &[String]) {
    let mut rows = BTreeMap::new();
    for row in &report.rows {
        let twice = rows.insert(row.stage.as_str(), row);
        assert!(twice.is_none(), "{} was compared twice", row.stage);
    }
    for stage in expected {
        assert!(rows.contains_key(stage.as_str()), "{stage} is missing");
    }
    for row in &report.rows {
        let tokens = ["greedy", "beams"]
            .iter()
            .any(|kind| row.stage.contains(kind));
        let good = if tokens {
            row.relative_error == 0.0 && row.max_error <= SCORE_TOLERANCE
        } else {
            row.relative_error <= STAGE_TOLERANCE
        };
        // `!good`, not `bad`: NaN must fail.
        assert!(good && row.pass, "{row:?}");
    }
    assert!(report.pass());
}

/// A model on the default device.
fn default_model() -> MutexGuard<'static, Blip2> {
    static MODEL: OnceLock<Mutex<Blip2>> = OnceLock::new();
    MODEL
        .get_or_init(|| Mutex::new(open(&device(&GpuOptions::default()), None)))
        .lock()
        // A failed test leaves the model usable.
        .unwrap_or_else(PoisonError::into_inner)
}

/// Its reports: errors of every stage, scores and tokens.
fn default_reports() -> &'static [ParityReport; 2] {
    static REPORTS: OnceLock<[ParityReport; 2]> = OnceLock::new();
    REPORTS.get_or_init(|| reports(&mut default_model()))
}

/// `gpu` must compute the same bits as the default device.
fn check_same_bits(gpu: &Gpu) {
    let mut model = open(gpu, None);
    let reports = reports(&mut model);
    check(&reports);
    // Equal, not near: an error's size is as good as a checksum of the stage.
    assert_eq!(&reports, default_reports());
    assert_eq!(captions(&mut model), captions(&mut default_model()));
}

#[test]
fn equals_transformers() {
    check(default_reports());
}

#[test]
fn equals_transformers_without_f16() {
    let disabled = Disabled {
        f16: true,
        ..Disabled::default()
    };
    check_without(disabled, |capabilities| !capabilities.f16);
}

#[test]
fn equals_transformers_without_subgroups() {
    let disabled = Disabled {
        subgroups: true,
        ..Disabled::default()
    };
    check_without(disabled, |capabilities| capabilities.subgroups.is_none());
}

#[test]
fn equals_transformers_within_default_limits() {
    let disabled = Disabled {
        limits: true,
        ..Disabled::default()
    };
    check_without(disabled, |capabilities| {
        capabilities.workgroup_bytes == 16 << 10 && capabilities.max_binding_bytes == 128 << 20
    });
}

#[test]
fn equals_transformers_on_the_least_device() {
    let disabled = Disabled {
        f16: true,
        subgroups: true,
        limits: true,
    };
    check_without(disabled, |capabilities| {
        !capabilities.f16 && capabilities.subgroups.is_none() && capabilities.invocations == 256
    });
}

#[test]
fn checked_shaders_compute_the_same_bits() {
    check_same_bits(&device(&GpuOptions {
        checked: true,
        ..GpuOptions::default()
    }));
}

#[test]
fn split_weights_compute_the_same_bits() {
    // The tiny checkpoint's positions must stay in one part (6336 bytes); its embedding, the stacked q, k and v, both
    // layers of the decoder's MLP and the patch convolution are larger.
    let gpu = device(&GpuOptions {
        max_part_bytes: Some(6352),
        ..GpuOptions::default()
    });
    let parts = |rows, columns| {
        let matrix = gpu.matrix("test", rows, columns).expect("small");
        matrix
            .parts
            .iter()
            .map(|part| part.rows)
            .collect::<Vec<_>>()
    };
    assert_eq!(parts(66, 48), [66]);
    assert_eq!(parts(72, 48), [36, 36]);
    // Rows of a part that no vector store or tile divides.
    assert_eq!(parts(408, 48), [59, 59, 59, 59, 59, 59, 54]);
    check_same_bits(&gpu);
}

#[test]
fn positions_in_parts_are_refused() {
    let options = GpuOptions {
        max_part_bytes: Some(4096),
        ..GpuOptions::default()
    };
    let mut model = open(&device(&options), None);
    let refused = pollster::block_on(model.caption(&images(), &CaptionOptions::default()));
    let message = refused.expect_err("the kernel takes one part").to_string();
    assert!(message.contains("position embedding"), "{message}");
}

#[test]
fn a_row_does_not_see_its_batch() {
    let mut model = default_model();
    let [house, boat] = images();
    let many: Vec<_> = [&house, &boat]
        .into_iter()
        .cycle()
        .take(9)
        .cloned()
        .collect();
    for prompt in PROMPTS {
        let mut options = options(prompt, beams(1));
        options.batch_size = Some(9);
        let mut batch =
            |first: usize, count: usize| caption(&mut model, &many[first..][..count], &options);
        let alone = [batch(0, 1), batch(1, 1)].concat();
        // Batches that share kernels: 2 rows, up to 4, up to 8. Whatever place and neighbours a row has, its sums are
        // the same.
        let pair = batch(0, 2);
        assert_eq!(batch(1, 2), [pair[1].clone(), pair[0].clone()]);
        let four = batch(0, 4);
        assert_eq!(four[..2], four[2..]);
        assert_eq!(batch(0, 3), four[..3]);
        let eight = batch(0, 8);
        assert_eq!(batch(0, 6), eight[..6]);
        assert_eq!(batch(1, 5), eight[1..6]);
        // Kernels for other numbers of rows add in another order.
        for other in [pair, four, eight, batch(0, 9)] {
            let expected: Vec<_> = alone.iter().cycle().take(other.len()).cloned().collect();
            let what = format!("{} images, prompt {prompt:?}", other.len());
            assert_captions_close(&other, &expected, 5e-5, &what);
        }
    }
}
