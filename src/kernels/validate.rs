//! Every kernel's text is valid WGSL and compiles to SPIR-V, to Metal's language and to HLSL, those included that no adapter
//! here can run: naga parses and validates it with all capabilities, once as it stands and once with each variant's constants.

use std::collections::{BTreeMap, BTreeSet};

use naga::ShaderStage;
use naga::back::{hlsl, msl, pipeline_constants::process_overrides, spv};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};

use super::*;
use crate::gpu::shader_source::{ShaderText, own_files};
use crate::gpu::{
    Access, ActivationPool, Constants, Gpu, GpuOptions, Kernel, ProgramBuilder, WeightFormat,
};

fn all() -> Vec<&'static Kernel> {
    Kernel::all().collect()
}

fn parse(kernel: &Kernel, text: &ShaderText) -> naga::Module {
    naga::front::wgsl::parse_str(&text.text).unwrap_or_else(|error| {
        let error = text.trace_back(&error.emit_to_string(&text.text));
        panic!("{}: {error}", kernel.name)
    })
}

fn validate(kernel: &Kernel, text: &ShaderText, module: &naga::Module) -> ModuleInfo {
    Validator::new(ValidationFlags::all(), Capabilities::all())
        .validate(module)
        .unwrap_or_else(|error| {
            let error = text.trace_back(&error.emit_to_string(&text.text));
            panic!("{}: {error}", kernel.name)
        })
}

/// Compiles `kernel` with `constants`; returns the size of its workgroup memory, bytes.
fn compile(kernel: &Kernel, constants: &Constants) -> u32 {
    let text = kernel.text();
    let module = parse(kernel, &text);
    let info = validate(kernel, &text, &module);
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
    let kernels = all();
    let mut shaders = 0;
    for (name, _) in own_files().filter(|(_, text)| text.contains("@compute")) {
        shaders += 1;
        let mut kernels = kernels.iter();
        assert!(
            kernels.any(|kernel| kernel.shader == name),
            "{name} has no kernel"
        );
    }
    assert!(shaders > 20);
}

/// What the host puts into a uniform and binds is what the shader reads: names, types, offsets and size of the words,
/// bindings and how they are used. And nothing is put there that no one reads.
#[test]
fn every_contract_is_the_shaders_own() {
    let kernels = all();
    for kernel in &kernels {
        let module = parse(kernel, &kernel.text());
        assert_eq!(params_of(&module), layout_of(kernel), "{}", kernel.name);
        assert_eq!(bindings_of(&module), kernel.bindings, "{}", kernel.name);
        for (name, _) in kernel.params {
            let word = format!("params.{name}");
            let mut sharers = kernels.iter().filter(|it| it.params == kernel.params);
            let is_read = sharers.any(|it| it.text().text.contains(&word));
            assert!(is_read, "{}: {name}", kernel.name);
        }
    }
}

/// Name, type and offset of each word of a uniform, and its size.
type Layout = (Vec<(String, String, u32)>, u32);

/// The uniform as the host has it.
fn layout_of(kernel: &Kernel) -> Layout {
    let words = kernel.params.iter().zip(0..);
    let words = words.map(|(&(name, kind), word)| (name.into(), kind.into(), 4 * word));
    (words.collect(), 4 * kernel.params.len() as u32)
}

/// The uniform as the shader has it.
fn params_of(module: &naga::Module) -> Layout {
    let mut uniforms = module.global_variables.iter().map(|(_, it)| it);
    let uniform = uniforms.find(|it| it.space == naga::AddressSpace::Uniform);
    let uniform = uniform.expect("every kernel has one");
    assert_eq!(
        uniform.binding.map(|it| (it.group, it.binding)),
        Some((0, 0))
    );
    let naga::TypeInner::Struct { members, span } = &module.types[uniform.ty].inner else {
        panic!("the uniform is a struct");
    };
    let words = members.iter().map(|member| {
        let kind = match module.types[member.ty].inner {
            naga::TypeInner::Scalar(naga::Scalar::U32) => "u32",
            naga::TypeInner::Scalar(naga::Scalar::F32) => "f32",
            _ => "no word",
        };
        let name = member.name.clone().unwrap_or_default();
        (name, kind.to_owned(), member.offset)
    });
    (words.collect(), *span)
}

/// How the shader uses bindings 1, 2, … of group 0. Two of its variables may be one binding, if they use it alike.
fn bindings_of(module: &naga::Module) -> Vec<Access> {
    let mut bindings = BTreeMap::new();
    for (_, variable) in module.global_variables.iter() {
        let naga::AddressSpace::Storage { access } = variable.space else {
            continue;
        };
        let access = match access.contains(naga::StorageAccess::STORE) {
            true => Access::ReadWrite,
            false => Access::Read,
        };
        let binding = variable.binding.expect("a buffer is bound");
        let other = bindings.insert((binding.group, binding.binding), access);
        assert!(other.is_none_or(|other| other == access), "{variable:?}");
    }
    let places = (1..=bindings.len() as u32).map(|binding| (0, binding));
    assert!(bindings.keys().copied().eq(places), "{bindings:?}");
    bindings.into_values().collect()
}

/// Lines that differ in their numbers alone are to be written once, with `#for`.
#[test]
fn no_shader_has_more_than_eight_numbered_copies_of_a_line() {
    let without_numbers = |line: &str| -> String {
        let digits = line
            .trim()
            .chars()
            .map(|c| if c.is_ascii_digit() { '0' } else { c });
        let mut text: Vec<char> = digits.collect();
        text.dedup_by(|a, b| *a == '0' && *b == '0');
        text.into_iter().collect()
    };
    for (name, text) in own_files() {
        let mut copies: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        for line in text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
        {
            copies
                .entry(without_numbers(line))
                .or_default()
                .insert(line.trim());
        }
        let most = copies.into_iter().max_by_key(|(_, lines)| lines.len());
        let (line, lines) = most.expect("a shader has lines");
        assert!(
            lines.len() <= 8,
            "{name}: {} lines like `{line}`",
            lines.len()
        );
    }
}

/// naga rounds what is beyond f32's range into it; Tint, a browser's compiler, does not.
#[test]
fn every_number_in_a_shader_is_in_range() {
    let mut numbers = 0;
    for (name, text) in own_files() {
        let code = text
            .lines()
            .map(|line| line.split("//").next().unwrap_or_default());
        for word in code.flat_map(|line| line.split(|c: char| !c.is_alphanumeric() && c != '.')) {
            let word = word.trim_end_matches(['f', 'u']);
            let Some(number) = word.parse::<f64>().ok().filter(|_| word.contains('.')) else {
                continue;
            };
            assert!(number <= f64::from(f32::MAX), "{name}: {word}");
            numbers += 1;
        }
    }
    assert!(numbers > 50, "{numbers} numbers found");
}

/// naga reads subgroup operations without it; browsers do not.
#[test]
fn every_text_with_subgroup_operations_enables_them() {
    for kernel in all() {
        let text = kernel.text();
        let code = text.text.lines().filter(|line| !line.starts_with("//"));
        let is_used = code.into_iter().any(|line| line.contains("subgroup"));
        let of_browser = kernel.text_of_browser();
        let is_enabled = of_browser
            .text
            .lines()
            .any(|line| line == "enable subgroups;");
        assert_eq!(is_used, is_enabled, "{}", kernel.name);
    }
}

#[test]
fn every_variant_of_every_gpu_is_valid_and_fits_its_workgroup_memory() {
    let mut compiled = BTreeSet::new();
    for capabilities in imagined_gpus() {
        for rows in [1, 3, 8, 12, 32, 40, 64, 257, 2056] {
            for variant in candidates(&capabilities, rows) {
                for format in WeightFormat::ALL {
                    let (kernel, mut constants) = variant.build(rows, format);
                    constants.extend([("ACTIVATION", 1.0), ("HAS_BIAS", 1.0), ("ACCUMULATE", 1.0)]);
                    if compiled.insert(format!("{} {constants:?}", kernel.name)) {
                        let bytes = compile(kernel, &constants);
                        let most = capabilities.workgroup_bytes;
                        assert!(bytes <= most, "{variant}: {bytes} of {most} bytes");
                    }
                }
            }
        }
        for variant in attention_candidates(&capabilities) {
            for dim in [64, 80, 88, 96, 128] {
                let heads = Heads { count: 1, dim };
                let bytes = compile(variant.kernel(), &variant.constants(heads));
                let predicted = variant.workgroup_bytes(heads);
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
            let threads = ops::layer_norm::norm_threads(is_wide, width);
            let constants = ops::layer_norm::norm_constants(width, threads);
            for kernel in [&ops::layer_norm::LAYER_NORM, &ops::rms_norm::RMS_NORM] {
                assert!(compile(kernel, &constants) <= least);
            }
        }
        for rows_are_apart in [false, true] {
            let groups = attention::cached::groups(is_wide, rows_are_apart);
            let constants = attention::cached::constants(groups, rows_are_apart);
            let kernel = &attention::cached::ATTENTION_CACHED;
            assert!(compile(kernel, &constants) <= least);
        }
    }
    for threads in [256, WIDE_ROW] {
        let constants = vec![("WORKGROUP_SIZE", f64::from(threads))];
        for kernel in [&ops::top_k::TOP_K, &ops::log_softmax::LOG_SOFTMAX] {
            assert!(compile(kernel, &constants) <= least);
        }
    }
}

/// What an NVIDIA GPU, an Apple GPU, an AMD GPU with two widths of subgroups, a CPU and the least device have for our
/// kernels.
pub(super) fn imagined_gpus() -> [crate::gpu::Capabilities; 5] {
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
        gpu(Some((8, 8)), None, 32 << 10, 256),
        gpu(None, None, 16 << 10, 256),
    ]
}

/// An error in an edited shader is told with the line of the file, through all of wgpu.
#[test]
fn an_edited_shader_is_read_from_its_folder_and_its_errors_have_its_lines() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::create_dir(folder.path().join("shared")).expect("writable");
    let open = || {
        let options = GpuOptions {
            shaders: Some(folder.path().into()),
            ..GpuOptions::default()
        };
        pollster::block_on(Gpu::open(&options)).expect("an adapter")
    };
    let gated = |activate: &str| {
        let own = own_files().find(|(it, _)| it == "shared/activate");
        let text = own
            .expect("there")
            .1
            .replace("return max(v, 0.0);", activate);
        let mut lines = text.lines();
        let line = lines
            .position(|line| line.contains(activate))
            .expect("replaced")
            + 1;
        std::fs::write(folder.path().join("shared/activate.wgsl"), text).expect("writable");
        let gpu = open();
        let x = testing::upload(&gpu, &[2.0, 5.0], 1, 2);
        let target = gpu.storage("y", 4).expect("small");
        let mut program = ProgramBuilder::new(&gpu, "test");
        let y = gate(&mut program, &x, Activate::Relu);
        copy(&mut program, &y, &target);
        let run = program.finish(&ActivationPool::default()).map(|program| {
            program.run(&gpu);
            pollster::block_on(gpu.read::<f32>(&target, 1)).expect("readable")
        });
        (run, line)
    };
    assert_eq!(gated("return max(v, 3.0);").0.expect("valid"), [15.0]);
    for wrong in [
        "return maximum(v, 0.0);",
        "return v",
        "return vec2<f32>(v);",
    ] {
        let (run, line) = gated(wrong);
        let error = run.expect_err("not valid").to_string();
        // An error within a function may be told at its head, with its own line quoted.
        let named = [line, line + 1].map(|line| format!("shaders/shared/activate.wgsl:{line}:"));
        let quoted = format!(" {line} │ ");
        let is_told = error.contains("shaders/shared/activate.wgsl:") && error.contains(&quoted);
        assert!(
            is_told || named.iter().any(|it| error.contains(it)),
            "{line}: {error}"
        );
    }
}
