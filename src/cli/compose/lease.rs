//! The cluster lock of one run. Its token is kept in a private file, so that after a run that was killed the next one
//! from here ends what nobody uses any more.

use crate::{
    cli::{
        client::Call,
        errors::CliError,
        files::{self, FileLock},
        output,
        session::Session,
    },
    env::{Clock, SystemClock},
    model::{Mono, Secret},
};
use serde_json::{Value, json};
use std::{fs, path::PathBuf, time::Duration};

/// Longer than any step: adding a peer may take 65 s.
const TTL_S: u32 = 120;
const RENEW_AFTER: Duration = Duration::from_secs(20);
/// A release reaches every healthy member by then.
const RELEASED_WITHIN: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(200);
const LOCKED: &str = "CLUSTER_LOCKED";
/// So begins the note of a run that has asked for the lock; its purpose follows, and is replaced by the token.
const ASKED: &str = "asked for: ";

pub struct Lease {
    token: String,
    clock: SystemClock,
    renewed: Mono,
    note: Option<Note>,
}

/// Where the token is kept while this process lives.
struct Note {
    path: PathBuf,
    #[expect(dead_code, reason = "held for its lock, which ends with the process")]
    lock: FileLock,
}

impl Lease {
    pub async fn take(session: &Session, cluster_id: &str, purpose: &str) -> Result<Lease, CliError> {
        let note = note_of(cluster_id);
        // Only a run from here that is over leaves its note without its file lock.
        let earlier = note.as_ref().and_then(|n| fs::read_to_string(&n.path).ok());
        let body = json!({ "purpose": purpose, "ttl_s": TTL_S });
        keep(session, note.as_ref(), Some(&format!("{ASKED}{purpose}")));
        let mut claimed = claim(session, &body).await;
        if let (Err(e), Some(earlier)) = (&claimed, &earlier)
            && e.code == LOCKED
            && end(session, earlier.trim()).await
        {
            session.log.debug("the lock was that of an earlier run which did not end in order");
            claimed = claim(session, &body).await;
        }
        if claimed.as_ref().is_err_and(|e| e.code == LOCKED) {
            keep(session, note.as_ref(), earlier.as_deref());
        }
        let token = output::plain(&claimed?["lock"]["token"]);
        keep(session, note.as_ref(), Some(&token));
        *session.client.lock.borrow_mut() = Some(Secret::from_input(&token));
        let clock = SystemClock::new();
        let renewed = clock.mono();
        Ok(Lease { token, clock, renewed, note })
    }

    /// Keeps it from expiring during the next step.
    pub async fn renew(&mut self, session: &Session) -> Result<(), CliError> {
        if self.clock.mono() - self.renewed < RENEW_AFTER {
            return Ok(());
        }
        session.call(Call::post("/v1/cluster/lock", &json!({ "token": self.token, "ttl_s": TTL_S }))).await?;
        self.renewed = self.clock.mono();
        Ok(())
    }

    pub async fn give_back(self, session: &Session) -> Result<(), CliError> {
        let released = session.call(Call::delete("/v1/cluster/lock")).await;
        session.client.lock.take();
        if let (Ok(_), Some(note)) = (&released, &self.note) {
            let _ = fs::remove_file(&note.path);
        }
        released.map(drop)
    }
}

/// Asks for the lock. Where the called agent knows of no holder, other members have only not heard of its release yet.
async fn claim(session: &Session, body: &Value) -> Result<Value, CliError> {
    let clock = SystemClock::new();
    let started = clock.mono();
    loop {
        let refused = match session.call(Call::post("/v1/cluster/lock", body)).await {
            Err(e) if e.code == LOCKED => e,
            other => return other,
        };
        let held = session.call(Call::get("/v1/cluster/lock")).await?;
        if !held["lock"].is_null() || clock.mono() - started > RELEASED_WITHIN {
            return Err(refused);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// What the next run from here may have to know, or nothing any more.
fn keep(session: &Session, note: Option<&Note>, text: Option<&str>) {
    let Some(note) = note else { return };
    let kept = match text {
        Some(text) => files::write_private(&note.path, text),
        None => fs::remove_file(&note.path),
    };
    if let Err(e) = kept {
        session.log.debug(&format!("the note about the lock was not written: {e}"));
    }
}

/// Ends the lock that the note of an earlier run is about; whether that was so. A run that was killed before it heard of
/// its token is known by its purpose, and to the agent by its credential.
async fn end(session: &Session, note: &str) -> bool {
    let Some(purpose) = note.strip_prefix(ASKED) else { return release(session, note).await.is_ok() };
    let held = session.call(Call::get("/v1/cluster/lock")).await;
    let is_its = held.is_ok_and(|held| held["lock"]["purpose"] == purpose);
    is_its && session.call(Call::delete("/v1/cluster/lock")).await.is_ok()
}

async fn release(session: &Session, token: &str) -> Result<(), CliError> {
    *session.client.lock.borrow_mut() = Some(Secret::from_input(token));
    let released = session.call(Call::delete("/v1/cluster/lock")).await;
    session.client.lock.take();
    released.map(drop)
}

/// None while another run from here works on this cluster, or where there is no place for it.
fn note_of(cluster_id: &str) -> Option<Note> {
    let path = files::state_dir()?.join(format!("lock-{cluster_id}"));
    let lock = FileLock::try_acquire(&path).ok().flatten()?;
    Some(Note { path, lock })
}
