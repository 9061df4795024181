//! The network of `nat` sandboxes: a bridge with translated addresses, by the CNI plugins `bridge` and `host-local`.
//!
//! Its ports are isolated from each other, and rules keep it from the host's own ports, link-local
//! addresses and connections from outside. Other networks of the host are as reachable as for the host.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
};

use serde_json::{Value, json};

use crate::config::Sandboxes;

/// The bridge of one node.
#[derive(Debug)]
pub(super) struct Network {
    bridge: String,
    subnet: String,
    plugins: PathBuf,
    /// Where `host-local` notes the addresses in use.
    leases: PathBuf,
    is_guarded: Mutex<bool>,
}

impl Network {
    pub(super) fn new(run_dir: &Path, settings: &Sandboxes) -> Self {
        let known = ["/usr/lib/cni", "/opt/cni/bin"].map(PathBuf::from);
        let found = known.iter().find(|dir| dir.is_dir()).unwrap_or(&known[1]);
        Self {
            bridge: settings.bridge.clone(),
            subnet: settings.subnet.clone(),
            plugins: settings.cni_dir.clone().unwrap_or_else(|| found.clone()),
            leases: run_dir.join("cni"),
            is_guarded: Mutex::new(false),
        }
    }

    /// Gives `netns` an address on the bridge and a way out.
    pub(super) fn add(&self, index: u32, netns: &Path) -> io::Result<()> {
        // The rules stand before the first sandbox is on the bridge.
        self.guard()?;
        let answer = self.run("ADD", index, netns)?;
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
        fs::write(format!("/sys/class/net/{port}/brport/isolated"), "1")?;
        // Addresses of version 6 are not given out, and must not be made up on the link either.
        let _ = fs::write(
            format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", self.bridge),
            "1",
        );
        Ok(())
    }

    /// Takes the address back. Succeeds where it was never given.
    pub(super) fn remove(&self, index: u32, netns: &Path) -> io::Result<()> {
        self.run("DEL", index, netns).map(drop)
    }

    fn run(&self, command: &str, index: u32, netns: &Path) -> io::Result<Vec<u8>> {
        let mut child = Command::new(self.plugins.join("bridge"))
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", format!("{}-{index}", self.bridge))
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.plugins)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(self.config().to_string().as_bytes())?;
        }
        let output = child.wait_with_output()?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        Err(io::Error::other(format!(
            "CNI plugin bridge, {command}: {said}"
        )))
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

    /// Puts the rules in place, once in the life of this process; they are replaced as a whole.
    fn guard(&self) -> io::Result<()> {
        let mut is_guarded = self
            .is_guarded
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if *is_guarded {
            return Ok(());
        }
        let (input, forward) = (
            format!("OPR-IN-{}", self.bridge),
            format!("OPR-FW-{}", self.bridge),
        );
        let bridge = self.bridge.as_str();
        let rules = format!(
            "*filter\n:{input} - [0:0]\n:{forward} - [0:0]\n\
             -A {input} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n\
             -A {input} -j DROP\n\
             -A {forward} -i {bridge} -o {bridge} -j DROP\n\
             -A {forward} -i {bridge} -d 169.254.0.0/16 -j DROP\n\
             -A {forward} -i {bridge} -j ACCEPT\n\
             -A {forward} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n\
             -A {forward} -j DROP\nCOMMIT\n"
        );
        feed("iptables-restore", &["--wait", "--noflush"], &rules)?;
        let subnet = self.subnet.as_str();
        for (table, rule) in [
            ("filter", &["INPUT", "-i", bridge, "-j", &input][..]),
            ("filter", &["FORWARD", "-i", bridge, "-j", &forward]),
            ("filter", &["FORWARD", "-o", bridge, "-j", &forward]),
            // One rule for the whole bridge: CNI's own would cost each slot a chain.
            (
                "nat",
                &[
                    "POSTROUTING",
                    "-s",
                    subnet,
                    "!",
                    "-o",
                    bridge,
                    "-j",
                    "MASQUERADE",
                ],
            ),
        ] {
            let call = |verb| {
                feed(
                    "iptables",
                    &[&["--wait", "-t", table, verb], rule].concat(),
                    "",
                )
            };
            if call("-C").is_err() {
                call("-I")?;
            }
        }
        *is_guarded = true;
        Ok(())
    }
}

fn feed(program: &str, args: &[&str], input: &str) -> io::Result<()> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(io::Error::other(format!("{program}: {said}")))
}
