//! What an operator does to a node that serves.

use crate::machine::Machine;

/// Requests without end, each on a connection of its own as on a kept one; counts those that failed.
const LOAD: &str = "
    load() {
        ok=0 failed=0
        while [ ! -e /tmp/stop ]; do
            if curl --fail --silent --show-error --max-time 60 --output /tmp/answer.$1 \
                http://127.0.0.1:8080/hello/ http://127.0.0.1:8080/other/ >>/tmp/failures 2>&1
            then ok=$((ok + 1)); else failed=$((failed + 1)); fi
        done
        echo $ok $failed
    }
    rm -f /tmp/stop /tmp/failures; touch /tmp/failures
    curl --fail --silent http://127.0.0.1:8080/hello/ http://127.0.0.1:8080/other/ >/dev/null
    opr ps --json | jq --sort-keys '[.[] | {id, created}]' > /tmp/before
    load 1 > /tmp/load.1 & load 2 > /tmp/load.2 &
    sleep 3";
const STOP: &str = "
    sleep 3; touch /tmp/stop; wait
    opr ps --json | jq --sort-keys '[.[] | {id, created}]' > /tmp/after
    cmp /tmp/before /tmp/after
    cat /tmp/load.1 /tmp/load.2 /tmp/failures";

#[track_caller]
fn check(command: &str) {
    let machine = Machine::installed().unwrap();
    let told = machine.run(&format!("{LOAD}\n{command}\n{STOP}")).unwrap();
    let counts: Vec<(u64, u64)> = told
        .lines()
        .take(2)
        .map(|line| line.split_once(' ').unwrap())
        .map(|(ok, failed)| (ok.parse().unwrap(), failed.parse().unwrap()))
        .collect();
    eprintln!("{command}: {counts:?}");
    assert!(
        counts.iter().all(|(ok, failed)| *ok > 3 && *failed == 0),
        "{told}"
    );
}

#[test]
fn a_restart_under_load_fails_no_request_and_restarts_no_instance() {
    check("systemctl restart opr; systemctl restart opr");
}

#[test]
fn an_upgrade_under_load_fails_no_request_and_restarts_no_instance() {
    check(
        "dpkg-deb --raw-extract /root/opr.deb /root/next
         sed --in-place 's/^Version: .*/&.next/' /root/next/DEBIAN/control
         dpkg-deb -Znone --build /root/next /root/next.deb >/dev/null
         dpkg --install /root/next.deb >/dev/null
         dpkg --status opr | grep --quiet '^Version: .*next'",
    );
}

#[test]
fn a_daemon_that_hangs_or_is_killed_comes_back() {
    let machine = Machine::installed().unwrap();
    let pid = || {
        machine
            .run("systemctl show --property MainPID --value opr")
            .unwrap()
    };
    let before = pid();
    machine.run(&format!("kill -STOP {before}")).unwrap();
    machine.wait_for(&format!("test $(systemctl show --property MainPID --value opr) -gt 0 && test $(systemctl show --property MainPID --value opr) != {}", before.trim())).unwrap();
    machine
        .wait_for("curl --fail --silent http://127.0.0.1:8080/hello/")
        .unwrap();
    machine
        .run("kill -KILL $(pgrep --uid opr --full 'containerd --config')")
        .unwrap();
    machine
        .wait_for("curl --fail --silent http://127.0.0.1:8080/other/")
        .unwrap();
}
