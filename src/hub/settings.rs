//! Where the hub is, who asks, and where the cache lies: from the environment, as `huggingface_hub`
//! reads it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::files::bounded::{self, MAX_SMALL_BYTES};
use crate::files::environment::{self, Variables};
use crate::files::text;

use super::{HubError, RepoName};

const ENDPOINT: &str = "https://huggingface.co";

/// Settings of a [`super::Hub`].
#[derive(Clone)]
pub struct HubSettings {
    /// The hub's address, without a slash at the end.
    pub endpoint: String,
    /// The folder of the cache.
    pub cache: PathBuf,
    /// The user's token.
    pub token: Option<String>,
    /// Whether to use the cache alone.
    pub offline: bool,
    /// How often a broken download is continued without a byte gained before it is given up.
    pub retries: u32,
    /// How long to wait before the first of these; each further one waits twice as long.
    pub retry_after: Duration,
}

impl std::fmt::Debug for HubSettings {
    /// Without the token, which belongs in no log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubSettings")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

impl HubSettings {
    /// From `HF_ENDPOINT`, `HF_HUB_CACHE` (`HUGGINGFACE_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`),
    /// `HF_TOKEN` (`HUGGING_FACE_HUB_TOKEN`, the file `HF_TOKEN_PATH` or `token` in `HF_HOME`;
    /// `HF_HUB_DISABLE_IMPLICIT_TOKEN` leaves it out) and `HF_HUB_OFFLINE`
    /// (`TRANSFORMERS_OFFLINE`).
    ///
    /// # Errors
    /// A path in the folder of a user who is not known.
    pub fn from_environment() -> Result<Self, HubError> {
        Self::from_variables(&|name| std::env::var_os(name))
    }

    fn from_variables(get: &Variables<'_>) -> Result<Self, HubError> {
        // What is no text is no text that any of these allow; `check` names it.
        let text = |value: OsString| value.to_string_lossy().into_owned();
        let set = |name: &str| environment::set(name, get).map(text);
        let flag = |name: &str| {
            let value = set(name).unwrap_or_default().to_ascii_uppercase();
            ["1", "ON", "YES", "TRUE"].contains(&value.as_str())
        };
        let path = |name| environment::path_in(name, get);
        let caches = || match path("XDG_CACHE_HOME")? {
            Some(caches) => Ok(caches),
            None => environment::expand("~/.cache".as_ref(), get)
                .map(PathBuf::from)
                .map_err(|problem| HubError::Setting {
                    variable: "HF_HOME",
                    problem,
                }),
        };
        let home = || match path("HF_HOME")? {
            Some(home) => Ok(home),
            None => caches().map(|caches| caches.join("huggingface")),
        };
        let cache = match path("HF_HUB_CACHE")? {
            None => path("HUGGINGFACE_HUB_CACHE")?,
            cache => cache,
        };
        let token = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]
            .into_iter()
            .find_map(set);
        let token = match token {
            None if !flag("HF_HUB_DISABLE_IMPLICIT_TOKEN") => {
                let file = match path("HF_TOKEN_PATH")? {
                    Some(file) => file,
                    None => home()?.join("token"),
                };
                let bytes = bounded::read(&file, MAX_SMALL_BYTES).ok();
                bytes.and_then(|bytes| Some(text::decode(&bytes).ok()?.into_owned()))
            }
            token => token,
        };
        let token = token.map(|token| token.trim().to_owned());
        Ok(Self {
            endpoint: set("HF_ENDPOINT").map_or_else(
                || ENDPOINT.to_owned(),
                |url| url.trim_end_matches('/').to_owned(),
            ),
            cache: match cache {
                Some(cache) => cache,
                None => home()?.join("hub"),
            },
            token: token.filter(|token| !token.is_empty()),
            offline: flag("HF_HUB_OFFLINE") || flag("TRANSFORMERS_OFFLINE"),
            retries: 5,
            retry_after: Duration::from_millis(500),
        })
    }
}

impl HubSettings {
    /// The page of a repository.
    pub(super) fn page(&self, repo: &RepoName) -> String {
        format!("{}/{repo}", self.endpoint)
    }

    /// Refuses what no request can be made with.
    pub(super) fn check(&self) -> Result<(), HubError> {
        let with_scheme = ["http://", "https://"]
            .iter()
            .any(|scheme| self.endpoint.starts_with(scheme));
        let is_address = self.endpoint.bytes().all(|byte| byte.is_ascii_graphic());
        if !with_scheme || !is_address {
            return Err(HubError::Setting {
                variable: "HF_ENDPOINT",
                problem: format!(
                    "{:?} is no address of a hub; give one that begins with https:// or http://, such as {ENDPOINT}",
                    self.endpoint
                ),
            });
        }
        let graphic = |token: &String| token.bytes().all(|byte| byte.is_ascii_graphic());
        if !self.token.as_ref().is_none_or(graphic) {
            return Err(HubError::Setting {
                variable: "HF_TOKEN",
                problem: "the token (or the file that holds it) has a line break, a space or another character that no \
                          token has; set it anew"
                    .into(),
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> HubSettings {
        read(variables).unwrap()
    }

    fn read(variables: &[(&str, &str)]) -> Result<HubSettings, HubError> {
        HubSettings::from_variables(&|name| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).into())
        })
    }

    #[test]
    fn the_folder_of_a_user_who_is_not_known_is_refused_by_its_variable() {
        for variable in [
            "HF_HOME",
            "HF_HUB_CACHE",
            "HUGGINGFACE_HUB_CACHE",
            "XDG_CACHE_HOME",
            "HF_TOKEN_PATH",
        ] {
            let settings = [("HOME", "/home/me"), (variable, "~no-such-user/x")];
            let error = read(&settings).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{variable}: ~no-such-user")));
        }
        // What is not asked is not looked at.
        let unused = [("HF_HUB_CACHE", "/c"), ("HF_TOKEN", "hf_x")];
        with(&[&unused[..], &[("HF_HOME", "~no-such-user")]].concat());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn paths_need_no_text_and_no_home() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        let odd = OsStr::from_bytes(b"/c\xff");
        let settings = HubSettings::from_variables(&|name| {
            (name == "HF_HOME" || name == "HF_ENDPOINT").then(|| odd.to_owned())
        });
        let settings = settings.unwrap();
        assert_eq!(settings.cache, PathBuf::from(odd).join("hub"));
        let error = settings.check().unwrap_err().to_string();
        assert!(error.starts_with("HF_ENDPOINT"), "{error}");
        assert!(with(&[("HF_TOKEN", "x")]).cache.is_absolute());
    }

    #[test]
    fn variables_count_as_in_python() {
        let settings = with(&[("HOME", "/home/me"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]);
        assert_eq!(settings.endpoint, "https://huggingface.co");
        assert_eq!(
            settings.cache,
            PathBuf::from("/home/me/.cache/huggingface/hub")
        );
        assert_eq!((settings.token, settings.offline), (None, false));
        let settings = with(&[
            ("HOME", "/home/me"),
            ("HF_HOME", "~/hf"),
            ("HF_ENDPOINT", "http://mirror:81/"),
            ("HF_TOKEN", " hf_x\n"),
            ("HF_HUB_OFFLINE", "yes"),
        ]);
        assert_eq!(settings.endpoint, "http://mirror:81");
        assert_eq!(settings.cache, PathBuf::from("/home/me/hf/hub"));
        assert_eq!(settings.token.as_deref(), Some("hf_x"));
        assert!(settings.offline);
        assert!(!format!("{settings:?}").contains("hf_x"));
        let settings = with(&[
            ("XDG_CACHE_HOME", "/c"),
            ("HF_HUB_CACHE", ""),
            ("HF_HUB_OFFLINE", "0"),
        ]);
        assert_eq!(settings.cache, PathBuf::from("/c/huggingface/hub"));
        assert!(!settings.offline);
        let in_variables = [("HOME", "/home/me"), ("HF_HOME", "$HOME/x"), ("D", "/d")];
        assert_eq!(with(&in_variables).cache, PathBuf::from("/home/me/x/hub"));
        let in_variables = [("D", "/d"), ("HF_HUB_CACHE", "${D}/hub")];
        assert_eq!(with(&in_variables).cache, PathBuf::from("/d/hub"));
        let settings = with(&[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HOME", "/h")]);
        assert_eq!(settings.cache, PathBuf::from("/old"));
    }

    #[test]
    fn what_no_request_can_be_made_with_is_refused_by_its_name() {
        for good in ["http://mirror:81", "https://huggingface.co/"] {
            with(&[("HF_ENDPOINT", good), ("HF_TOKEN", "hf_x")])
                .check()
                .unwrap();
        }
        for (variable, value) in [
            ("HF_ENDPOINT", "huggingface.co"),
            ("HF_ENDPOINT", "http://"),
            ("HF_ENDPOINT", "ftp://x"),
            ("HF_ENDPOINT", "http://a b"),
            ("HF_TOKEN", "hf_a\nhf_b"),
        ] {
            let error = with(&[(variable, value)]).check().unwrap_err().to_string();
            assert!(
                error.starts_with(variable) && !error.contains("hf_a"),
                "{error}"
            );
        }
    }

    #[test]
    fn the_token_file_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        std::fs::write(folder.path().join("token"), "hf_file\n").unwrap();
        assert_eq!(with(&[("HF_HOME", home)]).token.as_deref(), Some("hf_file"));
        let disabled = [("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "true")];
        assert_eq!(with(&disabled).token, None);
        let elsewhere = folder.path().join("token");
        let elsewhere = [
            ("HF_HOME", "/no"),
            ("HF_TOKEN_PATH", elsewhere.to_str().unwrap()),
        ];
        assert_eq!(with(&elsewhere).token.as_deref(), Some("hf_file"));
    }
}
