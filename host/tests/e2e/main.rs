//! A whole node: real containerd, real images, real HTTP. Needs root and what `scripts/setup` installs.

#![expect(clippy::unwrap_used, reason = "a failed step fails its test")]

mod admission;
mod builds;
mod classes;
mod conformance;
mod direct;
mod executor_api;
mod functions;
mod hostile;
mod images;
mod leaks;
mod load;
mod node;
mod recovery;
mod runtimes;
mod storage;
mod table;

/// The node runtime's image.
const IMAGE: &str = "openruntimes/node:v5-22";

/// What clients of the executor API start a node function with.
const START: &str = "cp /tmp/code.tar.gz /mnt/code/code.tar.gz && nohup helpers/start.sh \"bash helpers/server.sh\"";

/// Whether this machine can run these tests; says so where it cannot, and fails with `REQUIRE_ALL=1`.
fn can_run() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    assert!(
        is_root || std::env::var_os("REQUIRE_ALL").is_none(),
        "needs root"
    );
    if !is_root {
        eprintln!("skipped: needs root");
    }
    is_root
}
