//! The shim's parts against the real kernel: needs root. What is skipped is counted; `REQUIRE_ALL=1` makes a skip
//! a failure.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends where it finds what it does not expect"
)]

mod cgroup;

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Whether a test can run; `needs` says what it needs.
pub(crate) fn is_able(needs: &str, has: bool) -> bool {
    static SKIPPED: AtomicUsize = AtomicUsize::new(0);
    let is_able = has && rustix::process::geteuid().is_root();
    if !is_able {
        let is_required = std::env::var_os("REQUIRE_ALL").is_some();
        assert!(!is_required, "this test needs root and {needs}");
        let n_skipped = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
        eprintln!("skipped {n_skipped}: needs root and {needs}");
    }
    is_able
}

/// Waits until something is so, for ten seconds at most.
#[track_caller]
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} did not come");
        thread::sleep(Duration::from_millis(2));
    }
}
