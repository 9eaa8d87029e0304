//! Every kernel's text is valid WGSL and compiles to SPIR-V, to Metal's language and to HLSL, those included that no adapter
//! here can run: naga parses and validates it with all capabilities, once as it stands and once with each variant's constants.

use std::collections::{BTreeMap, BTreeSet};

use naga::ShaderStage;
use naga::back::{hlsl, msl, pipeline_constants::process_overrides, spv};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};

use super::*;
use crate::gpu::{Constants, Kernel, WeightFormat};

/// The kernels that read no weight matrix and are no attention of the ViT's.
fn others() -> Vec<&'static Kernel> {
    vec![
        &advance::ADVANCE,
        &argmax::ARGMAX,
        &attention_cached::ATTENTION_CACHED,
        &attention_cached::ATTENTION_CACHED_VEC4,
        &attention_relative::ATTENTION_RELATIVE,
        &attention_weights::ATTENTION_WEIGHTS,
        &copy::COPY,
        &copy_rows::COPY_ROWS,
        &embed_patches::EMBED_PATCHES,
        &gate::GATE,
        &gather_rows::GATHER_ROWS,
        &layer_norm::LAYER_NORM,
        &layer_norm::LAYER_NORM_VEC4,
        &linear::ADD_RANGES,
        &linear::ROUND_TO_F16,
        &log_softmax::LOG_SOFTMAX,
        &max_over_queries::MAX_OVER_QUERIES,
        &mean_rows::MEAN_ROWS,
        &merge_top_k::MERGE_TOP_K,
        &normalize_rows::NORMALIZE_ROWS,
        &patchify::PATCHIFY,
        &process_logits::PROCESS_LOGITS,
        &rms_norm::RMS_NORM,
        &rms_norm::RMS_NORM_VEC4,
        &store_kv::STORE_KV,
        &top_k::TOP_K,
    ]
}

fn all() -> Vec<&'static Kernel> {
    let linear = linear::KERNELS.iter().copied().flatten();
    let attention = attention::KERNELS.iter().copied();
    let embed_tokens = embed_tokens::KERNELS.iter();
    let ceilings = ceilings::KERNELS.iter().copied();
    let all = linear.chain(attention).chain(embed_tokens).chain(ceilings);
    all.chain(others()).collect()
}

fn parse(kernel: &Kernel) -> naga::Module {
    let text = kernel.wgsl.concat();
    naga::front::wgsl::parse_str(&text)
        .unwrap_or_else(|error| panic!("{}: {}", kernel.name, error.emit_to_string(&text)))
}

fn validate(kernel: &Kernel, module: &naga::Module) -> ModuleInfo {
    Validator::new(ValidationFlags::all(), Capabilities::all())
        .validate(module)
        .unwrap_or_else(|error| {
            let text = kernel.wgsl.concat();
            panic!("{}: {}", kernel.name, error.emit_to_string(&text))
        })
}

/// Compiles `kernel` with `constants`; returns the size of its workgroup memory, bytes.
fn compile(kernel: &Kernel, constants: &Constants) -> u32 {
    let module = parse(kernel);
    let info = validate(kernel, &module);
    let constants = constants
        .iter()
        .map(|&(name, value)| (name.to_owned(), value))
        .collect();
    let entry = Some((ShaderStage::Compute, "main"));
    let (module, info) = process_overrides(&module, &info, entry, &constants)
        .unwrap_or_else(|error| panic!("{} {constants:?}: {error}", kernel.name));
    let mut translations = vec![
        ("SPIR-V", to_spirv(&module, &info)),
        ("MSL", to_metal(&module, &info)),
    ];
    // Direct3D has no cooperative matrices in wgpu.
    if !uses_cooperative_matrices(&module) {
        translations.push(("HLSL", to_hlsl(&module, &info)));
    }
    for (language, result) in translations {
        result
            .unwrap_or_else(|error| panic!("{} {constants:?} in {language}: {error}", kernel.name));
    }
    let layouts = module.to_ctx();
    module
        .global_variables
        .iter()
        .filter(|(_, variable)| variable.space == naga::AddressSpace::WorkGroup)
        .map(|(_, variable)| module.types[variable.ty].inner.size(layouts))
        .sum()
}

fn uses_cooperative_matrices(module: &naga::Module) -> bool {
    let mut types = module.types.iter().map(|(_, kind)| &kind.inner);
    types.any(|kind| matches!(kind, naga::TypeInner::CooperativeMatrix { .. }))
}

fn to_spirv(module: &naga::Module, info: &ModuleInfo) -> Result<(), String> {
    let options = spv::Options {
        lang_version: (1, 4),
        ..spv::Options::default()
    };
    let pipeline = spv::PipelineOptions {
        shader_stage: ShaderStage::Compute,
        entry_point: "main".into(),
    };
    let words = spv::write_vec(module, info, &options, Some(&pipeline));
    words.map(drop).map_err(|error| error.to_string())
}

fn to_metal(module: &naga::Module, info: &ModuleInfo) -> Result<(), String> {
    let options = msl::Options {
        lang_version: (3, 0),
        ..msl::Options::default()
    };
    let text = msl::write_string(module, info, &options, &msl::PipelineOptions::default());
    text.map(drop).map_err(|error| error.to_string())
}

/// Shader model 6.2 is the first with f16.
fn to_hlsl(module: &naga::Module, info: &ModuleInfo) -> Result<(), String> {
    let options = hlsl::Options {
        shader_model: hlsl::ShaderModel::V6_2,
        ..hlsl::Options::default()
    };
    let mut text = String::new();
    let pipeline = hlsl::PipelineOptions::default();
    let written = hlsl::Writer::new(&mut text, &options, &pipeline).write(module, info, None);
    written.map(drop).map_err(|error| error.to_string())
}

#[test]
fn every_kernel_is_valid() {
    for kernel in all() {
        compile(kernel, &vec![]);
    }
}

#[test]
fn every_shader_with_an_entry_point_belongs_to_a_kernel() {
    let shaders = concat!(env!("CARGO_MANIFEST_DIR"), "/shaders");
    let texts: BTreeMap<_, _> = std::fs::read_dir(shaders)
        .expect("the shaders")
        .map(|file| file.expect("a file").path())
        .map(|path| (path.clone(), std::fs::read_to_string(path).expect("text")))
        .filter(|(_, text)| text.contains("@compute"))
        .collect();
    assert!(texts.len() > 20);
    let used: BTreeSet<_> = all()
        .into_iter()
        .flat_map(|kernel| kernel.wgsl.iter().copied())
        .collect();
    for (path, text) in texts {
        assert!(
            used.contains(text.as_str()),
            "{path:?} is in no list of kernels"
        );
    }
}

#[test]
fn every_variant_of_every_gpu_is_valid_and_fits_its_workgroup_memory() {
    let mut compiled = BTreeSet::new();
    for capabilities in imagined_gpus() {
        for rows in [1, 3, 8, 12, 32, 40, 64, 257, 2056] {
            for variant in candidates(&capabilities, rows) {
                for format in WeightFormat::ALL {
                    let shape = variant.shape(rows, format);
                    let mut constants = shape.constants;
                    constants.extend([("ACTIVATION", 1.0), ("HAS_BIAS", 1.0), ("ACCUMULATE", 1.0)]);
                    if compiled.insert(format!("{} {constants:?}", shape.kernel.name)) {
                        let bytes = compile(shape.kernel, &constants);
                        let most = capabilities.workgroup_bytes;
                        assert!(bytes <= most, "{variant}: {bytes} of {most} bytes");
                    }
                }
            }
        }
        for variant in attention_candidates(&capabilities) {
            for dim in [64, 80, 88, 96, 128] {
                let (kernel, constants, predicted) = variant.build(Heads { count: 1, dim });
                let bytes = compile(kernel, &constants);
                assert!(
                    bytes <= predicted,
                    "{variant} {dim}: {bytes} of {predicted}"
                );
            }
        }
    }
    let cooperative = |name: &&String| name.starts_with("matmul_cooperative");
    assert!(compiled.iter().filter(cooperative).count() > 20);
}

/// The kernels that give a row more threads where the device has more.
#[test]
fn every_variant_of_the_kernels_of_a_decode_step_is_valid_and_fits_its_workgroup_memory() {
    let least = 16 << 10;
    for is_wide in [false, true] {
        for width in [88, 768, 1408, 2048, 2560, 4096, 6144] {
            let threads = layer_norm::norm_threads(is_wide, width);
            let Some(constants) = layer_norm::vec4_constants(width, threads) else {
                continue;
            };
            for kernel in [&layer_norm::LAYER_NORM_VEC4, &rms_norm::RMS_NORM_VEC4] {
                assert!(compile(kernel, &constants) <= least);
            }
        }
        for rows_are_apart in [false, true] {
            let groups = attention_cached::groups(is_wide, rows_are_apart);
            let constants = attention_cached::constants(groups, rows_are_apart);
            let kernel = &attention_cached::ATTENTION_CACHED_VEC4;
            assert!(compile(kernel, &constants) <= least);
        }
    }
    for threads in [256, WIDE_ROW] {
        let constants = vec![("WORKGROUP_SIZE", f64::from(threads))];
        for kernel in [&top_k::TOP_K, &log_softmax::LOG_SOFTMAX] {
            assert!(compile(kernel, &constants) <= least);
        }
    }
}

/// What an NVIDIA GPU, an Apple GPU, an AMD GPU with two widths of subgroups and the least device have for our kernels.
fn imagined_gpus() -> [crate::gpu::Capabilities; 4] {
    let gpu = |subgroups, size: Option<u32>, workgroup_bytes, invocations| {
        let shape = |size| wgpu::CooperativeMatrixProperties {
            m_size: size,
            n_size: size,
            k_size: size,
            ab_type: wgpu::CooperativeScalarType::F16,
            cr_type: wgpu::CooperativeScalarType::F32,
            saturating_accumulation: false,
        };
        crate::gpu::Capabilities {
            f16: true,
            subgroups,
            cooperative_matrices: size.map(shape).into_iter().collect(),
            timestamps: true,
            pipeline_cache: true,
            max_binding_bytes: 1 << 30,
            max_buffer_bytes: 1 << 30,
            workgroup_bytes,
            invocations,
        }
    };
    [
        gpu(Some((32, 32)), Some(16), 48 << 10, 1024),
        gpu(Some((32, 32)), Some(8), 32 << 10, 1024),
        gpu(Some((32, 64)), Some(16), 64 << 10, 1024),
        gpu(None, None, 16 << 10, 256),
    ]
}
