//! The real kernel keeps the contract of `kernel::Kernel`. Each test runs in a network namespace of its own.

mod support;

use arctic::kernel::{Kernel, contract};
use arctic::os::LinuxKernel;
use support::{in_namespace, sh};

#[test]
fn the_linux_kernel_keeps_the_contract() {
    in_namespace(|| async {
        let kernel = LinuxKernel::open().expect("netlink sockets open");
        contract::run(&kernel).await;
        sh("ip link add lan0 type veth peer name lan1 && ip link set lan0 up && ip link set lan1 up");
        contract::run_interfaces(&kernel, "lan0").await;
    });
}

// accepts: 001-17, 001-18, 002-44
#[test]
fn nft_lists_cidrs_literally_and_comments_with_the_route() {
    in_namespace(|| async {
        let kernel = LinuxKernel::open().expect("netlink sockets open");
        let ruleset = contract::sample_rulesets().swap_remove(5);
        kernel.replace_tables(&ruleset).await.expect("the ruleset is accepted");
        let list = sh("nft list table inet arctic");
        println!("{list}");
        for capture in &ruleset.captures {
            let comment = format!("comment \"{capture}\"");
            assert!(list.contains(&comment), "{comment}");
            for net in capture.source.iter().chain(&capture.dest) {
                // nft leaves out the length of a full prefix, whatever the rule holds.
                let shown =
                    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() };
                assert!(list.contains(&format!("addr {shown} ")), "{shown}");
            }
        }
        let tunnel = sh("nft list table inet arctic_iptun");
        println!("{tunnel}");
        assert!(tunnel.contains("ip saddr 10.1.0.0/16 ip daddr 192.168.100.0/24"));
        println!("{}", sh("ip rule; ip -6 rule; ip route show table all | grep 610; true"));
    });
}
