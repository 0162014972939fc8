use super::*;

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
