//! Whole deployments, in sandboxes that are futures of this process.

use std::os::unix::fs::symlink;

use tar::EntryType;
use tempfile::TempDir;

use super::*;
use crate::{
    adapter::{
        Source,
        memory::{Machine, Memory},
    },
    code::unpack::tests::{gzip, tar},
    executor::execution::Fault,
    function::{store::BuildState, tests::function},
    storage::objects::Objects,
    telemetry::Metrics,
};

struct Node {
    dir: TempDir,
    adapter: Arc<Memory>,
    store: Store,
    builds: Builds,
}

async fn node() -> Node {
    let dir = TempDir::new().unwrap();
    let mut config = Config::load(None, &|_| None).unwrap();
    config.state_dir = dir.path().into();
    let adapter = Memory::new(Box::new(|machine| Box::pin(program(machine))));
    let metrics = Arc::<Metrics>::default();
    let objects = Objects::new(&config.storage.device).unwrap();
    let executor = Executor::start(Arc::new(config.clone()), adapter.clone(), metrics, objects);
    let store = Store::open(dir.path()).unwrap();
    let parts = Parts {
        executor: executor.await.unwrap(),
        store: store.clone(),
        catalog: Arc::new(Catalog::load(None).unwrap()),
        storage: Storage::open(dir.path()).unwrap(),
        code: CodeCache::new(dir.path()).unwrap(),
        classes: Arc::new(Classes::new(config.class.clone())),
    };
    Node {
        builds: Builds::new(&config, parts).unwrap(),
        dir,
        adapter,
        store,
    }
}

/// The build: does what the deployment's command says.
async fn program(machine: Machine) -> u32 {
    let value = |name| {
        let mut env = machine.spec.env.iter().rev();
        env.find(|(key, _)| key == name).unwrap().1.clone()
    };
    let artifact = machine.scratch.join("code/code.tar.gz");
    let pack = |name: &str, content: &str| {
        let archive = tar(&[(EntryType::Regular, name, "", content.as_bytes())]);
        fs::write(&artifact, gzip(&archive)).unwrap();
    };
    machine.output.push(Bytes::from_static(b"building\r\n"));
    let command = value("OPR_BUILD_COMMAND");
    match command.split_once(' ').unwrap_or((&command, "")) {
        ("pack", name) => pack(name, &value("GREETING")),
        ("cache", content) => {
            fs::write(machine.scratch.join("cache/stores.sqfs"), content).unwrap();
            pack("index.js", "");
        }
        ("cached", content) => {
            let mut mounts = machine.spec.mounts.iter();
            let kept = mounts.find(|mount| mount.target == Path::new("/tmp/stores.sqfs"));
            let Source::Host(file) = &kept.unwrap().source else {
                panic!("{kept:?}");
            };
            assert_eq!(fs::read_to_string(file).unwrap(), content);
            pack("index.js", "");
        }
        ("link", target) => symlink(target, &artifact).unwrap(),
        ("fail", code) => return code.parse().unwrap(),
        ("hang", _) => std::future::pending().await,
        ("nothing", _) => {}
        (other, _) => panic!("no command {other}"),
    }
    0
}

impl Node {
    async fn deploy(&self, command: &str) -> Result<Arc<Function>, BuildError> {
        self.deploy_with("hello", "hello", command).await
    }

    async fn deploy_with(
        &self,
        name: &str,
        greeting: &str,
        command: &str,
    ) -> Result<Arc<Function>, BuildError> {
        let mut function = function(name);
        function
            .variables
            .insert("GREETING".into(), greeting.into());
        let source = self.dir.path().join("source.tar.gz");
        fs::write(&source, "the sandbox would unpack it").unwrap();
        let deployment = Deployment {
            function,
            source,
            command: Some(command.into()),
        };
        self.builds.deploy(deployment, mpsc::channel(100).0).await
    }

    fn hello(&self) -> Option<Arc<Function>> {
        self.store.get(&"hello".parse().unwrap())
    }

    /// Names in a folder of the state.
    fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path().join(folder)).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[track_caller]
    fn is_clean(&self) {
        assert_eq!(self.adapter.n_sandboxes(), 0);
        assert_eq!(self.names("builds"), [""; 0]);
    }
}

#[tokio::test]
async fn a_deployment_becomes_the_function() {
    let node = node().await;
    let deployed = node.deploy("pack index.js").await.unwrap();
    assert_eq!(node.hello(), Some(deployed.clone()));
    let spec = node.builds.instance(&deployed).await.unwrap();
    let crate::executor::instance::Code::Unpacked(code) = &spec.code else {
        panic!("{spec:?}");
    };
    assert_eq!(fs::read(code.join("index.js")).unwrap(), b"hello");
    assert!(Arc::ptr_eq(
        &spec,
        &node.builds.instance(&deployed).await.unwrap()
    ));
    let builds = node.store.builds(None).await.unwrap();
    assert_eq!(builds[0].state, BuildState::Succeeded);
    assert_eq!(builds[0].artifact, deployed.artifact);
    let log = node.store.build_log(builds[0].id).await.unwrap();
    assert_eq!(log.unwrap(), b"building\r\n");
    node.is_clean();
}

#[tokio::test]
async fn a_build_begins_with_the_cache_of_the_one_before() {
    let node = node().await;
    for command in [
        "cache one",
        "cached one",
        "cache two",
        "fail 1",
        "cached two",
    ] {
        let is_to_fail = command == "fail 1";
        assert_eq!(node.deploy(command).await.is_err(), is_to_fail);
    }
    assert_eq!(node.names("function-cache"), ["hello.sqfs"]);
    assert!(node.builds.remove(&"hello".parse().unwrap()).await.unwrap());
    assert_eq!(node.names("function-cache"), [""; 0]);
}

#[tokio::test]
async fn a_build_that_fails_leaves_the_previous_function_and_its_log() {
    #[track_caller]
    fn check(error: &BuildError, fault: Fault, expected: &str) {
        let chain = crate::telemetry::chain(error);
        assert_eq!(
            (error.fault(), chain.contains(expected)),
            (fault, true),
            "{chain}"
        );
    }
    let node = node().await;
    let before = node.deploy("pack index.js").await.unwrap();
    for (command, expected) in [
        (
            "fail 3",
            "the build of hello exited with code 3, having written: building",
        ),
        ("nothing", "wrote no code.tar.gz"),
        ("link /etc/passwd", "no regular file"),
        (
            "pack ../index.js",
            "the archive is refused: entry \"../index.js\"",
        ),
        (
            "pack main.js",
            "missing entrypoint \"index.js\": the build made main.js",
        ),
    ] {
        let error = node.deploy(command).await.unwrap_err();
        check(&error, Fault::Function, expected);
        let builds = node.store.builds(None).await.unwrap();
        assert_eq!(builds[0].state, BuildState::Failed);
        assert!(builds[0].message.as_ref().unwrap().contains(expected));
        let log = node.store.build_log(builds[0].id).await.unwrap();
        assert_eq!(log.unwrap(), b"building\r\n");
        node.is_clean();
    }
    assert_eq!(node.hello(), Some(before));
}

#[tokio::test]
async fn an_artifact_that_no_function_uses_goes_at_the_second_look() {
    let node = node().await;
    let first = node
        .deploy_with("hello", "1", "pack index.js")
        .await
        .unwrap();
    let second = node
        .deploy_with("hello", "2", "pack index.js")
        .await
        .unwrap();
    assert_ne!(first.artifact, second.artifact);
    node.builds.clean().await.unwrap();
    assert_eq!(node.names("code").len(), 2);
    node.builds.clean().await.unwrap();
    let kept = second.artifact.as_ref().unwrap().hex();
    assert_eq!(node.names("code"), [kept]);
    assert_eq!(node.names("artifacts"), [format!("{kept}.tar.gz")]);
    let name = "hello".parse().unwrap();
    assert!(node.builds.remove(&name).await.unwrap());
    assert!(!node.builds.remove(&name).await.unwrap());
    node.builds.clean().await.unwrap();
    node.builds.clean().await.unwrap();
    assert_eq!(node.names("artifacts"), [""; 0]);
    assert_eq!(node.names("code"), [""; 0]);
}

#[tokio::test]
async fn a_stop_ends_builds_and_takes_no_more() {
    let node = node().await;
    let hanging = node.deploy("hang");
    tokio::pin!(hanging);
    while node.adapter.n_created() == 0 {
        assert!(futures_util::poll!(&mut hanging).is_pending());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    node.builds.stop().await;
    assert!(matches!(hanging.await, Err(BuildError::Stopping)));
    let refused = node.deploy("pack index.js").await;
    assert!(matches!(refused, Err(BuildError::Stopping)));
    let builds = node.store.builds(None).await.unwrap();
    assert_eq!(builds[0].message.as_deref(), Some("this node is stopping"));
    while node.adapter.n_sandboxes() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    node.is_clean();
}

#[tokio::test]
async fn builds_beyond_the_limit_wait_and_say_so() {
    let node = node().await;
    let deploy = |name: &str, progress| {
        let source = node.dir.path().join("source.tar.gz");
        fs::write(&source, "").unwrap();
        let deployment = Deployment {
            function: function(name),
            source,
            command: Some("hang".into()),
        };
        let builds = node.builds.clone();
        tokio::spawn(async move { builds.deploy(deployment, progress).await })
    };
    let (progress, mut events) = mpsc::channel(100);
    let first = deploy("one", progress.clone());
    let second = deploy("two", progress);
    for _ in 0..4 {
        // Each starts and writes a line.
        assert_ne!(events.recv().await, Some(BuildEvent::Queued));
    }
    let (progress, mut events) = mpsc::channel(100);
    let third = deploy("three", progress);
    assert_eq!(events.recv().await, Some(BuildEvent::Queued));
    assert_eq!(node.adapter.n_created(), 2);
    node.builds.stop().await;
    for build in [first, second, third] {
        assert!(matches!(build.await.unwrap(), Err(BuildError::Stopping)));
    }
}
