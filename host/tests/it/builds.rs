//! Builds and commands of clients over sandboxes of this process: a line of shell is a list of words here.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use opr_host::{
    adapter::memory::{Machine, Memory},
    build::client::{ClientBuild, ClientBuilds, Order},
    config::{Config, Limits},
    executor::{
        Executor,
        execution::StartError,
        instance::{Code, InstanceInfo, InstanceSpec, Protocol, RestartPolicy},
        setup::{Creation, SetupError},
        transcript::Reader,
    },
    id::{CacheKey, ClassName, InstanceId},
    storage::objects::Objects,
    telemetry::Metrics,
};
use tempfile::TempDir;
use tokio::sync::Notify;

mod commands;

/// Commands that have begun and have not ended.
#[derive(Debug, Default)]
struct Running(AtomicUsize);

struct Entry(Arc<Running>);

impl Entry {
    fn new(running: &Arc<Running>) -> Self {
        running.0.fetch_add(1, Ordering::SeqCst);
        Self(running.clone())
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A node that builds in sandboxes of this process.
struct Node {
    dir: TempDir,
    config: Config,
    adapter: Arc<Memory>,
    executor: Arc<Executor>,
    builds: ClientBuilds,
    running: Arc<Running>,
    /// What the word `wait` waits for.
    go: Arc<Notify>,
}

impl Node {
    async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = TempDir::new().unwrap();
        let mut config = Config {
            state_dir: dir.path().join("state"),
            ..Config::default()
        };
        change(&mut config);
        let (running, go) = (Arc::<Running>::default(), Arc::<Notify>::default());
        let parts = (running.clone(), go.clone());
        let adapter = Memory::new(Box::new(move |machine| {
            Box::pin(program(machine, parts.0.clone(), parts.1.clone()))
        }));
        let executor = executor(&config, &adapter).await;
        let objects = Objects::new(&config.storage.device).unwrap();
        let builds = ClientBuilds::new(&config, objects.clone(), objects).unwrap();
        Self {
            dir,
            config,
            adapter,
            executor,
            builds,
            running,
            go,
        }
    }

    fn destination(&self) -> String {
        self.dir.path().join("builds").display().to_string()
    }

    fn order(&self, command: &str) -> Order {
        Order {
            protocol: Protocol::V5,
            command: Some(command.into()),
            timeout: Some(Duration::from_secs(10)),
            destination: Some(self.destination()),
            cache_key: None,
        }
    }

    fn creation(&self, id: &str, order: Order) -> (Arc<ClientBuild>, Creation) {
        let spec = spec(id, order.protocol);
        let build = self.builds.build(order);
        let creation = Creation {
            spec,
            setup: Some(build.clone()),
            is_removed: true,
        };
        (build, creation)
    }

    async fn build(&self, id: &str, order: Order) -> Result<Arc<ClientBuild>, Arc<StartError>> {
        let (build, creation) = self.creation(id, order);
        self.executor.create(creation).await.map(|_| build)
    }

    /// Begins a build that the caller looks at while it runs.
    fn begin(
        &self,
        id: &str,
        order: Order,
    ) -> tokio::task::JoinHandle<Result<InstanceInfo, Arc<StartError>>> {
        let (_, creation) = self.creation(id, order);
        let executor = self.executor.clone();
        tokio::spawn(async move { executor.create(creation).await })
    }

    /// Waits until so many commands run.
    async fn until_running(&self, n: usize) {
        let reached = async {
            while self.running.0.load(Ordering::SeqCst) != n {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let reached = tokio::time::timeout(Duration::from_secs(10), reached).await;
        reached.unwrap_or_else(|_| panic!("not {n} commands: {:?}", self.running));
    }

    fn cache(&self, key: &str) -> PathBuf {
        let state = &self.config.state_dir;
        state.join(format!("build-cache/{key}/lz4-b1M/stores.sqfs"))
    }

    /// Nothing of a build is left: no sandbox, no record, no private copy.
    fn check_is_clean(&self) {
        assert_eq!(self.adapter.n_sandboxes(), 0);
        assert!(self.executor.list().is_empty());
        let staging = self.config.state_dir.join("staging");
        assert_eq!(fs::read_dir(staging).unwrap().count(), 0);
    }
}

async fn executor(config: &Config, adapter: &Arc<Memory>) -> Arc<Executor> {
    let metrics = Arc::<Metrics>::default();
    let objects = Objects::new(&config.storage.device).unwrap();
    Executor::start(Arc::new(config.clone()), adapter.clone(), metrics, objects)
        .await
        .unwrap()
}

fn instance(id: &str) -> InstanceId {
    InstanceId::try_new(id).unwrap()
}

fn spec(id: &str, protocol: Protocol) -> InstanceSpec {
    InstanceSpec {
        id: instance(id),
        function: None,
        class: ClassName::try_new("build").unwrap(),
        image: "busybox".parse().unwrap(),
        protocol,
        command: Some(vec!["idle".into()]),
        entrypoint: String::new(),
        variables: BTreeMap::new(),
        code: Code::None,
        limits: Limits::default(),
        restart: RestartPolicy::No,
        keep_alive: None,
    }
}

/// What runs in a sandbox: the words of its last argument, one after the other.
async fn program(machine: Machine, running: Arc<Running>, go: Arc<Notify>) -> u32 {
    let command = machine.spec.command.clone().unwrap_or_default();
    let line = command.last().cloned().unwrap_or_default();
    if line == "idle" {
        std::future::pending::<()>().await;
    }
    let _entry = Entry::new(&running);
    let say = |text: String| machine.output.push(Bytes::from(text));
    let (archive, cache) = (
        machine.scratch.join("builds/code.tar.gz"),
        machine.scratch.join("cache/stores.sqfs"),
    );
    for word in line.split(' ') {
        match word.split_once('=').unwrap_or((word, "")) {
            ("say", text) => say(format!("{text}\r\n")),
            ("pack", content) => fs::write(&archive, content).unwrap(),
            ("squash", content) => fs::write(archive.with_file_name("code.sqfs"), content).unwrap(),
            ("link", target) => std::os::unix::fs::symlink(target, &archive).unwrap(),
            ("cached", _) => {
                let content = fs::read_to_string(&cache).unwrap_or_else(|_| "nothing".into());
                say(format!("cached {content}\r\n"));
            }
            ("cache", content) => fs::write(&cache, content).unwrap(),
            ("wait", _) => go.notified().await,
            ("sleep", _) => std::future::pending().await,
            ("exit", code) => return code.parse().unwrap(),
            other => panic!("{other:?}"),
        }
        // What is written at one time is one part.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    0
}

fn text(build: &ClientBuild) -> String {
    let outcome = build.outcome().unwrap();
    outcome
        .output
        .iter()
        .map(|part| part.content.as_str())
        .collect()
}

async fn read(reader: Option<Reader>) -> String {
    let (mut reader, mut all) = (reader.unwrap(), String::new());
    while let Some(parts) = reader.next().await {
        all.extend(parts.into_iter().map(|part| part.content));
    }
    all
}

#[tokio::test]
async fn a_build_stores_what_it_left_and_tells_what_it_wrote() {
    let node = Node::start().await;
    let build = node
        .build("a", node.order("say=one say=two pack=content"))
        .await
        .unwrap();
    let outcome = build.outcome().unwrap();
    assert_eq!(text(&build), "one\r\ntwo\r\n");
    assert_eq!(outcome.output.len(), 2);
    let artifact = outcome.artifact.as_ref().unwrap();
    assert_eq!(artifact.size_bytes, 7);
    assert_eq!(fs::read(&artifact.path).unwrap(), b"content");
    let name = artifact.path.strip_prefix(&node.destination()).unwrap();
    assert_eq!(
        (name.len(), name.ends_with(".gz")),
        ("/0123456789abc.gz".len(), true)
    );
    node.check_is_clean();
}

#[tokio::test]
async fn a_squashed_artifact_keeps_its_ending() {
    let node = Node::start().await;
    let build = node.build("a", node.order("squash=content")).await.unwrap();
    let artifact = build.outcome().unwrap().artifact.clone().unwrap();
    assert!(artifact.path.ends_with(".sqfs"), "{artifact:?}");
    assert_eq!(fs::read(&artifact.path).unwrap(), b"content");
}

#[tokio::test]
async fn without_a_destination_nothing_is_kept() {
    let node = Node::start().await;
    let order = Order {
        destination: None,
        ..node.order("say=one")
    };
    let build = node.build("a", order).await.unwrap();
    assert_eq!(build.outcome().unwrap().artifact, None);
    node.check_is_clean();
}

#[tokio::test]
async fn a_failed_command_fails_the_build_with_its_output() {
    let node = Node::start().await;
    let error = node
        .build("a", node.order("say=why pack=x exit=3"))
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind(), node.destination()),
        ("build_failed", node.destination())
    );
    let StartError::Setup { source, .. } = &*error else {
        panic!("{error}")
    };
    assert_eq!(
        source.to_string(),
        "why\r\nBuild command exited with code 3."
    );
    assert!(!PathBuf::from(node.destination()).exists());
    node.check_is_clean();
}

#[tokio::test]
async fn a_command_that_takes_too_long_is_killed() {
    let node = Node::start().await;
    let order = Order {
        timeout: Some(Duration::from_millis(50)),
        ..node.order("sleep")
    };
    let error = node.build("a", order).await.unwrap_err();
    assert_eq!(error.kind(), "runtime_failed");
    node.until_running(0).await;
    node.check_is_clean();
}

#[tokio::test]
async fn what_cannot_be_taken_fails_the_build() {
    let node = Node::start().await;
    for (line, expected) in [
        ("say=one", "the build ended well, but wrote no code.tar.gz"),
        (
            "link=/etc/passwd",
            "the build wrote a code.tar.gz that is no regular file",
        ),
    ] {
        let error = node.build("a", node.order(line)).await.unwrap_err();
        let StartError::Setup {
            source: SetupError::Artifact { source },
            ..
        } = &*error
        else {
            panic!("{error}")
        };
        assert_eq!(source.to_string(), expected);
    }
    assert!(!PathBuf::from(node.destination()).exists());
    node.check_is_clean();
}

fn cached(node: &Node, line: &str) -> Order {
    Order {
        cache_key: Some(CacheKey::try_new("key").unwrap()),
        ..node.order(line)
    }
}

#[tokio::test]
async fn a_build_finds_the_cache_of_the_last_one_that_ended_well() {
    let node = Node::start().await;
    let build = async |line| text(&node.build("a", cached(&node, line)).await.unwrap());
    assert_eq!(build("cached cache=1 pack=x").await, "cached nothing\r\n");
    // The sandbox is another: what is found comes from the storage.
    let failed = node.build("b", cached(&node, "exit=1")).await;
    assert!(failed.is_err());
    assert_eq!(fs::read(node.cache("key")).unwrap(), b"1");
    assert_eq!(build("cached pack=x").await, "cached 1\r\n");
    let other = Order {
        cache_key: Some(CacheKey::try_new("other").unwrap()),
        ..node.order("pack=x")
    };
    node.build("c", other).await.unwrap();
    assert!(!node.cache("other").exists());
    node.check_is_clean();
}

#[tokio::test]
async fn builds_of_one_key_do_not_harm_each_other() {
    let node = Node::start().await;
    let contents: Vec<_> = (0..8).map(|n: u32| n.to_string().repeat(100_000)).collect();
    let build = |n: usize| {
        // The content is too long for a line: the word makes it.
        let order = cached(&node, &format!("cached cache={} pack=x", contents[n]));
        let (build, creation) = node.creation(&format!("build-{n}"), order);
        let executor = node.executor.clone();
        async move {
            executor.create(creation).await.unwrap();
            text(&build)
        }
    };
    for _ in 0..2 {
        let all = join_all((0..8).map(build)).await;
        for seen in all {
            let seen = seen.trim().strip_prefix("cached ").unwrap();
            assert!(seen == "nothing" || contents.iter().any(|one| one == seen));
        }
    }
    let kept = fs::read_to_string(node.cache("key")).unwrap();
    assert!(contents.contains(&kept));
}

#[tokio::test]
async fn a_cache_that_cannot_be_used_is_a_warning_before_the_log() {
    let node = Node::start().await;
    fs::create_dir_all(node.cache("key").join("in-its-place")).unwrap();
    let build = node
        .build("a", cached(&node, "say=one cache=1 pack=x"))
        .await
        .unwrap();
    let output = &build.outcome().unwrap().output;
    let begins = |n: usize, what: &str| {
        let expected = format!("[build cache] Warning: Failed to {what} cache artifact: ");
        let content = &output[n].content;
        assert!(
            content.starts_with(&expected) && content.ends_with('\n'),
            "{content}"
        );
    };
    begins(0, "restore");
    begins(1, "store");
    assert_eq!(output[2].content, "one\r\n");
    assert!(output.windows(2).all(|two| two[0].at <= two[1].at));
    assert!(build.outcome().unwrap().artifact.is_some());
}

#[tokio::test]
async fn the_old_protocol_tells_its_output_in_one_piece() {
    let node = Node::start().await;
    let order = |line| Order {
        protocol: Protocol::V2,
        ..node.order(line)
    };
    let build = node
        .build("a", order("say=one say=two pack=x"))
        .await
        .unwrap();
    let output = &build.outcome().unwrap().output;
    assert_eq!(
        (output.len(), output[0].content.as_str()),
        (1, "one\r\ntwo\r\n")
    );
    let build = node.build("a", order("pack=x")).await.unwrap();
    assert_eq!(text(&build), "Runtime created successfully!");
}

#[tokio::test]
async fn an_instance_is_pending_until_it_is_built() {
    let node = Node::start().await;
    let (_, mut creation) = node.creation("a", node.order("wait pack=x"));
    creation.is_removed = false;
    let executor = node.executor.clone();
    let creating = tokio::spawn(async move { executor.create(creation).await });
    node.until_running(1).await;
    let pending = node.executor.get(&instance("a")).unwrap();
    assert_eq!(pending.start_duration, None);
    let (_, again) = node.creation("a", node.order("pack=x"));
    let conflict = node.executor.create(again).await.unwrap_err();
    assert!(
        matches!(
            *conflict,
            StartError::Conflict {
                is_pending: true,
                ..
            }
        ),
        "{conflict}"
    );
    // A client may finish a build from outside.
    let written = node
        .executor
        .command(&instance("a"), "say=inside", None)
        .await
        .unwrap();
    assert_eq!(written.stdout, b"inside\r\n");
    node.go.notify_one();
    assert!(creating.await.unwrap().unwrap().start_duration.is_some());
    assert!(
        node.executor
            .get(&instance("a"))
            .unwrap()
            .start_duration
            .is_some()
    );
    assert!(node.executor.delete(&instance("a")).await);
    node.check_is_clean();
}

#[tokio::test]
async fn readers_see_all_of_a_build_whenever_they_come() {
    let node = Node::start().await;
    let id = instance("a");
    let early = tokio::spawn({
        let (executor, id) = (node.executor.clone(), id.clone());
        async move { read(executor.follow(&id).await).await }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    let creating = node.begin("a", node.order("say=one wait say=two pack=x"));
    node.until_running(1).await;
    let middle = join_all((0..4).map(|_| node.executor.follow(&id))).await;
    node.go.notify_one();
    creating.await.unwrap().unwrap();
    node.check_is_clean();
    let late = read(node.executor.follow(&id).await).await;
    assert_eq!(late, "one\r\ntwo\r\n");
    assert_eq!(early.await.unwrap(), late);
    for reader in middle {
        assert_eq!(read(reader).await, late);
    }
}

#[tokio::test]
async fn the_log_of_an_instance_without_a_build_is_its_servers() {
    let node = Node::start().await;
    let id = instance("a");
    let server = InstanceSpec {
        command: Some(vec!["say=began wait say=more wait".into()]),
        ..spec("a", Protocol::V5)
    };
    let mut early = {
        let executor = node.executor.clone();
        let (reader, created) = tokio::join!(executor.follow(&id), executor.create(server.into()));
        created.unwrap();
        reader.unwrap()
    };
    assert_eq!(early.next().await.unwrap()[0].content, "began\r\n");
    node.go.notify_one();
    assert_eq!(early.next().await.unwrap()[0].content, "more\r\n");
    let late = node.executor.follow(&id).await;
    node.executor.delete(&id).await;
    assert_eq!(read(late).await, "began\r\nmore\r\n");
    assert_eq!(early.next().await, None);
}

#[tokio::test]
async fn the_log_of_a_failed_build_ends_with_it() {
    let node = Node::start().await;
    let creating = node.begin("a", node.order("say=before wait exit=1"));
    node.until_running(1).await;
    let reader = node.executor.follow(&instance("a")).await;
    node.go.notify_one();
    assert_eq!(read(reader).await, "before\r\n");
    assert!(creating.await.unwrap().is_err());
}

#[tokio::test]
async fn the_end_of_the_main_process_ends_a_build_whatever_the_policy() {
    let node = Node::start().await;
    let (_, mut creation) = node.creation("a", node.order("sleep"));
    creation.spec.command = Some(vec!["wait exit=5".into()]);
    creation.spec.restart = RestartPolicy::Always;
    let executor = node.executor.clone();
    let creating = tokio::spawn(async move { executor.create(creation).await });
    node.until_running(2).await;
    node.go.notify_one();
    let error = creating.await.unwrap().unwrap_err();
    assert!(
        matches!(&*error, StartError::Exited { exit, .. } if exit.code == 5),
        "{error}"
    );
    node.until_running(0).await;
    let gone = async {
        while node.adapter.n_sandboxes() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone)
        .await
        .unwrap();
    node.check_is_clean();
}

#[tokio::test]
async fn a_deletion_ends_a_build() {
    let node = Node::start().await;
    let creating = node.begin("a", node.order("sleep"));
    node.until_running(1).await;
    let reader = node.executor.follow(&instance("a")).await;
    assert!(node.executor.delete(&instance("a")).await);
    let error = creating.await.unwrap().unwrap_err();
    assert!(matches!(*error, StartError::Deleted { .. }), "{error}");
    assert_eq!(read(reader).await, "");
    node.until_running(0).await;
    node.check_is_clean();
}

#[tokio::test]
async fn a_build_goes_on_and_is_removed_where_its_caller_goes_away() {
    let node = Node::start().await;
    let creating = node.begin("a", node.order("wait pack=x"));
    node.until_running(1).await;
    creating.abort();
    assert!(creating.await.is_err());
    node.go.notify_one();
    node.until_running(0).await;
    let gone = async {
        while node.adapter.n_sandboxes() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone)
        .await
        .unwrap();
    assert_eq!(fs::read_dir(node.destination()).unwrap().count(), 1);
}

#[tokio::test]
async fn a_stop_ends_builds_and_the_next_process_adopts_none() {
    let node = Node::start().await;
    let creating = node.begin("a", node.order("sleep"));
    node.until_running(1).await;
    node.executor.drain(Duration::from_secs(10)).await;
    let error = creating.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), "host_stopping");
    assert_eq!(node.adapter.n_sandboxes(), 0);

    let node = Node::start().await;
    let _creating = node.begin("a", node.order("sleep"));
    node.until_running(1).await;
    let next = executor(&node.config, &node.adapter).await;
    assert!(next.list().is_empty());
    assert_eq!(node.adapter.n_sandboxes(), 0);
}

#[tokio::test]
async fn more_builds_than_may_run_wait_and_more_than_may_wait_are_refused() {
    let node = Node::start_with(|config| {
        config.executor.builds = 1;
        config.executor.build_queue = 2;
    })
    .await;
    let first = node.begin("first", node.order("wait pack=x"));
    node.until_running(1).await;
    let second = node.begin("second", node.order("pack=x"));
    let deleted = node.begin("deleted", node.order("pack=x"));
    while node.executor.list().len() < 3 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let refused = node.build("refused", node.order("pack=x")).await;
    let error = refused.unwrap_err();
    assert_eq!(error.kind(), "build_queue_full");
    // Nothing is made of one that waits, and it can be deleted.
    assert_eq!(node.adapter.n_sandboxes(), 1);
    assert!(node.executor.delete(&instance("deleted")).await);
    assert!(deleted.await.unwrap().is_err());
    let third = node.begin("third", node.order("pack=x"));
    node.go.notify_one();
    for build in [first, second, third] {
        build.await.unwrap().unwrap();
    }
    assert_eq!(node.adapter.n_created(), 3);
    node.check_is_clean();
}

#[tokio::test]
async fn a_stop_ends_builds_that_wait() {
    let node = Node::start_with(|config| config.executor.builds = 1).await;
    let running = node.begin("running", node.order("sleep"));
    node.until_running(1).await;
    let waiting = node.begin("waiting", node.order("pack=x"));
    while node.executor.list().len() < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    node.executor.drain(Duration::from_secs(10)).await;
    for build in [running, waiting] {
        assert_eq!(build.await.unwrap().unwrap_err().kind(), "host_stopping");
    }
    assert_eq!(node.adapter.n_created(), 1);
}

#[tokio::test]
async fn the_next_process_adopts_what_was_built_and_stays() {
    let node = Node::start().await;
    let (_, mut creation) = node.creation("a", node.order("pack=x"));
    creation.is_removed = false;
    let before = node.executor.create(creation).await.unwrap();
    let next = executor(&node.config, &node.adapter).await;
    let after = next.get(&instance("a")).unwrap();
    assert_eq!(
        (after.key, after.hostname, after.created),
        (before.key, before.hostname, before.created)
    );
    assert!(after.start_duration.is_some());
    assert!(next.delete(&instance("a")).await);
    assert_eq!(node.adapter.n_sandboxes(), 0);
}
