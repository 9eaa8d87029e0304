//! Paths from environment variables, read as Python's `os.path.expandvars` and `expanduser` do: a file of
//! settings that Python's tools share is not read by a shell.

use std::path::PathBuf;

/// The path that the variable `name` holds; `None` where it is unset or blank.
pub(crate) fn path(name: &str) -> Option<PathBuf> {
    let value = std::env::var_os(name)?;
    match value.to_str() {
        Some(text) if text.trim().is_empty() => None,
        Some(text) => Some(expand(text, &|name| std::env::var(name).ok()).into()),
        None => Some(value.into()),
    }
}

/// `text` with `$NAME` and `${NAME}` replaced by what `get` has for them, and then `~` at its start by the
/// user's folder. What is not known stays as it is.
pub(crate) fn expand(text: &str, get: &dyn Fn(&str) -> Option<String>) -> String {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        let (before, after) = rest.split_at(dollar);
        expanded.push_str(before);
        let (name, length) = variable(&after[1..]);
        let value = name.and_then(get);
        match value {
            Some(value) => expanded.push_str(&value),
            None => expanded.push_str(&after[..=length]),
        }
        rest = &after[1 + length..];
    }
    expanded.push_str(rest);
    let home = || ["HOME", "USERPROFILE"].into_iter().find_map(get);
    match expanded.strip_prefix('~') {
        Some(below) if below.is_empty() || below.starts_with(['/', '\\']) => match home() {
            Some(home) => home + below,
            None => expanded,
        },
        _ => expanded,
    }
}

/// The name of a variable at the start of `text`, which follows a `$`, and how long it is with its braces.
fn variable(text: &str) -> (Option<&str>, usize) {
    if let Some(inner) = text.strip_prefix('{') {
        return match inner.find('}') {
            Some(end) => (Some(&inner[..end]), end + 2),
            None => (None, 0),
        };
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let end = text.find(|c| !is_name(c)).unwrap_or(text.len());
    ((end > 0).then_some(&text[..end]), end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_and_the_users_folder_are_expanded_as_in_python() {
        let get = |name: &str| {
            let known = [("HOME", "/home/me"), ("X", "~/deep"), ("A_1", "a")];
            let found = known.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        for (text, expanded) in [
            ("/plain", "/plain"),
            ("~", "/home/me"),
            ("~/hf", "/home/me/hf"),
            ("~other/hf", "~other/hf"),
            ("/a/~", "/a/~"),
            ("$HOME/x", "/home/me/x"),
            ("${HOME}x/$A_1-$A_1", "/home/mex/a-a"),
            ("$X", "/home/me/deep"),
            (
                "$UNKNOWN/${UNKNOWN}/$/${open",
                "$UNKNOWN/${UNKNOWN}/$/${open",
            ),
            ("a$", "a$"),
        ] {
            assert_eq!(expand(text, &get), expanded, "{text}");
        }
        assert_eq!(expand("~/x", &|_| None), "~/x");
    }
}
