//! The cluster's certificate authority: makes keys and signs certificates. It never stores them and never listens;
//! whoever calls it decides where the files go.

use crate::tls::{Caller, any_node_name, identity_uri, node_name};
use farshore_core::id::{ClusterId, NodeId};
use farshore_core::topology::Name;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ED25519, PublicKeyData, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::time::Duration;

/// From when to when a certificate is valid, in Unix milliseconds; cut to whole seconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Validity {
    /// First moment.
    pub not_before_ms: u64,
    /// Last moment.
    pub not_after_ms: u64,
}

const DAY_MS: u64 = 86_400_000;

impl Validity {
    /// From a day before `now_ms`, since clocks differ, to `days` after it.
    pub fn days(now_ms: u64, days: u64) -> Self {
        Validity {
            not_before_ms: now_ms.saturating_sub(DAY_MS),
            not_after_ms: now_ms.saturating_add(days.saturating_mul(DAY_MS)),
        }
    }
    /// From a day before `now_ms` to ten years after it: the usual life of a cluster's certificates.
    pub fn ten_years(now_ms: u64) -> Self {
        Validity::days(now_ms, 3_653)
    }
}

/// The last second that X.509 can write, in the year 9999.
const NOT_AFTER_MS_MAX: u64 = 253_402_300_799_000;

/// Why no certificate came about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PkiError {
    /// The authority's files cannot be used.
    #[error("authority is not usable: {0}")]
    Authority(String),
    /// The certificate could not be made.
    #[error("issue certificate: {0}")]
    Issue(String),
}

/// A certificate and its key, both new.
#[derive(Clone)]
pub struct Issued {
    /// Whose it is.
    pub who: Caller,
    /// The certificate.
    pub cert_pem: String,
    /// The private key, PKCS#8.
    pub key_pem: String,
}

/// A node's certificate and key, both new.
#[derive(Clone)]
pub struct IssuedNode {
    /// Derived from the new key.
    pub id: NodeId,
    /// The certificate.
    pub cert_pem: String,
    /// The private key, PKCS#8.
    pub key_pem: String,
}

/// The authority of one cluster.
pub struct Authority {
    cluster: ClusterId,
    cert_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a new authority with a new key.
    pub fn create(cluster: ClusterId, validity: Validity) -> Result<Self, PkiError> {
        let key = new_key()?;
        let mut params = authority_params(cluster)?;
        set_validity(&mut params, validity);
        let cert_pem = params.self_signed(&key).map_err(issue)?.pem();
        Ok(Authority { cluster, cert_pem, issuer: Issuer::new(params, key) })
    }

    /// Takes an authority from what [`Authority::ca_cert_pem`] and [`Authority::ca_key_pem`] gave.
    pub fn load(ca_cert_pem: &str, ca_key_pem: &str) -> Result<Self, PkiError> {
        let bad = |what: &str, e: &dyn std::fmt::Display| PkiError::Authority(format!("{what}: {e}"));
        let key = KeyPair::from_pem(ca_key_pem).map_err(|e| bad("key", &e))?;
        let der =
            CertificateDer::from_pem_slice(ca_cert_pem.as_bytes()).map_err(|e| bad("certificate", &e))?;
        let parsed = webpki::EndEntityCert::try_from(&der).map_err(|e| bad("certificate", &e))?;
        if *parsed.subject_public_key_info() != *key.subject_public_key_info() {
            return Err(bad("certificate", &"its key is another one"));
        }
        let cluster =
            parsed.valid_uri_names().find_map(cluster_of).ok_or_else(|| bad("certificate", &NO_CLUSTER))?;
        // The distinguished name follows from the cluster, so that the issuer can be put together again.
        let issuer = Issuer::new(authority_params(cluster)?, key);
        Ok(Authority { cluster, cert_pem: ca_cert_pem.into(), issuer })
    }

    /// Cluster it signs for.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }
    /// What everybody in the cluster trusts.
    pub fn ca_cert_pem(&self) -> &str {
        &self.cert_pem
    }
    /// The secret that makes members.
    pub fn ca_key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Makes a key and a certificate for a new node; its id follows from the key.
    pub fn issue_node(&self, validity: Validity) -> Result<IssuedNode, PkiError> {
        let key = new_key()?;
        let id = NodeId::of_public_key(&key.subject_public_key_info());
        let names = [any_node_name(self.cluster), node_name(self.cluster, id)];
        let uses = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let cert_pem = self.sign(&key, &Caller::Node(id), &names, &uses, validity)?;
        Ok(IssuedNode { id, cert_pem, key_pem: key.serialize_pem() })
    }

    /// Makes a key and a certificate for a client of this name.
    pub fn issue_client(&self, name: &Name, validity: Validity) -> Result<Issued, PkiError> {
        let key = new_key()?;
        let who = Caller::Client(name.to_string());
        let cert_pem = self.sign(&key, &who, &[], &[ExtendedKeyUsagePurpose::ClientAuth], validity)?;
        Ok(Issued { who, cert_pem, key_pem: key.serialize_pem() })
    }

    fn sign(
        &self,
        key: &KeyPair,
        who: &Caller,
        dns_names: &[String],
        uses: &[ExtendedKeyUsagePurpose],
        validity: Validity,
    ) -> Result<String, PkiError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(&who.to_string());
        params.subject_alt_names.push(SanType::URI(ia5(&identity_uri(self.cluster, who))?));
        for name in dns_names {
            params.subject_alt_names.push(SanType::DnsName(ia5(name)?));
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = uses.to_vec();
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, validity);
        Ok(params.signed_by(key, &self.issuer).map_err(issue)?.pem())
    }
}

const NO_CLUSTER: &str = "it does not name a Farshore cluster";

fn issue(e: rcgen::Error) -> PkiError {
    PkiError::Issue(e.to_string())
}

fn new_key() -> Result<KeyPair, PkiError> {
    KeyPair::generate_for(&PKCS_ED25519).map_err(issue)
}

fn ia5(text: &str) -> Result<Ia5String, PkiError> {
    Ia5String::try_from(text).map_err(issue)
}

fn common_name(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, text);
    name
}

fn cluster_of(uri: &str) -> Option<ClusterId> {
    uri.strip_prefix("farshore://")?.strip_suffix("/ca")?.parse().ok()
}

fn authority_params(cluster: ClusterId) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(&format!("farshore cluster {cluster}"));
    params.subject_alt_names = vec![SanType::URI(ia5(&format!("farshore://{cluster}/ca"))?)];
    // It signs members only, never another authority.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn set_validity(params: &mut CertificateParams, validity: Validity) {
    let at =
        |ms: u64| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(ms.min(NOT_AFTER_MS_MAX) / 1_000);
    params.not_before = at(validity.not_before_ms);
    params.not_after = at(validity.not_after_ms);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::identify;

    fn signed(authority: &Authority, key: &KeyPair, who: &Caller) -> CertificateDer<'static> {
        let pem = authority.sign(key, who, &[], &[], Validity::ten_years(0)).unwrap();
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    #[test]
    fn a_node_id_without_its_key_is_refused_even_if_signed() {
        let cluster = ClusterId([1; 16]);
        let authority = Authority::create(cluster, Validity::ten_years(0)).unwrap();
        let key = new_key().unwrap();
        let id = NodeId::of_public_key(&key.subject_public_key_info());
        assert_eq!(identify(&signed(&authority, &key, &Caller::Node(id)), cluster), Ok(Caller::Node(id)));
        let other = Caller::Node(NodeId(id.0 ^ 1));
        assert!(identify(&signed(&authority, &key, &other), cluster).is_err());
    }

    #[test]
    fn names_that_say_too_much_are_refused() {
        let cluster = ClusterId([1; 16]);
        let authority = Authority::create(cluster, Validity::ten_years(0)).unwrap();
        let key = new_key().unwrap();
        let named = |name: &str| identify(&signed(&authority, &key, &Caller::Client(name.into())), cluster);
        assert_eq!(named("laptop"), Ok(Caller::Client("laptop".into())));
        for bad in ["", "a/b", "..", "a b", "a?b", &"x".repeat(129)] {
            assert!(named(bad).is_err(), "{bad:?}");
        }
        let of_authority = CertificateDer::from_pem_slice(authority.ca_cert_pem().as_bytes()).unwrap();
        assert!(identify(&of_authority, cluster).is_err());
    }
}
