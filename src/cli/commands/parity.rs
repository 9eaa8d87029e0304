//! `blip2-wgpu parity MODEL DUMP`

use std::path::PathBuf;

use crate::Error;
use crate::task::{DumpModel, DumpSummary, ParityReport, TOLERANCE, Work};

use crate::cli::shared::Shared;
use crate::cli::shared::output::Output;

/// Compares every stage with a reference dump.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: blip2-wgpu parity tests/data/tiny tests/data/tiny_dump.safetensors"
)]
pub struct Args {
    /// Checkpoint folder, or its name on the hub
    #[arg(value_name = "MODEL")]
    checkpoint: PathBuf,
    /// Dump made by weights-tools/reference_dump.py or retrieval_dump.py
    dump: PathBuf,
}

/// A row a stage; `false` if any stage fails.
pub async fn run(shared: &Shared, args: &Args, output: &Output) -> Result<bool, Error> {
    let mut shared = shared.clone();
    shared.model = Some(args.checkpoint.clone());
    let dump = DumpSummary::read(&args.dump)?;
    shared.find_model(output)?;
    let image_size = Some(dump.image_size);
    let report = match dump.model {
        DumpModel::Generation => {
            let mut model = shared.open(image_size, Work::default(), output).await?;
            model.parity(&args.dump).await?
        }
        DumpModel::Retrieval => {
            let mut model = shared.open_retriever(image_size, None, output).await?;
            model.parity(&args.dump).await?
        }
    };
    print_report(&report, output);
    Ok(report.pass())
}

/// A row a stage.
pub fn print_report(report: &ParityReport, output: &Output) {
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
}
