//! What a function reaches beyond itself: nothing.

use crate::machine::Machine;

#[test]
fn a_function_reaches_nothing_but_itself_and_the_world() {
    let machine = Machine::installed().unwrap();
    let ask = |path: &str| {
        machine.run(&format!(
            "curl --fail --silent --show-error --max-time 120 'http://127.0.0.1:8080/{path}'"
        ))
    };
    let other = ask("other/address").unwrap();
    let own = machine
        .run("ip -brief -4 address show scope global | grep -oE '[0-9.]+/' | tr -d /")
        .unwrap();
    // Each of these listens, and answers the machine.
    let mut targets = vec![
        format!("{other}:3000"),
        "169.254.169.254:8080".into(),
        "10.88.0.1:8080".into(),
    ];
    for address in own.lines().chain(["127.0.0.1"]) {
        targets.extend([22, 8080, 9900].map(|port| format!("{address}:{port}")));
    }
    machine.run("ip address add 169.254.169.254/32 dev lo && curl --silent http://169.254.169.254:8080/ >/dev/null").unwrap();
    machine
        .run(&format!(
            "curl --silent http://{}:8080/ >/dev/null",
            own.trim()
        ))
        .unwrap();
    let found = ask(&format!("hello/probe?targets={}", targets.join(","))).unwrap();
    assert_eq!(found, "[]");
}

#[test]
fn no_two_functions_share_an_id() {
    let machine = Machine::installed().unwrap();
    machine
        .run("for name in hello other; do curl --fail --silent http://127.0.0.1:8080/$name/; done")
        .unwrap();
    let owners = machine
        .run(
            "for group in /sys/fs/cgroup/opr.slice/opr-containerd.service/opr/function/*/; do
                 for pid in $(cat $group/cgroup.procs); do stat --format %u /proc/$pid; done | sort --unique
             done",
        )
        .unwrap();
    let mut owners: Vec<u64> = owners.lines().map(|line| line.parse().unwrap()).collect();
    owners.sort_unstable();
    assert_eq!(owners.len(), 2, "{owners:?}");
    assert!(owners[1] - owners[0] >= 65_536, "{owners:?}");
    // They are none of the machine's.
    for owner in owners {
        let name = machine
            .run(&format!("getent passwd {owner} || true"))
            .unwrap();
        assert_eq!(name, "");
    }
}
