//! How the command line spells what the library's errors name.
//!
//! The library knows parameters, in backticks: `max_new_tokens`, `batch_size`. Python's arguments
//! have these names too. Only here do they become flags.

/// What the library says, and what the user of the command line reads. A phrase stands before the
/// name in it.
const SPELLINGS: [(&str, &str); 21] = [
    (
        "pass `model`, a BLIP-2 folder in the Hugging Face layout",
        "pass --model DIR, a BLIP-2 folder in the Hugging Face layout (or set BLIP2_WGPU_MODEL)",
    ),
    ("pass `llm`", "pass --llm DIR"),
    ("pass `tokenizer`", "pass --tokenizer DIR"),
    ("pass `vit`", "pass --vit FILE"),
    (
        "convert it with `quant` q8",
        "`blip2-wgpu convert IN OUT --quant q8`",
    ),
    // An option of generation is named as in `generation_config.json`, by which people know it.
    (
        "generation option `num_return_sequences`",
        "generation option `num_return_sequences` (--num-captions)",
    ),
    ("lower `max_new_tokens`", "lower --max-new-tokens"),
    ("`adapter`", "--adapter"),
    ("`batch_size`", "--batch-size"),
    ("`batches`", "--batches"),
    ("`config`", "--config"),
    ("`dtype`", "--dtype"),
    ("`llm`", "--llm"),
    ("`memory`", "--memory"),
    ("`profile`", "--profile"),
    ("`prompt`", "--prompt"),
    ("`quant`", "--quant"),
    ("`revision`", "--revision"),
    ("`tokenizer`", "--tokenizer"),
    ("`trace`", "--trace"),
    ("`vit`", "--vit"),
];

/// `text` with the library's parameters as flags.
pub fn spelled(text: &str) -> String {
    let replaced = |text: String, (name, flag): (&str, &str)| text.replace(name, flag);
    SPELLINGS.into_iter().fold(text.to_owned(), replaced)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn parameters_become_flags() {
        assert_eq!(
            spelled("a: lacks b; pass `vit`: c, or shorten it or lower `max_new_tokens`"),
            "a: lacks b; pass --vit FILE: c, or shorten it or lower --max-new-tokens"
        );
        let option = "generation option `max_new_tokens`: is 0";
        assert_eq!(spelled(option), option);
    }

    /// Lines of the library's code, comments left out, that have a flag in them.
    fn flags_below(folder: &Path, found: &mut Vec<String>) {
        for entry in folder.read_dir().expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.ends_with("src/cli") || path.ends_with("src/serve") {
                continue;
            }
            if path.is_dir() {
                flags_below(&path, found);
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("a source file");
            let is_flag = |line: &str, at: usize| {
                let after = line[at + 2..].starts_with(|c: char| c.is_ascii_lowercase());
                after && !line[..at].ends_with(char::is_alphanumeric)
            };
            let code = text.lines().filter(|line| !line.trim().starts_with("//"));
            let with_flag = code.filter(|line| {
                let mut dashes = line.match_indices("--");
                dashes.any(|(at, _)| is_flag(line, at))
            });
            found.extend(with_flag.map(|line| format!("{}: {line}", path.display())));
        }
    }

    #[test]
    fn the_library_knows_no_flag() {
        let mut found = Vec::new();
        flags_below(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
            &mut found,
        );
        assert!(
            found.is_empty(),
            "name the parameter in backticks instead, and add it to SPELLINGS:\n{}",
            found.join("\n")
        );
    }
}
