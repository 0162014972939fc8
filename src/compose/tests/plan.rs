//! Plans: exported and applied again changes nothing; applied twice writes nothing; order, omission, prune.

use super::world::{carry_out, contacts, file_of, live_peer, live_state, peer_id, service_id};
use crate::compose::*;
use proptest::prelude::*;

fn plan_of(file: &ClusterFile, live: &Live, prune: bool) -> Plan {
    plan(file, live, &contacts(file, live), prune)
}

fn apply(live: &Live, file: &ClusterFile, prune: bool, spare: Option<u64>) -> Live {
    let mut live = live.clone();
    for step in steps(file, &plan_of(file, &live, prune), spare) {
        carry_out(&mut live, file, &step);
    }
    live
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn an_export_applied_to_the_same_state_changes_nothing(live in live_state(), prune in any::<bool>()) {
        let export = export(&live, &[], false);
        prop_assert_eq!(export.warnings, Vec::<String>::new());
        prop_assert_eq!(&format(&parse(&export.text).unwrap()), &export.text, "an export is canonical");
        let plan = plan_of(&file_of(&export.text), &live, prune);
        prop_assert!(plan.is_empty(), "{:#?}\n{}", plan, export.text);
        prop_assert_eq!(plan.warnings, Vec::<String>::new());
    }

    #[test]
    fn applied_once_a_file_has_nothing_left_to_do(from in live_state(), to in live_state(), prune in any::<bool>(), full in any::<bool>()) {
        let file = file_of(&export(&to, &[], false).text);
        let after = apply(&from, &file, prune, full.then_some(0));
        let again = plan_of(&file, &after, prune);
        prop_assert!(again.is_empty(), "{:#?}", again);
        prop_assert_eq!(steps(&file, &again, None), Vec::<Step>::new());
        if prune {
            prop_assert_eq!(after.services.len(), file.services.len());
        } else {
            prop_assert!(from.services.iter().all(|s| after.services.iter().any(|a| a.id == s.id)
                || file.services.iter().any(|f| f.name.eq_ignore_ascii_case(&s.name))), "omission deletes nothing");
        }
    }

    #[test]
    fn a_run_that_was_broken_off_is_completed_by_the_next(from in live_state(), to in live_state(), cut in 0usize..40) {
        let file = file_of(&export(&to, &[], false).text);
        let mut half = from.clone();
        for step in steps(&file, &plan_of(&file, &from, true), None).iter().take(cut) {
            carry_out(&mut half, &file, step);
        }
        prop_assert!(plan_of(&file, &apply(&half, &file, true, None), true).is_empty());
    }

    #[test]
    fn a_saved_plan_is_stale_as_soon_as_anything_moved(live in live_state(), other in live_state()) {
        let file = file_of(&export(&live, &[], false).text);
        let saved = SavedPlan::new("/d".to_owned(), &file, &live, &contacts(&file, &live), true);
        let text = serde_json::to_string_pretty(&saved).unwrap();
        prop_assert!(SavedPlan::is_one(&text));
        let back = SavedPlan::parse(&text).unwrap();
        prop_assert_eq!(&back, &saved);
        prop_assert_eq!(back.moved(&live, &contacts(&file, &live)), Vec::<String>::new());
        prop_assert_eq!(back.moved(&other, &contacts(&file, &live)).is_empty(), other == live);
    }
}

fn two_peers() -> Live {
    let peers = vec![live_peer(0, "fra", 2, true), live_peer(1, "syd", 2, true)];
    Live { cluster_id: Some("clu_1".to_owned()), peers, services: Vec::new() }
}

fn file(services: &str) -> ClusterFile {
    file_of(&format!(
        "version: v1\npeers:\n  - {{ name: fra, endpoints: [\"192.0.2.1:8080\"] }}\n  - {{ name: syd, endpoints: [\"192.0.2.2:8080\"] }}\n{services}"
    ))
}

const SERVICE: &str =
    "services:\n  - name: s\n    source_peer: syd\n    target_peer: fra\n    routes: [{ dest_cidr: 10.0.0.0/8 }]\n";

fn titles(file: &ClusterFile, live: &Live, prune: bool, spare: Option<u64>) -> Vec<String> {
    steps(file, &plan_of(file, live, prune), spare).into_iter().map(|s| s.title).collect()
}

#[test]
fn a_new_cluster_is_bootstrapped_joined_named_and_served_in_this_order() {
    let file = file(SERVICE);
    let nobody = Live::default();
    let plan = plan(&file, &nobody, &[Contact::Unbootstrapped, Contact::Unbootstrapped], false);
    assert_eq!(plan.summary(), "Plan: 3 to add, 0 to change, 0 to delete");
    let order: Vec<String> = steps(&file, &plan, None).into_iter().map(|s| s.title).collect();
    assert_eq!(
        order,
        [
            "bootstrap peer fra",
            "add peer fra",
            "bootstrap peer syd",
            "add peer syd",
            "set names and qos on fra",
            "set names and qos on syd",
            "create service s",
            "add routes of service s"
        ]
    );
}

#[test]
fn what_is_not_in_the_file_is_kept_by_name_or_pruned_and_peers_are_never_deleted() {
    let mut live = apply(&two_peers(), &file(SERVICE), false, None);
    live.peers.push(live_peer(2, "osl", 0, true));
    let empty = file("");
    let kept = plan_of(&empty, &live, false);
    assert!(kept.is_empty());
    let lines: Vec<(&str, &str, &str)> =
        kept.changes.iter().map(|c| (c.symbol.text(), c.kind, c.name.as_str())).collect();
    assert_eq!(lines, [("=", "peer", "osl"), ("=", "service", "s")]);
    assert_eq!(kept.changes[0].command.as_deref(), Some("arctic peers delete osl"));
    let pruned = plan_of(&empty, &live, true);
    let lines: Vec<(&str, &str)> = pruned.changes.iter().map(|c| (c.symbol.text(), c.name.as_str())).collect();
    assert_eq!(lines, [("=", "osl"), ("-", "s")]);
    assert!(pruned.changes[1].cuts_flows);
    let fewer = file(&SERVICE.replace("10.0.0.0/8", "172.16.0.0/12"));
    assert_eq!(titles(&fewer, &live, false, None), ["add routes of service s"]);
    assert_eq!(
        titles(&fewer, &live, true, None),
        ["delete route any → 10.0.0.0/8 of service s", "add routes of service s"]
    );
}

#[test]
fn only_what_differs_is_sent_with_the_version_that_was_read() {
    let mut live = apply(&two_peers(), &file(SERVICE), false, None);
    live.services[0].version = 41;
    let changed = file(&SERVICE.replace("    routes", "    qos: { bandwidth_limit_mbps: 5 }\n    routes"));
    let plan = plan_of(&changed, &live, false);
    assert_eq!(plan.summary(), "Plan: 0 to add, 1 to change, 0 to delete");
    assert!(!plan.changes[0].cuts_flows, "a limit cuts nothing");
    match &steps(&changed, &plan, None)[0].work {
        Work::UpdateService { id, version, body } => {
            assert_eq!((*id, *version), (live.services[0].id, 41));
            assert_eq!(serde_json::to_value(body).unwrap(), serde_json::json!({"bandwidth_limit_mbps": 5}));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_service_with_other_ends_is_replaced_and_one_with_another_name_renamed() {
    let live = apply(&two_peers(), &file(SERVICE), false, None);
    let turned =
        file(&SERVICE.replace("source_peer: syd", "source_peer: fra").replace("target_peer: fra", "target_peer: syd"));
    let plan = plan_of(&turned, &live, false);
    assert_eq!((plan.changes[0].symbol, plan.counts()), (Symbol::Replace, Counts { add: 1, change: 0, delete: 1 }));
    assert_eq!(
        titles(&turned, &live, false, None),
        ["delete service s to replace it", "create service s", "add routes of service s"]
    );
    let renamed = file(&SERVICE.replace("name: s", "name: t"));
    assert_eq!(titles(&renamed, &live, true, None), ["change service t"]);
}

#[test]
fn deletions_come_last_but_where_a_name_or_the_limit_needs_them_first() {
    let three = SERVICE.replace("name: s", "name: a")
        + &SERVICE
            .replace("services:\n", "")
            .replace("name: s", "name: b")
            .replace("    routes", "    transport_type: kcp\n    routes");
    let live = apply(&two_peers(), &file(SERVICE), false, None);
    let mut other = live.clone();
    other.services[0].source = peer_id(0);
    other.services[0].target = peer_id(1);
    let created = ["create service a", "add routes of service a", "create service b", "add routes of service b"];
    let last: Vec<&str> = created.into_iter().chain(["delete service s"]).collect();
    let first: Vec<&str> = ["delete service s"].into_iter().chain(created).collect();
    assert_eq!(titles(&file(&three), &other, true, Some(2)), last);
    assert_eq!(titles(&file(&three), &other, true, Some(1)), first);
    // `s` in other letters is the name of a service that goes.
    let mut taken = other;
    taken.services.push(LiveService { id: service_id(9), name: "x".to_owned(), ..live.services[0].clone() });
    taken.services[0].name = "X2".to_owned();
    let wanted = file(&SERVICE.replace("name: s", "name: x2"));
    let order = titles(&wanted, &taken, true, None);
    assert_eq!(
        order,
        ["delete service x2 to replace it", "create service x2", "add routes of service x2", "delete service x"]
    );
}

#[test]
fn members_that_name_a_peer_otherwise_are_set_right_and_fixed_fields_only_warned_of() {
    let mut live = two_peers();
    live.peers[1].views.get_mut(&peer_id(0)).unwrap().name = "sydney".to_owned();
    live.peers[1].views.get_mut(&peer_id(0)).unwrap().qos_enabled = false;
    live.peers[0].api_access = Some(crate::model::ApiAccess::Internal);
    let mut wanted = file("");
    wanted.peers[0].api_access = Some(crate::model::ApiAccess::Public);
    let contacts = vec![Contact::Bootstrapped(peer_id(0)), Contact::Bootstrapped(peer_id(1))];
    wanted.peers[1].endpoints = vec!["elsewhere:1".parse().unwrap()];
    let plan = plan(&wanted, &live, &contacts, false);
    let fields: Vec<&str> = plan.changes[0].fields.iter().map(|f| f.field.as_str()).collect();
    assert_eq!(fields, ["name on fra", "qos_enabled on fra"]);
    assert_eq!(plan.warnings.len(), 2, "{:?}", plan.warnings);
    assert_eq!(steps(&wanted, &plan, None).len(), 1);
}

#[test]
fn a_peer_that_cannot_be_reached_is_matched_by_name_and_not_asked() {
    let live = two_peers();
    let wanted = file("");
    let away = plan(&wanted, &live, &[Contact::Unreachable, Contact::Bootstrapped(peer_id(1))], false);
    assert!(away.is_empty() && away.warnings.is_empty(), "{away:#?}");
    let unknown = plan(&wanted, &Live::default(), &[Contact::Unreachable, Contact::Unbootstrapped], false);
    assert_eq!((unknown.changes.len(), unknown.warnings.len()), (1, 1));
}

#[test]
fn an_empty_service_is_exported_only_into_a_backup() {
    let mut live = apply(&two_peers(), &file(SERVICE), false, None);
    live.services[0].routes.clear();
    let plain = export(&live, &[], false);
    assert!(!plain.text.contains("services") && plain.warnings.len() == 1, "{}", plain.text);
    let whole = export(&live, &["# kept".to_owned()], true);
    assert!(whole.text.starts_with("# kept\n\nversion: v1\n") && whole.text.contains("name: s\n"), "{}", whole.text);
    let document = parse(&whole.text).unwrap();
    assert!(read(&document, Rules::Full, &|_| None).is_err());
    let (back, _) = read(&document, Rules::Backup, &|_| None).unwrap();
    assert!(plan_of(&back, &live, true).is_empty());
}

#[test]
fn graphs_name_peers_and_services() {
    let file = file(SERVICE);
    assert!(dot(&file).contains("\"syd\" -> \"fra\" [label=\"s\\ntcp\\nany → 10.0.0.0/8\"];"), "{}", dot(&file));
    assert!(mermaid(&file).contains("p1 -->|\"s<br>tcp<br>any → 10.0.0.0/8\"| p0"), "{}", mermaid(&file));
}
