//! CIDR input with the errors of api.md §6.

use ipnet::IpNet;
use std::net::IpAddr;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    #[error("invalid CIDR notation: `{input}` has no prefix length (did you mean {input}/{full}?)")]
    NoSlash { input: String, full: u8 },
    #[error("invalid CIDR notation: `{input}` has host bits set (did you mean {network}?)")]
    HostBits { input: String, network: IpNet },
    #[error("invalid CIDR notation: `{input}` is not ADDRESS/PREFIX")]
    Malformed { input: String },
}

fn parse(input: &str) -> Result<IpNet, CidrError> {
    let clipped = || input.chars().take(64).collect::<String>();
    if let Ok(ip) = input.parse::<IpAddr>() {
        return Err(CidrError::NoSlash { input: clipped(), full: if ip.is_ipv4() { 32 } else { 128 } });
    }
    input.parse::<IpNet>().map_err(|_| CidrError::Malformed { input: clipped() })
}

/// A network for a route: slash notation whose address matches its mask; `0.0.0.0/0` is allowed.
pub fn parse_route_cidr(input: &str) -> Result<IpNet, CidrError> {
    let net = parse(input)?;
    if net.trunc() == net { Ok(net) } else { Err(CidrError::HostBits { input: net.to_string(), network: net.trunc() }) }
}

/// A host address with its prefix, as in `192.168.100.10/24`.
pub fn parse_host_cidr(input: &str) -> Result<IpNet, CidrError> {
    parse(input)
}

#[cfg(test)]
mod tests {
    use super::*;

    // accepts: 002-45, 002-46
    #[test]
    fn host_bits_and_missing_prefixes_are_refused_with_the_network() {
        let err = |s: &str| parse_route_cidr(s).unwrap_err().to_string();
        assert_eq!(
            err("10.1.2.3/8"),
            "invalid CIDR notation: `10.1.2.3/8` has host bits set (did you mean 10.0.0.0/8?)"
        );
        assert_eq!(
            err("10.0.0.0"),
            "invalid CIDR notation: `10.0.0.0` has no prefix length (did you mean 10.0.0.0/32?)"
        );
        assert_eq!(err("10.0.0.0/33"), "invalid CIDR notation: `10.0.0.0/33` is not ADDRESS/PREFIX");
        assert!(parse_route_cidr("0.0.0.0/0").is_ok() && parse_route_cidr("fd00::/8").is_ok());
        assert!(parse_host_cidr("192.168.100.10/24").is_ok());
    }
}
