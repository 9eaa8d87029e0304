//! Files that are not what they should be. Each is named on one line with what to do about it, the exit code is 1,
//! everything else is still done, and nothing panics.

mod configurations;
mod images;
mod weights;

use crate::cli_support::{HOUSE, ModelCopy, caption, plain_captions};

/// What to do to a copy of the checkpoint.
type Spoil = fn(&ModelCopy);

/// Fails unless a checkpoint spoilt so gives one error line with all `parts`, and nothing else.
#[track_caller]
fn refused(spoil: Spoil, parts: &[&str]) {
    let model = ModelCopy::new();
    spoil(&model);
    let run = caption(model.path(), &[HOUSE]).exits(1);
    assert!(run.stdout.is_empty(), "{run:#?}");
    let folder = model.path().display().to_string();
    let run = run.one_error(&[&folder]).one_error(parts);
    assert!(run.stderr[0].contains("; "), "no remedy: {run:#?}");
}

fn accepted(spoil: Spoil) {
    let model = ModelCopy::new();
    spoil(&model);
    let line = caption(model.path(), &[HOUSE]).exits(0).one_json();
    assert_eq!(line["tokens"], plain_captions()[0]["tokens"]);
}

fn half(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len() / 2]
}
