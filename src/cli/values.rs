//! Values of flags: durations, rates, filters, agent addresses.

use crate::model::Endpoint;
use std::time::Duration;

/// api.md §5: the highest limit of a service.
pub const RATE_MAX_MBPS: u32 = 400_000;

/// `30s`, `500ms`, `2m`, or bare seconds. Zero is refused.
pub fn parse_duration(input: &str) -> Result<Duration, String> {
    let digits = input.find(|c: char| !c.is_ascii_digit()).unwrap_or(input.len());
    let (number, unit) = input.split_at(digits);
    let unit_ms = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("expected a time like 30s, 500ms or 2m".to_owned()),
    };
    match number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit_ms)) {
        Some(ms) if ms > 0 => Ok(Duration::from_millis(ms)),
        _ => Err("expected a time above zero, like 30s, 500ms or 2m".to_owned()),
    }
}

/// `500`, `500Mbit`, `1.5G`, `0` in whole Mbit/s.
pub fn parse_rate_mbps(input: &str) -> Result<u32, String> {
    let digits = input.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(input.len());
    let (number, unit) = input.split_at(digits);
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "m" | "mbit" | "mbps" | "mbit/s" => 1,
        "g" | "gbit" | "gbps" | "gbit/s" => 1000,
        _ => return Err("expected Mbit/s: a number, 500Mbit or 1.5G".to_owned()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let thousandths = |f: &str| (f.len() <= 3).then(|| format!("{f:0<3}").parse::<u64>().ok()).flatten();
    let rate = match (whole.parse::<u64>(), thousandths(fraction)) {
        (Ok(whole), Some(part)) if !number.ends_with('.') => whole.saturating_mul(1000).saturating_add(part),
        _ => return Err("expected Mbit/s: a number, 500Mbit or 1.5G".to_owned()),
    };
    let rate = rate.saturating_mul(factor);
    if rate % 1000 != 0 {
        return Err("the limit is in whole Mbit/s".to_owned());
    }
    u32::try_from(rate / 1000)
        .ok()
        .filter(|mbps| *mbps <= RATE_MAX_MBPS)
        .ok_or_else(|| format!("the limit is at most {RATE_MAX_MBPS} Mbit/s"))
}

pub fn parse_filter(input: &str) -> Result<(String, String), String> {
    let (key, value) = input.split_once('=').ok_or("expected KEY=VALUE")?;
    if key.is_empty() { Err("expected KEY=VALUE".to_owned()) } else { Ok((key.to_owned(), value.to_owned())) }
}

/// The agent behind `http://host:port`, `host:port` or `host`; a missing port means 8080 (spec README).
pub fn parse_agent_url(input: &str) -> Result<Endpoint, String> {
    if input.starts_with("https://") {
        return Err("agents speak plain HTTP: write http://".to_owned());
    }
    let rest = input.strip_prefix("http://").unwrap_or(input);
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    rest.parse::<Endpoint>().map_err(|e| e.reason.to_owned())
}

pub fn agent_url(endpoint: &Endpoint) -> String {
    format!("http://{endpoint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_whole_megabits() {
        let rate = |s: &str| parse_rate_mbps(s).ok();
        assert_eq!(rate("500"), Some(500));
        assert_eq!(rate("500Mbit"), Some(500));
        assert_eq!(rate("1.5G"), Some(1500));
        assert_eq!(rate("0"), Some(0));
        assert_eq!(rate("400G"), Some(RATE_MAX_MBPS));
        for bad in ["", "x", "-1", "1.5", "401G", "1.2345G", "1K", ".", "1.", "99999999999999999999"] {
            assert_eq!(rate(bad), None, "{bad}");
        }
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "0", "s", "1d", "-1s", "99999999999999999999s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn agent_addresses_need_no_scheme_or_port() {
        let url = |s: &str| parse_agent_url(s).map(|e| agent_url(&e));
        assert_eq!(url("http://10.0.0.1:8080/").unwrap(), "http://10.0.0.1:8080");
        assert_eq!(url("tokyo").unwrap(), "http://tokyo:8080");
        assert_eq!(url("http://[fd00::1]:81").unwrap(), "http://[fd00::1]:81");
        for bad in ["https://x", "http://x/v1", "ftp://x", ""] {
            assert!(url(bad).is_err(), "{bad}");
        }
    }
}
