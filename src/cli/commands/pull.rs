//! `blip2-wgpu pull NAME`

use std::path::Path;

use crate::Error;
use crate::hub::{CacheState, Hub, HubSettings, Listing, MAIN, RepoName};

use crate::cli::shared::hub::fetch;
use crate::cli::shared::output::Output;

const EXAMPLES: &str = "\
Examples:
  blip2-wgpu pull Salesforce/blip2-opt-2.7b
  blip2-wgpu pull facebook/opt-2.7b --revision main

The cache is Python's (~/.cache/huggingface/hub). HF_TOKEN, HF_HUB_CACHE, HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE count as there.";

/// Fetches a checkpoint into the cache.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Its name on the hub
    #[arg(value_name = "OWNER/NAME")]
    name: String,
    /// Branch, tag or commit
    #[arg(long, value_name = "REVISION", default_value = MAIN)]
    revision: String,
}

/// Fetches what the cache lacks; the checkpoint's folder goes to stdout.
pub fn run(args: &Args, output: &Output) -> Result<bool, Error> {
    let hub = Hub::new(HubSettings::from_environment()?);
    let repo = RepoName::parse(&args.name)?;
    if hub.settings().offline {
        let cached = match hub.state(&repo, &args.revision) {
            CacheState::Whole { folder } => Some((folder, Vec::new())),
            CacheState::Usable {
                folder, unknown, ..
            } => Some((folder, unknown)),
            // Listing it says that nothing may be fetched.
            CacheState::Part { .. } | CacheState::Nothing => None,
        };
        if let Some((folder, unknown)) = cached {
            if !unknown.is_empty() {
                output.warning(&format!(
                    "{repo}: the cache has what is needed; whether the hub has {} too is not known offline",
                    unknown.join(", ")
                ));
            }
            print(&folder, None, args, output);
            return Ok(true);
        }
    }
    let listing = hub.list(&repo, &args.revision)?;
    let folder = fetch(&hub, &listing, output)?;
    print(&folder, Some(&listing), args, output);
    Ok(true)
}

fn print(folder: &Path, listing: Option<&Listing>, args: &Args, output: &Output) {
    if !output.json {
        output.line(&folder.display().to_string());
        return;
    }
    let mut line = serde_json::json!({
        "name": args.name,
        "revision": args.revision,
        "path": folder.display().to_string(),
    });
    if let Some(listing) = listing {
        line["commit"] = listing.commit.as_str().into();
        line["files"] = listing.files.len().into();
        line["bytes"] = listing.bytes().into();
    }
    output.line(&line.to_string());
}
