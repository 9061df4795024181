//! Whether there is room for one more instance.

use std::time::Instant;

use opr_host::config::{Admission, Budget, Thresholds};

use super::*;

/// What one instance of these tests asks for. Bytes.
const ONE: u64 = 100 << 20;
const SHORT: u64 = 200;

fn budget(n: u64) -> Admission {
    Admission {
        memory_budget: Some(Budget::Mib(n * 100)),
        wait_ms: 10_000,
        ..Admission::default()
    }
}

impl Node {
    /// A node with room for `n` instances, for which others wait up to `wait_ms`.
    async fn with_room(n: u64, wait_ms: u64) -> Self {
        Self::start(|config| {
            config.admission = Admission {
                wait_ms,
                ..budget(n)
            };
        })
        .await
    }

    /// A function that needs `n` of the room.
    fn sized(&self, id: &str, n: u64) -> InstanceSpec {
        let mut spec = self.spec(id, "serve");
        spec.limits.memory_bytes = n * ONE;
        spec
    }

    /// An execution that lasts until the task is aborted.
    async fn occupy(&self, spec: &InstanceSpec) -> tokio::task::JoinHandle<()> {
        self.text(spec, "/").await.unwrap();
        self.begin(spec, "/wait")
    }

    fn begin(&self, spec: &InstanceSpec, path: &str) -> tokio::task::JoinHandle<()> {
        let (executor, execution) = (self.executor.clone(), execution(spec, path));
        tokio::spawn(async move {
            let answer = executor.execute(execution).await.unwrap();
            answer.response.into_body().collect().await.unwrap();
        })
    }

    async fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let wait = async {
            while !is_so(self) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(5), wait).await;
        waited.unwrap_or_else(|_| panic!("not {what}: {:?}", self.executor.reserved()));
    }

    async fn until_reserved(&self, n: u64) {
        let is_so = |node: &Self| node.executor.reserved().reserved == n * ONE;
        self.until(&format!("{n} reserved"), is_so).await;
    }

    async fn until_waiting(&self, n: usize) {
        let is_so = |node: &Self| node.executor.reserved().n_waiting == n;
        self.until(&format!("{n} waiting"), is_so).await;
    }

    fn names(&self) -> Vec<String> {
        let infos = self.executor.list().into_iter();
        infos.map(|info| info.id.to_string()).collect()
    }
}

#[tokio::test]
async fn the_one_that_was_idle_for_longest_ends_for_another() {
    let node = Node::with_room(2, 10_000).await;
    let [a, b, c] = ["a", "b", "c"].map(|id| node.sized(id, 1));
    for spec in [&a, &b, &a, &c] {
        assert_eq!(node.text(spec, "/").await.unwrap(), "hello");
    }
    assert_eq!(node.names(), ["a", "c"]);
    node.settle(2).await;
    node.until_reserved(2).await;
    // As many as are needed.
    let large = node.sized("large", 2);
    assert_eq!(node.text(&large, "/").await.unwrap(), "hello");
    assert_eq!(node.names(), ["large"]);
    node.executor.delete_all().await;
    assert_eq!(node.executor.reserved().reserved, 0);
}

#[tokio::test]
async fn beside_instances_in_use_there_is_a_refusal_and_they_go_on() {
    let node = Node::with_room(2, SHORT).await;
    let [a, b, c] = ["a", "b", "c"].map(|id| node.sized(id, 1));
    let busy = [node.occupy(&a).await, node.occupy(&b).await];
    node.until("busy", |node| {
        let infos = node.executor.list();
        infos.iter().all(|info| info.n_executions == 1)
    })
    .await;
    let began = Instant::now();
    let refused = node.text(&c, "/").await.unwrap_err();
    assert!(began.elapsed() >= Duration::from_millis(SHORT));
    assert_eq!(refused.kind(), "host_memory_full");
    assert!(refused.may_retry());
    // Those that are there are asked nothing.
    assert_eq!(node.text(&a, "/").await.unwrap(), "hello");
    assert_eq!(node.names(), ["a", "b"]);
    assert_eq!(node.adapter.n_created(), 2);
    for task in busy {
        task.abort();
    }
    node.executor.delete_all().await;
    let left = node.executor.reserved();
    assert_eq!((left.reserved, left.n_waiting), (0, 0));
}

#[tokio::test]
async fn who_waits_is_let_in_as_soon_as_one_is_idle() {
    let node = Node::with_room(1, 10_000).await;
    let (a, b) = (node.sized("a", 1), node.sized("b", 1));
    node.text(&a, "/").await.unwrap();
    let slow = node.begin(&a, "/slow");
    node.until("busy", |node| node.executor.list()[0].n_executions == 1)
        .await;
    // Many who wait for one instance wait once.
    let answers = join_all((0..20).map(|_| node.text(&b, "/"))).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    slow.await.unwrap();
    assert_eq!(node.names(), ["b"]);
}

#[tokio::test]
async fn idle_instances_do_not_end_in_vain() {
    let node = Node::with_room(3, SHORT).await;
    let (idle, busy) = (node.sized("idle", 1), node.sized("busy", 2));
    node.text(&idle, "/").await.unwrap();
    let busy = node.occupy(&busy).await;
    node.until("busy", |node| {
        node.executor
            .list()
            .iter()
            .any(|info| info.n_executions == 1)
    })
    .await;
    let refused = node.text(&node.sized("large", 2), "/").await.unwrap_err();
    assert_eq!(refused.kind(), "host_memory_full");
    assert_eq!(node.names(), ["busy", "idle"]);
    busy.abort();
}

#[tokio::test]
async fn one_that_a_client_wants_kept_is_kept() {
    let node = Node::with_room(1, SHORT).await;
    let mut kept = node.sized("kept", 1);
    kept.keep_alive = Some(Duration::from_secs(3600));
    node.text(&kept, "/").await.unwrap();
    let refused = node.text(&node.sized("other", 1), "/").await.unwrap_err();
    assert_eq!(refused.kind(), "host_memory_full");
    assert_eq!(node.names(), ["kept"]);
}

#[tokio::test]
async fn what_never_fits_is_refused_at_once() {
    let node = Node::with_room(2, 10_000).await;
    let idle = node.sized("idle", 1);
    node.text(&idle, "/").await.unwrap();
    let large = node.sized("large", 3);
    let refused = node.text(&large, "/");
    let refused = tokio::time::timeout(Duration::from_secs(5), refused).await;
    let refused = refused.unwrap().unwrap_err();
    assert_eq!(refused.kind(), "runtime_too_large");
    assert_eq!(node.names(), ["idle"]);
}

#[tokio::test]
async fn a_caller_who_goes_away_leaves_the_queue() {
    let node = Node::with_room(1, 10_000).await;
    let (a, b) = (node.sized("a", 1), node.sized("b", 1));
    let busy = node.occupy(&a).await;
    let waiting = node.begin(&b, "/");
    node.until_waiting(1).await;
    waiting.abort();
    node.until_waiting(0).await;
    node.until("gone", |node| node.names() == ["a"]).await;
    // It needs its memory no more, so that nobody ends for it.
    busy.abort();
    assert_eq!(node.text(&a, "/").await.unwrap(), "hello");
    assert_eq!(node.adapter.n_created(), 1);
    assert_eq!(node.executor.reserved().reserved, ONE);
}

#[tokio::test]
async fn an_execution_whose_time_is_over_while_it_waits_learns_why() {
    let node = Node::with_room(1, 10_000).await;
    let (a, b) = (node.sized("a", 1), node.sized("b", 1));
    let busy = node.occupy(&a).await;
    let mut execution = execution(&b, "/");
    execution.timeout = Duration::from_millis(SHORT);
    let refused = node.executor.execute(execution).await.unwrap_err();
    assert_eq!(refused.kind(), "host_memory_full");
    node.until_waiting(0).await;
    busy.abort();
}

#[tokio::test]
async fn a_creation_waits_too_and_goes_on_without_its_caller() {
    let node = Node::with_room(1, 10_000).await;
    let (a, b) = (node.sized("a", 1), node.sized("b", 1));
    let busy = node.occupy(&a).await;
    let creating = tokio::time::timeout(
        Duration::from_millis(50),
        node.executor.create(b.clone().into()),
    );
    creating.await.unwrap_err();
    // One that comes and goes meanwhile does not end it.
    let waiting = node.begin(&b, "/");
    node.until("two", |node| {
        node.executor
            .list()
            .iter()
            .all(|info| info.n_executions == 1)
    })
    .await;
    waiting.abort();
    busy.abort();
    node.until("created", |node| node.names() == ["b"]).await;
    node.until_reserved(1).await;
    // Nobody uses it: it ends for the next.
    assert_eq!(node.text(&a, "/").await.unwrap(), "hello");
}

#[tokio::test]
async fn a_larger_budget_lets_in_who_waits() {
    let node = Node::with_room(1, 10_000).await;
    let (a, b) = (node.sized("a", 1), node.sized("b", 1));
    let busy = node.occupy(&a).await;
    let waiting = node.begin(&b, "/");
    node.until_waiting(1).await;
    assert_eq!(node.executor.set_admission(budget(2)), [""; 0]);
    waiting.await.unwrap();
    assert_eq!(node.executor.reserved().reserved, 2 * ONE);
    // A smaller one ends nobody.
    node.executor.set_admission(budget(1));
    assert_eq!(node.names(), ["a", "b"]);
    busy.abort();
}

#[tokio::test]
async fn the_next_process_knows_what_is_reserved() {
    let node = Node::with_room(3, SHORT).await;
    node.text(&node.sized("a", 1), "/").await.unwrap();
    node.text(&node.sized("b", 2), "/").await.unwrap();
    let mut config = node.config.clone();
    // Less than there is already.
    config.admission = Admission {
        wait_ms: SHORT,
        ..budget(2)
    };
    let next = executor(&config, &node.adapter).await;
    assert_eq!(next.reserved().reserved, 3 * ONE);
    let answer = next.execute(execution(&node.sized("c", 1), "/")).await;
    assert_eq!(answer.unwrap().response.status(), 200);
    next.delete_all().await;
    assert_eq!(next.reserved().reserved, 0);
}

#[tokio::test]
async fn a_main_process_that_starts_again_keeps_what_is_reserved() {
    let node = Node::with_room(1, SHORT).await;
    let mut spec = node.sized("a", 1);
    spec.restart = RestartPolicy::Always;
    for _ in 0..2 {
        node.text(&spec, "/exit").await.unwrap_err();
        assert_eq!(node.text(&spec, "/").await.unwrap(), "hello");
        assert_eq!(node.executor.reserved().reserved, ONE);
    }
    node.executor.delete(&spec.id).await;
    assert_eq!(node.executor.reserved().reserved, 0);
}

#[tokio::test]
async fn a_failed_start_gives_back_what_was_reserved() {
    let node = Node::with_room(1, SHORT).await;
    for (command, kind) in [
        ("crash", "runtime_exited"),
        ("eat memory", "runtime_out_of_memory"),
    ] {
        let spec = node.spec("broken", command);
        let mut spec = InstanceSpec {
            limits: Limits {
                memory_bytes: ONE,
                ..spec.limits
            },
            ..spec
        };
        assert_eq!(node.text(&spec, "/").await.unwrap_err().kind(), kind);
        node.until_reserved(0).await;
        spec.code = Code::Archive("/nowhere/code.tar.gz".into());
        let error = node.text(&spec, "/").await.unwrap_err();
        assert_eq!(error.kind(), "source_missing");
        node.until_reserved(0).await;
    }
}

#[tokio::test]
async fn many_who_come_at_once_take_turns() {
    let node = Node::with_room(2, 10_000).await;
    let specs: Vec<_> = (0..12).map(|n| node.sized(&format!("f{n}"), 1)).collect();
    let answers = join_all(specs.iter().map(|spec| node.text(spec, "/"))).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert_eq!(node.adapter.n_created(), 12);
    assert!(node.names().len() <= 2);
    node.executor.delete_all().await;
    assert_eq!(node.executor.reserved().reserved, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_execution_loses_its_instance_to_another() {
    let node = Node::with_room(2, 10_000).await;
    let specs: Vec<_> = (0..5).map(|n| node.sized(&format!("f{n}"), 1)).collect();
    // Each goes round all of them, so that no instance that there is room for serves it for long.
    let visits = (0..specs.len()).map(async |first| {
        for spec in specs.iter().cycle().skip(first).take(40) {
            assert_eq!(node.text(spec, "/").await.unwrap(), "hello");
        }
    });
    join_all(visits).await;
    assert!(node.adapter.n_created() > 5);
    assert!(node.executor.reserved().reserved <= 2 * ONE);
}

#[tokio::test]
async fn under_pressure_nothing_new_is_made_and_what_is_there_serves() {
    let dir = TempDir::new().unwrap();
    let under = |percent: u32| {
        let text = format!("some avg10={percent}.00 avg60=0.00 avg300=0.00 total=0\n");
        fs::write(dir.path().join("memory.pressure"), text).unwrap();
    };
    under(10);
    let node = Node::start(|config| {
        config.admission = Admission {
            wait_ms: SHORT,
            pressure_dir: dir.path().into(),
            memory_pressure: Thresholds {
                some: Some(30.0.try_into().unwrap()),
                full: None,
            },
            ..Admission::default()
        };
    })
    .await;
    let (a, b) = (node.sized("a", 1), node.sized("b", 1));
    node.text(&a, "/").await.unwrap();
    under(60);
    let refused = node.text(&b, "/").await.unwrap_err();
    assert_eq!(refused.kind(), "host_under_pressure");
    assert_eq!(node.text(&a, "/").await.unwrap(), "hello");
    under(30);
    assert_eq!(node.text(&b, "/").await.unwrap(), "hello");
}

#[tokio::test]
async fn without_figures_thresholds_are_told_and_nobody_is_refused() {
    let dir = TempDir::new().unwrap();
    let settings = Admission {
        pressure_dir: dir.path().into(),
        io_pressure: Thresholds {
            some: None,
            full: Some(1.0.try_into().unwrap()),
        },
        ..Admission::default()
    };
    let node = Node::start(|config| config.admission = settings.clone()).await;
    let lacking = node.executor.set_admission(settings);
    assert_eq!(lacking, ["io.pressure"]);
    assert_eq!(node.text(&node.sized("a", 1), "/").await.unwrap(), "hello");
}
