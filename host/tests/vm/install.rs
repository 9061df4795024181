//! From the package to an answered request, and back to a machine without a trace.

use crate::machine::{Disk, Installed, Machine};

#[test]
fn a_booted_machine_serves_its_functions_and_nothing_of_it_has_rights() {
    let disk = Installed::get().unwrap().disk;
    let machine = Machine::boot(&disk, Disk::Unchanged).unwrap();
    let answer = machine
        .wait_for("curl --fail --silent --show-error http://127.0.0.1:8080/hello/")
        .unwrap();
    assert!(!answer.is_empty());
    // Root, and ids that have a name, run nothing of the node but its own programs.
    let users = machine
        .run(
            "for unit in opr.service opr-containerd.service; do
                 find /sys/fs/cgroup/opr.slice/$unit -name cgroup.procs -exec cat {} + | while read pid; do
                     echo $(stat --format '%u %U' /proc/$pid) $(tr '\\0' ' ' < /proc/$pid/cmdline | cut -d ' ' -f 1)
                 done
             done",
        )
        .unwrap();
    let own = machine.run("id --user opr").unwrap().trim().to_owned();
    let is_function = |line: &&str| line.contains(" UNKNOWN ");
    assert!(users.lines().filter(is_function).count() >= 1, "{users}");
    for line in users.lines() {
        let is_opr = line.starts_with(&format!("{own} opr "));
        assert!(is_opr || is_function(&line), "{users}");
        let is_program = ["opr", "containerd", "pasta"]
            .iter()
            .any(|name| line.contains(name));
        assert!(!is_opr || is_program, "{users}");
    }
    assert!(
        users.contains("containerd-shim-opr-v1") && users.contains("pasta"),
        "{users}"
    );
    let score = machine.run(
        "for unit in opr opr-containerd; do systemd-analyze security $unit | tail --lines 1; done",
    );
    eprintln!("{}", score.unwrap());
}

#[test]
fn a_removed_package_leaves_its_settings_and_a_purged_one_nothing() {
    let machine = Machine::installed().unwrap();
    machine
        .run("curl --fail --silent http://127.0.0.1:8080/hello/")
        .unwrap();
    let uid = machine.run("id --user opr").unwrap();
    let traces = format!(
        "{{
            systemctl is-active opr opr-containerd opr.socket | grep --line-regexp active
            ls --directory /sys/fs/cgroup/opr.slice/opr*
            grep /opr /proc/self/mountinfo | grep --invert-match credentials
            pgrep --uid {}
            find / -xdev -uid +65536 | head --lines 3
            ip -brief link | grep opr
        }} 2>/dev/null || true",
        uid.trim()
    );
    machine.run("dpkg --remove opr").unwrap();
    machine
        .run("test -e /etc/opr/opr.toml && test -d /var/lib/opr")
        .unwrap();
    machine.run("dpkg --purge opr").unwrap();
    assert_eq!(machine.run(&traces).unwrap(), "");
    let left = machine
        .run("{ ls --directory /var/lib/opr /run/opr /etc/opr /usr/share/opr; getent passwd opr; grep opr /etc/subuid /etc/subgid; } 2>/dev/null || true")
        .unwrap();
    assert_eq!(left, "");
}

#[test]
fn a_user_runs_a_node_of_its_own() {
    let machine = Machine::installed().unwrap();
    machine
        .run("systemctl disable --now opr.socket opr opr-containerd")
        .unwrap();
    machine
        .run("useradd --create-home alice && loginctl enable-linger alice")
        .unwrap();
    let alice = |command: &str| {
        machine.run(&format!(
            "cd /; exec runuser -u alice -- env XDG_RUNTIME_DIR=/run/user/$(id -u alice) {command}"
        ))
    };
    machine
        .wait_for("test -S /run/user/$(id -u alice)/bus")
        .unwrap();
    // What useradd gives is enough for images, and for no sandbox.
    let refused = alice("opr doctor").unwrap_err().to_string();
    assert!(refused.contains("usermod --add-subuids"), "{refused}");
    machine
        .run(
            "usermod --add-subuids 2147483648-2281701375 --add-subgids 2147483648-2281701375 alice",
        )
        .unwrap();
    alice("systemctl --user enable --now opr.socket opr-containerd opr").unwrap();
    machine
        .put(&crate::machine::node_image().unwrap(), "/tmp/node.oci.tar")
        .unwrap();
    machine.run("cp --recursive /root/probe /tmp/probe && chmod --recursive a+rX /tmp/probe /tmp/node.oci.tar").unwrap();
    alice("opr images import /tmp/node.oci.tar").unwrap();
    alice("opr deploy /tmp/probe --name mine").unwrap();
    machine
        .run("curl --fail --silent http://127.0.0.1:8080/mine/")
        .unwrap();
    let owner = machine
        .run("stat --format %U /home/alice/.local/state/opr")
        .unwrap();
    assert_eq!(owner.trim(), "alice");
}
