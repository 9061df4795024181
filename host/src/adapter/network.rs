//! The network of `nat` sandboxes: a bridge with translated addresses, by the CNI plugins `bridge` and `host-local`.
//!
//! Its ports are isolated from each other, and rules keep it from the host's own ports, link-local
//! addresses and connections from outside. Other networks of the host are as reachable as for the host.
//! An unprivileged node has all of this in a network namespace of its own, its uplink.

use std::{
    fs, io,
    net::Ipv4Addr,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use serde_json::{Value, json};

use super::{
    program::{LIMIT, run},
    slots::{in_network, remove_dir},
};
use crate::{config::Sandboxes, rootless, sys};
use firewall::Firewall;

mod firewall;

/// How long rules are taken to be there once they were put in place, which costs a dozen processes.
const GUARDED: Duration = Duration::from_secs(2);

/// The bridge of one node.
#[derive(Debug)]
pub(super) struct Network {
    /// The network namespace that the bridge is in, where it is not the host's.
    uplink: Option<OwnedFd>,
    /// A sysfs that shows the bridge.
    sys: PathBuf,
    bridge: String,
    subnet: String,
    firewall: Firewall,
    plugins: PathBuf,
    /// Where `host-local` notes the addresses in use.
    leases: PathBuf,
    /// When the rules were put in place.
    guarded: Mutex<Option<Instant>>,
}

impl Network {
    pub(super) fn new(run_dir: &Path, settings: &Sandboxes) -> Self {
        let known = ["/usr/lib/cni", "/opt/cni/bin"].map(PathBuf::from);
        let found = known.iter().find(|dir| dir.is_dir()).unwrap_or(&known[1]);
        let folder = rootless::uplink(run_dir);
        let uplink = fs::File::open(folder.join("net")).ok().map(OwnedFd::from);
        let sys = uplink
            .as_ref()
            .map_or("/sys".into(), |_| folder.join("sys"));
        Self {
            uplink,
            sys,
            bridge: settings.bridge.clone(),
            subnet: settings.subnet.clone(),
            firewall: Firewall::new(&settings.bridge, &settings.subnet),
            plugins: settings.cni_dir.clone().unwrap_or_else(|| found.clone()),
            leases: run_dir.join("cni"),
            guarded: Mutex::default(),
        }
    }

    /// Makes the links that are added to the calling thread's network namespace make up no addresses.
    pub(super) fn forbid_version_6() -> io::Result<()> {
        write_where_known("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")
    }

    /// Gives `netns` an address on the bridge and a way out.
    pub(super) fn add(&self, index: u32, netns: &Path) -> io::Result<()> {
        // Asked for outside of the uplink.
        let closed = self.closed_addresses()?;
        self.inside(|| self.plug(index, netns, &closed))
    }

    fn plug(&self, index: u32, netns: &Path, closed: &[Ipv4Addr]) -> io::Result<()> {
        // The rules stand before the first sandbox is on the bridge.
        self.guard(closed)?;
        let answer = self.call("ADD", index, netns)?;
        let result: Value = serde_json::from_slice(&answer)?;
        let interfaces = result["interfaces"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let port = interfaces
            .iter()
            .filter(|interface| interface["sandbox"].as_str().unwrap_or_default().is_empty())
            .filter_map(|interface| interface["name"].as_str())
            .find(|name| *name != self.bridge)
            .ok_or_else(|| io::Error::other("the CNI plugin bridge named no port"))?;
        let isolated = format!("class/net/{port}/brport/isolated");
        fs::write(self.sys.join(isolated), "1")?;
        // Addresses of version 6 are not given out, and must not be made up on the link either.
        write_where_known(
            &format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", self.bridge),
            "1",
        )
    }

    /// Takes the address back. Succeeds where it was never given.
    pub(super) fn remove(&self, index: u32, netns: &Path) -> io::Result<()> {
        self.inside(|| self.call("DEL", index, netns).map(drop))
    }

    /// Removes the bridge and its rules: no sandbox is on it. Succeeds where there are none.
    pub(super) fn remove_all(&self) -> io::Result<()> {
        let mut guarded = self.guarded();
        *guarded = None;
        self.inside(|| {
            sys::remove_bridge(&self.bridge)?;
            self.firewall.remove()
        })?;
        remove_dir(&self.leases)
    }

    /// Runs `work`, and the programs that it starts, where the bridge is.
    fn inside<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        match &self.uplink {
            Some(uplink) => in_network(uplink.as_fd(), work),
            None => work(),
        }
    }

    fn call(&self, command: &str, index: u32, netns: &Path) -> io::Result<Vec<u8>> {
        let mut plugin = Command::new(self.plugins.join("bridge"));
        plugin
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", format!("{}-{index}", self.bridge))
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.plugins);
        run(&mut plugin, self.config().to_string().as_bytes(), LIMIT)
    }

    /// CNI 0.4.0, as both plugin versions 0.9 and 1.x read it.
    fn config(&self) -> Value {
        json!({
            "cniVersion": "0.4.0",
            "name": self.bridge,
            "type": "bridge",
            "bridge": self.bridge,
            "isGateway": true,
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "dataDir": self.leases,
                "ranges": [[{ "subnet": self.subnet }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        })
    }

    /// Puts the rules in place, and again now and then: others may have flushed the tables.
    fn guard(&self, closed: &[Ipv4Addr]) -> io::Result<()> {
        let mut guarded = self.guarded();
        if guarded.is_none_or(|at| at.elapsed() >= GUARDED) {
            self.firewall.raise(closed)?;
            *guarded = Some(Instant::now());
        }
        Ok(())
    }

    /// The host's own addresses, where rules on its own traffic cannot keep sandboxes from them: packets from an
    /// uplink reach the host as if one of its own programs had sent them.
    fn closed_addresses(&self) -> io::Result<Vec<Ipv4Addr>> {
        if self.uplink.is_none() {
            return Ok(Vec::new());
        }
        let address = |interface: InterfaceAddress| Some(interface.address?.as_sockaddr_in()?.ip());
        Ok(getifaddrs()?.filter_map(address).collect())
    }

    fn guarded(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.guarded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Kernels without version 6 have no such file.
fn write_where_known(path: &str, value: &str) -> io::Result<()> {
    match fs::write(path, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        written => written,
    }
}
