//! TLS 1.3 by raw Ed25519 keys (RFC 7250), both sides: no certificates, no names, no resumption, no 0-RTT.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, SignatureScheme,
};

use super::{ALPN, BindError, tuning};
use crate::key::{NodeId, PublicKey, SigningKey};

/// The DER form of an Ed25519 public key is this and the key (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Our key as TLS uses it, and the cryptography that we accept.
pub(super) struct Identity {
    provider: Arc<CryptoProvider>,
    certified: Arc<CertifiedKey>,
}

impl Identity {
    pub(super) fn new(key: &SigningKey) -> Result<Self, BindError> {
        let provider = Arc::new(provider());
        let pkcs8 = key.pkcs8().map_err(|source| BindError::Key { source })?;
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8.to_vec()));
        let signing = provider.key_provider.load_private_key(private).map_err(tls)?;
        let certified = Arc::new(CertifiedKey::new(vec![spki(&key.public())], signing));
        Ok(Self { provider, certified })
    }

    /// Our key as TLS shows it.
    #[cfg(test)]
    pub(super) fn certified(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }

    /// What accepts peers that come by `way`.
    pub(super) fn server_config(&self, way: tuning::Way) -> Result<quinn::ServerConfig, BindError> {
        let mut config = rustls::ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(tls)?
            .with_client_cert_verifier(Arc::new(AnyKey { provider: self.provider.clone() }))
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(self.certified.clone())));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        let crypto = QuicServerConfig::try_from(config).map_err(|_| BindError::InitialSuite)?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        config.transport_config(tuning::transport_config(way, false));
        Ok(config)
    }

    /// What dials `peer` at `address`, and what is learnt of who answers.
    pub(super) fn dial_config(
        &self,
        peer: NodeId,
        address: SocketAddr,
    ) -> Result<(quinn::ClientConfig, Arc<OneKey>), BindError> {
        let resolver = AlwaysResolvesClientRawPublicKeys::new(self.certified.clone());
        self.dial_config_with(peer, address, ALPN, Arc::new(resolver))
    }

    /// [`Identity::dial_config`] with another protocol or another proof of our own key: what tests break.
    pub(super) fn dial_config_with(
        &self,
        peer: NodeId,
        address: SocketAddr,
        alpn: &[u8],
        resolver: Arc<dyn ResolvesClientCert>,
    ) -> Result<(quinn::ClientConfig, Arc<OneKey>), BindError> {
        let expectation =
            Arc::new(OneKey { provider: self.provider.clone(), expected: peer.key(), met: OnceLock::new() });
        let mut config = rustls::ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(tls)?
            .dangerous()
            .with_custom_certificate_verifier(expectation.clone())
            .with_client_cert_resolver(resolver);
        config.alpn_protocols = vec![alpn.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        config.enable_early_data = false;
        let crypto = QuicClientConfig::try_from(config).map_err(|_| BindError::InitialSuite)?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(tuning::transport_config(tuning::Way::to(address), true));
        Ok((config, expectation))
    }
}

/// AES-128-GCM first: twice as fast as AES-256-GCM's key schedule allows and four times ChaCha on machines
/// with AES instructions; the others stay for peers that lack them. X25519 alone: a hybrid key exchange
/// would spread the first flight over two packets.
fn provider() -> CryptoProvider {
    use aws_lc_rs::cipher_suite::{
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    CryptoProvider {
        cipher_suites: vec![
            TLS13_AES_128_GCM_SHA256,
            TLS13_AES_256_GCM_SHA384,
            TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    }
}

fn tls(source: Error) -> BindError {
    BindError::Tls { source }
}

fn spki(key: &PublicKey) -> CertificateDer<'static> {
    let mut der = SPKI_PREFIX.to_vec();
    der.extend_from_slice(&key.0);
    CertificateDer::from(der)
}

/// The Ed25519 key in a raw public key; nothing else passes.
fn key_in(spki: &CertificateDer<'_>) -> Option<PublicKey> {
    let key = spki.as_ref().strip_prefix(&SPKI_PREFIX)?;
    key.try_into().ok().map(PublicKey)
}

/// Who the peer of an established connection proved to be.
pub(super) fn peer_of(connection: &quinn::Connection) -> Option<NodeId> {
    let identity = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    match identity.as_slice() {
        [spki] => key_in(spki).map(NodeId),
        _ => None,
    }
}

fn check_signature(
    provider: &CryptoProvider,
    message: &[u8],
    spki: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    verify_tls13_signature_with_raw_key(
        message,
        &SubjectPublicKeyInfoDer::from(spki.as_ref()),
        signed,
        &provider.signature_verification_algorithms,
    )
}

/// A dialler's verifier: exactly one key will do.
#[derive(Debug)]
pub(super) struct OneKey {
    provider: Arc<CryptoProvider>,
    expected: PublicKey,
    met: OnceLock<bool>,
}

impl OneKey {
    /// Whether the peer showed the expected key; `None` when it showed none.
    pub(super) fn met(&self) -> Option<bool> {
        self.met.get().copied()
    }
}

impl ServerCertVerifier for OneKey {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let matches = key_in(end_entity) == Some(self.expected) && intermediates.is_empty();
        // Each dial has a verifier of its own, which is asked once.
        let _ = self.met.set(matches);
        if matches {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(&self.provider, message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// An acceptor's verifier: any key that the peer can sign with. What it may do is decided per request.
#[derive(Debug)]
struct AnyKey {
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for AnyKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if key_in(end_entity).is_some() && intermediates.is_empty() {
            Ok(ClientCertVerified::assertion())
        } else {
            Err(Error::InvalidCertificate(CertificateError::BadEncoding))
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(&self.provider, message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
