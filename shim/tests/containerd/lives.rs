//! Many lives in one shim, and what is left when one of the parties is killed.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tonic::Status;

use crate::{
    container::Container,
    node::{Node, Runtime, eventually, is_able},
    spec::process,
    stdio::Wanted,
    task::Task,
    traces,
};

/// How many containers live and die in one shim. Default 300.
const LIVES: &str = "OPR_TEST_LIVES";
/// What a shim may keep of each life, after the first ones have filled its pools.
const KEPT_PER_LIFE: u64 = 256;
/// What an allocator may keep for good.
const KEPT_AT_ALL: u64 = 2 << 20;
const WARM_UP: usize = 30;

const FOREVER: &str = "echo ready; exec sleep 1000";

async fn running<'n>(container: Container<'n>) -> Task<'n> {
    let task = container.sh(FOREVER).create().await.unwrap();
    task.start().await.unwrap();
    task.stdio.read_until("ready").await;
    task
}

#[tokio::test(flavor = "multi_thread")]
async fn many_lives_in_one_shim_leave_nothing_behind() {
    if !is_able() {
        return;
    }
    let lives: usize = std::env::var(LIVES).map_or(300, |text| text.parse().unwrap());
    let node = Node::start().await;
    let keeper = running(node.container(Runtime::Ours, "keeper").group("lives")).await;
    for n in 0..WARM_UP {
        one(&node, &format!("warm-{n}"), n).await;
    }
    let (before, resident) = (counters(&node), resident(&node));
    let began = Instant::now();
    for n in 0..lives {
        one(&node, &format!("life-{n}"), n).await;
    }
    let took = began.elapsed() / u32::try_from(lives.max(1)).unwrap();
    let is_same = || counters(&node) == before;
    eventually(is_same, || {
        format!("{before:?} became {:?}", counters(&node))
    })
    .await;
    let now = self::resident(&node);
    println!("{lives} lives, {took:?} each; resident {resident} bytes, then {now}; {before:?}");
    let kept = now.saturating_sub(resident);
    let bound = KEPT_AT_ALL + KEPT_PER_LIFE * lives as u64;
    assert!(kept < bound, "{kept} bytes more after {lives} lives");
    keeper.remove().await.unwrap();
    node.end().await;
}

/// A shim without containers ends: who has been told its address by then must not find it closed.
#[tokio::test(flavor = "multi_thread")]
async fn the_next_container_finds_a_shim_while_the_last_one_goes() {
    if !is_able() {
        return;
    }
    let node = Node::start().await;
    let container = |n: u64| {
        let container = node.container(Runtime::Ours, &format!("turn-{n}"));
        container.group("turns").sh(FOREVER)
    };
    let mut last = container(0).create().await.unwrap();
    for n in 1..=200 {
        let next = container(n);
        // Each time at another moment of the end.
        let pause = Duration::from_micros(n * 61 % 12_000);
        let create = async {
            tokio::time::sleep(pause).await;
            next.create().await
        };
        let (removed, created) = tokio::join!(last.remove(), create);
        removed.unwrap();
        last = created.unwrap_or_else(|e| panic!("{n}, after {pause:?}: {e}"));
    }
    last.remove().await.unwrap();
    node.end().await;
}

/// One life, of one of several kinds.
async fn one(node: &Node, id: &str, n: usize) {
    let container = node.container(Runtime::Ours, id).group("lives");
    match n % 5 {
        0 => assert_eq!(container.sh("exit 3").run().await.unwrap().exit, 3),
        1 => {
            let task = running(container).await;
            let run = task
                .run_exec("one", &process(&["echo", "here"]))
                .await
                .unwrap();
            assert_eq!(run.stdout, "here\n");
            task.remove().await.unwrap();
        }
        2 => assert!(container.args(&["no-such-program"]).run().await.is_err()),
        3 => assert!(
            container
                .terminal()
                .sh("tty")
                .run()
                .await
                .unwrap()
                .stdout
                .contains("pts")
        ),
        _ => {
            let task = container.sh(FOREVER).create().await.unwrap();
            task.kill(9).await.unwrap();
            task.wait().await.unwrap();
            task.delete().await.unwrap();
        }
    }
    fs::remove_dir_all(node.container(Runtime::Ours, id).folder()).unwrap();
}

/// What may not grow, of the node and of its shims.
fn counters(node: &Node) -> BTreeMap<&'static str, usize> {
    let shims = traces::shims(&node.marks());
    let entries =
        |pid: &i32, name| fs::read_dir(format!("/proc/{pid}/{name}")).map_or(0, Iterator::count);
    let mut all: BTreeMap<_, _> = traces::of(node)
        .into_iter()
        .map(|(kind, found)| (kind, found.len()))
        .collect();
    all.insert(
        "descriptors",
        shims.iter().map(|pid| entries(pid, "fd")).sum(),
    );
    all.insert("shims", shims.len());
    // Threads that wait for blocking work come and go with it.
    let is_many = shims.iter().map(|pid| entries(pid, "task")).sum::<usize>() > 64;
    all.insert("many threads", usize::from(is_many));
    all
}

/// Bytes of memory that are only the shims' own.
fn resident(node: &Node) -> u64 {
    let own = |pid: i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok())
    };
    traces::shims(&node.marks())
        .into_iter()
        .filter_map(own)
        .sum::<u64>()
        * 1024
}

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_from_outside_has_ended() {
    if !is_able() {
        return;
    }
    let node = Node::start().await;
    let container = |id| node.container(Runtime::Ours, id);

    let task = container("created").sh(FOREVER).create().await.unwrap();
    kill(task.pid.cast_signed());
    assert_eq!(task.wait().await.unwrap(), 137);
    assert_eq!(task.delete().await.unwrap(), 137);

    let task = running(container("started")).await;
    kill(task.pid.cast_signed());
    assert_eq!(task.wait().await.unwrap(), 137);
    assert_eq!(task.delete().await.unwrap(), 137);

    let task = running(container("exec")).await;
    let sleeps = process(&["sleep", "1000"]);
    let _exec = task.exec("one", &sleeps, Wanted::default()).await.unwrap();
    let pid = task.start_process("one").await.unwrap();
    kill(pid.cast_signed());
    assert_eq!(task.wait_process("one").await.unwrap(), 137);
    assert_eq!(task.delete_process("one").await.unwrap(), 137);
    let _exec = task.exec("two", &sleeps, Wanted::default()).await.unwrap();
    task.start_process("two").await.unwrap();
    kill(task.pid.cast_signed());
    assert_eq!(task.wait_process("two").await.unwrap(), 137);
    assert_eq!(task.wait().await.unwrap(), 137);
    assert_eq!(task.delete().await.unwrap(), 137);

    let task = running(container("paused")).await;
    task.pause().await.unwrap();
    kill(task.pid.cast_signed());
    task.resume().await.unwrap();
    assert_eq!(task.wait().await.unwrap(), 137);
    assert_eq!(task.delete().await.unwrap(), 137);
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_outlive_a_containerd_that_is_killed() {
    if !is_able() {
        return;
    }
    let mut node = Node::start().await;
    for group in [None, Some("together")] {
        let made = |node: &Node, id: &str| {
            let container = node.container(Runtime::Ours, id);
            let container = match group {
                Some(group) => container.group(group),
                None => container,
            };
            container.id
        };
        let ids = ["created", "started", "ends-meanwhile"].map(|id| made(&node, id));
        let pids = {
            let with_group = |id: &str| {
                let container = node.container(Runtime::Ours, id);
                group.map_or(container.clone(), |group| container.group(group))
            };
            let created = with_group(&ids[0]).sh(FOREVER).create().await.unwrap();
            let started = running(with_group(&ids[1])).await;
            let ends = running(with_group(&ids[2])).await;
            [created.pid, started.pid, ends.pid]
        };
        node.stop();
        kill(pids[2].cast_signed());
        node.restart().await;
        let tasks = ids
            .each_ref()
            .map(|id| node.container(Runtime::Ours, id).adopt());
        let [created, started, ends] = tasks;
        match ends.wait().await {
            Ok(code) => assert_eq!((code, ends.delete().await.unwrap()), (137, 137)),
            // Later versions of containerd clean up what ended without them.
            Err(status) => {
                assert_eq!(status.code(), tonic::Code::NotFound);
                ends.container.forget().await;
            }
        }
        assert_eq!(created.start().await.unwrap(), pids[0]);
        let run = started
            .run_exec("one", &process(&["echo", "still here"]))
            .await
            .unwrap();
        assert_eq!(run.stdout, "still here\n");
        created.remove().await.unwrap();
        started.remove().await.unwrap();
        for id in &ids {
            fs::remove_dir_all(node.container(Runtime::Ours, id).folder()).unwrap();
        }
        eventually(
            || traces::of(&node).is_empty(),
            || format!("{:#?}", traces::of(&node)),
        )
        .await;
    }
    node.end().await;
}

/// The shim's first process: its others have to notice.
#[track_caller]
fn kill_shims(node: &Node) {
    assert!(kill_if_there(node), "no shim was found");
}

fn kill_if_there(node: &Node) -> bool {
    let shims = traces::shims(&node.marks());
    let parent = |pid: i32| -> Option<i32> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
        line.trim().parse().ok()
    };
    let firsts = shims
        .iter()
        .filter(|&&pid| parent(pid).is_some_and(|pid| !shims.contains(&pid)));
    firsts.for_each(|&pid| {
        let _ = Pid::from_raw(pid).map(|pid| kill_process(pid, Signal::KILL));
    });
    !shims.is_empty()
}

/// What a client does that wants a container gone, and knows nothing of its shim.
async fn give_up(task: &Task<'_>) {
    if task.kill_process("", 9, true).await.is_ok() {
        let _ = task.wait().await;
    }
    let _ = task.delete_task().await;
}

/// All is gone, containerd knows of no task, and the name can be used again.
async fn assert_cleaned(node: &Node, id: &str, what: &str) {
    let task = node.container(Runtime::Ours, id).adopt();
    // containerd cleans up on its own when the connection ends; a client that is earlier does the same.
    give_up(&task).await;
    let is_clean = || traces::of(node).is_empty();
    eventually(is_clean, || {
        format!("{what}: {:#?}\n{}", traces::of(node), node.log_tail())
    })
    .await;
    node.container(Runtime::Ours, id).forget().await;
    let again = node.container(Runtime::Ours, id).sh("exit 4");
    let exit = async {
        // What containerd remembers of the old task takes it a moment to forget.
        loop {
            match again.run().await {
                Ok(run) => return Ok::<_, Status>(run.exit),
                Err(status) if status.code() == tonic::Code::AlreadyExists => {}
                Err(status) => return Err(status),
            }
            tokio::time::sleep(crate::node::RETRY).await;
        }
    };
    let exit = tokio::time::timeout(crate::node::DEADLINE, exit).await;
    assert_eq!(exit.expect(what).unwrap(), 4, "{what}");
    fs::remove_dir_all(again.folder()).unwrap();
    // A shim stays for a moment after its last container: killed then, nobody would be left to remove its socket.
    let is_gone = || traces::shims(&node.marks()).is_empty();
    eventually(is_gone, || {
        format!("{what}: a shim stays: {}", node.log_tail())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_that_is_killed_leaves_nothing_that_delete_cannot_clean() {
    if !is_able() {
        return;
    }
    let node = Node::start().await;
    let container = |id| node.container(Runtime::Ours, id);

    let _task = container("created").sh(FOREVER).create().await.unwrap();
    kill_shims(&node);
    assert_cleaned(&node, "created", "after create").await;

    let _task = running(container("started")).await;
    kill_shims(&node);
    assert_cleaned(&node, "started", "after start").await;

    let task = running(container("exec")).await;
    let sleeps = process(&["sleep", "1000"]);
    let _exec = task.exec("one", &sleeps, Wanted::default()).await.unwrap();
    task.start_process("one").await.unwrap();
    kill_shims(&node);
    assert_cleaned(&node, "exec", "during exec").await;

    let task = running(container("paused")).await;
    task.pause().await.unwrap();
    kill_shims(&node);
    assert_cleaned(&node, "paused", "while paused").await;

    let task = container("ended").sh("exit 0").create().await.unwrap();
    task.start().await.unwrap();
    task.wait().await.unwrap();
    kill_shims(&node);
    assert_cleaned(&node, "ended", "after its end").await;

    let deep = container("several").spec(|spec| crate::spec::no_namespace(spec, "pid"));
    let task = deep
        .sh("sleep 1000 & sleep 1000 & echo ready; exec sleep 1000")
        .create()
        .await
        .unwrap();
    task.start().await.unwrap();
    task.stdio.read_until("ready").await;
    kill_shims(&node);
    assert_cleaned(&node, "several", "with several processes").await;
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spawner_that_is_killed_takes_no_container_and_the_next_has_another() {
    if !is_able() {
        return;
    }
    let node = Node::start().await;
    let first = running(node.container(Runtime::Ours, "first").group("one")).await;
    let is_spawner = |pid: &i32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm"));
        name.is_ok_and(|name| name.trim() == "opr-spawner")
    };
    let shims = traces::shims(&node.marks());
    let spawner = shims.iter().copied().find(is_spawner).unwrap();
    kill_process(Pid::from_raw(spawner).unwrap(), Signal::KILL).unwrap();
    eventually(
        || !fs::exists(format!("/proc/{spawner}")).unwrap(),
        || "the spawner is not reaped".to_owned(),
    )
    .await;
    let bundle = node.bundle(Runtime::Ours, "first");
    let address = fs::read_to_string(bundle.join("address")).unwrap();
    let socket = address.trim().strip_prefix("unix://").unwrap().to_owned();
    eventually(
        || !fs::exists(&socket).unwrap(),
        || "the socket is still there".to_owned(),
    )
    .await;

    let second = running(node.container(Runtime::Ours, "second").group("one")).await;
    first.remove().await.unwrap();
    let run = second.run_exec("echo", &process(&["echo", "here"])).await;
    assert_eq!(run.unwrap().stdout, "here\n");
    second.remove().await.unwrap();
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_that_is_killed_while_it_works_leaves_nothing() {
    if !is_able() {
        return;
    }
    let node = Node::start().await;
    for n in 0..6 {
        let id = format!("dark-{n}");
        let container = node.container(Runtime::Ours, &id).sh(FOREVER);
        let create = async {
            let task = container.create().await?;
            task.start().await
        };
        let kill = async {
            let is_there = || !traces::shims(&node.marks()).is_empty();
            eventually(is_there, || "no shim was started".into()).await;
            // Later from try to try, by what the shim has done.
            for _ in 0..n {
                tokio::task::yield_now().await;
                let _ = traces::of(&node);
            }
            kill_if_there(&node);
        };
        let (created, ()) = tokio::join!(create, kill);
        println!(
            "killed early {n}: {:?}",
            created.map_err(|status| status.code())
        );
        assert_cleaned(&node, &id, &format!("while it was made, {n}")).await;
    }
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_groups_shim_that_is_killed_takes_no_trace_of_its_containers_along() {
    if !is_able() {
        return;
    }
    let node = Node::start().await;
    for id in ["one", "two", "three"] {
        running(node.container(Runtime::Ours, id).group("together")).await;
    }
    kill_shims(&node);
    for id in ["one", "two", "three"] {
        let task = node.container(Runtime::Ours, id).adopt();
        give_up(&task).await;
    }
    for id in ["one", "two", "three"] {
        assert_cleaned(&node, id, "a group").await;
    }
    node.end().await;
}
