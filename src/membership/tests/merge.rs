use super::*;
use crate::model::{ServiceBody, ServiceId};

#[test]
fn the_smaller_cluster_id_wins_whoever_asks() {
    for (from, to) in [(0, 1), (1, 0)] {
        let world = World::of(2);
        let ids = world.cluster_ids();
        world.add(from, to).unwrap();
        assert_eq!(world.cluster_ids(), [ids[0]; 2]);
        for agent in &world.agents {
            assert_eq!(agent.cluster().aliases, [ids[1]]);
        }
    }
}

#[test]
fn two_clusters_of_two_become_one_by_a_single_add() {
    // Every pairing of the four, and every pair of members that meets: the smallest id is everywhere.
    for [a, b, c, d] in [[0, 1, 2, 3], [0, 2, 1, 3], [0, 3, 1, 2]] {
        for (from, to) in [(a, c), (c, a), (b, d), (d, b), (a, d), (c, b)] {
            let world = World::of(4);
            let ids = world.cluster_ids();
            world.add(a, b).unwrap();
            world.add(c, d).unwrap();
            world.gossip();
            world.add(from, to).unwrap();
            world.gossip();
            assert_eq!(world.cluster_ids(), [ids[0]; 4]);
            for agent in &world.agents {
                let mut aliases = agent.cluster().aliases;
                aliases.sort();
                assert_eq!(aliases, ids[1..], "{from} adds {to}");
                assert_eq!(agent.ledger.trusted_peers().unwrap().len(), 4);
            }
        }
    }
}

#[test]
fn the_new_id_and_its_aliases_reach_members_that_cannot_meet_the_winner() {
    let world = World::of(4);
    let ids = world.cluster_ids();
    // n3 and n2 are one cluster; n2 joins n1, and n1 joins n0. n3 hears of it only through n2.
    world.add(3, 2).unwrap();
    world.add(2, 1).unwrap();
    world.add(1, 0).unwrap();
    let [_, one, two, three] = &world.agents[..] else { unreachable!() };
    for _ in 0..2 {
        world.take(two, one);
        world.take(three, two);
    }
    assert_eq!(three.ledger.trusted_peers().unwrap().len(), 2);
    assert_eq!(three.cluster().cluster_id, ids[0]);
    let mut aliases = three.cluster().aliases;
    aliases.sort();
    assert_eq!(aliases, ids[1..], "tokens of n2 may carry any of the ids that it went by");
}

#[test]
fn a_removed_creator_takes_the_cluster_id_from_nobody() {
    let world = World::of(3);
    let ids = world.cluster_ids();
    world.add(0, 1).unwrap();
    let [zero, one, two] = &world.agents[..] else { unreachable!() };
    remove_peer(&one.ledger, &one.author, zero.id(), NOW).unwrap().unwrap();
    let key = zero.ledger.records_of(kind::CLUSTER).unwrap()[0].key.clone();
    peer_was_revoked(&one.ledger, &one.author, zero.id(), &[key]).unwrap();
    world.add(2, 1).unwrap();
    assert_eq!((one.cluster().cluster_id, two.cluster().cluster_id), (ids[0], ids[0]));
}

#[test]
fn merges_heard_in_any_order_end_the_same_and_rewrite_no_record_in_vain() {
    let world = World::of(5);
    let ids = world.cluster_ids();
    for (from, to) in [(4, 3), (3, 2), (2, 1), (1, 0)] {
        world.add(from, to).unwrap();
    }
    world.gossip();
    assert_eq!(world.cluster_ids(), [ids[0]; 5]);
    let before: Vec<u64> = world.agents.iter().map(|a| a.ledger.own_version().unwrap()).collect();
    world.gossip();
    let after: Vec<u64> = world.agents.iter().map(|a| a.ledger.own_version().unwrap()).collect();
    assert_eq!(before, after);
}

#[test]
fn a_merge_beyond_the_node_limit_of_either_side_changes_nothing() {
    for (small, from, to) in [(0, 0, 2), (0, 2, 0), (2, 0, 2), (2, 2, 0)] {
        let mut world = World::of(4);
        world.add(0, 1).unwrap();
        world.add(2, 3).unwrap();
        world.relicense(small, 3);
        let before: Vec<_> = world.agents.iter().map(|a| (a.cluster(), a.ledger.all_records())).collect();
        assert_eq!(world.add(from, to), Err(Reason::NodeLimitExceeded), "{from} adds {to}");
        let after: Vec<_> = world.agents.iter().map(|a| (a.cluster(), a.ledger.all_records())).collect();
        assert_eq!(before, after);
    }
}

#[test]
fn a_merge_that_one_side_never_stored_is_finished_by_the_next_contact() {
    let world = World::of(2);
    let ids = world.cluster_ids();
    // n1 crashes before it stores what it has proven; n0, which answered, has stored it.
    let Proven { answered, .. } = world.prove(1, 0, Purpose::Add).unwrap();
    let [zero, one] = &world.agents[..] else { unreachable!() };
    zero.accept(answered, true).unwrap();
    assert_eq!((one.ledger.trusted_peers().unwrap().len(), one.cluster().cluster_id), (1, ids[1]));
    // Its gossip is answered with 401, so n0 begins a handshake of its own.
    let row = zero.ledger.peer(one.id()).unwrap().unwrap();
    assert!(Attempts::default().handle_unknown_there(&row, MONO));
    let Proven { initiated, answered } = world.prove(0, 1, Purpose::Join).unwrap();
    one.accept(answered, true).unwrap();
    zero.accept(initiated, false).unwrap();
    assert!(zero.trusts(one) && one.trusts(zero));
    assert_eq!(world.cluster_ids(), [ids[0]; 2]);
}

#[test]
fn services_of_one_name_both_stay_after_a_merge() {
    let world = World::of(4);
    world.add(0, 1).unwrap();
    world.add(2, 3).unwrap();
    for (source, target) in [(0, 1), (2, 3)] {
        let [source, target] = [source, target].map(|n: usize| &world.agents[n]);
        let id = ServiceId::mint(NOW, &mut source.rng.borrow_mut());
        let body = ServiceBody::plain("db", source.id(), target.id(), NOW);
        source.ledger.put_own(&source.author, kind::SERVICE, &id.to_string(), &body).unwrap();
    }
    world.add(1, 2).unwrap();
    world.gossip();
    for agent in &world.agents {
        let services = agent.ledger.services().unwrap();
        assert_eq!(services.len(), 2);
        assert!(services.iter().all(|s| s.body.name == "db") && services[0].id != services[1].id);
    }
}

#[test]
fn what_was_written_anew_since_it_was_collected_stays() {
    let world = World::of(1);
    let [zero] = &world.agents[..] else { unreachable!() };
    let first = zero.ledger.put_own(&zero.author, kind::LOCK, "lease", &serde_json::json!({})).unwrap();
    let deleted = zero.ledger.delete_own(&zero.author, kind::LOCK, "lease").unwrap();
    let anew = zero.ledger.put_own(&zero.author, kind::LOCK, "lease", &serde_json::json!({})).unwrap();
    forget(&zero.ledger, &[(first.key.clone(), deleted.version)]).unwrap();
    assert_eq!(zero.ledger.record(&first.key).unwrap().unwrap().version, anew.version);
    forget(&zero.ledger, &[(first.key.clone(), anew.version)]).unwrap();
    assert_eq!(zero.ledger.record(&first.key).unwrap(), None);
}

#[test]
fn what_was_written_since_the_past_was_judged_goes_above_it() {
    let world = World::of(1);
    let [zero] = &world.agents[..] else { unreachable!() };
    let write = |id: &str, n: u32| zero.ledger.put_own(&zero.author, kind::SERVICE, id, &serde_json::json!(n)).unwrap();
    let (told, later) = (write("told", 1), write("later", 1));
    write("deleted", 1);
    let deleted = zero.ledger.delete_own(&zero.author, kind::SERVICE, "deleted").unwrap();
    let adopt = |version| {
        adopt_own_version(&zero.ledger, &zero.author, version, |r| r.version > told.version).unwrap();
        let held = |record: &Record| zero.ledger.record(&record.key).unwrap().unwrap();
        [held(&told), held(&later), held(&deleted)]
    };
    let [kept, anew, gone] = adopt(deleted.version);
    assert_eq!(
        (kept.version, anew.body.clone(), gone.deleted),
        (told.version, later.body.clone(), true),
        "as high as the own one"
    );
    assert!(anew.version > deleted.version && gone.version > deleted.version);
    assert_eq!(adopt(deleted.version), [kept, anew, gone], "once");
    assert!(adopt(1000)[1..].iter().all(|record| record.version > 1000));
}
