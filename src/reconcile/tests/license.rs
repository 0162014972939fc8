//! What a license lacks is not carried (licensing.md §3, §5).

use super::*;

fn features(names: &[&str]) -> Features {
    Features::from_names(names.iter().copied()).unwrap()
}

/// One plain service, and one that asks for each feature by its fields.
fn asking() -> Vec<(Service, Option<&'static str>)> {
    let with = |seed, change: fn(&mut ServiceBody)| {
        let mut service = outgoing(seed, &format!("10.{seed}.0.0/16"));
        change(&mut service.body);
        service
    };
    vec![
        (with(10, |_| {}), None),
        (with(11, |b| b.transport_type = Transport::Kcp), Some("kcp")),
        (with(12, |b| b.requires_interface = true), Some("macvlan")),
        (
            with(13, |b| {
                b.requires_interface = true;
                b.fully_transparent = true;
            }),
            Some("transparent_mode"),
        ),
        (with(14, |b| b.bandwidth_limit_mbps = 5), Some("qos")),
    ]
}

fn disabled(compiled: &Compiled, service: ServiceId, by: Reconciler) -> bool {
    let skipped = compiled.skipped.get(&(service, by));
    skipped.is_some_and(|s| s.reason == "LICENSE_FEATURE_DISABLED" && s.status == ConditionStatus::Failed)
}

// accepts: 003-20
#[test]
fn a_service_that_asks_for_a_feature_the_license_lacks_is_left_out_with_the_reason() {
    let all = ["kcp", "macvlan", "transparent_mode", "qos", "ip_tunnel"];
    let services: Vec<Service> = asking().into_iter().map(|(s, _)| s).collect();
    for missing in all {
        let licensed: Vec<&str> = all.into_iter().filter(|f| *f != missing).collect();
        let input = Desired { features: features(&licensed), ..desired(services.clone()) };
        let output = compiled(&input);
        for (service, feature) in asking() {
            // The fully transparent one has an interface as well.
            let lacks = feature == Some(missing) || (missing == "macvlan" && service.body.requires_interface);
            for by in [Reconciler::Firewall, Reconciler::Tproxy] {
                assert_eq!(disabled(&output, service.id, by), lacks, "{missing} {feature:?}");
            }
            let captured = output.ruleset.captures.iter().any(|c| c.service == service.id);
            assert!(!(lacks && (captured || output.forwarding.services.contains_key(&service.id))));
            assert_eq!(captured, !lacks, "{missing} {feature:?}");
            assert_eq!(disabled(&output, service.id, Reconciler::Iptun), !lacks && missing == "ip_tunnel");
        }
        let message = output.skipped.values().find(|s| s.reason == "LICENSE_FEATURE_DISABLED").map(|s| &s.message);
        assert!(message.is_some_and(|m| m.contains(missing)), "{message:?}");
    }
}

#[tokio::test]
async fn the_tunnel_condition_comes_and_goes_with_the_feature() {
    let without = Desired { features: features(&[]), ..at_revision(1, vec![outgoing(10, "10.1.0.0/16")]) };
    let mut running = Running::new(without.clone());
    running.in_sync(&without).await;
    let (status, reason, _) = running.reason(10, Reconciler::Iptun).unwrap();
    assert_eq!((status, reason.as_str()), (ConditionStatus::Failed, "LICENSE_FEATURE_DISABLED"));
    assert_eq!(running.reason(10, Reconciler::Firewall).unwrap().0, ConditionStatus::Applied);
    let renewed = at_revision(2, vec![outgoing(10, "10.1.0.0/16")]);
    running.set(&renewed);
    running.in_sync(&renewed).await;
    assert_eq!(running.reason(10, Reconciler::Iptun), None);
}

// accepts: 003-15
#[tokio::test]
async fn a_suspended_license_empties_tables_and_engines_and_a_renewal_fills_them_again() {
    let running_license = at_revision(1, vec![outgoing(10, "10.1.0.0/16")]);
    let mut running = Running::new(running_license.clone());
    running.in_sync(&running_license).await;
    let full = running.kernel.tables();
    let suspended = Desired { data_plane_runs: false, ..running_license.clone() };
    running.set(&suspended);
    running
        .wait("the suspension", |s| {
            s.firewall.passes > 1 && s.conditions[&service_id(10)][0].reason == "LICENSE_SUSPENDED"
        })
        .await;
    let base = Ruleset { captures: vec![], ..compiled(&suspended).ruleset };
    assert_eq!(running.kernel.tables(), Some(base.tables().to_vec()));
    assert_ne!(running.kernel.tables(), full);
    assert!(running.forwarding.borrow().services.is_empty());
    let (status, reason, _) = running.reason(10, Reconciler::Tproxy).unwrap();
    assert_eq!((status, reason.as_str()), (ConditionStatus::Pending, "LICENSE_SUSPENDED"));
    running.set(&running_license);
    running.wait("the renewal", |s| s.conditions[&service_id(10)][0].reason == "APPLIED").await;
    assert_eq!(running.kernel.tables(), full);
    assert!(running.forwarding.borrow().services.contains_key(&service_id(10)));
}
