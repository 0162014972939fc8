//! `host:port` where an agent can be reached.

use super::text::as_text;
use std::{fmt, net::IpAddr, str::FromStr};

/// The API port where none is given (spec README).
pub const DEFAULT_API_PORT: u16 = 8080;
const HOST_MAX_BYTES: usize = 253;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid endpoint `{input}`: {reason}")]
pub struct EndpointError {
    pub input: String,
    pub reason: &'static str,
}

/// A host name or address with a port. IPv6 addresses are written `[::1]:8080`; 4-in-6 addresses become IPv4.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    host: String,
    port: u16,
}

impl Endpoint {
    pub fn new(host: &str, port: u16) -> Result<Self, EndpointError> {
        let bad = |reason| EndpointError { input: host.chars().take(64).collect(), reason };
        if port == 0 {
            return Err(bad("port 0 cannot be dialled"));
        }
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(Self { host: ip.to_canonical().to_string(), port });
        }
        let label_ok = |l: &str| {
            !l.is_empty()
                && l.len() <= 63
                && !l.starts_with('-')
                && !l.ends_with('-')
                && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        let name = host.strip_suffix('.').unwrap_or(host);
        if name.is_empty() || name.len() > HOST_MAX_BYTES || !name.split('.').all(label_ok) {
            return Err(bad("expected a host name or an IP address, then :port"));
        }
        Ok(Self { host: name.to_ascii_lowercase(), port })
    }
    pub fn host(&self) -> &str {
        &self.host
    }
    pub fn port(&self) -> u16 {
        self.port
    }
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
    /// The same host with another port: where the data ports of this peer are.
    pub fn with_port(&self, port: u16) -> Self {
        Self { host: self.host.clone(), port }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    /// A missing port means 8080 (api.md §4).
    fn from_str(s: &str) -> Result<Self, EndpointError> {
        let bad = |reason| EndpointError { input: s.chars().take(64).collect(), reason };
        let port_of = |p: &str| p.parse::<u16>().map_err(|_| bad("the port is not a number from 1 to 65535"));
        if let Some(rest) = s.strip_prefix('[') {
            let (host, tail) = rest.split_once(']').ok_or_else(|| bad("missing `]` after an IPv6 address"))?;
            let port = match tail.strip_prefix(':') {
                Some(p) => port_of(p)?,
                None if tail.is_empty() => DEFAULT_API_PORT,
                None => return Err(bad("expected :port after `]`")),
            };
            return match host.parse::<IpAddr>() {
                Ok(_) => Self::new(host, port),
                Err(_) => Err(bad("not an IPv6 address between the brackets")),
            };
        }
        match s.rsplit_once(':') {
            Some((host, _)) if host.contains(':') => {
                Self::new(s, DEFAULT_API_PORT).map_err(|_| bad("write an IPv6 address with a port as [address]:port"))
            }
            Some((host, port)) => Self::new(host, port_of(port)?),
            None => Self::new(s, DEFAULT_API_PORT),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

as_text!(Endpoint);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_port_is_8080_and_families_are_told_apart() {
        let text = |s: &str| s.parse::<Endpoint>().map(|e| e.to_string());
        assert_eq!(text("tokyo").unwrap(), "tokyo:8080");
        assert_eq!(text("10.0.0.1:99").unwrap(), "10.0.0.1:99");
        assert_eq!(text("::1").unwrap(), "[::1]:8080");
        assert_eq!(text("[fd00::1]:81").unwrap(), "[fd00::1]:81");
        assert_eq!(text("[::ffff:10.0.0.1]:81").unwrap(), "10.0.0.1:81");
        for bad in ["", "a:b", "a:0", "a:70000", "http://x", "x/y", "[::1", "[x]:1", "a b", "-a"] {
            assert!(text(bad).is_err(), "{bad}");
        }
    }
}
