//! Errands at a host that no good operator runs: locks that nobody gives back, licenses that are none, tokens that are
//! forged or dead. Each knows what must come of it.

use super::{
    memory::Ending,
    workload::{Workload, ending_of},
};
use crate::{Answer, Cluster, EPOCH};
use arctic::model::Rng;
use serde_json::{Value, json};
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Of the shortest leases there are, so that the operator has time to write.
const LOCK_MIN_S: u64 = 5;
const LOCK_SPREAD_S: u64 = 15;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Errand {
    /// Takes the lock of the cluster for so many seconds, and is never seen again.
    Lock { ttl_s: u64 },
    /// Brings a license that must not be taken.
    WrongLicense(WrongLicense),
    /// Brings a license that is good, and another one than before.
    RenewLicense,
    /// Writes with a token that nobody gave.
    ForgedToken { signed: bool },
    /// Makes a credential, deletes it, and goes on with its token.
    DeadCredential,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WrongLicense {
    OtherCustomer,
    Expired,
    Changed,
}

impl Errand {
    pub(super) fn draw(rng: &mut Rng) -> Self {
        match rng.below(5) {
            0 => Self::Lock { ttl_s: LOCK_MIN_S + rng.below(LOCK_SPREAD_S) },
            1 => Self::WrongLicense(match rng.below(3) {
                0 => WrongLicense::OtherCustomer,
                1 => WrongLicense::Expired,
                _ => WrongLicense::Changed,
            }),
            2 => Self::RenewLicense,
            3 => Self::ForgedToken { signed: rng.below(2) == 0 },
            _ => Self::DeadCredential,
        }
    }

    /// Its knob.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Lock { .. } => "abandoned lock",
            Self::WrongLicense(_) => "wrong license",
            Self::RenewLicense => "renewed license",
            Self::ForgedToken { .. } => "forged token",
            Self::DeadCredential => "dead credential",
        }
    }
}

/// What the errands bring along.
#[derive(Clone)]
pub(super) struct Licenses {
    renewed: Value,
    other_customer: Value,
    expired: Value,
    changed: Value,
}

impl Licenses {
    pub fn of(cluster: &Cluster, seed: u64) -> Self {
        let renewed = cluster.license(1, 60);
        let mut changed = renewed.clone();
        changed["max_nodes"] = json!(61 + seed % 100);
        Self {
            changed,
            renewed,
            other_customer: cluster.license(2, 50),
            expired: cluster.license_until(1, 51, EPOCH.minus(40 * DAY)),
        }
    }

    fn wrong(&self, kind: WrongLicense) -> Value {
        match kind {
            WrongLicense::OtherCustomer => &self.other_customer,
            WrongLicense::Expired => &self.expired,
            WrongLicense::Changed => &self.changed,
        }
        .clone()
    }
}

impl Workload {
    pub async fn run_an_errand(&mut self) {
        let Some((host, errand)) = self.memory.borrow_mut().errands.pop_front() else { return };
        let has_effect = match &errand {
            Errand::Lock { ttl_s } => {
                let wish = json!({"purpose": "never to be given back", "ttl_s": ttl_s});
                self.op.post(&host, "/v1/cluster/lock", wish).await.status == 201
            }
            Errand::RenewLicense => {
                self.op.put(&host, "/v1/license", json!({"license": self.licenses.renewed})).await.status == 200
            }
            Errand::WrongLicense(kind) => {
                let license = json!({"license": self.licenses.wrong(*kind)});
                let answer = self.op.put(&host, "/v1/license", license).await;
                self.must_refuse(&host, &errand, &answer)
            }
            Errand::ForgedToken { signed } => {
                let forged = self.forged(&host, *signed).await;
                let answer = self.write_with(&host, forged.as_deref()).await;
                self.must_not_know(&host, &errand, &answer)
            }
            Errand::DeadCredential => self.use_a_dead_credential(&host).await,
        };
        crate::record(format_args!("errand {host} {errand:?} {has_effect}"));
        if has_effect {
            *self.memory.borrow_mut().turned.entry(errand.name()).or_default() += 1;
        }
    }

    /// Whether it was refused; what was granted is remembered as a violation.
    fn must_refuse(&self, host: &str, errand: &Errand, answer: &Answer) -> bool {
        if ending_of(answer) == Ending::Acknowledged {
            self.memory.borrow_mut().seen.push(format!("{} {host}: granted {errand:?}", errand.name()));
        }
        (400..500).contains(&answer.status)
    }

    /// Whether it was refused to a caller whom nobody knows, before anything that he asked for was looked at.
    fn must_not_know(&self, host: &str, errand: &Errand, answer: &Answer) -> bool {
        if matches!(answer.status, 200..300 | 400 | 403 | 404 | 409 | 422) && answer.body["code"] != "LICENSE_READ_ONLY"
        {
            let status = answer.status;
            self.memory.borrow_mut().seen.push(format!("{} {host}: {status} for {errand:?}", errand.name()));
        }
        answer.status == 401
    }

    /// A service that nobody may make: it would be found at the end.
    async fn write_with(&self, host: &str, token: Option<&str>) -> Answer {
        let body = json!({
            "name": "forged", "source_peer_id": self.peer_ids[host], "target_peer_id": self.peer_ids[host]
        });
        self.op.post_with(host, "/v1/services", body, token).await
    }

    /// A true token with another end of its signature, or none at all.
    async fn forged(&self, host: &str, signed: bool) -> Option<String> {
        let mut token = self.op.token(host, host).await.filter(|_| signed)?;
        let last_of_claims = token.rfind('.')?;
        let at = last_of_claims + 10;
        let other = if token.get(at..=at)? == "A" { "B" } else { "A" };
        token.replace_range(at..=at, other);
        Some(token)
    }

    async fn use_a_dead_credential(&self, host: &str) -> bool {
        let wish = json!({"scopes": ["services.write"], "description": "soon deleted"});
        let made = self.op.post(host, "/v1/credentials", wish).await;
        let (Some(id), Some(secret)) = (made.body["client_id"].as_str(), made.body["client_secret"].as_str()) else {
            return false;
        };
        let Some(token) = self.op.token_of(host, id, secret).await else { return false };
        let deleted = self.op.delete(host, &format!("/v1/credentials/{id}")).await;
        if ending_of(&deleted) != Ending::Acknowledged {
            return false;
        }
        let answer = self.write_with(host, Some(&token)).await;
        self.memory.borrow_mut().dead_tokens.push(token);
        self.must_not_know(host, &Errand::DeadCredential, &answer)
    }
}
