//! Power cuts: the machine ends at once, in the middle of builds, deploys and executions.

use std::{thread, time::Duration};

use crate::machine::{Disk, Installed, Machine, copy, folder};

const CUTS: u64 = 10;

/// Deploys, builds and executions without end.
const WORK: &str = "
    nohup sh -c '
        while :; do curl --silent --max-time 30 http://127.0.0.1:8080/hello/ >/dev/null; done &
        i=0; while :; do i=$((i + 1)); opr deploy /root/probe --name work-$((i % 3)) >>/root/deployed 2>&1; done
    ' >/dev/null 2>&1 &";

#[test]
fn a_node_comes_back_from_power_cuts_by_itself() {
    let disk = folder().join("power.img");
    copy(&Installed::get().unwrap().disk, &disk).unwrap();
    for cut in 0..CUTS {
        let machine = Machine::boot(&disk, Disk::Written).unwrap();
        let told =
            machine.wait_for("curl --fail --silent --max-time 180 http://127.0.0.1:8080/hello/");
        told.unwrap_or_else(|error| panic!("after cut {cut}: {error:#}"));
        // Each function that is listed has its build, and answers.
        let functions = machine
            .run("opr functions --json | jq --raw-output '.[].name'")
            .unwrap();
        for name in ["hello", "other"].into_iter().chain(functions.lines()) {
            machine
                .run(&format!(
                    "curl --fail --silent --max-time 180 http://127.0.0.1:8080/{name}/"
                ))
                .unwrap_or_else(|error| panic!("{name} after cut {cut}: {error:#}"));
        }
        let left = machine
            .run(
                "ls /var/lib/opr/sandboxes | wc --lines
                 find /var/lib/opr/staging /var/lib/opr/builds -mindepth 1 -maxdepth 1 -mmin +60 2>/dev/null | wc --lines",
            )
            .unwrap();
        assert_eq!(left, "0\n0\n", "what cut {cut} left");
        machine.run(WORK).unwrap();
        // Different moments of a build, which takes some seconds here.
        thread::sleep(Duration::from_millis(2_000 + 1_300 * cut));
        drop(machine);
    }
    std::fs::remove_file(disk).unwrap();
}
