//! Whose word counts for who a host is: the certificates that a variable names, else the system's.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use rustls_native_certs::{CertificateResult, load_certs_from_paths, load_native_certs};
use ureq::tls::{Certificate, RootCerts};

use crate::files::bounded::{self, MAX_TEXT_BYTES};
use crate::files::environment::{self, VariableError};

use super::HubError;

/// Files (or folders) that are trusted in the place of the system's, the first that is set, as in
/// Python's `requests`.
const BUNDLES: [&str; 2] = ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"];

/// OpenSSL's: a file, and folders.
const FILE: &str = "SSL_CERT_FILE";
const FOLDERS: &str = "SSL_CERT_DIR";

/// Damaged certificates that are named one by one.
const MOST_NAMED: usize = 5;

/// What is trusted.
pub(super) struct Trust {
    pub roots: RootCerts,
    /// The variables that name it; none for the system's.
    pub variables: Vec<&'static str>,
}

/// The certificates of a bundle that a variable names, else the system's, to which a company may have
/// added its own; where the system has none, as in some containers, Mozilla's. What is damaged among
/// them is warned of.
///
/// # Errors
/// A variable that names no certificates.
pub(super) fn trusted() -> Result<Trust, HubError> {
    let mut sources = Vec::new();
    for variable in BUNDLES {
        if let (Some(path), true) = (environment::path(variable)?, sources.is_empty()) {
            sources.push((variable, path));
        }
    }
    if sources.is_empty() {
        let file = environment::path(FILE)?;
        sources.extend(file.map(|path| (FILE, path)));
        sources.extend(folders()?.into_iter().map(|path| (FOLDERS, path)));
    }
    if sources.is_empty() {
        let system = load_native_certs();
        let roots = match system.certs.is_empty() {
            true => RootCerts::WebPki,
            false => roots(&[system]),
        };
        let variables = Vec::new();
        return Ok(Trust { roots, variables });
    }
    let mut found = Vec::new();
    let mut problems = Vec::new();
    for (variable, path) in &sources {
        let read = read(path);
        problems.extend(
            read.problems
                .into_iter()
                .map(|problem| (*variable, path, problem)),
        );
        found.push(read.certificates);
    }
    if found.iter().all(|found| found.certs.is_empty()) {
        let (variable, path) = &sources[0];
        let reason = problems.into_iter().next();
        let reason = reason.map_or_else(|| "it is empty".into(), |(_, _, reason)| reason);
        return Err(HubError::Setting {
            variable,
            problem: format!(
                "no certificates in {} ({reason}); give a file in PEM format, or unset it",
                path.display()
            ),
        });
    }
    let more = problems.len().saturating_sub(MOST_NAMED);
    for (variable, path, problem) in problems.into_iter().take(MOST_NAMED) {
        let path = path.display();
        log::warn!("{variable}: {path}: {problem}; the other certificates are used");
    }
    if more > 0 {
        log::warn!("… and {more} more damaged certificates");
    }
    let mut variables: Vec<_> = sources.iter().map(|(variable, _)| *variable).collect();
    variables.dedup();
    Ok(Trust {
        roots: roots(&found),
        variables,
    })
}

/// The folders of `SSL_CERT_DIR`, which are separated as in `PATH`.
fn folders() -> Result<Vec<PathBuf>, VariableError> {
    let get = |name: &str| std::env::var_os(name);
    let Some(value) = environment::set(FOLDERS, &get) else {
        return Ok(Vec::new());
    };
    std::env::split_paths(&value)
        .filter(|path| !path.as_os_str().is_empty())
        .map(|path| {
            let expanded = environment::expand(path.as_os_str(), &get);
            expanded
                .map(PathBuf::from)
                .map_err(|problem| VariableError {
                    variable: FOLDERS,
                    problem,
                })
        })
        .collect()
}

/// Certificates of a path, and what is wrong with others there.
struct Read {
    certificates: CertificateResult,
    problems: Vec<String>,
}

/// The certificates of a file, or of all files of a folder.
fn read(path: &Path) -> Read {
    let (file, folder) = match path.is_dir() {
        true => (None, Some(path)),
        false => (Some(path), None),
    };
    let mut certificates = load_certs_from_paths(file, folder);
    let mut problems: Vec<String> = certificates
        .errors
        .iter()
        .map(ToString::to_string)
        .collect();
    let before = certificates.certs.len();
    certificates
        .certs
        .retain(|certificate| is_whole(certificate));
    if certificates.certs.len() < before {
        let damaged = before - certificates.certs.len();
        problems.push(format!(
            "{damaged} of {before} certificates are cut off or damaged"
        ));
    }
    if file.is_some() && before == 0 && problems.is_empty() && is_der(path) {
        let name = path.file_name().unwrap_or(OsStr::new("it")).display();
        problems.push(format!(
            "it is in DER format; `openssl x509 -inform der -in {name} -out {name}.pem` makes PEM of it"
        ));
    }
    Read {
        certificates,
        problems,
    }
}

/// Whether a file begins as a certificate without PEM's letters around it does.
fn is_der(file: &Path) -> bool {
    bounded::read(file, MAX_TEXT_BYTES).is_ok_and(|bytes| is_whole(&bytes))
}

/// Whether bytes are as many as the DER sequence (ITU-T X.690) says that they begin with.
fn is_whole(bytes: &[u8]) -> bool {
    let length = match bytes {
        [0x30, short @ ..=0x7f, ..] => 2 + usize::from(*short),
        [0x30, 0x81, a, ..] => 3 + usize::from(*a),
        [0x30, 0x82, a, b, ..] => 4 + usize::from(u16::from_be_bytes([*a, *b])),
        _ => return false,
    };
    length == bytes.len()
}

fn roots(found: &[CertificateResult]) -> RootCerts {
    let certs = found.iter().flat_map(|found| &found.certs);
    let certs = certs.map(|cert| Certificate::from_der(cert.as_ref()).to_owned());
    RootCerts::from(certs.collect::<Vec<_>>())
}
