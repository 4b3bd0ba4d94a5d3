//! A client's profile: everything needed to find and trust one cluster, as one TOML text. Whoever calls reads and
//! writes the file.

use crate::tls::Credentials;
use farshore_core::id::ClusterId;
use farshore_core::limits::{ENDPOINTS_MAX, PROFILE_BYTES_MAX};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A checked profile.
#[derive(Clone, PartialEq, Eq)]
pub struct Profile {
    /// Cluster it leads to.
    pub cluster: ClusterId,
    /// `host:port` of nodes to try first, at least one; the rest is learnt from the topology.
    pub endpoints: Vec<String>,
    /// Certificate of the cluster's authority, PEM.
    pub ca_cert: String,
    /// Own certificate, PEM.
    pub cert: String,
    /// Own private key, PEM.
    pub key: String,
}

/// Keys do not belong into logs.
impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Profile")
            .field("cluster", &self.cluster)
            .field("endpoints", &self.endpoints)
            .finish_non_exhaustive()
    }
}

/// Why a text is no profile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// Not TOML, a key is missing or unknown, or the text was cut off.
    #[error("profile is not readable: {0}")]
    Syntax(String),
    /// A value cannot be right.
    #[error("profile: {key} {why}")]
    Value {
        /// Which key.
        key: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

/// A profile as typed.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    cluster: String,
    endpoints: Vec<String>,
    ca_cert: String,
    cert: String,
    key: String,
}

impl Profile {
    /// Reads and checks a profile. That key and certificates work together shows when they are used.
    pub fn parse(text: &str) -> Result<Profile, ProfileError> {
        let value = |key, why: String| ProfileError::Value { key, why };
        if text.len() > PROFILE_BYTES_MAX {
            return Err(ProfileError::Syntax(format!("it is longer than {PROFILE_BYTES_MAX} bytes")));
        }
        // The parser's own error shows the offending line, which may be the key: only its message is passed on.
        let text: Text = toml::from_str(text).map_err(|e| ProfileError::Syntax(e.message().into()))?;
        let cluster = text.cluster.parse().map_err(|e| value("cluster", format!("is {e}")))?;
        if text.endpoints.is_empty() || text.endpoints.len() > ENDPOINTS_MAX {
            return Err(value("endpoints", format!("must name 1 to {ENDPOINTS_MAX} nodes")));
        }
        if let Some(bad) = text.endpoints.iter().find(|addr| !is_host_port(addr)) {
            return Err(value("endpoints", format!("has {bad:?}, which is not host:port")));
        }
        check_pem("ca_cert", &text.ca_cert, "CERTIFICATE")?;
        check_pem("cert", &text.cert, "CERTIFICATE")?;
        check_pem("key", &text.key, "PRIVATE KEY")?;
        let Text { endpoints, ca_cert, cert, key, .. } = text;
        Ok(Profile { cluster, endpoints, ca_cert, cert, key })
    }

    /// Writes it so that [`Profile::parse`] gives the same back.
    pub fn to_toml(&self) -> String {
        let text = Text {
            cluster: self.cluster.to_string(),
            endpoints: self.endpoints.clone(),
            ca_cert: self.ca_cert.clone(),
            cert: self.cert.clone(),
            key: self.key.clone(),
        };
        toml::to_string_pretty(&text).expect("a table of strings can always be written")
    }

    /// What TLS needs of it.
    pub fn credentials(&self) -> Credentials {
        Credentials {
            cluster: self.cluster,
            ca_pem: self.ca_cert.clone(),
            cert_pem: self.cert.clone(),
            key_pem: self.key.clone(),
        }
    }
}

/// Whether a text can be dialled: a host name, an IPv4 address or a bracketed IPv6 address, and a port above 0.
pub fn is_host_port(addr: &str) -> bool {
    let Some((host, port)) = addr.rsplit_once(':') else { return false };
    let port_ok = port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|p| p > 0);
    let host_ok = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            (1..=253).contains(&host.len())
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        }
    };
    port_ok && host_ok
}

/// A PEM block that was cut off lacks its end line.
fn check_pem(key: &'static str, pem: &str, label: &str) -> Result<(), ProfileError> {
    let whole =
        pem.contains(&format!("-----BEGIN {label}-----")) && pem.contains(&format!("-----END {label}-----"));
    if whole {
        return Ok(());
    }
    Err(ProfileError::Value {
        key,
        why: format!("holds no whole PEM block of a {}", label.to_ascii_lowercase()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{Authority, Validity};
    use proptest::prelude::*;

    fn profile() -> Profile {
        let cluster = ClusterId([7; 16]);
        let validity = Validity::ten_years(1_796_083_200_000);
        let authority = Authority::create(cluster, validity).unwrap();
        let client = authority.issue_client(&"laptop".parse().unwrap(), validity).unwrap();
        Profile {
            cluster,
            endpoints: vec!["node-1.example:7400".into(), "[2001:db8::1]:7400".into()],
            ca_cert: authority.ca_cert_pem().into(),
            cert: client.cert_pem,
            key: client.key_pem,
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let profile = profile();
        assert_eq!(Profile::parse(&profile.to_toml()), Ok(profile));
    }

    #[test]
    fn a_profile_cut_off_anywhere_is_refused_and_never_shows_its_key() {
        let whole = profile().to_toml();
        // The very last characters are the closing quotes and a line end.
        for end in (0..whole.len() - 4).step_by(7) {
            let error = Profile::parse(&whole[..end]).unwrap_err().to_string();
            assert!(!error.contains("PRIVATE KEY-----"), "{error}");
        }
    }

    #[test]
    fn wrong_values_are_named() {
        let good = profile();
        let says = |text: String, what: &str| {
            let error = Profile::parse(&text).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        };
        says(Profile { endpoints: vec![], ..good.clone() }.to_toml(), "endpoints");
        for bad in [
            "",
            "host",
            "host:",
            ":1",
            "host:0",
            "host:65536",
            "host:+1",
            "ho st:1",
            "::1:7",
            "[::1]",
            "a/b:1",
        ] {
            says(Profile { endpoints: vec![bad.into()], ..good.clone() }.to_toml(), "endpoints");
        }
        says(Profile { key: good.cert.clone(), ..good.clone() }.to_toml(), "key");
        says(format!("colour = 'red'\n{}", good.to_toml()), "colour");
        says(good.to_toml().replace(&good.cluster.to_string(), "07"), "cluster");
        says("x".repeat(PROFILE_BYTES_MAX + 1), "longer");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn rubbish_is_an_error(text in ".{0,200}") {
            prop_assert!(Profile::parse(&text).is_err());
        }
    }
}
