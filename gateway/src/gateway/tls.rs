//! The certificate of the S3 side over TLS: the operator's own, or one that we sign ourselves and keep.
//!
//! A self-signed certificate is kept so that clients which trust it go on doing so after a restart; it is replaced
//! when it nears its end or lacks a name that is needed now. `made.json` says what the kept pair is good for: it is
//! removed before the pair is written and written after it, so a crash between never leaves a half pair in use.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use tokio_rustls::TlsAcceptor;

use crate::config::{CertificateFiles, TlsConfig};

/// Below the browsers' limit for server certificates, 398 days.
const VALID_FOR: Duration = Duration::from_secs(397 * 24 * 3600);
/// A certificate with less left is replaced at the start.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Clients' clocks may be behind ours by this much.
const CLOCK_SKEW: Duration = Duration::from_secs(24 * 3600);
const DIRECTORY: &str = "tls";
const CERT_FILE: &str = "cert.pem";
const KEY_FILE: &str = "key.pem";
const MADE_FILE: &str = "made.json";

/// What the TLS listener needs.
pub(crate) struct Tls {
    /// Does the handshakes.
    pub(crate) acceptor: TlsAcceptor,
    /// The file that clients must trust; `None` when the operator brought a certificate.
    pub(crate) ca: Option<PathBuf>,
}

/// What a kept self-signed pair is good for.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Made {
    names: Vec<String>,
    not_after_s: u64,
}

impl Tls {
    /// The operator's pair, or the kept or a new self-signed one under `dir`.
    pub(crate) fn prepare(dir: &Path, config: &TlsConfig, now_ms: u64) -> Result<Self, TlsError> {
        if let Some(files) = &config.files {
            return Ok(Self { acceptor: acceptor(files)?, ca: None });
        }
        let files = self_signed(&dir.join(DIRECTORY), config.listen.ip(), Duration::from_millis(now_ms))?;
        Ok(Self { acceptor: acceptor(&files)?, ca: Some(files.cert) })
    }
}

fn acceptor(files: &CertificateFiles) -> Result<TlsAcceptor, TlsError> {
    let unreadable = |path: &Path| {
        let path = path.to_path_buf();
        move |source| TlsError::Pem { path, source }
    };
    let chain = CertificateDer::pem_file_iter(&files.cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(unreadable(&files.cert))?;
    if chain.is_empty() {
        return Err(TlsError::Pem { path: files.cert.clone(), source: pem::Error::NoItemsFound });
    }
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(unreadable(&files.key))?;
    let unusable = |source| TlsError::Unusable { cert: files.cert.clone(), key: files.key.clone(), source };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(unusable)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Finds the kept pair in `dir`, or makes one.
fn self_signed(dir: &Path, listen: IpAddr, now: Duration) -> Result<CertificateFiles, TlsError> {
    let files = CertificateFiles { cert: dir.join(CERT_FILE), key: dir.join(KEY_FILE) };
    let made_file = dir.join(MADE_FILE);
    let names = names(listen);
    let kept: Option<Made> = fs::read(&made_file).ok().and_then(|json| serde_json::from_slice(&json).ok());
    let is_good = |made: &Made| {
        made.names == names && Duration::from_secs(made.not_after_s) > now.saturating_add(RENEW_BEFORE)
    };
    if kept.as_ref().is_some_and(is_good) && files.cert.exists() && files.key.exists() {
        return Ok(files);
    }
    let not_after = now.saturating_add(VALID_FOR);
    let (cert, key) = make(&names, now.saturating_sub(CLOCK_SKEW), not_after)?;
    let made = Made { names, not_after_s: not_after.as_secs() };
    let json = serde_json::to_vec(&made).map_err(|error| failed(&made_file)(error.into()))?;
    fs::create_dir_all(dir).map_err(failed(dir))?;
    match fs::remove_file(&made_file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&made_file)(error)),
        _ => {}
    }
    write(&files.key, key.as_bytes(), 0o600)?;
    write(&files.cert, cert.as_bytes(), 0o644)?;
    write(&made_file, &json, 0o644)?;
    tracing::info!(cert = %files.cert.display(), "made a self-signed certificate for S3 over TLS");
    Ok(files)
}

/// The names and addresses by which clients of this machine call us.
fn names(listen: IpAddr) -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let is_host_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
    };
    let address = (!listen.is_unspecified()).then(|| listen.to_string());
    for name in address.into_iter().chain(Some(host).filter(|host| is_host_name(host))) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// A new pair as PEM: certificate, key.
fn make(names: &[String], not_before: Duration, not_after: Duration) -> Result<(String, String), TlsError> {
    let mut params = CertificateParams::new(names.to_vec())?;
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + not_before;
    params.not_after = epoch + not_after;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Holdfast S3, self-signed");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    let cert = params.self_signed(&key)?;
    Ok((cert.pem(), key.serialize_pem()))
}

/// Writes a file whole: a new file of this mode, synced, then renamed over the old one.
fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), TlsError> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&new)(error)),
        _ => {}
    }
    let mut file =
        OpenOptions::new().create_new(true).write(true).mode(mode).open(&new).map_err(failed(&new))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed(&new))?;
    fs::rename(&new, path).map_err(failed(path))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> TlsError + use<> {
    let path = path.to_path_buf();
    move |source| TlsError::File { path, source }
}

/// Why S3 cannot be served over TLS.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file is missing, unreadable, or not what it should be.
    #[error(
        "cannot use {path} for S3 over TLS: {source}; --tls-cert and --tls-key name PEM files with a certificate \
         chain and its private key", path = .path.display()
    )]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// Certificate and key do not go together, or cannot be used.
    #[error(
        "the certificate {cert} and the key {key} cannot be used together: {source}; \
         give a pair that matches with --tls-cert and --tls-key", cert = .cert.display(), key = .key.display()
    )]
    Unusable {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What the TLS library said.
        source: rustls::Error,
    },
    /// The self-signed pair cannot be kept.
    #[error("cannot write {path}: {source}", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A self-signed certificate cannot be made.
    #[error("cannot make a self-signed certificate: {0}")]
    Make(#[from] rcgen::Error),
}

impl TlsError {
    /// Whether trying again without a person's help can succeed: never.
    pub fn is_retryable(&self) -> bool {
        false
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const LISTEN: &str = "127.0.0.1:0";
    const NOW_MS: u64 = 1_700_000_000_000;

    fn config(files: Option<CertificateFiles>) -> TlsConfig {
        TlsConfig { listen: LISTEN.parse().unwrap(), files }
    }

    #[test]
    fn a_certificate_of_our_own_is_kept_until_it_nears_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let at = |now_ms| {
            let ca = Tls::prepare(dir.path(), &config(None), now_ms).unwrap().ca.unwrap();
            fs::read(ca).unwrap()
        };
        let first = at(NOW_MS);
        assert_eq!(at(NOW_MS + 366 * 24 * 3_600_000), first);
        assert_ne!(at(NOW_MS + 368 * 24 * 3_600_000), first);
        let mode = fs::metadata(dir.path().join("tls/key.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_new_address_gets_a_new_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let first = Tls::prepare(dir.path(), &config(None), NOW_MS).unwrap().ca.unwrap();
        let first = fs::read(first).unwrap();
        let elsewhere = TlsConfig { listen: "10.1.2.3:9443".parse().unwrap(), files: None };
        let second = Tls::prepare(dir.path(), &elsewhere, NOW_MS).unwrap().ca.unwrap();
        assert_ne!(fs::read(second).unwrap(), first);
    }

    #[test]
    fn missing_empty_and_mismatched_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let pair = |name: &str| {
            let dir = dir.path().join(name);
            fs::create_dir(&dir).unwrap();
            self_signed(
                &dir,
                LISTEN.parse::<std::net::SocketAddr>().unwrap().ip(),
                Duration::from_millis(NOW_MS),
            )
            .unwrap()
        };
        let (one, other) = (pair("one"), pair("other"));
        let error = |cert: &Path, key: &Path| {
            let files = CertificateFiles { cert: cert.to_path_buf(), key: key.to_path_buf() };
            Tls::prepare(dir.path(), &config(Some(files)), NOW_MS).err().unwrap()
        };
        let missing = error(&dir.path().join("none.pem"), &one.key);
        assert!(missing.to_string().contains("none.pem"), "{missing}");
        assert!(matches!(error(&one.key, &one.key), TlsError::Pem { .. }));
        assert!(matches!(error(&one.cert, &one.cert), TlsError::Pem { .. }));
        let mismatched = error(&one.cert, &other.key);
        assert!(matches!(mismatched, TlsError::Unusable { .. }), "{mismatched}");
        Tls::prepare(dir.path(), &config(Some(one)), NOW_MS).unwrap();
    }
}
