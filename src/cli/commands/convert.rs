//! `blip2-wgpu convert IN OUT`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::Error;
#[cfg(unix)]
use crate::convert::unfinished_folder;
use crate::convert::{Conversion, ConvertOptions, convert};
use crate::weights::Format;

use crate::cli::shared::Shared;
use crate::cli::shared::output::{Output, byte_progress};

const EXAMPLES: &str = "\
Examples:
  blip2-wgpu convert blip2_pretrained_opt2.7b.pth blip2-opt-2.7b --vit eva_vit_g.pth --llm facebook/opt-2.7b
  blip2-wgpu convert blip2_finetune_coco.pth blip2-itm-coco --tokenizer bert-base-uncased
  blip2-wgpu convert blip2-opt-2.7b blip2-opt-2.7b-q8 --quant q8

LAVIS saves generative checkpoints without the language model, and most without the vision transformer; mmpretrain
saves its generative one without the language model. Nothing in a .pth file is executed.";

/// Makes a folder that --model takes.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A .pth file of LAVIS or mmpretrain, or a folder (or file) of transformers
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The folder to make
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// Element type of all tensors; left out, each stays as it is stored
    #[arg(long, value_name = "f16|f32")]
    dtype: Option<Dtype>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Dtype {
    F16,
    F32,
}

/// Converts; what was left out or decided goes to stderr.
pub fn run(shared: &Shared, args: &Args, output: &Output) -> Result<bool, Error> {
    let mut parts = shared.parts.clone();
    parts.find_llm(&args.input, output)?;
    let options = ConvertOptions {
        parts: parts.to_options(),
        format: args.dtype.map(|dtype| match dtype {
            Dtype::F16 => Format::F16,
            Dtype::F32 => Format::F32,
        }),
        quant: shared.quant().filter(|format| format.is_quantised()),
        ..ConvertOptions::default()
    };
    remove_when_stopped(&args.out);
    let mut progress = byte_progress(output, "writing");
    let conversion = convert(&args.input, &args.out, &options, &mut progress)?;
    explain(&conversion, output);
    let kind = conversion.kind;
    if output.json {
        let line = serde_json::json!({
            "out": args.out.display().to_string(),
            "family": kind.family.name(),
            "task": kind.task.name(),
            "tensors": conversion.tensors,
            "bytes": conversion.bytes,
            "files": conversion.shards,
            "left_out": conversion.left_out,
            "unknown": conversion.unknown,
        });
        output.line(&line.to_string());
    } else {
        output.line(&format!(
            "{}: {} {} checkpoint, {} tensors, {} bytes in {} file(s)",
            args.out.display(),
            kind.family.name(),
            kind.task.name(),
            conversion.tensors,
            conversion.bytes,
            conversion.shards,
        ));
    }
    Ok(true)
}

/// Has Ctrl-C, or the end of the terminal or system, remove what is written so far. Without that
/// the next conversion does.
#[cfg(unix)]
fn remove_when_stopped(out: &Path) {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;

    let (Some(unfinished), Ok(mut signals)) = (
        unfinished_folder(out),
        Signals::new([SIGHUP, SIGINT, SIGTERM]),
    ) else {
        return;
    };
    std::thread::spawn(move || {
        let Some(signal) = signals.forever().next() else {
            return;
        };
        // The conversion goes on meanwhile and may make a file in it.
        for _ in 0..10 {
            let removed = std::fs::remove_dir_all(&unfinished);
            if removed.is_ok() || !unfinished.exists() {
                break;
            }
        }
        // What a shell takes as "ended by this signal".
        std::process::exit(128 + signal);
    });
}

#[cfg(not(unix))]
fn remove_when_stopped(_: &Path) {}

/// Says what a user may want to know of the conversion.
fn explain(conversion: &Conversion, output: &Output) {
    for note in &conversion.notes {
        output.note(note);
    }
    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, reason) in &conversion.left_out {
        reasons.entry(reason).or_default().push(name);
    }
    for (reason, names) in reasons {
        let more = match names.len() {
            1 => String::new(),
            count => format!(" and {} more", count - 1),
        };
        output.note(&format!("left out: {}{more} ({reason})", names[0]));
    }
    if !conversion.unknown.is_empty() {
        output.warning(&format!(
            "{} tensors are no part of the model and were left out: {}",
            conversion.unknown.len(),
            conversion.unknown.join(", ")
        ));
    }
}
