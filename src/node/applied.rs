//! Waiting until the reconcilers have applied a change: here, and at other peers (api.md §2, `?wait=applied`).

use super::{Call, Node};
use crate::{
    model::{PeerId, Refused},
    reconcile::{Condition, ConditionStatus, Reconciler, Status},
    store::Revision,
    wire::applied::{AppliedReply, AppliedRequest, PATH, Unapplied, WAIT_MAX_S},
};
use serde_json::json;
use std::time::Duration;
use tokio::{sync::watch, time::timeout};

/// Reasons of failed conditions that no retry cures.
const LASTING_REASONS: [&str; 4] =
    ["LICENSE_FEATURE_DISABLED", "MARKS_EXHAUSTED", "SAME_PEER", "TRANSPORT_UNAVAILABLE"];
/// Beyond the time that a peer was asked to wait.
const ANSWER_MARGIN: Duration = Duration::from_secs(3);

impl Node {
    /// What the reconcilers of this host have not applied of a service when it is so, or when `within` is over.
    pub async fn applied_here(&self, wish: &AppliedRequest) -> AppliedReply {
        let within = Duration::from_millis(wish.wait_ms).min(Duration::from_secs(WAIT_MAX_S));
        let is_source = self.is_source_of(wish);
        self.wait_for_status(within, |status| unapplied(status, wish, is_source)).await
    }

    /// The same for everything that the store holds now.
    pub async fn applied_all_here(&self, within: Duration) -> AppliedReply {
        let Revision(wanted) = *self.store().revision().borrow();
        let late = |status: &Status| {
            let done = status.applied_revision >= wanted;
            (!done).then(|| pending(Reconciler::Firewall, "OLD_REVISION", "the last change was not applied yet"))
        };
        self.wait_for_status(within, |status| late(status).into_iter().collect()).await
    }

    /// The same at another peer.
    pub async fn applied_at(&self, peer: PeerId, wish: &AppliedRequest) -> AppliedReply {
        let answer_timeout = Duration::from_millis(wish.wait_ms) + ANSWER_MARGIN;
        let call = Call { answer_timeout, ..Call::post(PATH, json!(wish).to_string()) };
        let silent = |reason: String| AppliedReply {
            waiting_for: vec![Unapplied {
                reconciler: None,
                status: "pending".into(),
                reason: "PEER_UNREACHABLE".into(),
                message: reason,
            }],
        };
        match self.call_peer(peer, &call, None).await {
            Ok(answer) if answer.status == 200 => {
                serde_json::from_slice(&answer.body).unwrap_or_else(|e| silent(format!("malformed answer: {e}")))
            }
            Ok(answer) => silent(format!("peer answered with status {}", answer.status)),
            Err(Refused { text, .. }) => silent(text),
        }
    }

    fn is_source_of(&self, wish: &AppliedRequest) -> bool {
        let service = self.store().read(|v| v.service(wish.service));
        let own = self.identity().map(|i| i.peer_id);
        service.ok().flatten().is_some_and(|s| Some(s.body.source_peer_id) == own)
    }

    /// Waits until nothing is unapplied, until what is has failed for good, or for the whole time.
    async fn wait_for_status(&self, within: Duration, judge: impl Fn(&Status) -> Vec<Unapplied>) -> AppliedReply {
        let status = self.inner.reconcile_status.lock().unwrap_or_else(|p| p.into_inner()).clone();
        let Some(mut status) = status else { return AppliedReply { waiting_for: judge(&Status::default()) } };
        // On time-out the last state is judged.
        let is_settled = |now: &Status| {
            let left = judge(now);
            left.is_empty() || left.iter().any(failed_for_good)
        };
        drop(timeout(within, until(&mut status, is_settled)).await);
        let waiting_for = judge(&status.borrow());
        AppliedReply { waiting_for }
    }
}

async fn until(status: &mut watch::Receiver<Status>, done: impl Fn(&Status) -> bool) {
    if status.wait_for(|now| done(now)).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Trying again does not help, only another change of service, license or host.
fn failed_for_good(unapplied: &Unapplied) -> bool {
    unapplied.status == "failed" && LASTING_REASONS.contains(&unapplied.reason.as_str())
}

/// What stands in the way. A source has rules of the firewall, both ends have an engine.
fn unapplied(status: &Status, wish: &AppliedRequest, is_source: bool) -> Vec<Unapplied> {
    let conditions = status.conditions.get(&wish.service).map_or(&[][..], Vec::as_slice);
    let Some(version) = wish.version else {
        let left = conditions.iter().map(|c| pending(c.reconciler, "STILL_APPLIED", "the service was not removed yet"));
        return left.collect();
    };
    let needed =
        [Reconciler::Firewall, Reconciler::Tproxy].into_iter().filter(|r| is_source || *r != Reconciler::Firewall);
    let unseen = needed.filter(|r| !conditions.iter().any(|c| c.reconciler == *r));
    let unseen = unseen.map(|r| pending(r, "NOT_SEEN", "the service was not seen yet"));
    unseen.chain(conditions.iter().filter_map(|c| judged(c, version))).collect()
}

fn judged(condition: &Condition, version: u64) -> Option<Unapplied> {
    let by_license = condition.reconciler == Reconciler::Iptun && condition.reason == "LICENSE_FEATURE_DISABLED";
    if by_license {
        return None;
    }
    if condition.observed_version < version {
        return Some(pending(condition.reconciler, "OLD_VERSION", "an earlier version of the service is applied"));
    }
    let status = match condition.status {
        ConditionStatus::Applied => return None,
        ConditionStatus::Pending => "pending",
        ConditionStatus::Failed => "failed",
    };
    Some(Unapplied {
        reconciler: Some(condition.reconciler.name().to_owned()),
        status: status.to_owned(),
        reason: condition.reason.clone(),
        message: condition.message.clone(),
    })
}

fn pending(reconciler: Reconciler, reason: &str, message: &str) -> Unapplied {
    Unapplied {
        reconciler: Some(reconciler.name().to_owned()),
        status: "pending".to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Rng, ServiceId, UnixTime};
    use std::collections::BTreeMap;

    fn condition(reconciler: Reconciler, status: ConditionStatus, reason: &str, observed_version: u64) -> Condition {
        let at = UnixTime::from_secs(1);
        Condition { reconciler, status, reason: reason.into(), message: String::new(), observed_version, at }
    }

    #[test]
    fn a_service_is_applied_when_every_reconciler_of_this_end_has_its_version() {
        let service = ServiceId::mint(UnixTime::from_secs(1), &mut Rng::from_seed([1; 32]));
        let status = |conditions: Vec<Condition>| Status {
            conditions: BTreeMap::from([(service, conditions)]),
            ..Status::default()
        };
        let wish = AppliedRequest { service, version: Some(7), wait_ms: 0 };
        let reasons = |status: &Status, wish, is_source| {
            unapplied(status, wish, is_source).into_iter().map(|u| u.reason).collect::<Vec<_>>()
        };
        use ConditionStatus::{Applied, Failed};
        use Reconciler::{Firewall, Iptun, Tproxy};
        assert_eq!(reasons(&Status::default(), &wish, true), ["NOT_SEEN", "NOT_SEEN"]);
        assert_eq!(reasons(&Status::default(), &wish, false), ["NOT_SEEN"]);
        let tproxy = condition(Tproxy, Applied, "APPLIED", 7);
        assert_eq!(reasons(&status(vec![tproxy.clone()]), &wish, true), ["NOT_SEEN"]);
        assert!(reasons(&status(vec![tproxy.clone()]), &wish, false).is_empty());
        let old = condition(Firewall, Applied, "APPLIED", 6);
        assert_eq!(reasons(&status(vec![old, tproxy.clone()]), &wish, true), ["OLD_VERSION"]);
        let failed = condition(Firewall, Failed, "KERNEL_REFUSED", 8);
        assert_eq!(reasons(&status(vec![failed, tproxy.clone()]), &wish, true), ["KERNEL_REFUSED"]);
        let unlicensed = condition(Iptun, Failed, "LICENSE_FEATURE_DISABLED", 7);
        let all = status(vec![condition(Firewall, Applied, "APPLIED", 7), tproxy, unlicensed]);
        assert!(reasons(&all, &wish, true).is_empty());
        let lasting = |reason, version| {
            let failed = status(vec![condition(Firewall, Failed, reason, version)]);
            unapplied(&failed, &wish, true).iter().any(failed_for_good)
        };
        assert!(lasting("TRANSPORT_UNAVAILABLE", 7), "waiting does not help");
        assert!(!lasting("TRANSPORT_UNAVAILABLE", 6), "an earlier version had it");
        assert!(!lasting("KERNEL_REFUSED", 7), "the next try may do");
        let gone = AppliedRequest { version: None, ..wish };
        assert_eq!(reasons(&all, &gone, true), ["STILL_APPLIED"; 3]);
        assert!(reasons(&Status::default(), &gone, true).is_empty());
    }
}
