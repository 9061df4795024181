//! The rules around a bridge: chains of its own, hooked in before all others.
//!
//! Sandboxes have no addresses of version 6; what they send of it all the same is dropped.

use std::{io, net::Ipv4Addr, path::Path, process::Command};

use crate::adapter::program::{LIMIT, run};

/// One rule of a chain that others own too.
struct Hook {
    program: &'static str,
    table: &'static str,
    rule: Vec<String>,
}

/// The rules of one bridge.
#[derive(Debug)]
pub(super) struct Firewall {
    bridge: String,
    subnet: String,
}

impl Firewall {
    pub(super) fn new(bridge: &str, subnet: &str) -> Self {
        Self {
            bridge: bridge.to_owned(),
            subnet: subnet.to_owned(),
        }
    }

    /// Puts the rules in place; those that are there are replaced as a whole. Nobody on the bridge reaches `closed`.
    pub(super) fn raise(&self, closed: &[Ipv4Addr]) -> io::Result<()> {
        let [input, forward] = self.chains();
        let bridge = &self.bridge;
        let closed: String = closed
            .iter()
            .map(|address| format!("-A {forward} -i {bridge} -d {address} -j DROP\n"))
            .collect();
        let rules = format!(
            "*filter\n:{input} - [0:0]\n:{forward} - [0:0]\n\
             -A {input} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n\
             -A {input} -j DROP\n\
             -A {forward} -i {bridge} -o {bridge} -j DROP\n\
             -A {forward} -i {bridge} -d 169.254.0.0/16 -j DROP\n\
             {closed}\
             -A {forward} -i {bridge} -j ACCEPT\n\
             -A {forward} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n\
             -A {forward} -j DROP\nCOMMIT\n"
        );
        restore("iptables-restore", &rules)?;
        if has_version_6() {
            let rules = format!(
                "*filter\n:{input} - [0:0]\n:{forward} - [0:0]\n\
                 -A {input} -j DROP\n-A {forward} -j DROP\nCOMMIT\n"
            );
            restore("ip6tables-restore", &rules)?;
        }
        for hook in self.hooks() {
            if hook.call("-C").is_err() {
                hook.call("-I")?;
            }
        }
        Ok(())
    }

    /// Takes the rules away. Succeeds where there are none.
    pub(super) fn remove(&self) -> io::Result<()> {
        for hook in self.hooks() {
            while hook.call("-C").is_ok() {
                hook.call("-D")?;
            }
        }
        for program in programs() {
            for chain in self.chains() {
                let call = |verb| {
                    let args = ["--wait", verb, &chain];
                    run(Command::new(program).args(args), b"", LIMIT).map(drop)
                };
                if call("-S").is_ok() {
                    call("-F")?;
                    call("-X")?;
                }
            }
        }
        Ok(())
    }

    fn chains(&self) -> [String; 2] {
        ["IN", "FW"].map(|name| format!("OPR-{name}-{}", self.bridge))
    }

    fn hooks(&self) -> Vec<Hook> {
        let [input, forward] = self.chains();
        let bridge = self.bridge.as_str();
        let mut all = Vec::new();
        let mut add = |program, table, rule: &[&str]| {
            let rule = rule.iter().map(|&word| word.to_owned()).collect();
            all.push(Hook {
                program,
                table,
                rule,
            });
        };
        for program in programs() {
            add(program, "filter", &["INPUT", "-i", bridge, "-j", &input]);
            add(
                program,
                "filter",
                &["FORWARD", "-i", bridge, "-j", &forward],
            );
            add(
                program,
                "filter",
                &["FORWARD", "-o", bridge, "-j", &forward],
            );
        }
        // One rule for the whole bridge: CNI's own would cost each slot a chain.
        let (subnet, out) = (
            self.subnet.as_str(),
            ["!", "-o", bridge, "-j", "MASQUERADE"],
        );
        add(
            "iptables",
            "nat",
            &[&["POSTROUTING", "-s", subnet], &out[..]].concat(),
        );
        all
    }
}

impl Hook {
    fn call(&self, verb: &str) -> io::Result<()> {
        let args = ["--wait", "-t", self.table, verb];
        run(
            Command::new(self.program).args(args).args(&self.rule),
            b"",
            LIMIT,
        )
        .map(drop)
    }
}

fn restore(program: &str, rules: &str) -> io::Result<()> {
    let args = ["--wait", "--noflush"];
    run(Command::new(program).args(args), rules.as_bytes(), LIMIT).map(drop)
}

fn programs() -> impl Iterator<Item = &'static str> {
    std::iter::once("iptables").chain(has_version_6().then_some("ip6tables"))
}

/// Whether this kernel knows IP version 6, switched on or not.
fn has_version_6() -> bool {
    Path::new("/proc/net/if_inet6").exists()
}
