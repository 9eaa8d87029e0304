//! Why the hub does not give something: its status, and what it adds in headers.

use ureq::Body;
use ureq::http::Response;

use super::HubError;

/// As much of the hub's own words as is repeated.
const MOST_WORDS: usize = 200;

/// What the hub says of a token that it does not know.
const UNKNOWN_TOKEN: &str = "Invalid credentials in Authorization header";

/// A request, as far as it explains a refusal.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestContext<'a> {
    /// The address.
    pub url: &'a str,
    /// The repository's page.
    pub page: &'a str,
    /// Whether a token went with it.
    pub with_token: bool,
    /// Whether it is a file of a repository that was listed, not the listing.
    pub file: bool,
}

impl RequestContext<'_> {
    /// What an answer that is no success means.
    pub(super) fn denied(self, answer: &Response<Body>) -> HubError {
        let header = |name| {
            let value = answer.headers().get(name);
            value.and_then(|value| value.to_str().ok()).unwrap_or("")
        };
        let (code, message) = (header("x-error-code"), header("x-error-message"));
        self.explain(answer.status().as_u16(), code, message)
    }

    /// `code` and `message`: the hub's headers, empty where it has none. The codes are those that `huggingface_hub` knows.
    fn explain(self, status: u16, code: &str, message: &str) -> HubError {
        let (page, token) = (self.page, self.with_token);
        let about_token = match token {
            true => "a token was sent",
            false => "no token was sent",
        };
        let with_token = |problem: &str| format!("{problem}; {about_token}");
        let set_token = match token {
            true => "check that the token in HF_TOKEN may read it",
            false => "set HF_TOKEN to your token",
        };
        let (problem, remedy) = match (status, code) {
            (_, "GatedRepo") => (
                with_token("the files are given to those only who have accepted the terms"),
                match token {
                    true => format!(
                        "accept the terms at {page} with the account that HF_TOKEN is of; where access is granted by people, wait for it"
                    ),
                    false => format!("accept the terms at {page} and {set_token}"),
                },
            ),
            (_, "RevisionNotFound") => (
                "no such revision".into(),
                format!("check `revision`; {page} has the branches and tags"),
            ),
            (_, "EntryNotFound") => (
                "no such file at this revision".into(),
                format!("see {page} for what it has, and `revision` for another"),
            ),
            (401, _) if token || message == UNKNOWN_TOKEN => (
                "the token was refused".into(),
                "set HF_TOKEN to one that is valid, or unset it and remove the token's file".into(),
            ),
            (401, _) if self.file => (
                with_token("the repository is listed, but the file needs a token"),
                format!("{set_token}; accept the terms at {page} if it has any"),
            ),
            (401, _) => (
                with_token("no such repository, or one that needs a token"),
                format!("check the name; for a private one {set_token}"),
            ),
            (403, _) => (
                with_token("no permission"),
                format!("accept the model's terms at {page} if it has any, and {set_token}"),
            ),
            (_, "RepoNotFound") => (
                with_token("no such repository, or a private one"),
                format!("check the name; for a private one {set_token}"),
            ),
            (404, _) => (
                with_token("no such repository, revision or file"),
                "check the name and `revision`".into(),
            ),
            (429, _) => (
                with_token("too many requests"),
                match token {
                    true => "wait a few minutes".into(),
                    false => "wait a few minutes, or set HF_TOKEN".into(),
                },
            ),
            (500.., _) => ("the hub is in trouble".into(), "try again later".into()),
            _ => ("unexpected".into(), "check HF_ENDPOINT".into()),
        };
        let words: String = message.chars().take(MOST_WORDS).collect();
        let problem = match words.trim() {
            "" => problem,
            words => format!("{problem}; it says {words:?}"),
        };
        HubError::Denied {
            url: self.url.into(),
            status,
            problem,
            remedy,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn says(context: RequestContext, answer: (u16, &str, &str), parts: &[&str], not: &[&str]) {
        let text = context.explain(answer.0, answer.1, answer.2).to_string();
        let start = format!("{}: the hub answers {}: ", context.url, answer.0);
        assert!(text.starts_with(&start), "{text}");
        for part in parts {
            assert!(text.contains(part), "{part:?} is missing: {text}");
        }
        for part in not {
            assert!(!text.contains(part), "{part:?} is wrong: {text}");
        }
    }

    #[test]
    fn the_hubs_codes_tell_what_a_status_means() {
        let page = "https://hub/a/b";
        let context = |with_token, file| RequestContext {
            url: "https://hub/x",
            page,
            with_token,
            file,
        };
        let terms = format!("accept the terms at {page} ");
        for status in [401, 403] {
            let gated = (status, "GatedRepo", "Access to model a/b is restricted.");
            says(
                context(false, true),
                gated,
                &[&terms, "no token was sent", "set HF_TOKEN", "\"Access to"],
                &["check the name", "no such"],
            );
            says(
                context(true, true),
                gated,
                &[
                    &terms,
                    "a token was sent",
                    "the account that HF_TOKEN is of",
                ],
                &["set HF_TOKEN", "no such"],
            );
        }
        let refused = (401, "", UNKNOWN_TOKEN);
        for file in [false, true] {
            says(
                context(true, file),
                refused,
                &["the token was refused", "valid"],
                &["no such repository"],
            );
        }
        says(
            context(false, true),
            (401, "", ""),
            &["is listed", "no token was sent", page],
            &["check the name", "it says"],
        );
        says(
            context(false, false),
            (401, "RepoNotFound", "Repository not found"),
            &[
                "no such repository",
                "no token",
                "check the name",
                "HF_TOKEN",
            ],
            &["refused"],
        );
        says(
            context(true, false),
            (404, "RepoNotFound", ""),
            &["no such repository, or a private one", "HF_TOKEN may read"],
            &["`revision`"],
        );
        says(
            context(false, false),
            (404, "RevisionNotFound", "Invalid rev id: v9"),
            &["no such revision", "`revision`", "\"Invalid rev id: v9\""],
            &["name", "token"],
        );
        says(
            context(true, true),
            (404, "EntryNotFound", ""),
            &["no such file"],
            &["name", "token"],
        );
        says(context(true, true), (429, "", ""), &["wait"], &["set HF"]);
        let long = "long ".repeat(1000);
        assert!(
            context(true, true)
                .explain(418, "", &long)
                .to_string()
                .len()
                < 500
        );
    }
}
