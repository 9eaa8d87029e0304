//! Doors for `fuzz/`: readers of foreign bytes that are not public otherwise. No part of the interface.

use std::path::Path;

use crate::files::text;
use crate::text::{StopStrings, fuzz_shown};

pub use crate::cli::fuzz::{earlier_results, pairs, predictions, texts};
pub use crate::hub::fuzz as hub_answer;
pub use crate::image::fuzz_headers as image_headers;
pub use crate::task::{fuzz_dump as dump, fuzz_index as index};
pub use crate::weights::fuzz_pickle as pickle;

/// The text of `bytes` in any encoding, and the JSON in it.
pub fn decode_text(bytes: &[u8]) -> Option<String> {
    let _ = text::json::<serde_json::Value>(bytes);
    let text = text::decode(bytes);
    text.map(|text| text.into_owned())
        .map_err(|error| error.to_string())
        .ok()
}

/// Shows a text that comes in `pieces` and ends before the first of `stop`.
///
/// # Panics
/// What is shown is not the text's beginning, trimmed.
pub fn stream(stop: &[String], pieces: &[&[u8]]) {
    let stop = StopStrings::new(stop);
    let shown = fuzz_shown(stop.clone(), pieces);
    let shown: String = shown.into_iter().flatten().collect();
    let whole = pieces.concat();
    let whole = String::from_utf8_lossy(&whole);
    let whole = stop.cut(&whole).unwrap_or(&whole).trim();
    assert_eq!(shown, whole);
}

/// Reads the adapter's settings in `folder`, if any.
pub fn adapter(folder: &Path) {
    let _ = crate::weights::refuse_adapter(folder);
}
