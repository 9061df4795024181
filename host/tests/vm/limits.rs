//! Limits of functions and classes, as cgroup version 2 holds them.

use crate::machine::Machine;

const ASK: &str = "curl --silent --max-time 120";

#[test]
fn a_function_that_eats_memory_ends_alone_and_the_answer_names_the_limit() {
    let machine = Machine::installed().unwrap();
    machine
        .run(&format!("{ASK} --fail http://127.0.0.1:8080/other/"))
        .unwrap();
    let before = machine.run("opr ps --json").unwrap();
    let answer = machine
        .run(&format!("{ASK} http://127.0.0.1:8080/hello/memory"))
        .unwrap();
    assert!(answer.contains("memory"), "{answer}");
    let after = machine.run("opr ps --json").unwrap();
    let other = |list: &str| {
        let list: Vec<serde_json::Value> = serde_json::from_str(list).unwrap();
        let found = list
            .into_iter()
            .find(|instance| instance["function"] == "other");
        found.unwrap()["created"].clone()
    };
    assert_eq!(other(&before), other(&after), "the other one goes on");
    machine
        .run(&format!("{ASK} --fail http://127.0.0.1:8080/hello/"))
        .unwrap();
}

#[test]
fn classes_share_the_processors_by_their_weights() {
    let machine = Machine::installed().unwrap();
    machine
        .run(
            "printf '[class.heavy]\\n\"cpu.weight\" = 900\\n[class.light]\\n\"cpu.weight\" = 100\\n' >> /etc/opr/opr.toml
             systemctl restart opr
             for class in heavy light; do opr deploy /root/probe --name $class --class $class --cpus 0; done",
        )
        .unwrap();
    // Two of each at once keep both processors busy for all of the time.
    let rounds = machine
        .run(&format!(
            "ask() {{ {ASK} --fail \"http://127.0.0.1:8080/$1/burn?ms=15000\"; echo \" $1\"; }}
             for name in heavy light; do {ASK} --fail http://127.0.0.1:8080/$name/ >/dev/null; done
             burn() {{ nsenter --target $1 --all true; }}
             before=$(for class in heavy light; do grep usage_usec /sys/fs/cgroup/opr.slice/opr-containerd.service/opr/$class/cpu.stat; done)
             for i in 1 2; do for name in heavy light; do ask $name >/dev/null & done; done; wait
             after=$(for class in heavy light; do grep usage_usec /sys/fs/cgroup/opr.slice/opr-containerd.service/opr/$class/cpu.stat; done)
             echo $before $after"
        ))
        .unwrap();
    let numbers: Vec<f64> = rounds
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    let (heavy, light) = (numbers[2] - numbers[0], numbers[3] - numbers[1]);
    eprintln!(
        "processor time of weights 900 and 100: {:.1}",
        heavy / light
    );
    assert!(heavy > light, "{rounds}");
}

#[test]
fn a_reload_changes_classes_of_running_sandboxes_and_a_wrong_file_fails_it() {
    let machine = Machine::installed().unwrap();
    machine
        .run(&format!("{ASK} --fail http://127.0.0.1:8080/hello/"))
        .unwrap();
    let running = || {
        machine
            .run("opr ps --json | jq '[.[] | {id, created}]'")
            .unwrap()
    };
    let before = running();
    let reload = |settings: &str| {
        machine.run(&format!(
            "mkdir -p /etc/opr/opr.toml.d
             printf '[class.function]\\n{settings}\\n' > /etc/opr/opr.toml.d/tuned.toml
             systemctl reload opr
             cd /sys/fs/cgroup/opr.slice/opr-containerd.service/opr/function
             cat cpu.weight memory.high io.max; ls -d hello*/ | wc -l"
        ))
    };
    let told =
        reload(r#""cpu.weight" = 321\n"memory.high" = 512\n"io.max" = ["/dev/vda wbps=1048576"]"#);
    let told = told.unwrap();
    let words: Vec<_> = told.split_whitespace().collect();
    let number = words[2];
    let io = [number, "rbps=max", "wbps=1048576", "riops=max", "wiops=max"];
    assert_eq!(words, [&["321", "536870912"], &io[..], &["1"]].concat());

    let refused = reload(r#""cpu.weight" = 0"#).unwrap_err().to_string();
    assert!(refused.contains("opr.service"), "{refused}");
    let log = machine
        .run("journalctl --unit opr --output cat --lines 50")
        .unwrap();
    let reason = "tuned.toml, line 2: 0 is not from 1 to 10000";
    assert!(log.contains(reason), "{log}");

    // What is no longer said is as if it had never been.
    assert_eq!(reload("").unwrap(), "100\nmax\n1\n");
    assert_eq!(running(), before);
}

#[test]
fn limits_of_a_function_are_in_its_cgroup() {
    let machine = Machine::installed().unwrap();
    machine
        .run("opr deploy /root/probe --name small --memory 128 --cpus 0.5")
        .unwrap();
    machine
        .run(&format!("{ASK} --fail http://127.0.0.1:8080/small/"))
        .unwrap();
    let values = machine
        .run("cd /sys/fs/cgroup/opr.slice/opr-containerd.service/opr/function/small*; cat memory.max memory.swap.max cpu.max pids.max")
        .unwrap();
    assert_eq!(values, "128000000\n0\n50000 100000\n512\n");
    // Half of a processor: 2 s of work take 4 s.
    let stat = machine
        .run(&format!(
            "{ASK} --fail 'http://127.0.0.1:8080/small/burn?ms=3000' >/dev/null
             grep nr_throttled /sys/fs/cgroup/opr.slice/opr-containerd.service/opr/function/small*/cpu.stat"
        ))
        .unwrap();
    let throttled: u64 = stat.split_whitespace().last().unwrap().parse().unwrap();
    assert!(throttled > 10, "{stat}");
}
