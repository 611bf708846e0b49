//! Where an auditor gets its beacon's rounds. Wherever they come from, each is verified before it is used.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use holdfast_proofs::beacon::{BeaconSpec, Onion, OnionSecret};
use holdfast_proofs::policy::AuditPolicy;
use holdfast_protocol::record::BeaconRound;
use serde::Deserialize;
use url::Url;

use crate::client::Http;
use crate::network::write_private;

/// A drand round as relays and archives write it.
#[derive(Deserialize)]
struct Published {
    round: u64,
    signature: String,
}

/// A source of rounds.
#[derive(Debug)]
pub(crate) enum Rounds {
    /// We are the embedded beacon's only member.
    Own(OnionSecret),
    /// Files `ROUND.json` or `ROUND`, as drand's HTTP API gives them.
    Dir(PathBuf),
    /// A drand relay: `URL/public/ROUND`.
    Relay(Url, Box<Http>),
}

impl Rounds {
    /// `text` is a directory, or the `http:` URL of a relay.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        if text.starts_with("http://") {
            let text = if text.ends_with('/') { text.to_owned() } else { format!("{text}/") };
            return Ok(Self::Relay(Url::parse(&text)?, Box::new(Http::new())));
        }
        if text.starts_with("https://") {
            bail!(
                "`{text}`: this command speaks http only; name a relay in front of it, or a directory of rounds"
            );
        }
        Ok(Self::Dir(PathBuf::from(text)))
    }

    /// The round of this number, if it is there.
    pub(crate) async fn get(&self, number: u64) -> Result<Option<BeaconRound>> {
        let bytes = match self {
            Self::Own(secret) => {
                let layer = secret.layer(number).context("the embedded beacon has no more rounds")?;
                return Ok(Some(Onion::round(number, &[layer])));
            }
            Self::Dir(dir) => {
                let paths = [dir.join(format!("{number}.json")), dir.join(number.to_string())];
                paths.iter().find_map(|path| std::fs::read(path).ok())
            }
            Self::Relay(base, http) => http.fetch(&base.join(&format!("public/{number}"))?).await?,
        };
        let Some(bytes) = bytes else { return Ok(None) };
        let published: Published = serde_json::from_slice(&bytes)
            .with_context(|| format!("round {number} is not as drand writes rounds"))?;
        let proof = hex::decode(&published.signature).context("the round's signature is not hexadecimal")?;
        Ok(Some(BeaconRound { round: published.round, proof: proof.into() }))
    }
}

/// The rules and the beacon of a network on one machine, kept in `data/audit.json` and `data/auditor/beacon-secret`.
/// Made anew when the epoch is another than before: old rounds then mean nothing.
pub(crate) fn local(data: &Path, epoch_ms: u64, now_ms: u64) -> Result<(AuditPolicy, Rounds)> {
    let policy_path = data.join(super::POLICY_FILE);
    let secret_path = data.join("auditor/beacon-secret");
    let found =
        std::fs::read(&policy_path).ok().and_then(|bytes| serde_json::from_slice::<AuditPolicy>(&bytes).ok());
    let secret = std::fs::read_to_string(&secret_path).ok().and_then(|text| {
        let mut seed = [0u8; 32];
        hex::decode_to_slice(text.trim(), &mut seed).ok()?;
        Some(OnionSecret::new(seed))
    });
    if let (Some(policy), Some(secret)) = (found, secret)
        && policy.epoch_ms == epoch_ms
        && matches!(&policy.beacon, BeaconSpec::Onion { members, .. } if members[..] == [secret.anchor()])
    {
        return Ok((policy, Rounds::Own(secret)));
    }
    let mut seed = [0u8; 32];
    getrandom::fill(&mut seed).map_err(|_| anyhow::anyhow!("the system's random source failed"))?;
    let secret = OnionSecret::new(seed);
    // Round 1 is the draw of the epoch that runs now.
    let mut policy = AuditPolicy::every(epoch_ms, BeaconSpec::quicknet());
    let genesis_ms = policy.draw_of(policy.epoch_at(now_ms));
    policy.beacon = BeaconSpec::Onion { members: vec![secret.anchor()], genesis_ms, period_ms: epoch_ms };
    policy.check()?;
    std::fs::create_dir_all(data.join("auditor"))?;
    write_private(&secret_path, hex::encode(seed).as_bytes())?;
    write_private(&policy_path, &serde_json::to_vec_pretty(&policy)?)?;
    Ok((policy, Rounds::Own(secret)))
}
