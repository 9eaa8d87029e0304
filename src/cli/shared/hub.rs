//! Names of the hub, wherever a checkpoint is asked for.

use std::path::{Path, PathBuf};

use crate::Error;
use crate::hub::{CacheState, Hub, HubSettings, Listing, MAIN, RepoName};

use super::output::{Output, byte_progress};

/// Says how much there is to fetch, and fetches it.
pub fn fetch(hub: &Hub, listing: &Listing, output: &Output) -> Result<PathBuf, Error> {
    let missing = hub.missing_bytes(listing);
    if missing > 0 {
        output.note(&format!(
            "{}: fetching {} of {} in {} files from {} to {}; if broken off, run it again to go on",
            listing.repo,
            size(missing),
            size(listing.bytes()),
            listing.files.len(),
            hub.settings().endpoint,
            hub.settings().cache.display()
        ));
    }
    let mut progress = byte_progress(output, "fetching");
    Ok(hub.pull(listing, &mut progress)?)
}

/// The folder that `--model` means: the path itself if there is something, or if it is no name;
/// else the checkpoint of that name, from the cache or, after saying how large it is, from the hub.
pub fn resolve(model: &Path, output: &Output) -> Result<PathBuf, Error> {
    let name = model.to_str().filter(|_| !model.exists());
    let Some(repo) = name.and_then(|name| RepoName::parse(name).ok()) else {
        return Ok(model.to_path_buf());
    };
    let hub = Hub::new(HubSettings::from_environment()?);
    match hub.state(&repo, MAIN) {
        CacheState::Whole { folder } => Ok(folder),
        CacheState::Usable { folder, .. } if hub.settings().offline => Ok(folder),
        // The rest of what is there, not the hub's newest, of which nothing may be there.
        CacheState::Usable { folder, commit, .. } => match hub.list(&repo, &commit) {
            Ok(listing) => fetch(&hub, &listing, output),
            Err(error) => {
                output.warning(&format!(
                    "{error}; {repo} is used as the cache has it, which may not be all of it"
                ));
                Ok(folder)
            }
        },
        CacheState::Part { commit, .. } if !hub.settings().offline => {
            fetch(&hub, &hub.list(&repo, &commit)?, output)
        }
        CacheState::Part { .. } | CacheState::Nothing => {
            output.note(&format!(
                "{repo}: no such folder here; looking for the checkpoint of this name"
            ));
            fetch(&hub, &hub.list(&repo, MAIN)?, output)
        }
    }
}

/// `7489523712` → `7.49 GB`
fn size(bytes: u64) -> String {
    let (unit, name) = match bytes {
        1_000_000_000.. => (1e9, "GB"),
        1_000_000.. => (1e6, "MB"),
        1_000.. => (1e3, "kB"),
        _ => return format!("{bytes} bytes"),
    };
    format!("{:.2} {name}", bytes as f64 / unit)
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_are_short() {
        assert_eq!(size(999), "999 bytes");
        assert_eq!(size(7_489_523_712), "7.49 GB");
        assert_eq!(size(1_500_000), "1.50 MB");
    }
}
