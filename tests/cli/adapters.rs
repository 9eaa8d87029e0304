//! `devices`, `--adapter` and `--kernel`.

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

#[test]
fn the_chosen_kernels_serve_and_verbose_says_so() {
    let flags = [
        "--verbose",
        "--kernel=linear=tile,attention=flash",
        "--kernel=matvec=matvec", // by the kernel's name; `devices` calls it vector
        HOUSE,
    ];
    let told = caption(TINY, &flags).exits(0).stderr;
    let count = |word: &str, is_right: fn(&str) -> bool| {
        let lines: Vec<&str> = told
            .iter()
            .map(String::as_str)
            .filter(|line| line.contains(word))
            .collect();
        let wrong = lines.iter().find(|line| !is_right(line));
        assert_eq!(wrong, None, "{told:#?}");
        lines.len()
    };
    let products = count("product ", |line| {
        let rows = line
            .split("product ")
            .nth(1)
            .and_then(|it| it.split('x').next());
        let rows: usize = rows.expect("rows x out x in").parse().expect("a number");
        let kernel = if rows <= 8 {
            ": matvec (vector)"
        } else {
            ": matmul_tile (tile "
        };
        line.contains(kernel)
    });
    // The ViT's and the Q-Former's layers differ in shape, and a step has fewer rows than the prefill.
    assert!(products > 8, "{told:#?}");
    let is_flash = |line: &str| line.contains(": attention_flash (flash ");
    assert!(count("attention ", is_flash) >= 2, "{told:#?}");
}

#[test]
fn a_kernel_that_cannot_be_chosen_is_wrong_usage() {
    for (flags, parts) in [
        (&["--kernel", "tile"][..], &["'tile'", "FAMILY=VARIANT"][..]),
        (
            &["--kernel", "conv=tile"],
            &["'conv=tile'", "attention, linear, matmul, matvec"],
        ),
        (
            &["--kernel", "linear=warp"],
            &["'linear=warp'", "this device has", "tile 64x64", "vector"],
        ),
        (
            &[
                "--kernel",
                "matvec=matvec_subgroup",
                "--disable",
                "subgroups",
            ],
            &["'matvec=matvec_subgroup'", "it needs subgroups"],
        ),
    ] {
        let run = caption(TINY, &[flags, &[HOUSE]].concat())
            .exits(2)
            .one_error(parts);
        assert!(run.stdout.is_empty(), "{run:#?}");
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
