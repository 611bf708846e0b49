//! The database's URL: what of it the client library knows, and what we read ourselves.
//!
//! The library knows neither `verify-full` nor certificate files, so what is said of TLS is taken out of the URL first.
//! TLS is either verified, the server's name included, or not used at all: `allow` and `prefer` would encrypt without
//! knowing to whom, and hand a password to whoever answers.

use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tokio_postgres::Config;
use tokio_postgres::config::SslMode;

use super::super::store::StoreError;

/// What the URL says of TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TlsAddress {
    /// Certificates to trust instead of the system's.
    roots: Option<PathBuf>,
    /// A certificate to show, and its key.
    identity: Option<(PathBuf, PathBuf)>,
}

/// What the URL says.
#[derive(Clone, Debug)]
pub(super) struct Address {
    /// What the library knows.
    pub(super) config: Config,
    /// TLS, if it is wanted.
    pub(super) tls: Option<TlsAddress>,
}

impl Address {
    /// Reads a URL.
    pub(super) fn parse(url: &str) -> Result<Self, StoreError> {
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let (mut mode, mut roots, mut certificate, mut key) = (None, None, None, None);
        let mut rest = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = || percent_decoded(value);
            match name {
                "sslmode" => mode = Some(value()?),
                "sslrootcert" => roots = Some(value()?).filter(|path| path != "system"),
                "sslcert" => certificate = Some(value()?),
                "sslkey" => key = Some(value()?),
                _ => rest.push(pair),
            }
        }
        let is_encrypted = match mode.as_deref() {
            Some("require" | "verify-ca" | "verify-full") => true,
            None | Some("disable") => false,
            Some(other) => {
                return Err(unusable(format!(
                    "sslmode={other} would encrypt without knowing to whom; say verify-full, require or disable"
                )));
            }
        };
        if !is_encrypted && (roots.is_some() || certificate.is_some() || key.is_some()) {
            return Err(unusable("certificates are named, but not sslmode=verify-full".to_owned()));
        }
        let identity = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate.into(), key.into())),
            (None, None) => None,
            _ => return Err(unusable("sslcert and sslkey go together".to_owned())),
        };
        let plain = if rest.is_empty() { base.to_owned() } else { format!("{base}?{}", rest.join("&")) };
        let mut config: Config = plain.parse().map_err(|error| unusable(super::connection::full(&error)))?;
        config.ssl_mode(if is_encrypted { SslMode::Require } else { SslMode::Disable });
        let tls = is_encrypted.then(|| TlsAddress { roots: roots.map(PathBuf::from), identity });
        Ok(Self { config, tls })
    }
}

impl TlsAddress {
    /// What a client of this database trusts and shows.
    pub(super) fn client(&self) -> Result<ClientConfig, StoreError> {
        let mut roots = RootCertStore::empty();
        match &self.roots {
            Some(path) => {
                for certificate in certificates(path)? {
                    roots.add(certificate).map_err(|error| unreadable(path, &error))?;
                }
            }
            None => {
                // Some of a system's certificates may be of no use; none at all are.
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        if roots.is_empty() {
            return Err(unusable(
                "no certificates to trust were found; name some with sslrootcert".to_owned(),
            ));
        }
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(error.to_string()))?
            .with_root_certificates(roots);
        match &self.identity {
            None => Ok(builder.with_no_client_auth()),
            Some((certificate, key)) => {
                let chain = certificates(certificate)?;
                let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable(key, &error))?;
                builder.with_client_auth_cert(chain, secret).map_err(|error| unreadable(certificate, &error))
            }
        }
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, StoreError> {
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| unreadable(path, &error))?;
    if found.is_empty() { Err(unreadable(path, &"it has no certificate")) } else { Ok(found) }
}

fn unreadable(path: &Path, error: &dyn std::fmt::Display) -> StoreError {
    unusable(format!("{} cannot be used: {error}", path.display()))
}

/// An address that a person must mend.
pub(super) fn unusable(detail: String) -> StoreError {
    StoreError::Backend { operation: "understand its address", detail, retryable: false }
}

fn percent_decoded(text: &str) -> Result<String, StoreError> {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let Some((first, tail)) = rest.split_first() {
        let escaped = (*first == b'%').then(|| tail.get(..2)).flatten();
        let byte = escaped.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8(bytes).map_err(|_| unusable("its options are not UTF-8".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(url: &str) -> Result<Option<TlsAddress>, String> {
        Address::parse(url).map(|address| address.tls).map_err(|error| error.to_string())
    }

    #[test]
    fn tls_is_verified_or_not_used() {
        for url in
            ["postgres://u@h/d", "postgres://u@h/d?sslmode=disable", "postgresql://u@h/d?connect_timeout=3"]
        {
            assert_eq!(mode(url), Ok(None), "{url}");
            assert_eq!(Address::parse(url).unwrap().config.get_ssl_mode(), SslMode::Disable);
        }
        for url in
            ["postgres://u@h/d?sslmode=require", "postgres://u@h/d?sslmode=verify-full&sslrootcert=system"]
        {
            assert_eq!(mode(url), Ok(Some(TlsAddress::default())), "{url}");
            assert_eq!(Address::parse(url).unwrap().config.get_ssl_mode(), SslMode::Require);
        }
        for mistake in
            ["sslmode=prefer", "sslmode=allow", "sslmode=no", "sslrootcert=/ca", "sslkey=/k", "nonsense=1"]
        {
            assert!(mode(&format!("postgres://u:hidden@h/d?{mistake}")).is_err(), "{mistake}");
        }
        let half = mode("postgres://u:hidden@h/d?sslmode=require&sslcert=/c").unwrap_err();
        assert!(half.contains("go together") && !half.contains("hidden"), "{half}");
    }

    #[test]
    fn certificate_files_are_taken_out_and_the_rest_is_left() {
        let url = "postgres://u@h1,h2:6000/d?sslrootcert=%2Fetc%2Fa%20b.pem&target_session_attrs=read-write\
                   &sslmode=verify-full&sslcert=/c&sslkey=/k";
        let address = Address::parse(url).unwrap();
        assert_eq!(address.config.get_ports(), [5432, 6000]);
        let tls = address.tls.unwrap();
        assert_eq!(tls.roots, Some(PathBuf::from("/etc/a b.pem")));
        assert_eq!(tls.identity, Some((PathBuf::from("/c"), PathBuf::from("/k"))));
        let error = tls.client().unwrap_err().to_string();
        assert!(error.contains("/etc/a b.pem"), "{error}");
    }
}
