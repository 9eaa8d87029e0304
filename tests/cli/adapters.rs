//! `devices` and `--adapter`.

use crate::Object;
use crate::cli_support::{HOUSE, TINY, caption, run};

fn adapters() -> Vec<Object> {
    run(["devices", "--json"]).exits(0).json()
}

#[test]
fn devices_lists_what_each_adapter_can_do() {
    let adapters = adapters();
    for (index, adapter) in adapters.iter().enumerate() {
        assert_eq!(adapter["index"], index);
        for key in [
            "name",
            "backend",
            "type",
            "driver",
            "f16",
            "subgroups",
            "cooperative_matrices",
            "max_binding_bytes",
            "max_buffer_bytes",
            "workgroup_bytes",
            "invocations",
            "matmul",
            "matvec",
            "attention",
            "preferred",
            "pipeline_cache",
            "timestamps",
        ] {
            assert!(adapter.contains_key(key), "{key}: {adapter:?}");
        }
        assert!(adapter["max_binding_bytes"].as_u64() >= Some(128 << 20));
    }
    let preferred = adapters
        .iter()
        .filter(|adapter| adapter["preferred"] == true);
    assert_eq!(preferred.count(), 1);
    let table = run(["devices"]).exits(0).stdout;
    for adapter in &adapters {
        assert!(table.contains(adapter["name"].as_str().unwrap()), "{table}");
    }
    for word in [
        "f16",
        "subgroups",
        "cooperative matrices",
        "binding",
        "workgroup",
        "auto",
    ] {
        assert!(table.contains(word), "{table}");
    }
}

#[test]
fn an_adapter_by_number_and_by_name() {
    let adapters = adapters();
    let last = adapters.len() - 1;
    let name = adapters[last]["name"].as_str().unwrap();
    let start: String = name.chars().take(4).collect();
    for choice in [last.to_string(), name.to_uppercase(), start] {
        let report = run(["inspect", TINY, "--json", "--adapter", &choice])
            .exits(0)
            .one_json();
        if choice == last.to_string() {
            assert_eq!(report["adapter"], name);
        }
    }
    for choice in ["nonsense", "99", "-1"] {
        caption(TINY, &[&format!("--adapter={choice}"), HOUSE])
            .exits(1)
            .one_error(&[
                choice,
                adapters[0]["name"].as_str().unwrap(),
                "blip2-wgpu devices",
            ]);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn without_any_adapter_it_names_the_package() {
    use crate::cli_support::{DUMP, command, finish};
    for arguments in [
        &["devices"][..],
        &["caption", "--model", TINY, HOUSE],
        &["inspect", TINY],
        &["parity", TINY, DUMP],
    ] {
        let mut command = command(arguments);
        for variable in ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"] {
            command.env(variable, "/nonexistent");
        }
        command.env_remove("BLIP2_WGPU_ADAPTER");
        let run = finish(command)
            .exits(1)
            .one_error(&["no GPU adapter", "install", "ulkan"]);
        assert!(run.stdout.is_empty(), "{run:#?}");
    }
}
