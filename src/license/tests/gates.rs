use super::*;
use crate::model::Mono;
use std::sync::Arc;

const GROUPS: usize = EndpointGroup::ALL.len();

/// licensing.md §3, row by row: served in read_only, in suspended, and in both with a recovery token.
const TABLE: [(EndpointGroup, bool, bool, bool); GROUPS] = [
    (EndpointGroup::Probe, true, true, true),
    (EndpointGroup::Published, true, false, true),
    (EndpointGroup::Token, true, true, true),
    (EndpointGroup::License, true, true, true),
    (EndpointGroup::LeaveCluster, true, true, true),
    (EndpointGroup::Read, true, false, true),
    (EndpointGroup::CreateOrUpdate, false, false, false),
    (EndpointGroup::Administer, false, false, true),
    (EndpointGroup::Gossip, true, false, false),
    (EndpointGroup::HandshakeKnownPeer, true, false, false),
    (EndpointGroup::HandshakeNewPeer, false, false, false),
    (EndpointGroup::Unlisted, false, false, true),
];

fn clock_at(now: UnixTime) -> EffectiveClock {
    EffectiveClock::start(now, Mono::from_ms(0))
}

fn entitlement_at(now: UnixTime) -> Entitlement {
    Entitlement::new(Arc::new(license()), &clock_at(now))
}

/// One moment in each state, in order.
fn one_of_each_state() -> [Entitlement; 5] {
    let expires_at = license().expires_at();
    let all = [
        expires_at.minus(days(31)),
        expires_at.minus(days(1)),
        expires_at,
        expires_at.plus(days(20)),
        expires_at.plus(days(50)),
    ]
    .map(entitlement_at);
    assert_eq!(all.each_ref().map(|e| e.state), State::ALL);
    all
}

#[test]
fn the_allow_list_holds_in_every_state() {
    assert_eq!(TABLE.map(|row| row.0), EndpointGroup::ALL);
    for (group, read_only, suspended, recovery) in TABLE {
        for entitlement in one_of_each_state() {
            let listed = match entitlement.state {
                State::Valid | State::Warning | State::GracePeriod => true,
                State::ReadOnly => read_only,
                State::Suspended => suspended,
            };
            assert_eq!(entitlement.check(group, false).is_ok(), listed, "{group:?} in {}", entitlement.state);
            let with_token = listed || recovery;
            assert_eq!(entitlement.check(group, true).is_ok(), with_token, "{group:?} in {}", entitlement.state);
        }
    }
}

#[test]
fn a_refusal_names_the_state_since_when_and_the_renewal() {
    let [.., read_only, suspended] = one_of_each_state();
    let refusal = read_only.check(EndpointGroup::CreateOrUpdate, true).unwrap_err();
    assert_eq!(refusal.code().text(), "LICENSE_READ_ONLY");
    let since = license().expires_at().plus(days(14));
    assert_eq!(
        refusal.to_string(),
        format!("license read-only since {since}; renew it with `arctic license update --license-file license.json`")
    );
    let refusal = suspended.check(EndpointGroup::Read, false).unwrap_err();
    assert_eq!((refusal.code().text(), refusal.since), ("LICENSE_SUSPENDED", license().expires_at().plus(days(44))));
    assert!(refusal.to_string().starts_with("license suspended since 20"));
    assert!(refusal.hint().contains(RENEWAL_COMMAND) && refusal.hint().contains(&refusal.since.to_string()));
}

#[test]
fn a_handshake_refusal_has_the_text_of_the_specification() {
    let [.., read_only, suspended] = one_of_each_state();
    let text = |e: &Entitlement| e.check(EndpointGroup::HandshakeNewPeer, false).unwrap_err().to_string();
    assert_eq!(text(&read_only), "handshake failed: license read-only");
    assert_eq!(text(&suspended), "handshake failed: license suspended");
}

#[test]
fn only_a_valid_license_is_silent_and_only_suspension_stops_traffic() {
    let [valid, rest @ ..] = one_of_each_state();
    assert!(valid.warnings().is_empty() && valid.data_plane_runs());
    for entitlement in rest {
        assert!(entitlement.warnings()[0].contains(RENEWAL_COMMAND));
        assert_eq!(entitlement.data_plane_runs(), entitlement.state != State::Suspended);
    }
}

#[test]
fn limits_are_reached_but_not_passed() {
    let license = license();
    assert!(
        license.check_nodes(5).is_ok() && license.check_services(20).is_ok() && license.check_feature("kcp").is_ok()
    );
    let nodes = license.check_nodes(6).unwrap_err();
    assert_eq!(nodes.code().text(), "NODE_LIMIT_EXCEEDED");
    assert!(nodes.to_string().starts_with("node limit exceeded"));
    assert_eq!(license.check_services(21).unwrap_err().code().text(), "SERVICE_LIMIT_EXCEEDED");
    let feature = license.check_feature("macvlan").unwrap_err();
    assert_eq!(feature.code().text(), "LICENSE_FEATURE_DISABLED");
    assert!(feature.to_string().contains("macvlan"));
}

#[test]
fn an_update_keeps_the_customer_and_may_change_the_rest() {
    let (ours, clock) = (license(), clock_at(ISSUED.plus(days(360))));
    let renewed = |customer| {
        let changed = Terms {
            license_id: LicenseId::mint(ISSUED, &mut Rng::from_seed([77; 32])),
            issued_at: ISSUED.plus(days(359)),
            expires_at: ISSUED.plus(days(730)),
            max_nodes: 50,
            features: Features::every(),
            ..terms(customer)
        };
        LicenseDocument::issue(&vendor(), changed).unwrap()
    };
    check_admission(&renewed(2), &roots(), Some(ours.customer_id()), &clock).unwrap();
    let other = check_admission(&renewed(3), &roots(), Some(ours.customer_id()), &clock).unwrap_err();
    assert_eq!(other.code().text(), "LICENSE_MISMATCH");
    assert!(other.to_string().starts_with("license mismatch"));
    check_admission(&renewed(3), &roots(), None, &clock).unwrap();
    let unknown = check_admission(&renewed(2), &TrustRoots::default(), None, &clock).unwrap_err();
    assert_eq!(unknown.code().text(), "LICENSE_INVALID");
}

#[test]
fn a_license_past_its_grace_is_not_taken() {
    let license = license();
    let at = |now| check_admission(&license, &roots(), None, &clock_at(now));
    at(grace_ends_at(license.expires_at()).minus(Duration::from_millis(1))).unwrap();
    let error = at(grace_ends_at(license.expires_at())).unwrap_err();
    assert_eq!(error.code().text(), "LICENSE_EXPIRED");
    assert!(error.to_string().starts_with("license has expired"));
}

#[test]
fn a_license_from_the_future_is_not_taken_but_runs_with_a_warning() {
    let license = license();
    let at = |now| check_admission(&license, &roots(), None, &clock_at(now));
    at(ISSUED.minus(DAY)).unwrap();
    let before = ISSUED.minus(DAY).minus(Duration::from_millis(1));
    assert_eq!(at(before).unwrap_err().code().text(), "LICENSE_INVALID");
    let running = entitlement_at(before);
    assert_eq!((running.state, running.warnings().len()), (State::Valid, 1));
}

#[test]
fn a_renewal_is_taken_while_the_clock_is_in_doubt() {
    let mut clock = clock_at(ISSUED.plus(days(300)));
    clock.handle_tick(ISSUED.plus(days(9000)), Mono::from_ms(60_000), None);
    assert!(clock.is_suspect());
    check_admission(&license(), &roots(), None, &clock).unwrap();
    let entitlement = Entitlement::new(Arc::new(license()), &clock);
    assert!(entitlement.clock_suspect);
    assert_eq!((entitlement.state, entitlement.warnings().len()), (State::ReadOnly, 2));
}
