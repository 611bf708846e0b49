//! Delegation without the gateway's help: tokens that anybody who holds one can narrow, and nobody can widen.
//!
//! A token is a Biscuit. Its first block, signed by a key that derives from the namespace's root key, names an access key;
//! it may do what that key may. Whoever holds the token appends blocks of checks offline ([`delegate`]) and hands the
//! result on. The gateway asks both: the access key's rules and every check.
//!
//! A token is used in one of two ways, told apart by the facts `signed(true)` and `bearer(true)`:
//! - *signed*: as `x-amz-security-token` of requests signed with the token's secret ([`secret_of`]). The secret of a
//!   narrowed token derives from the secret of the one before it and the new block's revocation id, so that holder and
//!   gateway compute the same one without meeting.
//! - *bearer*: in a link. Whoever has the link has the right. Only tokens made for it pass.

use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use biscuit_auth::builder::{self, Algorithm, Term};
use biscuit_auth::{
    AuthorizerBuilder, AuthorizerLimits, Biscuit, BlockBuilder, KeyPair, PrivateKey, UnverifiedBiscuit,
};
use holdfast_protocol::time::UnixMs;
use lru::LruCache;
use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::RootKey;
use super::rules::Operation;

const ROOT_CONTEXT: &str = "holdfast delegation token root v1";
const SECRET_CONTEXT: &str = "holdfast delegated secret v1";
/// Bytes of a token as text: a request's head has room for it beside everything else.
pub const TOKEN_LEN_MAX: usize = 8 * 1024;
/// Times a token may have been handed on.
const BLOCKS_MAX: usize = 16;
/// Tokens kept open: about 8 KiB each at most.
const OPENED_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
/// What a token's checks may cost: a hostile holder can write any Datalog into a block.
const LIMITS: AuthorizerLimits =
    AuthorizerLimits { max_facts: 200, max_iterations: 50, max_time: Duration::from_millis(200) };

/// Signs and opens the tokens of a namespace.
pub struct TokenRoot(KeyPair);

impl TokenRoot {
    /// The tokens of the namespace of this root key.
    pub fn of(root: &RootKey) -> Self {
        let seed = Zeroizing::new(blake3::derive_key(ROOT_CONTEXT, root.expose()));
        let key = PrivateKey::from_bytes(seed.as_ref(), Algorithm::Ed25519);
        Self(KeyPair::from(&key.expect("any 32 bytes are an Ed25519 seed")))
    }

    /// A token for all that this access key may do.
    pub fn issue(&self, access_key: &str) -> Result<String, TokenError> {
        let block = Biscuit::builder().fact(builder::fact("key", &[builder::string(access_key)]));
        let token = block.and_then(|block| block.build(&self.0)).and_then(|token| token.to_base64());
        token.map_err(|error| TokenError::Library(error.to_string()))
    }

    /// Checks the signatures of a token.
    pub fn open(&self, text: &str) -> Result<Token, TokenError> {
        if text.len() > TOKEN_LEN_MAX {
            return Err(TokenError::TooLong);
        }
        let biscuit = Biscuit::from_base64(text, self.0.public()).map_err(|_| TokenError::Invalid)?;
        if biscuit.block_count() > BLOCKS_MAX {
            return Err(TokenError::TooLong);
        }
        let mut authority =
            AuthorizerBuilder::new().set_limits(LIMITS).build(&biscuit).map_err(|_| TokenError::Invalid)?;
        let keys: Vec<(String,)> =
            authority.query("data($key) <- key($key)").map_err(|_| TokenError::Invalid)?;
        let [(access_key,)] = &keys[..] else { return Err(TokenError::Invalid) };
        Ok(Token { access_key: access_key.clone(), biscuit })
    }
}

/// Tokens that were opened lately, so that a client which presents the same one again costs no signature checks.
pub(crate) struct Tokens {
    root: TokenRoot,
    opened: Mutex<LruCache<String, Arc<Token>>>,
}

impl Tokens {
    pub(crate) fn new(root: TokenRoot) -> Self {
        Self { root, opened: Mutex::new(LruCache::new(OPENED_MAX)) }
    }

    /// A token for all that this access key may do.
    pub(crate) fn issue(&self, access_key: &str) -> Result<String, TokenError> {
        self.root.issue(access_key)
    }

    /// Checks the signatures of a token, unless that was done lately.
    pub(crate) fn open(&self, text: &str) -> Result<Arc<Token>, TokenError> {
        if let Some(token) = self.opened.lock().get(text) {
            return Ok(Arc::clone(token));
        }
        let token = Arc::new(self.root.open(text)?);
        self.opened.lock().put(text.to_owned(), Arc::clone(&token));
        Ok(token)
    }
}

impl std::fmt::Debug for TokenRoot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenRoot(redacted)")
    }
}

/// A token whose signatures hold.
pub struct Token {
    access_key: String,
    biscuit: Biscuit,
}

/// How a token came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presented {
    /// With a request that its secret signed.
    Signed,
    /// In a link.
    Bearer,
}

/// What is asked of a token.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// What is to be done.
    pub operation: Operation,
    /// In which bucket.
    pub bucket: &'a str,
    /// To which object; for a listing the prefix of what is listed.
    pub object: Option<&'a str>,
    /// When.
    pub now_ms: UnixMs,
    /// How the token came.
    pub presented: Presented,
}

impl Token {
    /// The access key whose rules bound it.
    pub fn access_key(&self) -> &str {
        &self.access_key
    }

    /// What signs requests that present it.
    pub fn secret(&self, of_access_key: &str) -> Zeroizing<String> {
        secret_of(of_access_key, &self.biscuit.revocation_identifiers())
    }

    /// Names of its blocks, by any of which it can be revoked.
    pub fn revocation_ids(&self) -> Vec<String> {
        self.biscuit.revocation_identifiers().iter().map(hex::encode).collect()
    }

    /// Whether every check of every block lets this through.
    pub fn allow(&self, asked: &Asked<'_>) -> bool {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(asked.now_ms);
        let presented = match asked.presented {
            Presented::Signed => "signed",
            Presented::Bearer => "bearer",
        };
        let facts = AuthorizerBuilder::new()
            .set_limits(LIMITS)
            .fact(builder::fact("operation", &[builder::string(asked.operation.name())]))
            .and_then(|all| all.fact(builder::fact("bucket", &[builder::string(asked.bucket)])))
            .and_then(|all| all.fact(builder::fact("time", &[builder::date(&at)])))
            .and_then(|all| all.fact(builder::fact(presented, &[builder::boolean(true)])))
            .and_then(|all| match asked.object {
                Some(object) => all.fact(builder::fact("object", &[builder::string(object)])),
                None => Ok(all),
            })
            .and_then(|all| all.policy("allow if true"))
            .and_then(|all| all.build(&self.biscuit));
        // Any trouble is a no.
        facts.is_ok_and(|mut authorizer| authorizer.authorize().is_ok())
    }
}

/// By what a token is narrowed; what is absent stays as it is.
#[derive(Clone, Debug, Default)]
pub struct Narrowing {
    /// Only this bucket.
    pub bucket: Option<String>,
    /// Only keys that begin with this, and listings below it.
    pub prefix: Option<String>,
    /// Only this object.
    pub object: Option<String>,
    /// Only these.
    pub operations: Option<Vec<Operation>>,
    /// Only until then.
    pub expires_ms: Option<UnixMs>,
}

/// Narrows a token, offline. A bearer token works in links and nowhere else, any other with signed requests only.
pub fn delegate(text: &str, narrowing: &Narrowing, presented: Presented) -> Result<String, TokenError> {
    let token = UnverifiedBiscuit::from_base64(text).map_err(|_| TokenError::Invalid)?;
    if token.block_count() >= BLOCKS_MAX {
        return Err(TokenError::TooLong);
    }
    let mut code = String::from(match presented {
        Presented::Signed => "check if signed(true);",
        Presented::Bearer => "check if bearer(true);",
    });
    let mut values: HashMap<String, Term> = HashMap::new();
    if let Some(bucket) = &narrowing.bucket {
        code.push_str("check if bucket({bucket});");
        values.insert("bucket".to_owned(), builder::string(bucket));
    }
    if let Some(prefix) = &narrowing.prefix {
        code.push_str("check if object($key), $key.starts_with({prefix});");
        values.insert("prefix".to_owned(), builder::string(prefix));
    }
    if let Some(object) = &narrowing.object {
        code.push_str("check if object({object});");
        values.insert("object".to_owned(), builder::string(object));
    }
    if let Some(operations) = &narrowing.operations {
        code.push_str("check if operation($operation), {operations}.contains($operation);");
        let set: BTreeSet<Term> =
            operations.iter().map(|operation| builder::string(operation.name())).collect();
        values.insert("operations".to_owned(), builder::set(set));
    }
    if let Some(expires_ms) = narrowing.expires_ms {
        code.push_str("check if time($now), $now < {end};");
        let end = SystemTime::UNIX_EPOCH + Duration::from_millis(expires_ms);
        values.insert("end".to_owned(), builder::date(&end));
    }
    let block = BlockBuilder::new().code_with_params(&code, values, HashMap::new());
    let narrowed = block.and_then(|block| token.append(block)).and_then(|token| token.to_base64());
    let narrowed = narrowed.map_err(|error| TokenError::Library(error.to_string()))?;
    if narrowed.len() > TOKEN_LEN_MAX { Err(TokenError::TooLong) } else { Ok(narrowed) }
}

/// A block of a token, for people.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct BlockView {
    /// By this name the block, and every token that has it, can be revoked.
    pub revocation_id: String,
    /// What it says, in Datalog.
    pub source: String,
}

/// What a token says, without checking that anybody signed it.
pub fn describe(text: &str) -> Result<Vec<BlockView>, TokenError> {
    let token = UnverifiedBiscuit::from_base64(text).map_err(|_| TokenError::Invalid)?;
    let ids = token.revocation_identifiers();
    let view = |(index, id): (usize, &Vec<u8>)| {
        let source = token.print_block_source(index).map_err(|_| TokenError::Invalid)?;
        Ok(BlockView { revocation_id: hex::encode(id), source })
    };
    ids.iter().enumerate().map(view).collect()
}

/// The secret of a token that was narrowed from `before`, whose secret is `secret`: for its maker, offline.
pub fn delegated_secret(before: &str, secret: &str, narrowed: &str) -> Result<Zeroizing<String>, TokenError> {
    let blocks = |text| {
        UnverifiedBiscuit::from_base64(text)
            .map(|token| token.revocation_identifiers())
            .map_err(|_| TokenError::Invalid)
    };
    let (before, narrowed) = (blocks(before)?, blocks(narrowed)?);
    let added = narrowed.strip_prefix(&before[..]).ok_or(TokenError::Invalid)?;
    Ok(chain(Zeroizing::new(secret.to_owned()), added))
}

/// The secret of a token with these revocation ids. That of the first block alone is the access key's own.
fn secret_of(of_access_key: &str, revocation_ids: &[Vec<u8>]) -> Zeroizing<String> {
    chain(Zeroizing::new(of_access_key.to_owned()), revocation_ids.get(1..).unwrap_or_default())
}

fn chain(mut secret: Zeroizing<String>, added: &[Vec<u8>]) -> Zeroizing<String> {
    for id in added {
        let mut hasher = blake3::Hasher::new_derive_key(SECRET_CONTEXT);
        // Both lengths are bound: what belongs to the secret cannot pass for a part of the id.
        hasher.update(&(secret.len() as u64).to_le_bytes());
        hasher.update(secret.as_bytes());
        hasher.update(id);
        let digest = Zeroizing::new(*hasher.finalize().as_bytes());
        secret = Zeroizing::new(STANDARD_NO_PAD.encode(&digest[..30]));
    }
    secret
}

/// Why a token was not made or not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Not a token of this namespace, or changed.
    #[error("this is not a token of this namespace, or it was changed")]
    Invalid,
    /// Handed on too often.
    #[error("the token is too long: it was handed on too often")]
    TooLong,
    /// The library refused.
    #[error("the token could not be made: {0}")]
    Library(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(seed: u8) -> TokenRoot {
        TokenRoot::of(&RootKey::from_bytes([seed; 32]))
    }

    fn asked<'a>(operation: Operation, bucket: &'a str, object: Option<&'a str>) -> Asked<'a> {
        Asked { operation, bucket, object, now_ms: 1_800_000_000_000, presented: Presented::Signed }
    }

    #[test]
    fn a_token_is_narrowed_by_its_holder_and_never_widened() {
        use Operation::{List, Read, Write};
        let root = root(1);
        let whole = root.issue("HOLDALICE").unwrap();
        let narrowing =
            Narrowing { bucket: Some("train\"); allow if true; //".to_owned()), ..Narrowing::default() };
        // Names are values, not code.
        let hostile = root.open(&delegate(&whole, &narrowing, Presented::Signed).unwrap()).unwrap();
        assert!(!hostile.allow(&asked(Read, "train", Some("k"))));
        let narrowing = Narrowing {
            bucket: Some("train".to_owned()),
            prefix: Some("v1/".to_owned()),
            operations: Some(vec![Read, List]),
            expires_ms: Some(1_800_000_001_000),
            ..Narrowing::default()
        };
        let first = delegate(&whole, &narrowing, Presented::Signed).unwrap();
        let wider = Narrowing { prefix: Some("v".to_owned()), ..Narrowing::default() };
        let second = delegate(&first, &wider, Presented::Signed).unwrap();
        for text in [&first, &second] {
            let token = root.open(text).unwrap();
            assert_eq!(token.access_key(), "HOLDALICE");
            assert!(token.allow(&asked(Read, "train", Some("v1/a"))));
            assert!(token.allow(&asked(List, "train", Some("v1/"))));
            assert!(!token.allow(&asked(Read, "train", Some("v2/a"))));
            assert!(!token.allow(&asked(List, "train", Some(""))));
            assert!(!token.allow(&asked(Write, "train", Some("v1/a"))));
            assert!(!token.allow(&asked(Read, "other", Some("v1/a"))));
            let late = Asked { now_ms: 1_800_000_001_000, ..asked(Read, "train", Some("v1/a")) };
            assert!(!token.allow(&late));
            let in_a_link = Asked { presented: Presented::Bearer, ..asked(Read, "train", Some("v1/a")) };
            assert!(!token.allow(&in_a_link));
        }
    }

    #[test]
    fn a_token_of_another_root_or_with_a_flipped_byte_does_not_open() {
        let text = root(1).issue("HOLDALICE").unwrap();
        assert!(matches!(root(2).open(&text), Err(TokenError::Invalid)));
        for at in [10, text.len() / 2, text.len() - 8] {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            assert!(root(1).open(std::str::from_utf8(&bytes).unwrap()).is_err(), "byte {at}");
        }
        assert!(root(1).open(&"A".repeat(TOKEN_LEN_MAX + 1)).is_err());
    }

    #[test]
    fn holder_and_gateway_derive_the_same_secret_without_meeting() {
        let root = root(1);
        let whole = root.issue("HOLDALICE").unwrap();
        let first = delegate(&whole, &Narrowing::default(), Presented::Signed).unwrap();
        let second = delegate(&first, &Narrowing::default(), Presented::Signed).unwrap();
        let first_secret = delegated_secret(&whole, "alice's secret", &first).unwrap();
        let second_secret = delegated_secret(&first, &first_secret, &second).unwrap();
        assert_eq!(root.open(&whole).unwrap().secret("alice's secret").as_str(), "alice's secret");
        assert_eq!(root.open(&first).unwrap().secret("alice's secret"), first_secret);
        assert_eq!(root.open(&second).unwrap().secret("alice's secret"), second_secret);
        assert_ne!(first_secret, second_secret);
        assert!(delegated_secret(&second, "x", &first).is_err());
    }

    #[test]
    fn a_link_is_for_one_object_and_works_only_as_a_link() {
        let root = root(1);
        let narrowing = Narrowing {
            bucket: Some("b".to_owned()),
            object: Some("k".to_owned()),
            operations: Some(vec![Operation::Read]),
            ..Narrowing::default()
        };
        let text = delegate(&root.issue("HOLDALICE").unwrap(), &narrowing, Presented::Bearer).unwrap();
        let token = root.open(&text).unwrap();
        let in_a_link =
            |object| Asked { presented: Presented::Bearer, ..asked(Operation::Read, "b", Some(object)) };
        assert!(token.allow(&in_a_link("k")));
        assert!(!token.allow(&in_a_link("k2")));
        assert!(!token.allow(&asked(Operation::Read, "b", Some("k"))));
    }
}
