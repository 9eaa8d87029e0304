//! The larger published models: small checkpoints with their heads, ratios and image sizes (weights-tools'
//! seeded_checkpoint.py), every stage, token and score against transformers.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::OnceLock;

use blip2_wgpu::gpu::{Disabled, Gpu, GpuOptions};
use blip2_wgpu::task::ParityReport;
use blip2_wgpu::{Blip2, OpenOptions, Retriever};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::common::{data, device};

/// The promise is 2e-3. A value rounded to f16 anywhere shows (5e-4).
const STAGE_TOLERANCE: f64 = 5e-5;

/// Scores are sums of up to 20 log-probabilities.
const SCORE_TOLERANCE: f64 = 5e-4;

/// A line of `tensors.txt`: element i is `add + k / 2^shift`, k a hash of seed, name and i between ±`most`.
struct Rule<'a> {
    name: &'a str,
    shape: Vec<usize>,
    add: i32,
    most: u32,
    shift: i32,
}

impl<'a> Rule<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut words = line.split(' ');
        let (name, shape) = (words.next()?, words.next()?);
        let shape = shape.split('x').map(str::parse).collect::<Result<_, _>>();
        Some(Self {
            name,
            shape: shape.ok()?,
            add: words.next()?.parse().ok()?,
            most: words.next()?.parse().ok()?,
            shift: words.next()?.parse().ok()?,
        })
    }

    /// The elements in float16, which has room for all their digits.
    fn values(&self, seed: &str) -> Vec<u8> {
        let count = self.shape.iter().product::<usize>() as u32;
        let start = fnv1a(&format!("{seed}/{}", self.name));
        let scale = 2_f32.powi(-self.shift);
        let value = |i: u32| {
            let hash = mixed(start.wrapping_add(i.wrapping_mul(0x9E37_79B9)));
            let k = (hash % (2 * self.most + 1)) as i32 - self.most as i32;
            let value = self.add as f32 + k as f32 * scale;
            let rounded = half::f16::from_f32(value);
            debug_assert_eq!(rounded.to_f32(), value, "{}", self.name);
            rounded.to_le_bytes()
        };
        (0..count).flat_map(value).collect()
    }
}

fn fnv1a(text: &str) -> u32 {
    let step = |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(16_777_619);
    text.bytes().fold(2_166_136_261, step)
}

/// The last step of MurmurHash3.
fn mixed(mut x: u32) -> u32 {
    x = (x ^ (x >> 16)).wrapping_mul(0x85EB_CA6B);
    x = (x ^ (x >> 13)).wrapping_mul(0xC2B2_AE35);
    x ^ (x >> 16)
}

/// A folder with the checkpoint that `tests/data/sizes/NAME` describes, and the tokenizer of another of `tests/data`.
fn checkpoint(name: &str, tokenizer: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let copy = |from: &Path, wanted: &dyn Fn(&str) -> bool| {
        for file in std::fs::read_dir(from).expect("a folder") {
            let file = file.expect("an entry").path();
            let name = file.file_name().and_then(|name| name.to_str());
            let name = name.expect("a plain name");
            if wanted(name) {
                std::fs::copy(&file, folder.path().join(name)).expect("a copy");
            }
        }
    };
    let recipe = data("sizes").join(name);
    copy(&recipe, &|name| name.ends_with(".json"));
    copy(&data(tokenizer), &|name| {
        name.contains("token") || name.starts_with("vocab") || name.starts_with("merges")
    });
    let text = std::fs::read_to_string(recipe.join("tensors.txt")).expect("a recipe");
    let mut lines = text.lines();
    let seed = lines.next().and_then(|line| line.strip_prefix("seed "));
    let seed = seed.expect("a seed");
    let rules: Vec<Rule<'_>> = lines.map(|line| Rule::parse(line).expect(line)).collect();
    let values: Vec<Vec<u8>> = rules.iter().map(|rule| rule.values(seed)).collect();
    let tensors = rules.iter().zip(&values).map(|(rule, values)| {
        let view = TensorView::new(Dtype::F16, rule.shape.clone(), values);
        (rule.name, view.expect("so many values"))
    });
    let file = folder.path().join("model.safetensors");
    safetensors::serialize_to_file(tensors, None, &file).expect("written");
    folder
}

/// Opens the checkpoint on `gpu` and compares with the dump of its name.
fn report(gpu: &Gpu, name: &str, tokenizer: &str) -> ParityReport {
    let folder = checkpoint(name, tokenizer);
    let options = OpenOptions {
        device: Some(gpu.clone()),
        ..OpenOptions::default()
    };
    let dump = data(&format!("{name}_dump.safetensors"));
    pollster::block_on(async {
        if tokenizer == "tiny-itm" {
            let mut model = Retriever::open(folder.path(), options).await?;
            model.parity(&dump).await
        } else {
            let mut model = Blip2::open(folder.path(), options).await?;
            model.parity(&dump).await
        }
    })
    .expect("the dump fits the checkpoint")
}

/// Every stage within tolerance, every token equal, and all of `stages` there.
fn check(report: &ParityReport, stages: &[&str]) {
    let mut found = BTreeSet::new();
    let mut worst = String::new();
    for row in &report.rows {
        assert!(found.insert(&*row.stage), "{} twice", row.stage);
        let tokens = [".greedy", ".beams."]
            .iter()
            .any(|kind| row.stage.contains(kind));
        let good = match tokens {
            true => row.relative_error == 0.0 && row.max_error <= SCORE_TOLERANCE,
            false => row.relative_error <= STAGE_TOLERANCE,
        };
        // `!good`, not `bad`: NaN must fail.
        assert!(good && row.pass, "{row:?}");
        writeln!(worst, "{} {:e}", row.stage, row.relative_error).expect("a string");
    }
    for stage in stages {
        assert!(found.contains(stage), "{stage} is missing of\n{worst}");
    }
}

/// The default device and the least there is; the tests share them and their pipelines.
fn devices() -> &'static [Gpu; 2] {
    static DEVICES: OnceLock<[Gpu; 2]> = OnceLock::new();
    DEVICES.get_or_init(|| {
        [false, true].map(|least| {
            device(&GpuOptions {
                disabled: Disabled {
                    f16: least,
                    subgroups: least,
                    limits: least,
                },
                ..GpuOptions::default()
            })
        })
    })
}

fn equals_transformers(name: &str, tokenizer: &str, stages: &[&str]) {
    let [default, least] = devices();
    check(&report(default, name, tokenizer), stages);
    // The image is what differs in the others.
    if name.ends_with("-coco") {
        check(&report(least, name, tokenizer), stages);
    }
}

const OPT: [&str; 12] = [
    "image 0, vit.embeddings",
    "image 1, vit.block.1",
    "image 1, vit.output",
    "image 0, qformer.layer.0",
    "image 1, qformer.output",
    "image 1, projection",
    "image 1, prompt.0.opt.embeddings_with_positions",
    "image 0, prompt.0.opt.layer.0",
    "image 1, prompt.0.opt.final_norm",
    "image 1, prompt.0.logits",
    "image 1, prompt.0.greedy",
    "image 1, prompt.0.beams.5",
];

const T5: [&str; 9] = [
    "image 1, vit.output",
    "image 1, projection",
    "image 0, prompt.0.t5.encoder.embeddings",
    "image 1, prompt.1.t5.encoder.block.1",
    "image 1, prompt.1.t5.encoder.final_norm",
    "image 1, prompt.1.t5.decoder.block.1",
    "image 1, prompt.1.logits",
    "image 1, prompt.1.greedy",
    "image 1, prompt.1.beams.5",
];

const RETRIEVAL: [&str; 10] = [
    "image 0, vit.block.0",
    "image 1, vit.output",
    "image 1, qformer.output",
    "image 1, image_embeds",
    "text.1.embeddings",
    "text.1.layer.0",
    "text.1.text_embeds",
    "pair.1.0.layer.1",
    "pair.1.1.itm",
    "pair.0.1.itc",
];

#[test]
fn opt_6_7b_with_a_head_of_its_own() {
    equals_transformers("opt-6.7b", "tiny", &OPT);
}

#[test]
fn opt_6_7b_coco() {
    equals_transformers("opt-6.7b-coco", "tiny", &OPT);
}

#[test]
fn flan_t5_xl_coco() {
    equals_transformers("flan-t5-xl-coco", "tiny-t5", &T5);
}

#[test]
fn flan_t5_xxl() {
    equals_transformers("flan-t5-xxl", "tiny-t5", &T5);
}

#[test]
fn itm_vit_g() {
    equals_transformers("itm-vit-g", "tiny-itm", &RETRIEVAL);
}

#[test]
fn itm_vit_g_coco() {
    equals_transformers("itm-vit-g-coco", "tiny-itm", &RETRIEVAL);
}
