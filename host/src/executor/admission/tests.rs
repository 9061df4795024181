use std::{cell::RefCell, fs, rc::Rc};

use futures_util::FutureExt;
use proptest::prelude::*;

use super::*;
use crate::config::{Budget, Thresholds};

const MIB: u64 = 1 << 20;

fn settings(budget_mib: u64) -> Settings {
    Settings {
        memory_budget: Some(Budget::Mib(budget_mib)),
        wait_ms: 10_000,
        ..Settings::default()
    }
}

fn admission(settings: Settings) -> Arc<Admission> {
    Admission::new(settings, Arc::default())
}

/// Nothing is idle.
fn busy(_: u64) {}

#[test]
fn what_fits_is_what_is_left_of_the_budget() {
    #[track_caller]
    fn check(reserved: u64, needed: u64, budget: Option<u64>, expected: &str) {
        let ledger = Ledger {
            reserved,
            leaving: 0,
        };
        let found = ledger.check(needed, budget);
        assert_eq!(
            found.map_or_else(|shortage| shortage.kind(), |()| "ok"),
            expected
        );
    }
    check(0, 10, Some(10), "ok");
    check(4, 6, Some(10), "ok");
    check(4, 7, Some(10), "host_memory_full");
    check(0, 11, Some(10), "runtime_too_large");
    check(4, u64::MAX, None, "ok");
    check(u64::MAX, 1, Some(10), "host_memory_full");
}

#[test]
fn what_leaves_is_not_missed_twice() {
    let ledger = Ledger {
        reserved: 10,
        leaving: 4,
    };
    assert_eq!(ledger.missing(6, 10), 2);
    assert_eq!(ledger.missing(4, 10), 0);
    assert_eq!(ledger.missing(4, 5), 5);
}

proptest! {
    #[test]
    fn all_is_given_back_in_whatever_order(
        steps in prop::collection::vec((0_usize..3, 1_u64..100, any::<prop::sample::Index>()), 0..100),
    ) {
        let admission = admission(settings(100));
        let mut held: Vec<Reservation> = Vec::new();
        for (step, mib, index) in steps {
            match step {
                0 => {
                    if let Ok(got) = admission.try_reserve(mib * MIB) {
                        held.push(got);
                    }
                }
                1 if !held.is_empty() => index.get(&held).admission.nudge(),
                1 => {}
                _ if held.is_empty() => {}
                _ => {
                    let at = index.index(held.len());
                    held[at].leave();
                    held[at].leave();
                    drop(held.swap_remove(at));
                }
            }
            let sum: u64 = held.iter().map(Reservation::bytes).sum();
            let found = admission.reserved();
            prop_assert_eq!((found.reserved, found.n_waiting), (sum, 0));
            prop_assert!(sum <= 100 * MIB);
        }
        drop(held);
        prop_assert_eq!(&*admission.ledger(), &Ledger::default());
    }
}

#[tokio::test]
async fn without_a_budget_everything_fits() {
    let admission = admission(Settings::default());
    let _all = admission.reserve(u64::MAX / 2, busy).await.unwrap();
    assert_eq!(admission.reserved().budget, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_many_come_at_once_nobody_waits_without_a_reason() {
    let admission = admission(Settings {
        queue: 1,
        ..settings(1_000)
    });
    let come = (0..1_000).map(|_| {
        let admission = admission.clone();
        tokio::spawn(async move { admission.reserve(MIB, busy).await })
    });
    let came: Vec<_> = come.collect();
    let mut held = Vec::new();
    for one in came {
        held.push(one.await.unwrap().unwrap());
    }
    assert_eq!(admission.reserved().reserved, 1_000 * MIB);
}

#[tokio::test]
async fn what_never_fits_is_refused_at_once() {
    let admission = admission(settings(10));
    let refused = admission.reserve(11 * MIB, busy).now_or_never();
    let shortage = refused.unwrap().unwrap_err();
    assert_eq!(shortage.kind(), "runtime_too_large");
    assert_eq!(admission.reserved().n_waiting, 0);
}

#[tokio::test]
async fn who_waits_is_refused_when_its_time_is_over() {
    let admission = admission(Settings {
        wait_ms: 50,
        ..settings(10)
    });
    let _held = admission.take(10 * MIB);
    let began = time::Instant::now();
    let shortage = admission.reserve(MIB, busy).await.unwrap_err();
    assert!(began.elapsed() >= Duration::from_millis(50));
    let expected = Shortage::Memory {
        needed: MIB,
        reserved: 10 * MIB,
        budget: 10 * MIB,
    };
    assert_eq!(shortage, expected);
    assert_eq!(admission.reserved().n_waiting, 0);
}

#[tokio::test]
async fn first_come_first_served_and_small_ones_do_not_pass_a_large_one() {
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            let admission = admission(settings(10));
            let (one, other) = (admission.take(5 * MIB), admission.take(5 * MIB));
            let order = Rc::<RefCell<Vec<u64>>>::default();
            let mut tasks = Vec::new();
            for mib in [8, 1, 9] {
                let (admission, order) = (admission.clone(), order.clone());
                tasks.push(tokio::task::spawn_local(async move {
                    let got = admission.reserve(mib * MIB, busy).await.unwrap();
                    order.borrow_mut().push(mib);
                    time::sleep(Duration::from_millis(10)).await;
                    drop(got);
                }));
                tokio::task::yield_now().await;
            }
            assert_eq!(admission.reserved().n_waiting, 3);
            drop(one);
            time::sleep(Duration::from_millis(100)).await;
            // There is room for the second, but it is not its turn.
            assert!(order.borrow().is_empty());
            drop(other);
            for task in tasks {
                task.await.unwrap();
            }
            assert_eq!(*order.borrow(), [8, 1, 9]);
            assert_eq!(admission.reserved().reserved, 0);
        })
        .await;
}

#[tokio::test]
async fn one_that_goes_away_leaves_its_place_to_the_next() {
    let admission = admission(settings(10));
    let held = admission.take(5 * MIB);
    let mut large = Box::pin(admission.reserve(8 * MIB, busy));
    let mut small = Box::pin(admission.reserve(5 * MIB, busy));
    assert!(large.as_mut().now_or_never().is_none());
    assert!(small.as_mut().now_or_never().is_none());
    drop(large);
    let got = small.await.unwrap();
    drop((held, got));
    let left = admission.reserved();
    assert_eq!((left.reserved, left.n_waiting), (0, 0));
}

#[tokio::test]
async fn more_than_may_wait_are_refused_at_once() {
    let admission = admission(Settings {
        queue: 1,
        ..settings(10)
    });
    let _held = admission.take(10 * MIB);
    let mut first = Box::pin(admission.reserve(MIB, busy));
    assert!(first.as_mut().now_or_never().is_none());
    let refused = admission.reserve(MIB, busy).now_or_never();
    let expected = Shortage::Queue { n_waiting: 1 };
    assert_eq!(refused.unwrap().unwrap_err(), expected);
}

#[tokio::test]
async fn a_larger_budget_lets_in_who_waits_and_a_smaller_one_refuses() {
    let admission = admission(settings(10));
    let held = admission.take(10 * MIB);
    let mut waiting = Box::pin(admission.reserve(8 * MIB, busy));
    assert!(waiting.as_mut().now_or_never().is_none());
    admission.set(settings(18));
    let got = waiting.await.unwrap();

    let mut waiting = Box::pin(admission.reserve(8 * MIB, busy));
    assert!(waiting.as_mut().now_or_never().is_none());
    admission.set(settings(7));
    let shortage = waiting.await.unwrap_err();
    assert_eq!(shortage.kind(), "runtime_too_large");
    drop((held, got));
    assert_eq!(admission.reserved().reserved, 0);
}

#[tokio::test]
async fn room_is_made_for_what_is_missing_and_once() {
    let admission = admission(settings(10));
    let mut idle = admission.take(8 * MIB);
    let _busy = admission.take(2 * MIB);
    let asked = RefCell::new(Vec::new());
    let leaving = RefCell::new(Some(&mut idle));
    let mut waiting = Box::pin(admission.reserve(5 * MIB, |missing| {
        asked.borrow_mut().push(missing);
        if let Some(idle) = leaving.borrow_mut().take() {
            idle.leave();
        }
    }));
    assert!(waiting.as_mut().now_or_never().is_none());
    // What ends is not gone yet.
    admission.nudge();
    assert!(waiting.as_mut().now_or_never().is_none());
    assert_eq!(*asked.borrow(), [5 * MIB]);
    drop(waiting);
    drop(idle);
    admission.reserve(5 * MIB, busy).await.unwrap();
}

#[tokio::test]
async fn under_pressure_it_waits_until_that_falls() {
    let dir = tempfile::tempdir().unwrap();
    let under = |pressure: f64| {
        let text = format!("some avg10={pressure:.2} avg60=0.00 avg300=0.00 total=0\n");
        fs::write(dir.path().join("cpu"), text).unwrap();
    };
    let settings = |limit: f64, wait_ms| Settings {
        wait_ms,
        pressure_dir: dir.path().into(),
        cpu_pressure: Thresholds {
            some: Some(limit.try_into().unwrap()),
            full: None,
        },
        ..settings(10)
    };
    let admission = admission(settings(50.0, 10));
    under(50.01);
    let shortage = admission.reserve(MIB, busy).await.unwrap_err();
    let expected = Shortage::Pressure {
        resource: "cpu",
        line: "some",
        found: 50.01,
        limit: 50.0,
    };
    assert_eq!(shortage, expected);

    admission.set(settings(50.0, 10_000));
    let mut waiting = Box::pin(admission.reserve(MIB, busy));
    assert!(waiting.as_mut().now_or_never().is_none());
    under(50.0);
    drop(waiting.await.unwrap());

    under(80.0);
    let mut waiting = Box::pin(admission.reserve(MIB, busy));
    assert!(waiting.as_mut().now_or_never().is_none());
    admission.set(settings(90.0, 10_000));
    // It is told: it need not look.
    drop(waiting.as_mut().now_or_never().unwrap().unwrap());

    // What has no figures is not looked at.
    fs::remove_file(dir.path().join("cpu")).unwrap();
    admission.set(settings(0.1, 10));
    drop(admission.reserve(MIB, busy).await.unwrap());
}
