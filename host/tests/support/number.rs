//! Numbers that tell the nodes under test on one machine apart.

use std::{
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
    path::Path,
};

/// Nodes under test at once, at most: their ids end where the ones of real nodes begin.
const NUMBERS: u32 = 64;

/// A number that no other node under test has, held by the name of a socket until it is dropped or the
/// process ends.
#[derive(Debug)]
pub(crate) struct Number {
    value: u32,
    _name: UnixListener,
}

impl Number {
    /// The first one that is free and whose bridge is not there.
    pub(crate) fn claim() -> Self {
        let claim = |value| {
            let address = SocketAddr::from_abstract_name(format!("opr-test-node-{value}"));
            let _name = UnixListener::bind_addr(&address.ok()?).ok()?;
            let number = Self { value, _name };
            let bridge = format!("/sys/class/net/{}", number.bridge());
            (!Path::new(&bridge).exists()).then_some(number)
        };
        (0..NUMBERS).find_map(claim).expect("a free number")
    }

    /// At most two digits.
    #[allow(dead_code, reason = "one of the suites needs it")]
    pub(crate) fn value(&self) -> u32 {
        self.value
    }

    /// containerd's namespace, and the folder of the node's cgroups.
    pub(crate) fn name(&self) -> String {
        format!("opr-t{}-{}", self.value, std::process::id())
    }

    pub(crate) fn bridge(&self) -> String {
        format!("oprt{}", self.value)
    }

    pub(crate) fn subnet(&self) -> String {
        format!("10.213.{}.0/24", self.value)
    }

    /// For 64 sandboxes.
    pub(crate) fn first_id(&self) -> u32 {
        0x6000_0000 + self.value * 0x40_0000
    }
}
