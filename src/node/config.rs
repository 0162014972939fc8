//! Settings of the agent (operations.md §1): environment variables, each with its default.

use crate::model::{ApiAccess, DataPorts, Endpoint};
use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

#[derive(Debug, thiserror::Error)]
#[error("setting {variable}={value}: {reason}")]
pub struct ConfigError {
    pub variable: &'static str,
    pub value: String,
    pub reason: String,
}

/// What a clean stop does with the kernel state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnStop {
    #[default]
    Clear,
    Keep,
}

#[derive(Debug, Clone)]
pub struct Config {
    pub api_bind: SocketAddr,
    pub advertise_endpoints: Vec<Endpoint>,
    pub data_dir: PathBuf,
    pub log_format: LogFormat,
    pub log_level: tracing::Level,
    pub data_ports: DataPorts,
    pub recovery_token_path: PathBuf,
    pub parent_interface: Option<String>,
    pub api_access: ApiAccess,
    pub fwmark_mask: u32,
    pub on_stop: OnStop,
    /// The name a peer gives itself where the operator gives none: the host's.
    pub default_name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    #[default]
    Json,
    Text,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            api_bind: SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), crate::model::DEFAULT_API_PORT),
            advertise_endpoints: Vec::new(),
            data_dir: "/opt/tillered".into(),
            log_format: LogFormat::default(),
            log_level: tracing::Level::INFO,
            data_ports: DataPorts::default(),
            recovery_token_path: "/etc/arctic/recovery.token".into(),
            parent_interface: None,
            api_access: ApiAccess::default(),
            fwmark_mask: 0xfff0_0000,
            on_stop: OnStop::default(),
            default_name: String::new(),
        }
    }
}

impl Config {
    /// Reads settings through `get`; production passes the environment. An empty value counts as unset.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        let set =
            |variable: &'static str| get(variable).filter(|v| !v.is_empty()).map(|value| Setting { variable, value });
        if let Some(s) = set("API_PORT") {
            config.api_bind.set_port(s.port()?);
        }
        if let Some(s) = set("API_BIND") {
            config.api_bind.set_ip(s.parse("not an IP address")?);
        }
        if let Some(s) = set("ADVERTISE_ENDPOINTS") {
            let parts = s.value.split(',').map(str::trim).filter(|p| !p.is_empty());
            config.advertise_endpoints =
                parts.map(Endpoint::from_str).collect::<Result<_, _>>().map_err(|e| s.error(e.to_string()))?;
        }
        if let Some(s) = set("DATA_DIR") {
            config.data_dir = s.value.into();
        }
        if let Some(s) = set("LOG_FORMAT") {
            config.log_format = s.choose(&[("json", LogFormat::Json), ("text", LogFormat::Text)])?;
        }
        if let Some(s) = set("LOG_LEVEL") {
            use tracing::Level;
            config.log_level = s.choose(&[
                ("error", Level::ERROR),
                ("warn", Level::WARN),
                ("info", Level::INFO),
                ("debug", Level::DEBUG),
                ("trace", Level::TRACE),
            ])?;
        }
        for (variable, port) in [
            ("TPROXY_PORT", &mut config.data_ports.tproxy),
            ("KCP_PORT", &mut config.data_ports.kcp),
            ("IPTUN_PORT", &mut config.data_ports.iptun),
        ] {
            if let Some(s) = set(variable) {
                *port = s.port()?;
            }
        }
        if let Some(s) = set("RECOVERY_TOKEN_PATH") {
            config.recovery_token_path = s.value.into();
        }
        config.parent_interface = set("PARENT_INTERFACE").map(|s| s.value);
        if let Some(s) = set("API_ACCESS") {
            config.api_access = s.choose(&[("public", ApiAccess::Public), ("internal", ApiAccess::Internal)])?;
        }
        if let Some(s) = set("FWMARK_MASK") {
            config.fwmark_mask = s.mask()?;
        }
        if let Some(s) = set("ON_STOP") {
            config.on_stop = s.choose(&[("clear", OnStop::Clear), ("keep", OnStop::Keep)])?;
        }
        Ok(config)
    }
}

struct Setting {
    variable: &'static str,
    value: String,
}

impl Setting {
    fn error(&self, reason: impl Into<String>) -> ConfigError {
        ConfigError { variable: self.variable, value: self.value.clone(), reason: reason.into() }
    }
    fn parse<T: FromStr>(&self, reason: &str) -> Result<T, ConfigError> {
        self.value.parse().map_err(|_| self.error(reason))
    }
    fn port(&self) -> Result<u16, ConfigError> {
        let port: u16 = self.parse("not a port from 1 to 65535")?;
        if port == 0 { Err(self.error("not a port from 1 to 65535")) } else { Ok(port) }
    }
    fn choose<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T, ConfigError> {
        let names: Vec<&str> = choices.iter().map(|c| c.0).collect();
        choices
            .iter()
            .find(|c| c.0 == self.value)
            .map(|c| c.1)
            .ok_or_else(|| self.error(format!("expected one of {}", names.join(", "))))
    }
    fn mask(&self) -> Result<u32, ConfigError> {
        let digits = self.value.trim_start_matches("0x");
        let mask = u32::from_str_radix(digits, 16).map_err(|_| self.error("not a hexadecimal number of 32 bits"))?;
        let one_run = mask.count_ones() + mask.leading_zeros() + mask.trailing_zeros() == 32;
        if one_run && mask.count_ones() >= 8 {
            Ok(mask)
        } else {
            Err(self.error("expected one run of at least 8 bits"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variable: &str, value: &str) -> Result<Config, String> {
        Config::read(|v| (v == variable).then(|| value.to_owned())).map_err(|e| e.to_string())
    }

    // accepts: 001-10
    #[test]
    fn settings_change_their_field_and_bad_ones_name_variable_and_value() {
        assert_eq!(read("API_PORT", "9090").unwrap().api_bind.port(), 9090);
        assert_eq!(read("X", "").unwrap().api_bind, "[::]:8080".parse().unwrap());
        assert_eq!(read("API_PORT", "0").unwrap_err(), "setting API_PORT=0: not a port from 1 to 65535");
        assert_eq!(read("ON_STOP", "stop").unwrap_err(), "setting ON_STOP=stop: expected one of clear, keep");
        assert!(read("ADVERTISE_ENDPOINTS", "a:1, b:2").unwrap().advertise_endpoints.len() == 2);
        assert_eq!(read("FWMARK_MASK", "0x0000ff00").unwrap().fwmark_mask, 0xff00);
        for bad in ["0x7f", "0xf0f0", "zz", "0x0"] {
            assert!(read("FWMARK_MASK", bad).is_err(), "{bad}");
        }
    }
}
