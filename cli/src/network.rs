//! How client commands find their network: `--data DIR` of one on this machine, or `--gateway URL` and AWS keys.
//!
//! A running gateway leaves `DIR/network.json` with its addresses and `DIR/credentials` with a profile `holdfast`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rusty_s3::Credentials;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::args::NetworkArgs;

/// Where a network on this machine can be reached. Written when it is ready, replaced at each start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NetworkFile {
    /// S3 address.
    pub(crate) s3: String,
    /// S3 address over TLS, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) s3_tls: Option<String>,
    /// The certificate that its clients must trust, when we signed it ourselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) s3_tls_ca: Option<PathBuf>,
    /// Web address.
    pub(crate) web: String,
    /// Where the auditor's page, report and log are, if one runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) auditor: Option<String>,
    /// Process id of the gateway.
    pub(crate) pid: u32,
    /// The namespace's key.
    pub(crate) namespace: String,
    /// The nodes that were started together with the gateway.
    pub(crate) nodes: Vec<NodeEntry>,
}

/// One node started by `up`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NodeEntry {
    /// Its id.
    pub(crate) id: String,
    /// Its directory.
    pub(crate) dir: PathBuf,
    /// Where it listens by QUIC.
    pub(crate) address: SocketAddr,
    /// Its process; the gateway's own when it runs inside.
    pub(crate) pid: u32,
}

const NETWORK_FILE: &str = "network.json";
const CREDENTIALS_FILE: &str = "credentials";
const ADMIN_TOKEN_FILE: &str = "admin-token";
const PROFILE: &str = "holdfast";
const REGION: &str = "us-east-1";

impl NetworkFile {
    /// Writes `DIR/network.json` whole, by rename.
    pub(crate) fn write(&self, data: &Path) -> Result<()> {
        let json = serde_json::to_vec_pretty(self)?;
        write_private(&data.join(NETWORK_FILE), &json)
    }

    fn read(data: &Path) -> Result<Self> {
        let path = data.join(NETWORK_FILE);
        let bytes = std::fs::read(&path).with_context(|| {
            format!(
                "no network found at {} (cannot read {}); start one with `holdfast up --data {}`, \
                 or name a gateway with --gateway URL",
                data.display(),
                path.display(),
                data.display()
            )
        })?;
        serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))
    }
}

/// Writes the AWS credentials file; returns its path.
pub(crate) fn write_credentials(data: &Path, access_key: &str, secret_key: &str) -> Result<PathBuf> {
    let path = data.join(CREDENTIALS_FILE);
    let text =
        format!("[{PROFILE}]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret_key}\n");
    write_private(&path, text.as_bytes())?;
    Ok(path)
}

/// Writes a file of mode 0600 whole: a new file, synced, then renamed over the old one.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let partial = path.with_extension(format!("partial-{}", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file =
            std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&partial, path)?;
        path.parent().map_or(Ok(()), |parent| std::fs::File::open(parent)?.sync_all())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// A gateway and the right to use it.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    /// S3 address.
    pub(crate) s3: Url,
    /// S3 keys.
    pub(crate) credentials: Credentials,
    /// The region that requests are signed for.
    pub(crate) region: String,
    /// The admin side, known only for networks on this machine.
    admin: Option<(Url, String)>,
}

impl Access {
    /// Resolves `--data` or `--gateway`.
    pub(crate) fn resolve(args: &NetworkArgs) -> Result<Self> {
        if let Some(gateway) = &args.gateway {
            let s3 = Url::parse(gateway).with_context(|| format!("`{gateway}` is not a URL"))?;
            if !matches!(s3.scheme(), "http") {
                bail!("`{gateway}`: this command speaks http only; use an AWS client for https");
            }
            return Ok(Self::elsewhere(s3, credentials_elsewhere()?, REGION.to_owned()));
        }
        let network = NetworkFile::read(&args.data)?;
        let path = args.data.join(CREDENTIALS_FILE);
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let credentials = profile(&text, PROFILE)
            .with_context(|| format!("{} has no profile [{PROFILE}]", path.display()))?;
        let token_path = args.data.join(ADMIN_TOKEN_FILE);
        let token = std::fs::read_to_string(&token_path)
            .with_context(|| format!("cannot read {}", token_path.display()))?;
        let s3 = Url::parse(&network.s3).context("network.json names no S3 address")?;
        let web = Url::parse(&network.web).context("network.json names no web address")?;
        let admin = Some((web, token.trim().to_owned()));
        Ok(Self { s3, credentials, region: REGION.to_owned(), admin })
    }

    /// An S3 endpoint and keys for it.
    pub(crate) fn elsewhere(s3: Url, credentials: Credentials, region: String) -> Self {
        Self { s3, credentials, region, admin: None }
    }

    /// The web address and its admin token.
    pub(crate) fn admin(&self) -> Result<(Url, String)> {
        self.admin.clone().context("this command needs the network's own directory: give --data DIR")
    }
}

fn credentials_elsewhere() -> Result<Credentials> {
    if let (Ok(key), Ok(secret)) =
        (std::env::var("AWS_ACCESS_KEY_ID"), std::env::var("AWS_SECRET_ACCESS_KEY"))
    {
        return Ok(Credentials::new(key, secret));
    }
    shared_profile(PROFILE)
}

/// The keys of a profile of the AWS credentials file.
pub(crate) fn shared_profile(name: &str) -> Result<Credentials> {
    let path = std::env::var_os("AWS_SHARED_CREDENTIALS_FILE").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".aws/credentials"),
        PathBuf::from,
    );
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("no AWS keys in the environment, and {} cannot be read", path.display()))?;
    profile(&text, name).with_context(|| format!("{} has no profile [{name}]", path.display()))
}

/// The keys of a profile in an AWS credentials file.
fn profile(text: &str, wanted: &str) -> Option<Credentials> {
    let mut inside = false;
    let (mut key, mut secret) = (None, None);
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            inside = name.trim() == wanted;
        } else if inside && let Some((name, value)) = line.split_once('=') {
            match name.trim() {
                "aws_access_key_id" => key = Some(value.trim().to_owned()),
                "aws_secret_access_key" => secret = Some(value.trim().to_owned()),
                _ => {}
            }
        }
    }
    Some(Credentials::new(key?, secret?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_found_again_beside_other_profiles() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let path = write_credentials(dir.path(), "AKEY", "s3cr3t=")?;
        let text = format!("[other]\naws_access_key_id = X\n{}", std::fs::read_to_string(&path)?);
        let found = profile(&text, PROFILE).context("profile")?;
        assert_eq!((found.key(), found.secret()), ("AKEY", "s3cr3t="));
        assert!(profile("[other]\naws_access_key_id = X\n", PROFILE).is_none());
        Ok(())
    }

    #[test]
    fn secrets_are_readable_by_their_owner_only() -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir()?;
        let path = write_credentials(dir.path(), "AKEY", "secret")?;
        assert_eq!(std::fs::metadata(path)?.permissions().mode() & 0o777, 0o600);
        Ok(())
    }

    #[test]
    fn a_missing_network_names_the_next_step() {
        let args = NetworkArgs { data: PathBuf::from("/nonexistent/holdfast"), gateway: None };
        let error = Access::resolve(&args).expect_err("there is none");
        assert!(error.to_string().contains("holdfast up --data"), "{error}");
    }
}
