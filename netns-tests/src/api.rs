//! The HTTP API as a program calls it: one connection, one token, no command line.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::agent::Cli;
use crate::lab::Host;
use crate::topology::{API_PORT, at};

/// One connection that stays open, as a program keeps it.
pub struct Client {
    stream: BufReader<TcpStream>,
    host: String,
    token: String,
}

impl Client {
    /// With a token of the operator's credential, the first of the config file.
    pub fn log_in(host: &Host, address: IpAddr, operator: &Cli) -> Result<Client> {
        let config = std::fs::read_to_string(operator.environment()[1].1.join("arctic/config.yaml"))?;
        let value = |key: &str| {
            let line = config.lines().find_map(|line| line.trim().strip_prefix(key));
            line.map(|value| value.trim_start_matches(':').trim().to_owned()).context("a credential in the config file")
        };
        let form = format!(
            "grant_type=client_credentials&client_id={}&client_secret={}",
            value("client_id")?,
            value("client_secret")?
        );
        let mut client = Client::open(host, address, "")?;
        let (status, answer) = client.call("POST", "/v1/oauth/token", &form, "application/x-www-form-urlencoded")?;
        ensure!(status == 200, "no token: {}", String::from_utf8_lossy(&answer));
        let token: Value = serde_json::from_slice(&answer)?;
        client.token = token["access_token"].as_str().context("a token")?.to_owned();
        Ok(client)
    }

    fn open(host: &Host, address: IpAddr, token: &str) -> Result<Client> {
        let stream = host.run(|| TcpStream::connect(at(address, API_PORT)))?;
        stream.set_nodelay(true)?;
        let host = format!("{address}:{API_PORT}");
        Ok(Client { stream: BufReader::new(stream), host, token: token.to_owned() })
    }

    /// Status and body.
    pub fn call(&mut self, method: &str, path: &str, body: &str, kind: &str) -> Result<(u16, Vec<u8>)> {
        let proof = match self.token.as_str() {
            "" => String::new(),
            token => format!("Authorization: Bearer {token}\r\n"),
        };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\n{proof}Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}",
            self.host,
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let status =
            line.split(' ').nth(1).and_then(|s| s.parse().ok()).with_context(|| format!("answered {line:?}"))?;
        let mut length = 0;
        loop {
            line.clear();
            self.stream.read_line(&mut line)?;
            match line.trim_end().to_ascii_lowercase().split_once(": ") {
                Some(("content-length", value)) => length = value.parse()?,
                Some(_) => {}
                None => break,
            }
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer)?;
        Ok((status, answer))
    }

    /// A call that must succeed; `body` null is none.
    pub fn json(&mut self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (status, answer) = self.call(method, path, &body, "application/json")?;
        ensure!((200..300).contains(&status), "{method} {path}: {status} {}", String::from_utf8_lossy(&answer));
        Ok(if answer.is_empty() { Value::Null } else { serde_json::from_slice(&answer)? })
    }
}
