//! Each function of `sys` against the real kernel: needs root.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends where it finds what it does not expect"
)]

use std::{
    fs,
    io::{self, Read},
    os::fd::AsFd,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use opr_host::sys::{Holder, enter_network, loopback_up, remove_bridge};

/// Counts and prints what is skipped; `REQUIRE_ALL=1` makes a skip a failure.
fn is_able() -> bool {
    static SKIPPED: AtomicUsize = AtomicUsize::new(0);
    let is_able = rustix::process::geteuid().is_root();
    if !is_able {
        assert!(
            std::env::var_os("REQUIRE_ALL").is_none(),
            "this test needs root"
        );
        let n = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
        eprintln!("skipped {n}: needs root");
    }
    is_able
}

#[test]
fn a_holder_has_its_own_ids_and_a_network_that_it_owns() {
    if !is_able() {
        return;
    }
    let holder = Holder::new(0x5000_0000, true).unwrap();
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    assert_ne!(fs::read_link(holder.namespace("net")).unwrap(), own);
    let map = fs::read_to_string(holder.namespace("net").replace("ns/net", "uid_map")).unwrap();
    assert_eq!(
        map.split_whitespace().collect::<Vec<_>>(),
        ["0", "1342177280", "65536"]
    );
    let path = holder.namespace("net");
    drop(holder);
    assert!(fs::read_link(path).is_err());
}

#[test]
fn a_holder_keeps_nobody_elses_pipe_open() {
    if !is_able() {
        return;
    }
    let (mut reader, writer) = io::pipe().unwrap();
    let holder = Holder::new(0x5003_0000, false).unwrap();
    drop(writer);
    let read = thread::spawn(move || reader.read(&mut [0]).unwrap());
    let deadline = Instant::now() + Duration::from_secs(5);
    while !read.is_finished() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
    assert!(read.is_finished(), "the end of the pipe was not told");
    assert_eq!(read.join().unwrap(), 0);
    assert!(fs::read_link(holder.namespace("user")).is_ok());
}

#[test]
fn loopback_answers_once_it_is_up() {
    if !is_able() {
        return;
    }
    let holder = Holder::new(0x5001_0000, true).unwrap();
    let netns = fs::File::open(holder.namespace("net")).unwrap();
    let work = thread::spawn(move || {
        enter_network(netns.as_fd()).unwrap();
        let dial = || {
            std::net::TcpStream::connect("127.0.0.1:9")
                .unwrap_err()
                .raw_os_error()
        };
        assert_eq!(dial(), Some(101), "ENETUNREACH before");
        loopback_up().unwrap();
        assert_eq!(dial(), Some(111), "ECONNREFUSED after");
    });
    work.join().unwrap();
}

#[test]
fn a_bridge_that_is_up_is_removed_once_and_then_absent() {
    if !is_able() {
        return;
    }
    let holder = Holder::new(0x5002_0000, true).unwrap();
    let netns = fs::File::open(holder.namespace("net")).unwrap();
    let work = thread::spawn(move || {
        enter_network(netns.as_fd()).unwrap();
        let ip = |args: &[&str]| Command::new("ip").args(args).status().unwrap().success();
        assert!(ip(&["link", "add", "bridge-15-bytes", "type", "bridge"]));
        assert!(ip(&["link", "set", "bridge-15-bytes", "up"]));
        remove_bridge("bridge-15-bytes").unwrap();
        assert!(!ip(&["link", "show", "bridge-15-bytes"]));
        remove_bridge("bridge-15-bytes").unwrap();
        let error = remove_bridge("a-name-too-long-").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    });
    work.join().unwrap();
}
