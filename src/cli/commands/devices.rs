//! `blip2-wgpu devices`

use crate::Error;
use crate::gpu::{AdapterReport, list_adapters};
use crate::kernels::{MATVEC_ROWS, attention_candidates, candidates};

use crate::cli::shared::Shared;
use crate::cli::shared::output::Output;

const MIB: u64 = 1 << 20;

/// Lists the adapters.
pub async fn run(shared: &Shared, output: &Output) -> Result<bool, Error> {
    let disabled = shared.gpu_options()?.disabled;
    for (index, mut adapter) in list_adapters().await?.into_iter().enumerate() {
        adapter.capabilities = adapter.capabilities.without(disabled);
        let adapter = &adapter;
        output.line(&if output.json {
            json(index, adapter).to_string()
        } else {
            table(index, adapter)
        });
    }
    Ok(true)
}

fn json(index: usize, adapter: &AdapterReport) -> serde_json::Value {
    let AdapterReport {
        info,
        capabilities,
        preferred,
    } = adapter;
    serde_json::json!({
        "index": index,
        "name": info.name,
        "backend": info.backend.to_string(),
        "type": format!("{:?}", info.device_type),
        "driver": info.driver,
        "driver_info": info.driver_info,
        "preferred": preferred,
        "f16": capabilities.f16,
        "subgroups": capabilities.subgroups.map(|(least, greatest)| [least, greatest]),
        "cooperative_matrices": shapes(adapter),
        "timestamps": capabilities.timestamps,
        "pipeline_cache": capabilities.pipeline_cache,
        "max_binding_bytes": capabilities.max_binding_bytes,
        "max_buffer_bytes": capabilities.max_buffer_bytes,
        "workgroup_bytes": capabilities.workgroup_bytes,
        "invocations": capabilities.invocations,
        "matmul": linear_kernels(adapter, MATVEC_ROWS + 1),
        "matvec": linear_kernels(adapter, 1),
        "attention": attention_kernels(adapter),
    })
}

fn table(index: usize, adapter: &AdapterReport) -> String {
    let AdapterReport {
        info,
        capabilities,
        preferred,
    } = adapter;
    let yes_no = |yes: bool| if yes { "yes" } else { "no" };
    let subgroups = match capabilities.subgroups {
        None => "no".into(),
        Some((least, greatest)) if least == greatest => format!("{least} lanes"),
        Some((least, greatest)) => format!("{least} to {greatest} lanes"),
    };
    let matrices = shapes(adapter);
    let matrices = if matrices.is_empty() {
        "none".into()
    } else {
        matrices.join(", ")
    };
    let rows = [
        (
            "backend",
            format!("{} ({:?})", info.backend, info.device_type),
        ),
        ("driver", format!("{} {}", info.driver, info.driver_info)),
        ("f16", yes_no(capabilities.f16).into()),
        ("subgroups", subgroups),
        ("cooperative matrices", matrices),
        (
            "binding, at most",
            format!("{} MiB", capabilities.max_binding_bytes / MIB),
        ),
        (
            "buffer, at most",
            format!("{} MiB", capabilities.max_buffer_bytes / MIB),
        ),
        (
            "workgroup",
            format!(
                "{} bytes, {} invocations",
                capabilities.workgroup_bytes, capabilities.invocations
            ),
        ),
        ("pipeline cache", yes_no(capabilities.pipeline_cache).into()),
        ("timestamps", yes_no(capabilities.timestamps).into()),
        ("matmul kernel", linear_kernels(adapter, MATVEC_ROWS + 1)),
        ("matvec kernel", linear_kernels(adapter, 1)),
        ("attention kernel", attention_kernels(adapter)),
    ];
    let mut text = format!(
        "{index}: {}{}",
        info.name,
        if *preferred { "  (auto)" } else { "" }
    );
    for (label, value) in rows {
        text.push_str(&format!("\n   {label:<22}{value}"));
    }
    text
}

/// The kernels for linear layers of `rows` rows, the one that is taken unmeasured first.
fn linear_kernels(adapter: &AdapterReport, rows: usize) -> String {
    let names: Vec<_> = candidates(&adapter.capabilities, rows)
        .iter()
        .map(ToString::to_string)
        .collect();
    names.join(", ")
}

/// The kernels for attention, the one that is taken first in front.
fn attention_kernels(adapter: &AdapterReport) -> String {
    let names: Vec<_> = attention_candidates(&adapter.capabilities)
        .iter()
        .map(ToString::to_string)
        .collect();
    names.join(", ")
}

/// Cooperative-matrix shapes as `16x16x16 F16->F32`.
fn shapes(adapter: &AdapterReport) -> Vec<String> {
    adapter
        .capabilities
        .cooperative_matrices
        .iter()
        .map(|p| {
            format!(
                "{}x{}x{} {:?}->{:?}",
                p.m_size, p.n_size, p.k_size, p.ab_type, p.cr_type
            )
        })
        .collect()
}
