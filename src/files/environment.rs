//! Paths from environment variables, read as Python's `os.path.expandvars` and `expanduser` do: a file of
//! settings that Python's tools share is not read by a shell.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

/// What the variables hold.
pub(crate) type Variables<'v> = dyn Fn(&str) -> Option<OsString> + 'v;

/// A variable that cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{variable}: {problem}")]
pub(crate) struct VariableError {
    /// Its name.
    pub variable: &'static str,
    /// What is wrong and what to do.
    pub problem: String,
}

/// The path that the variable `name` holds; `None` where it is unset or blank.
///
/// # Errors
/// It is in the folder of a user who is not known.
pub(crate) fn path(name: &'static str) -> Result<Option<PathBuf>, VariableError> {
    path_in(name, &|name| std::env::var_os(name))
}

/// [`path`] from other variables than the process's.
pub(crate) fn path_in(
    name: &'static str,
    get: &Variables<'_>,
) -> Result<Option<PathBuf>, VariableError> {
    let Some(value) = set(name, get) else {
        return Ok(None);
    };
    let expanded = expand(&value, get).map_err(|problem| VariableError {
        variable: name,
        problem,
    });
    expanded.map(|path| Some(path.into()))
}

/// What the variable holds, unless it is blank.
pub(crate) fn set(name: &str, get: &Variables<'_>) -> Option<OsString> {
    get(name).filter(|value| !is_blank(value))
}

/// Whether a variable that holds `value` counts as unset.
pub(crate) fn is_blank(value: &OsStr) -> bool {
    value.to_str().is_some_and(|text| text.trim().is_empty())
}

/// `text` with `$NAME` and `${NAME}` replaced by what `get` has for them, and then `~` or `~user` at its
/// start by the user's folder. What is no variable stays as it is.
///
/// # Errors
/// No such user, for people.
pub(crate) fn expand(text: &OsStr, get: &Variables<'_>) -> Result<OsString, String> {
    if cfg!(not(unix)) && text.to_str().is_none() {
        return Ok(text.into());
    }
    let mut expanded = OsString::new();
    let mut rest = text.as_encoded_bytes();
    while let Some(dollar) = rest.iter().position(|&byte| byte == b'$') {
        let (before, after) = rest.split_at(dollar);
        expanded.push(os(before));
        let (name, length) = variable(&after[1..]);
        match name.and_then(get) {
            Some(value) => expanded.push(value),
            None => expanded.push(os(&after[..=length])),
        }
        rest = &after[1 + length..];
    }
    expanded.push(os(rest));
    let bytes = expanded.as_encoded_bytes();
    let Some(after) = bytes.strip_prefix(b"~") else {
        return Ok(expanded);
    };
    let is_slash = |&byte: &u8| byte == b'/' || (cfg!(windows) && byte == b'\\');
    let end = after.iter().position(is_slash).unwrap_or(after.len());
    let (user, below) = after.split_at(end);
    let mut path = home(&os(user).to_string_lossy(), get)?;
    path.push(os(below));
    Ok(path)
}

/// The folder of a user; of the one who runs the program where no name is given.
fn home(user: &str, get: &Variables<'_>) -> Result<OsString, String> {
    let own = || {
        let home = ["HOME", "USERPROFILE"];
        home.into_iter().find_map(|name| set(name, get))
    };
    let accounts = || std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let found = match user {
        "" => own().or_else(|| Some(home_in(&accounts(), 2, &own_number()?)?.into())),
        _ => home_in(&accounts(), 0, user).map(Into::into),
    };
    found.ok_or_else(|| match user {
        "" => "~ is the user's folder, and HOME is not set; set it, or write the folder out".into(),
        _ => format!("~{user} is the folder of a user who is not known here; write the folder out"),
    })
}

/// The folder in a line of `accounts`, a file as `/etc/passwd`, whose field number `index` is `value`.
fn home_in(accounts: &str, index: usize, value: &str) -> Option<String> {
    accounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let found = fields.get(index) == Some(&value);
        let home = fields.get(5).filter(|home| found && !home.is_empty());
        Some((*home?).to_owned())
    })
}

/// The number of the user who runs this, where the system tells it by a file.
fn own_number() -> Option<String> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let process = std::fs::metadata("/proc/self").ok()?;
        Some(process.uid().to_string())
    }
    #[cfg(not(unix))]
    None
}

/// Bytes of a path as one: on other systems than Unix a path is text here.
fn os(bytes: &[u8]) -> OsString {
    #[cfg(unix)]
    return std::os::unix::ffi::OsStringExt::from_vec(bytes.to_vec());
    #[cfg(not(unix))]
    String::from_utf8_lossy(bytes).into_owned().into()
}

/// The name of a variable at the start of `text`, which follows a `$`, and how long it is with its braces.
fn variable(text: &[u8]) -> (Option<&str>, usize) {
    if let Some(inner) = text.strip_prefix(b"{") {
        return match inner.iter().position(|&byte| byte == b'}') {
            Some(end) => (std::str::from_utf8(&inner[..end]).ok(), end + 2),
            None => (None, 0),
        };
    }
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let end = text.iter().position(|byte| !is_name(byte));
    let end = end.unwrap_or(text.len());
    let name = std::str::from_utf8(&text[..end]).ok();
    (name.filter(|name| !name.is_empty()), end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(name: &str) -> Option<OsString> {
        let known = [("HOME", "/home/me"), ("X", "~/deep"), ("A_1", "a")];
        let found = known.iter().find(|(variable, _)| *variable == name);
        found.map(|(_, value)| (*value).into())
    }

    #[test]
    fn variables_and_the_users_folder_are_expanded_as_in_python() {
        for (text, expanded) in [
            ("/plain", "/plain"),
            ("~", "/home/me"),
            ("~/hf", "/home/me/hf"),
            ("/a/~", "/a/~"),
            ("./~other", "./~other"),
            ("$HOME/x", "/home/me/x"),
            ("${HOME}x/$A_1-$A_1", "/home/mex/a-a"),
            ("$X", "/home/me/deep"),
            (
                "$UNKNOWN/${UNKNOWN}/$/${open",
                "$UNKNOWN/${UNKNOWN}/$/${open",
            ),
            ("a$", "a$"),
        ] {
            assert_eq!(expand(text.as_ref(), &get).unwrap(), *expanded, "{text}");
        }
    }

    #[test]
    fn another_users_folder_is_found_or_refused() {
        let accounts = "root:x:0:0:root:/root:/bin/sh\nann:x:7:7::/h/ann:\nnone:x:8:8:::\n";
        for (index, value, home) in [
            (0, "ann", Some("/h/ann")),
            (2, "0", Some("/root")),
            (0, "none", None),
            (0, "ro", None),
        ] {
            assert_eq!(home_in(accounts, index, value).as_deref(), home, "{value}");
        }
        let error = expand("~no-such-user/hf".as_ref(), &get).unwrap_err();
        assert!(error.contains("~no-such-user") && error.contains("write the folder"));
        // The system knows the user where no variable does.
        #[cfg(target_os = "linux")]
        assert_ne!(expand("~/x".as_ref(), &|_| None).unwrap(), "~/x");
    }

    #[cfg(unix)]
    #[test]
    fn paths_need_not_be_text() {
        use std::os::unix::ffi::OsStrExt;
        let bytes = |text: OsString| text.as_bytes().to_vec();
        let path = expand(OsStr::from_bytes(b"~/\xff$A_1"), &get).unwrap();
        assert_eq!(bytes(path), b"/home/me/\xffa");
        let odd = |_: &str| Some(OsStr::from_bytes(b"/\xfe").to_owned());
        let path = expand("$HOME/x".as_ref(), &odd).unwrap();
        assert_eq!(bytes(path), b"/\xfe/x");
    }
}
