//! TLS 1.3 between engines: both sides prove their Ed25519 identity as a raw public key (RFC 7250), no certificates.
//!
//! Every connection makes a full handshake. There is nothing to resume with: the server gives no tickets and the client
//! keeps no sessions, so a key that is not trusted any more has no way around the check.

use crate::{
    model::{PublicKey, SIGNATURE_BYTES, Signature, SigningKey},
    routing::Forwarding,
};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
    client::{
        AlwaysResolvesClientRawPublicKeys, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
    server::{
        AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use std::sync::Arc;
use tokio::sync::watch;

/// SubjectPublicKeyInfo of an Ed25519 key (RFC 8410 §4) up to the key itself.
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

fn spki(key: &PublicKey) -> Vec<u8> {
    [&SPKI_PREFIX[..], key.as_bytes()].concat()
}

/// The key that a peer presented.
pub(super) fn presented_key(certificate: &CertificateDer<'_>) -> Option<PublicKey> {
    let key = certificate.as_ref().strip_prefix(&SPKI_PREFIX)?;
    PublicKey::from_bytes(key.try_into().ok()?).ok()
}

/// The TLS side of this peer's identity.
pub(super) struct Identity {
    own: Arc<CertifiedKey>,
    provider: Arc<CryptoProvider>,
    pub server: Arc<ServerConfig>,
}

impl Identity {
    pub fn new(key: &SigningKey, forwarding: watch::Receiver<Arc<Forwarding>>) -> Result<Self, Error> {
        let aes = has_aes();
        let provider = Arc::new(provider(aes));
        let der = PrivateKeyDer::try_from(key.to_pkcs8_der().to_vec()).map_err(|e| Error::General(e.into()))?;
        let own =
            Arc::new(CertifiedKey::new(vec![spki(&key.public()).into()], provider.key_provider.load_private_key(der)?));
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(TrustedPeers { forwarding }))
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(own.clone())));
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        // The side without AES instructions decides: as a client by its order, as a server by ignoring the client's.
        server.ignore_client_order = !aes;
        Ok(Self { own, provider, server: Arc::new(server) })
    }

    /// For connections to the one peer with this key.
    pub fn client(&self, pinned: PublicKey) -> Result<ClientConfig, Error> {
        let mut client = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(PinnedPeer { pinned }))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(self.own.clone())));
        client.resumption = Resumption::disabled();
        client.enable_sni = false;
        Ok(client)
    }
}

/// Whether the processor has instructions for AES.
pub(super) fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

fn provider(aes: bool) -> CryptoProvider {
    use aws_lc_rs::{cipher_suite, kx_group};
    let mut cipher_suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    if !aes {
        cipher_suites.rotate_right(1);
    }
    CryptoProvider { cipher_suites, kx_groups: vec![kx_group::X25519], ..aws_lc_rs::default_provider() }
}

/// The one verifier of signatures, as everywhere else: strict Ed25519.
fn verify(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    proof: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let bad = || Error::InvalidCertificate(CertificateError::BadSignature);
    let key = presented_key(certificate).ok_or_else(bad)?;
    let signature: [u8; SIGNATURE_BYTES] = proof.signature().try_into().map_err(|_| bad())?;
    let valid = proof.scheme == SignatureScheme::ED25519 && key.verify(message, &Signature::from_bytes(signature));
    if valid { Ok(HandshakeSignatureValid::assertion()) } else { Err(bad()) }
}

fn refused() -> Error {
    Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
}

fn no_tls12() -> Error {
    Error::General("TLS 1.2 is not spoken here".into())
}

/// Accepts exactly the keys of the peers trusted at this moment.
#[derive(Debug)]
struct TrustedPeers {
    forwarding: watch::Receiver<Arc<Forwarding>>,
}

impl ClientCertVerifier for TrustedPeers {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let key = presented_key(end_entity).ok_or_else(refused)?;
        let trusted = self.forwarding.borrow().peers.values().any(|peer| peer.public_key == key);
        if trusted { Ok(ClientCertVerified::assertion()) } else { Err(refused()) }
    }
    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _proof: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        proof: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify(message, certificate, proof)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Accepts exactly one key.
#[derive(Debug)]
struct PinnedPeer {
    pinned: PublicKey,
}

impl ServerCertVerifier for PinnedPeer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if presented_key(end_entity) == Some(self.pinned) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(refused())
        }
    }
    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _proof: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        proof: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify(message, certificate, proof)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_ed25519_key_of_the_exact_form_is_read() {
        let key = SigningKey::from_seed([1; 32]).public();
        assert_eq!(presented_key(&spki(&key).into()), Some(key));
        let mut long = spki(&key);
        long.push(0);
        assert_eq!(presented_key(&long.into()), None);
        let mut rsa = spki(&key);
        rsa[8] ^= 1;
        assert_eq!(presented_key(&rsa.into()), None);
        assert_eq!(presented_key(&[&SPKI_PREFIX[..], &[0; 32]].concat().into()), None, "small order");
    }

    #[test]
    fn aes_leads_only_where_the_processor_has_it() {
        let first = |aes| provider(aes).cipher_suites[0].suite();
        assert_eq!(first(true), rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
        assert_eq!(first(false), rustls::CipherSuite::TLS13_CHACHA20_POLY1305_SHA256);
    }
}
