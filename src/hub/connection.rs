//! How the hub is reached: through which proxy, and whose certificates are trusted. All from the
//! environment, by the variables that Python's `requests` and `httpx` read.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use ureq::http::{Response, Uri};
use ureq::tls::TlsConfig;
use ureq::{Agent, Body};

use super::HubError;
use super::certificates::{Trust, trusted};
use super::proxy::{NamedProxy, proxy_of};

/// How long to wait for a connection, and for the next bytes of an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Redirects followed for one answer.
const MOST_REDIRECTS: usize = 10;

/// A way to make requests.
pub(super) struct Connection {
    tls: TlsConfig,
    /// The variables that name the certificates.
    trust: Vec<&'static str>,
    /// What requests are made with, by the variable of the proxy that they go through. Each keeps
    /// its connections.
    agents: Mutex<HashMap<Option<&'static str>, Agent>>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum NoAnswer {
    /// A variable must be set otherwise; to try again is of no use.
    Setting(HubError),
    /// What happened, for people.
    Broken(String),
}

impl NoAnswer {
    /// The error of who does not try again.
    pub fn into_error(self, url: &str) -> HubError {
        match self {
            Self::Setting(error) => error,
            Self::Broken(problem) => HubError::Connection {
                url: url.into(),
                problem,
            },
        }
    }
}

impl Connection {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// A variable that names no certificates.
    pub fn new() -> Result<Self, HubError> {
        let Trust { roots, variables } = trusted()?;
        Ok(Self {
            tls: TlsConfig::builder().root_certs(roots).build(),
            trust: variables,
            agents: Mutex::default(),
        })
    }

    /// Asks for `url`, from byte `start` on, and where that leads: each address through the proxy
    /// that is set for it. The `token` is for the hub; where files are kept elsewhere, the address
    /// itself is the permission.
    ///
    /// # Errors
    /// No answer. An answer of any status is one.
    pub fn get(
        &self,
        url: &str,
        token: Option<&str>,
        start: u64,
    ) -> Result<Response<Body>, NoAnswer> {
        let broken = |problem: String| NoAnswer::Broken(problem);
        let parse = |url: &str| {
            let parsed = url.parse::<Uri>();
            parsed.map_err(|error| broken(format!("{url:?} is no address ({error})")))
        };
        let hub = parse(url)?;
        let mut address = hub.clone();
        for _ in 0..=MOST_REDIRECTS {
            let token = token.filter(|_| may_have_token(&hub, &address));
            let answer = self.ask(&address, token, start)?;
            if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(answer);
            }
            let Some(target) = answer.headers().get("location") else {
                return Ok(answer);
            };
            let target = target.to_str().map_err(|error| broken(error.to_string()))?;
            address = parse(&joined(&address, target))?;
        }
        Err(broken(format!(
            "the hub redirects more than {MOST_REDIRECTS} times"
        )))
    }

    /// Asks for one address.
    fn ask(
        &self,
        address: &Uri,
        token: Option<&str>,
        start: u64,
    ) -> Result<Response<Body>, NoAnswer> {
        let proxy = proxy_of(address, &|name| std::env::var_os(name));
        let proxy = proxy.map_err(|error| NoAnswer::Setting(error.into()))?;
        let mut request = self.agent(proxy.as_ref()).get(address);
        if let Some(token) = token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if start > 0 {
            request = request.header("Range", format!("bytes={start}-"));
        }
        request
            .call()
            .map_err(|error| NoAnswer::Broken(self.explain(&error, address, proxy.as_ref())))
    }

    fn agent(&self, proxy: Option<&NamedProxy>) -> Agent {
        let build = || {
            let config = Agent::config_builder()
                .http_status_as_error(false)
                .max_redirects(0)
                .timeout_connect(Some(PATIENCE))
                .timeout_recv_response(Some(PATIENCE))
                .timeout_per_read(Some(PATIENCE))
                .user_agent(concat!("blip2-wgpu/", env!("CARGO_PKG_VERSION")))
                .accept_encoding("identity")
                .tls_config(self.tls.clone())
                .proxy(proxy.map(|named| named.proxy.clone()))
                .build();
            Agent::from(config)
        };
        let variable = proxy.map(|named| named.variable);
        match self.agents.lock() {
            Ok(mut agents) => agents.entry(variable).or_insert_with(build).clone(),
            Err(_) => build(), // a thread died with it; a new one serves as well
        }
    }

    /// What went wrong on the way to `address`, and the variables that may mend it.
    fn explain(&self, error: &ureq::Error, address: &Uri, proxy: Option<&NamedProxy>) -> String {
        let mut problem = error.to_string();
        if problem.contains("UnknownIssuer") {
            problem += &match self.trust.as_slice() {
                [] => "; where a company's or provider's authority is on the way, name the file of its certificate \
                       (PEM) in REQUESTS_CA_BUNDLE or SSL_CERT_FILE"
                    .to_owned(),
                named => format!(
                    "; the authority that signed it is not among the certificates of {}",
                    named.join(" and ")
                ),
            };
        }
        let Some(proxy) = proxy else {
            return problem;
        };
        let (shown, variable) = (proxy.shown(), proxy.variable);
        let host = address.host().unwrap_or_default();
        problem += &format!("; it goes through the proxy {shown} of {variable}");
        if proxy.is_http() && address.scheme_str() == Some("http") {
            problem += &format!(
                ", which is asked to CONNECT for plain http too, and many refuse that: give an https:// address in \
                 HF_ENDPOINT, a SOCKS proxy in {variable}, or {host} in NO_PROXY if it can be reached without"
            );
        } else {
            problem += &format!(
                ": check that variable, or list {host} in NO_PROXY if it can be reached without"
            );
        }
        problem
    }
}

/// Whether what `address` is asked may hold the token for `hub`: it is the same host and port, and
/// the way there is no less safe.
fn may_have_token(hub: &Uri, address: &Uri) -> bool {
    hub.authority() == address.authority()
        && (hub.scheme() == address.scheme() || address.scheme_str() == Some("https"))
}

/// The address that `target`, which may leave out its beginning, means in an answer of `base`.
fn joined(base: &Uri, target: &str) -> String {
    let scheme = base.scheme_str().unwrap_or("https");
    let authority = base.authority().map_or("", |it| it.as_str());
    let names_scheme = target.split(['/', '?', '#']).next();
    if names_scheme.is_some_and(|start| start.contains(':')) {
        target.to_owned()
    } else if target.starts_with("//") {
        format!("{scheme}:{target}")
    } else if target.starts_with('/') {
        format!("{scheme}://{authority}{target}")
    } else if target.starts_with('?') {
        format!("{scheme}://{authority}{}{target}", base.path())
    } else {
        let folder = base
            .path()
            .rsplit_once('/')
            .map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{target}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_may_leave_out_their_beginning() {
        for (target, whole) in [
            ("http://other/x", "http://other/x"),
            ("//other/x?a:b", "https://other/x?a:b"),
            ("/x/y", "https://hub:1/x/y"),
            ("y?u=http://z", "https://hub:1/a/y?u=http://z"),
            ("?z", "https://hub:1/a/b?z"),
        ] {
            let base = "https://hub:1/a/b?c".parse().unwrap();
            assert_eq!(joined(&base, target), whole);
        }
    }

    #[test]
    fn only_the_hub_gets_the_token() {
        for (address, may) in [
            ("http://hub/x", true),
            ("https://hub/x", true),
            ("http://other/x", false),
            ("http://a.hub/x", false),
            ("http://hub:81/x", false),
        ] {
            let hub = "http://hub/y".parse().unwrap();
            assert_eq!(
                may_have_token(&hub, &address.parse().unwrap()),
                may,
                "{address}"
            );
        }
        let (safe, plain) = ("https://hub".parse(), "http://hub".parse());
        assert!(!may_have_token(&safe.unwrap(), &plain.unwrap()));
    }
}
