//! `blip2-wgpu parity MODEL DUMP`

use std::path::PathBuf;

use crate::Error;
use crate::task::{Blip2, TOLERANCE, Work};

use super::Shared;
use super::output::Output;

/// Compares every stage with a reference dump.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: blip2-wgpu parity tests/data/tiny tests/data/tiny_dump.safetensors"
)]
pub(super) struct Args {
    /// Checkpoint folder
    #[arg(value_name = "MODEL")]
    checkpoint: PathBuf,
    /// Dump made by weights-tools/reference_dump.py
    dump: PathBuf,
}

/// A row a stage; `false` if any stage fails.
pub(super) async fn run(shared: &Shared, args: &Args, output: &Output) -> Result<bool, Error> {
    let shared = Shared {
        model: Some(args.checkpoint.clone()),
        ..shared.clone()
    };
    let image_size = Blip2::dump_image_size(&args.dump)?;
    let mut model = shared
        .open(Some(image_size), Work::default(), output)
        .await?;
    let report = model.parity(&args.dump).await?;
    if !output.json {
        output.line(&format!(
            "{:<52}{:>12}{:>12}  (relative at most {TOLERANCE:e})",
            "stage", "relative", "max"
        ));
    }
    for row in &report.rows {
        let verdict = if row.pass { "pass" } else { "FAIL" };
        output.line(&if output.json {
            serde_json::json!({
                "stage": row.stage,
                "relative_error": row.relative_error,
                "max_error": row.max_error,
                "pass": row.pass,
                "note": row.note,
            })
            .to_string()
        } else {
            let line = format!(
                "{:<52}{:>12.2e}{:>12.2e}  {verdict}  {}",
                row.stage, row.relative_error, row.max_error, row.note
            );
            line.trim_end().to_owned()
        });
    }
    Ok(report.pass())
}
