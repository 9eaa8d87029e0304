//! How the hub is reached: through which proxy, and whose certificates are trusted. All from the
//! environment, by the variables that Python's `requests` and `httpx` read.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls_native_certs::{CertificateResult, load_certs_from_paths, load_native_certs};
use ureq::config::RedirectAuthHeaders;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Proxy};

use crate::files::environment;

use super::HubError;

/// How long to wait for a connection, and for the next bytes of an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Files of certificates that are trusted in the place of the system's, the first that is set.
/// (`SSL_CERT_FILE` and `SSL_CERT_DIR` are the system store's own.)
const BUNDLES: [&str; 2] = ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"];

/// What requests to `endpoint` are made with. Connects to nothing yet.
///
/// # Errors
/// A variable that names no proxy, or no certificates.
pub(super) fn agent(endpoint: &str) -> Result<Agent, HubError> {
    let tls = TlsConfig::builder().root_certs(root_certs()?).build();
    let proxy = proxy(endpoint, &|name| std::env::var(name).ok())?;
    let config = Agent::config_builder()
        .http_status_as_error(false)
        // The token is for the hub; where files are kept elsewhere, the address itself is the
        // permission.
        .redirect_auth_headers(RedirectAuthHeaders::SameHost)
        .timeout_connect(Some(PATIENCE))
        .timeout_recv_response(Some(PATIENCE))
        .timeout_per_read(Some(PATIENCE))
        .user_agent(concat!("blip2-wgpu/", env!("CARGO_PKG_VERSION")))
        .accept_encoding("identity")
        .tls_config(tls)
        .proxy(proxy)
        .build();
    Ok(config.into())
}

/// The certificates of a bundle that a variable names, else the system's, to which a company may have
/// added its own; where the system has none, as in some containers, Mozilla's.
fn root_certs() -> Result<RootCerts, HubError> {
    let bundle = BUNDLES
        .into_iter()
        .find_map(|variable| Some((variable, environment::path(variable)?)));
    if let Some((variable, path)) = bundle {
        return bundle_of(variable, &path);
    }
    let system = load_native_certs();
    for variable in ["SSL_CERT_FILE", "SSL_CERT_DIR"] {
        if let (Some(path), true) = (environment::path(variable), system.certs.is_empty()) {
            return Err(no_certificates(variable, &path, &system));
        }
    }
    if system.certs.is_empty() {
        return Ok(RootCerts::WebPki);
    }
    Ok(roots(&system))
}

/// The certificates of a file, or of all files of a folder.
fn bundle_of(variable: &'static str, path: &Path) -> Result<RootCerts, HubError> {
    let (file, folder) = match path.is_dir() {
        true => (None, Some(path)),
        false => (Some(path), None),
    };
    let found = load_certs_from_paths(file, folder);
    match found.certs.is_empty() {
        true => Err(no_certificates(variable, path, &found)),
        false => Ok(roots(&found)),
    }
}

fn roots(found: &CertificateResult) -> RootCerts {
    let certs = found.certs.iter();
    let certs = certs.map(|cert| Certificate::from_der(cert.as_ref()).to_owned());
    RootCerts::from(certs.collect::<Vec<_>>())
}

fn no_certificates(variable: &'static str, path: &Path, found: &CertificateResult) -> HubError {
    let reason = found.errors.first();
    let reason = reason.map_or_else(|| "it is empty".into(), ToString::to_string);
    HubError::Setting {
        variable,
        problem: format!(
            "no certificates in {} ({reason}); give a file in PEM format, or unset it",
            PathBuf::from(path).display()
        ),
    }
}

/// The proxy to `endpoint`, as `get` has the variables: the one for its scheme before the one for all, small
/// letters before large ones, as in Python; none for the hosts in `NO_PROXY`.
fn proxy(endpoint: &str, get: &dyn Fn(&str) -> Option<String>) -> Result<Option<Proxy>, HubError> {
    const FOR_HTTP: [&str; 4] = ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"];
    const FOR_HTTPS: [&str; 4] = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
    let set = |name: &'static str| Some((name, get(name).filter(|text| !text.trim().is_empty())?));
    let variables = match endpoint.starts_with("https:") {
        true => FOR_HTTPS,
        false => FOR_HTTP,
    };
    let Some((variable, address)) = variables.into_iter().find_map(set) else {
        return Ok(None);
    };
    // Where no scheme is given, Python takes the proxy to speak HTTP.
    let stated = Proxy::new(address.trim());
    let stated = stated.map_err(|error| HubError::Setting {
        variable,
        problem: format!(
            "{} is no proxy ({error}); give SCHEME://HOST:PORT with http, https, socks4, socks4a, socks5 or socks5h",
            without_password(&address)
        ),
    })?;
    let mut proxy = Proxy::builder(stated.protocol())
        .host(stated.host())
        .port(stated.port())
        .resolve_target(stated.resolve_target());
    if let Some(name) = stated.username() {
        proxy = proxy.username(name);
    }
    if let Some(password) = stated.password() {
        proxy = proxy.password(password);
    }
    let outside = ["no_proxy", "NO_PROXY"].into_iter().find_map(set);
    let outside = outside.map(|(_, hosts)| hosts).unwrap_or_default();
    for host in outside
        .split(',')
        .map(str::trim)
        .filter(|host| !host.is_empty())
    {
        proxy = proxy.no_proxy(host);
    }
    proxy.build().map(Some).map_err(|error| HubError::Setting {
        variable,
        problem: error.to_string(),
    })
}

/// An address as a message may show it.
fn without_password(address: &str) -> String {
    match address.rsplit_once('@') {
        Some((_, host)) => format!("…@{host}"),
        None => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(endpoint: &str, variables: &[(&str, &str)]) -> Result<Option<Proxy>, String> {
        let get = |name: &str| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        proxy(endpoint, &get).map_err(|error| error.to_string())
    }

    #[test]
    fn the_proxy_of_the_scheme_comes_first() {
        let all = ("ALL_PROXY", "socks5h://me:a%40b@all:9");
        let host = |endpoint, variables: &[_]| {
            let proxy = chosen(endpoint, variables).expect("a proxy");
            proxy.map(|proxy| format!("{}:{}", proxy.host(), proxy.port()))
        };
        assert_eq!(host("https://h", &[]), None);
        assert_eq!(host("https://h", &[all]).as_deref(), Some("all:9"));
        let two = [
            all,
            ("HTTPS_PROXY", "http://secure:8"),
            ("http_proxy", "plain:7"),
        ];
        assert_eq!(host("https://h", &two).as_deref(), Some("secure:8"));
        assert_eq!(host("http://h", &two).as_deref(), Some("plain:7"));
        let proxy = chosen("https://h", &[all, ("NO_PROXY", "a.b, h")]);
        let proxy = proxy.expect("a proxy").expect("a proxy");
        assert_eq!(
            (proxy.username(), proxy.password()),
            (Some("me"), Some("a@b"))
        );
        for (address, outside) in [
            ("https://h/x", true),
            ("https://a.b/", true),
            ("https://c/", false),
        ] {
            assert_eq!(
                proxy.is_no_proxy(&address.parse().expect("an address")),
                outside
            );
        }
    }

    #[test]
    fn what_is_no_proxy_is_named_without_its_password() {
        for address in [
            "ftp://me:secret@host:1",
            "socks9://me:secret@x",
            "http://me:secret@",
        ] {
            let error = chosen("https://h", &[("ALL_PROXY", address)]).expect_err("refused");
            assert!(
                error.starts_with("ALL_PROXY") && !error.contains("secret"),
                "{error}"
            );
        }
    }
}
