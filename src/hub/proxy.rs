//! Which proxy a request goes through, by the variables that Python reads.

use std::ffi::OsString;

use ureq::http::Uri;
use ureq::{Proxy, ProxyProtocol};

use crate::files::environment::{VariableError, Variables};

/// The variables of a scheme: its own before the one for all, small letters before large ones.
const FOR_HTTP: [[&str; 2]; 2] = [["http_proxy", "HTTP_PROXY"], ["all_proxy", "ALL_PROXY"]];
const FOR_HTTPS: [[&str; 2]; 2] = [["https_proxy", "HTTPS_PROXY"], ["all_proxy", "ALL_PROXY"]];

/// Hosts that are reached directly.
const OUTSIDE: [&str; 2] = ["no_proxy", "NO_PROXY"];

/// A proxy and who named it.
#[derive(Clone, Debug)]
pub(super) struct NamedProxy {
    pub proxy: Proxy,
    /// The variable.
    pub variable: &'static str,
}

impl NamedProxy {
    /// Its address without name and password, as a message may show it.
    pub fn shown(&self) -> String {
        let (host, port) = (self.proxy.host(), self.proxy.port());
        let scheme = self.proxy.protocol().to_string().to_lowercase();
        format!("{scheme}://{host}:{port}")
    }

    /// Whether it speaks HTTP, and is asked to connect to a host.
    pub fn is_http(&self) -> bool {
        matches!(
            self.proxy.protocol(),
            ProxyProtocol::Http | ProxyProtocol::Https
        )
    }
}

/// The proxy that a request of `address` goes through, if any, as `get` has the variables.
///
/// # Errors
/// The variable names no proxy.
pub(super) fn proxy_of(
    address: &Uri,
    get: &Variables<'_>,
) -> Result<Option<NamedProxy>, VariableError> {
    let variables = match address.scheme_str() {
        Some("https") => FOR_HTTPS,
        _ => FOR_HTTP,
    };
    let Some((variable, value)) = variables.into_iter().find_map(|pair| first(pair, get)) else {
        return Ok(None);
    };
    if let Some((variable, hosts)) = first(OUTSIDE, get)
        && is_outside(address, &text(variable, hosts)?)
    {
        return Ok(None);
    }
    let proxy = read(text(variable, value)?.trim());
    let proxy = proxy.map_err(|problem| VariableError { variable, problem })?;
    Ok(Some(NamedProxy { proxy, variable }))
}

/// The first variable of a pair that is set, unless it is blank: in small letters it takes the other
/// away even then.
fn first(pair: [&'static str; 2], get: &Variables<'_>) -> Option<(&'static str, OsString)> {
    let set = |name| Some((name, get(name)?));
    let found = pair.into_iter().find_map(set);
    found.filter(|(_, value)| !crate::files::environment::is_blank(value))
}

fn text(variable: &'static str, value: OsString) -> Result<String, VariableError> {
    value.into_string().map_err(|_| VariableError {
        variable,
        problem: "its value is no UTF-8 text; write other letters as %XX".into(),
    })
}

/// Reads `SCHEME://NAME:PASSWORD@HOST:PORT`; the problem names no password.
fn read(address: &str) -> Result<Proxy, String> {
    let wrong = |problem: &str| {
        format!(
            "{} is no proxy ({problem}); give SCHEME://HOST:PORT with http, https, socks4, socks4a, socks5 or socks5h",
            without_password(address)
        )
    };
    let after = address
        .split_once("://")
        .map_or(address, |(_, after)| after);
    let end = after.find(['/', '?', '#']).unwrap_or(after.len());
    let (authority, rest) = after.split_at(end);
    if rest.contains('@') {
        let problem = "a name or password has /, ? or #, which are written %2F, %3F and %23 there";
        return Err(wrong(problem));
    }
    let host = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    // The colons in the brackets are an IPv6 address's.
    let port = host[host.rfind(']').unwrap_or(0)..].split_once(':');
    if let Some((_, port)) = port
        && !port.parse::<u16>().is_ok_and(|port| port > 0)
    {
        return Err(wrong(&format!("{port:?} is no port: 1 to 65535")));
    }
    // Where no scheme is given, Python takes the proxy to speak HTTP.
    Proxy::new(address).map_err(|error| wrong(&error.to_string()))
}

/// An address as a message may show it.
fn without_password(address: &str) -> String {
    match address.rsplit_once('@') {
        Some((_, host)) => format!("…@{host}"),
        None => address.to_owned(),
    }
}

/// Whether `hosts`, a list as in `NO_PROXY`, has the host of `address`: `*` is all, a name is itself
/// and what is below it, and may have a port, as in Python's `urllib`; addresses may be a network
/// (`10.0.0.0/8`), as in `requests`.
fn is_outside(address: &Uri, hosts: &str) -> bool {
    let authority = address.authority();
    let Some(host) = authority.map(|it| it.host().to_lowercase()) else {
        return false;
    };
    let port = authority.and_then(|it| it.port());
    let with_port = port.map(|port| format!("{host}:{port}"));
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let is_host = |name: &str| {
        let ends = |host: &str| {
            let above = host.strip_suffix(name);
            above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
        };
        ends(&host) || bare == name || with_port.as_deref().is_some_and(ends)
    };
    let names = hosts.split(',').map(str::trim);
    let mut names = names.map(|name| name.trim_start_matches('.').to_lowercase());
    names.any(|name| name == "*" || !name.is_empty() && (is_host(&name) || has(&name, bare)))
}

/// Whether an IPv4 network such as `10.0.0.0/8` has the address `host`.
fn has(network: &str, host: &str) -> bool {
    let bits = |address: &str| address.parse::<std::net::Ipv4Addr>().ok().map(u32::from);
    let parts = || {
        let (start, length) = network.split_once('/')?;
        let length: u32 = length.parse().ok().filter(|length| *length <= 32)?;
        let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
        Some((bits(start)? & mask, bits(host)? & mask))
    };
    parts().is_some_and(|(network, host)| network == host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(address: &str, variables: &[(&str, &str)]) -> Result<Option<NamedProxy>, String> {
        let get = |name: &str| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).into())
        };
        let address = address.parse().expect("an address");
        proxy_of(&address, &get).map_err(|error| error.to_string())
    }

    #[test]
    fn the_proxy_of_the_scheme_comes_first() {
        let all = ("ALL_PROXY", "socks5h://me:a%40b@all:9");
        let shown = |address, variables: &[_]| {
            let proxy = chosen(address, variables).expect("a proxy");
            proxy.map(|proxy| format!("{} of {}", proxy.shown(), proxy.variable))
        };
        assert_eq!(shown("https://h", &[]), None);
        let of_all = "socks5h://all:9 of ALL_PROXY";
        assert_eq!(shown("https://h", &[all]).as_deref(), Some(of_all));
        let two = [
            all,
            ("HTTPS_PROXY", "secure:8"),
            ("http_proxy", "http://[::1]:7/"),
        ];
        let secure = "http://secure:8 of HTTPS_PROXY";
        assert_eq!(shown("https://h", &two).as_deref(), Some(secure));
        let plain = "http://[::1]:7 of http_proxy";
        assert_eq!(shown("http://h", &two).as_deref(), Some(plain));
        let taken_away = [("https_proxy", ""), ("HTTPS_PROXY", "http://x:1")];
        assert_eq!(shown("https://h", &taken_away), None);
        let proxy = chosen("https://h", &[all]).unwrap().unwrap().proxy;
        assert_eq!(
            (proxy.username(), proxy.password()),
            (Some("me"), Some("a@b"))
        );
    }

    #[test]
    fn hosts_in_no_proxy_are_reached_directly_as_in_python() {
        for (hosts, address, outside) in [
            ("*", "https://h", true),
            ("a, *", "https://h", true),
            ("a.b, h", "https://h/x", true),
            ("a.b, h", "https://a.b/", true),
            ("a.b, h", "https://c/", false),
            ("a.b, h", "https://oh/", false),
            ("", "https://h", false),
            (" , .", "https://h", false),
            ("corp.invalid", "https://hub.corp.invalid", true),
            ("corp.invalid", "https://corp.invalid:8443", true),
            ("corp.invalid", "https://notcorp.invalid", false),
            ("corp.invalid", "https://corp.invalid.example", false),
            (".corp.invalid", "https://corp.invalid", true),
            ("..Corp.Invalid", "https://HUB.corp.invalid", true),
            ("h:81", "http://h:81/x", true),
            ("h:81", "http://a.h:81/x", true),
            ("h:81", "http://h:82", false),
            ("h:81", "http://h", false),
            ("127.0.0.1", "http://127.0.0.1:80", true),
            ("10.0.0.0/8", "http://10.2.3.4:80", true),
            ("10.0.0.0/8", "http://11.2.3.4", false),
            ("0.0.0.0/0", "http://11.2.3.4", true),
            ("10.0.0.0/33", "http://10.0.0.0", false),
            ("::1", "http://[::1]:80", true),
            ("[::1]:80", "http://[::1]:80", true),
            ("[::1]:80", "http://[::1]:81", false),
        ] {
            let variables = [("ALL_PROXY", "http://proxy:1"), ("NO_PROXY", hosts)];
            let direct = chosen(address, &variables).unwrap().is_none();
            assert_eq!(direct, outside, "{hosts:?}, {address}");
        }
        // A proxy that nothing goes through need not be one.
        let variables = [("ALL_PROXY", "nonsense://"), ("NO_PROXY", "*")];
        assert!(chosen("https://h", &variables).unwrap().is_none());
    }

    #[test]
    fn what_is_no_proxy_is_named_without_its_password() {
        for (address, part) in [
            ("ftp://me:secret@host:1", "…@host:1"),
            ("socks9://me:secret@x", "socks5h"),
            ("http://me:secret@", "no proxy"),
            ("http://me:secret@host:99999", "\"99999\" is no port"),
            ("http://me:secret@host:0", "no port"),
            ("http://me:secret@host:port", "no port"),
            ("http://me:secret@[::1]:99999", "no port"),
            ("http://me:secr#secret@host:1", "%23"),
            ("http://me:secr/secret@host:1", "%2F"),
            ("me:secr?secret@host:1", "%3F"),
            ("http://a b:1", "no proxy"),
        ] {
            let error = chosen("https://h", &[("ALL_PROXY", address)]).expect_err("refused");
            let shown = error.starts_with("ALL_PROXY") && error.contains(part);
            assert!(shown && !error.contains("secr"), "{error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_text_is_named() {
        use std::os::unix::ffi::OsStringExt;
        for variable in ["HTTPS_PROXY", "no_proxy"] {
            let get = |name: &str| match name {
                _ if name == variable => Some(OsString::from_vec(b"http://\xff:1".to_vec())),
                "ALL_PROXY" => Some("http://proxy:1".into()),
                _ => None,
            };
            let error = proxy_of(&"https://h".parse().unwrap(), &get).unwrap_err();
            assert!(error.to_string().starts_with(variable), "{error}");
        }
    }
}
