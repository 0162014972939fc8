//! Access tokens kept between commands: `tokens.json` in the cache directory, 0600, until 60 s before expiry (cli.md §4).

use super::{
    files::{self, FileLock},
    log::Log,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fs, io, path::PathBuf, time::Duration};

/// A token is not used for the last minute of its life.
const EXPIRY_MARGIN: Duration = Duration::from_secs(60);

#[derive(Clone, Serialize, Deserialize)]
struct CachedToken {
    access_token: String,
    expires_at_ms: u64,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct TokenFile {
    /// By client id: any trusted peer accepts a token of its cluster (api.md §2).
    tokens: BTreeMap<String, CachedToken>,
}

/// Never fails: without a usable file every command fetches its own token.
pub struct TokenCache {
    path: Option<PathBuf>,
    log: Log,
}

impl TokenCache {
    pub fn new(path: Option<PathBuf>, log: Log) -> Self {
        Self { path, log }
    }

    pub fn get(&self, client_id: &str, now_ms: u64) -> Option<String> {
        let token = self.read().tokens.remove(client_id)?;
        let usable = now_ms.saturating_add(EXPIRY_MARGIN.as_millis() as u64) < token.expires_at_ms;
        usable.then_some(token.access_token)
    }

    pub fn put(&self, client_id: &str, access_token: &str, lifetime: Duration, now_ms: u64) {
        let expires_at_ms = now_ms.saturating_add(u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX));
        let token = CachedToken { access_token: access_token.to_owned(), expires_at_ms };
        let stored = self.change(|file| {
            file.tokens.retain(|_, t| t.expires_at_ms > now_ms);
            file.tokens.insert(client_id.to_owned(), token);
        });
        if let Err(e) = stored {
            self.log.debug(&format!("token not cached: {e}"));
        }
    }

    fn change(&self, change: impl FnOnce(&mut TokenFile)) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let _lock = FileLock::acquire(path)?;
        let mut file = self.read();
        change(&mut file);
        files::write_private(path, &serde_json::to_string(&file)?)
    }

    fn read(&self) -> TokenFile {
        let private = |path: &&PathBuf| files::is_shared(path).is_ok_and(|shared| !shared);
        let text = self.path.as_ref().filter(private).and_then(|path| fs::read_to_string(path).ok());
        text.and_then(|t| serde_json::from_str(&t).ok()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Globals;

    #[test]
    fn tokens_are_used_until_a_minute_before_expiry() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c/tokens.json");
        let cache = TokenCache::new(Some(path.clone()), Log::new(&Globals::default(), None));
        assert_eq!(cache.get("cli_1", 0), None);
        cache.put("cli_1", "t", Duration::from_secs(3600), 1000);
        assert_eq!(cache.get("cli_1", 1000).as_deref(), Some("t"));
        assert_eq!(cache.get("cli_2", 1000), None);
        assert_eq!(cache.get("cli_1", 3_540_999).as_deref(), Some("t"));
        assert_eq!(cache.get("cli_1", 3_541_000), None);
        assert!(!files::is_shared(&path).unwrap());
    }
}
