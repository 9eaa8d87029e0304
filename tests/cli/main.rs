//! The command line's contract, on the real program and the tiny checkpoint: keys, order, flags, exit codes, and
//! what goes to which stream.

mod adapters;
mod caption;
#[path = "../support/cli_support/mod.rs"]
mod cli_support;
mod explain;
mod flags;
mod folders;
mod generation;
mod inspect;
mod results;
mod stages;
mod streams;
mod vqa;

use serde_json::{Map, Value};

type Object = Map<String, Value>;

fn keys(object: &Object) -> Vec<&str> {
    let mut keys: Vec<_> = object.keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

/// The value of `key` in each line.
fn column<'a>(lines: &'a [Object], key: &str) -> Vec<&'a Value> {
    lines.iter().map(|line| &line[key]).collect()
}

fn token_count(line: &Object) -> usize {
    line["tokens"].as_array().expect("tokens").len()
}

fn score(value: &Value) -> f64 {
    value["score"].as_f64().expect("a score")
}

/// Fails unless both have the same tokens and texts, and scores as near as another kernel variant gives them.
#[track_caller]
fn assert_same_captions(ours: &[Object], others: &[Object]) {
    for key in ["tokens", "pred_caption", "num_tokens"] {
        assert_eq!(column(ours, key), column(others, key));
    }
    for (a, b) in ours.iter().zip(others) {
        let (a, b) = (a["score"].as_f64().unwrap(), b["score"].as_f64().unwrap());
        assert!((a - b).abs() < 1e-2, "{a} {b}");
    }
}
