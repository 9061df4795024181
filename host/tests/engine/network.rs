//! What sandboxes reach, and what they do not. Each refusal has a control: the same listener answers
//! whoever may ask.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    process::Command,
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use opr_host::{
    adapter::Adapter,
    config::{Class, Config, Outbound},
    id::ClassName,
    sys,
};

use crate::{
    image::run,
    node::{Node, is_able, output_of, sandbox},
};

const METADATA: &str = "169.254.169.254";

#[tokio::test(flavor = "multi_thread")]
async fn a_nat_sandbox_reaches_the_world_translated_and_no_neighbour() {
    if !is_able() {
        return;
    }
    let node = Node::start().await;
    let (host, _) = serve(TcpListener::bind("[::]:0").unwrap());
    let world = World::new(node.number());
    let (outside, callers) = serve(world.listen());
    let neighbour = Neighbour::start(&node).await;
    let gateway = neighbour.gateway();

    let mut targets = BTreeMap::from([
        ("neighbour", SocketAddr::new(neighbour.address, 3000)),
        ("gateway", SocketAddr::new(gateway, host)),
        ("metadata", SocketAddr::new(METADATA.parse().unwrap(), host)),
        ("link-local", SocketAddr::new(world.link_local, outside)),
        ("world", SocketAddr::new(world.address, outside)),
    ]);
    let names: Vec<_> = own_addresses();
    for (name, address) in &names {
        targets.insert(name, SocketAddr::new(*address, host));
    }
    for (name, target) in &targets {
        assert!(hello(*target), "{name}: {target} does not answer the host");
    }
    // Not the calls of the host itself.
    while callers.try_recv().is_ok() {}

    let mut spec = sandbox("prober", "function", &["sh", "-c", &probes(&targets)]);
    spec.labels.clear();
    let seen = output_of(&node, spec).await;
    let reached: Vec<_> = seen
        .lines()
        .filter(|line| line.ends_with("=hello"))
        .collect();
    assert_eq!(reached, ["world=hello"], "{targets:?}: {seen}");
    assert_eq!(seen.lines().count(), targets.len(), "{seen}");
    let caller = callers.recv_timeout(Duration::from_secs(5)).unwrap();
    assert_eq!(caller, world.gateway, "the source address is the host's");
    assert!(callers.try_recv().is_err(), "there was one call only");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nat_sandbox_has_no_address_of_version_6() {
    if !is_able() {
        return;
    }
    let node = Node::start().await;
    let script = "cat /proc/net/if_inet6; echo; sysctl -w net.ipv6.conf.all.disable_ipv6=0 2>&1 >&-; \
        ip -6 addr add fd77::1/64 dev eth0 2>&1; nc -l -p 3000 -e true & \
        sleep 0.2; nc -w 2 ::1 3000 <&- && echo loopback-works";
    let seen = output_of(&node, sandbox("six", "function", &["sh", "-c", script])).await;
    let links: Vec<_> = seen
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().last())
        .collect();
    assert_eq!(links, ["lo"], "{seen}");
    assert!(seen.contains("loopback-works"), "{seen}");
    assert!(seen.contains("Read-only file system"), "{seen}");
    assert!(seen.contains("Operation not permitted"), "{seen}");

    let bridge = &node.config.sandbox.bridge;
    let disabled = fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{bridge}/disable_ipv6"));
    assert_eq!(disabled.unwrap(), "1\n");
    for chain in ["INPUT", "FORWARD"] {
        let output = Command::new("ip6tables")
            .args(["-S", chain])
            .output()
            .unwrap();
        let rules = String::from_utf8(output.stdout).unwrap();
        assert!(rules.contains(bridge), "{rules}");
    }
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn outbound_none_is_loopback_alone_and_host_is_the_hosts_own() {
    if !is_able() {
        return;
    }
    let node = Node::start_with(|config| {
        add_class(config, "closed", Outbound::None);
        add_class(config, "open", Outbound::Host);
    })
    .await;
    let (host, _) = serve(TcpListener::bind("[::]:0").unwrap());
    let world = World::new(node.number());
    let (outside, _) = serve(world.listen());
    let neighbour = Neighbour::start(&node).await;
    let targets = BTreeMap::from([
        ("gateway", SocketAddr::new(neighbour.gateway(), host)),
        (
            "loopback",
            SocketAddr::new("127.0.0.1".parse().unwrap(), host),
        ),
        ("metadata", SocketAddr::new(METADATA.parse().unwrap(), host)),
        ("neighbour", SocketAddr::new(neighbour.address, 3000)),
        ("world", SocketAddr::new(world.address, outside)),
    ]);
    let script = format!("cat /proc/net/dev; {}", probes(&targets));
    let open = output_of(&node, sandbox("open", "open", &["sh", "-c", &script])).await;
    let reached = open.lines().filter(|line| line.ends_with("=hello")).count();
    assert_eq!(reached, targets.len(), "{open}");
    assert!(
        open.contains(&format!("{}:", node.config.sandbox.bridge)),
        "{open}"
    );

    let closed = output_of(&node, sandbox("closed", "closed", &["sh", "-c", &script])).await;
    assert!(!closed.contains("=hello"), "{closed}");
    let links = closed.lines().filter(|line| line.contains(": ")).count();
    assert_eq!(links, 1, "{closed}");

    let own = "httpd -p 3000 -h /etc; wget -q -O - http://127.0.0.1:3000/passwd";
    let own = output_of(&node, sandbox("own", "closed", &["sh", "-c", own])).await;
    assert!(own.contains("root:x:0:0"), "{own}");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_that_somebody_flushed_come_back_with_the_next_sandboxes() {
    if !is_able() {
        return;
    }
    let node = Node::start().await;
    node.adapter.adopt().await.unwrap();
    let bridge = node.config.sandbox.bridge.clone();
    let hook = ["INPUT", "-i", &bridge, "-j", &format!("OPR-IN-{bridge}")];
    let iptables = |args: &[&str]| {
        let args = [&["--wait"], args, &hook[..]].concat();
        Command::new("iptables")
            .args(args)
            .output()
            .unwrap()
            .status
            .success()
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while !iptables(&["-C"]) {
        assert!(Instant::now() < deadline, "no rules with the pool");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(iptables(&["-D"]));
    while !iptables(&["-C"]) {
        assert!(Instant::now() < deadline, "no rules again");
        output_of(&node, sandbox("next", "function", &["true"])).await;
    }
    node.end().await;
}

fn add_class(config: &mut Config, name: &str, outbound: Outbound) {
    let class = Class {
        outbound,
        ..Class::default()
    };
    config
        .class
        .insert(ClassName::try_new(name).unwrap(), class);
}

/// A shell script that prints `name=` and what each target says.
fn probes(targets: &BTreeMap<&str, SocketAddr>) -> String {
    let one = |(name, target): (&&str, &SocketAddr)| {
        let (ip, port) = (target.ip(), target.port());
        format!("(said=$(nc -w 2 {ip} {port} </dev/null 2>/dev/null); echo {name}=$said) &")
    };
    let all: Vec<_> = targets.iter().map(one).collect();
    format!("{} wait", all.join(" "))
}

/// Says hello to every caller for the rest of the process; answers its port and who calls.
fn serve(listener: TcpListener) -> (u16, Receiver<IpAddr>) {
    let port = listener.local_addr().unwrap().port();
    let (callers, called) = channel();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = (&stream).write_all(b"hello\n");
            if let Ok(caller) = stream.peer_addr() {
                let _ = callers.send(caller.ip().to_canonical());
            }
        }
    });
    (port, called)
}

/// Whether the host itself is served.
fn hello(target: SocketAddr) -> bool {
    let connect = || -> io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        Ok(said == "hello\n")
    };
    connect().unwrap_or(false)
}

/// The host's addresses on its lasting links, named after their place in the list.
fn own_addresses() -> Vec<(String, IpAddr)> {
    let output = Command::new("ip")
        .args(["-o", "addr", "show", "up"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let address = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let address: IpAddr = words[3].split('/').next()?.parse().ok()?;
        let is_local = address.is_loopback()
            || matches!(address, IpAddr::V6(six) if six.segments()[0] & 0xffc0 == 0xfe80);
        let is_tests = words[1].starts_with("oprt");
        (!is_local && !is_tests).then_some(address)
    };
    let all = text.lines().filter_map(address);
    all.enumerate()
        .map(|(n, address)| (format!("own-{n}"), address))
        .collect()
}

/// A sandbox on the bridge that says hello on port 3000.
struct Neighbour {
    address: IpAddr,
}

impl Neighbour {
    async fn start(node: &Node) -> Self {
        let script = "ip -4 -o addr show eth0; exec nc -ll -p 3000 -e echo hello";
        let spec = sandbox("neighbour", "function", &["sh", "-c", script]);
        let id = spec.id.clone();
        let made = node.adapter.create(spec).await.unwrap();
        let listens = async {
            while node.adapter.dial(&id, 3000).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), listens)
            .await
            .unwrap();
        let said = String::from_utf8(made.output.tail()).unwrap();
        let word = said.split_whitespace().nth(3).unwrap();
        let address = word.split('/').next().unwrap().parse().unwrap();
        Self { address }
    }

    /// The bridge's own address, the first one.
    fn gateway(&self) -> IpAddr {
        match self.address {
            IpAddr::V4(address) => {
                let [a, b, c, _] = address.octets();
                IpAddr::from([a, b, c, 1])
            }
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        }
    }
}

/// A network namespace behind the host, which knows no way to the sandboxes' addresses; and the
/// metadata address on a link of the host.
struct World {
    name: String,
    address: IpAddr,
    gateway: IpAddr,
    link_local: IpAddr,
}

impl World {
    fn new(number: u32) -> Self {
        let name = format!("oprtw{number}");
        let net = format!("10.214.{number}");
        let world = Self {
            address: format!("{net}.2").parse().unwrap(),
            gateway: format!("{net}.1").parse().unwrap(),
            link_local: format!("169.254.77.{}", number + 1).parse().unwrap(),
            name,
        };
        world.remove();
        let World {
            name, link_local, ..
        } = &world;
        let ip = |line: String| run("ip", &line.split(' ').collect::<Vec<_>>());
        ip(format!("netns add {name}"));
        ip(format!(
            "link add {name} type veth peer name eth0 netns {name}"
        ));
        ip(format!("addr add {net}.1/30 dev {name}"));
        ip(format!("link set {name} up"));
        ip(format!("-n {name} addr add {net}.2/30 dev eth0"));
        ip(format!("-n {name} addr add {link_local}/32 dev eth0"));
        ip(format!("-n {name} link set eth0 up"));
        ip(format!("route add {link_local}/32 via {net}.2"));
        ip(format!("link add {name}m type bridge"));
        ip(format!("addr add {METADATA}/32 dev {name}m"));
        ip(format!("link set {name}m up"));
        world
    }

    /// A socket that listens in there.
    fn listen(&self) -> TcpListener {
        let netns = fs::File::open(format!("/run/netns/{}", self.name)).unwrap();
        let listen = move || {
            sys::enter_network(netns.as_fd())?;
            TcpListener::bind("0.0.0.0:0")
        };
        thread::spawn(listen).join().unwrap().unwrap()
    }

    fn remove(&self) {
        let name = &self.name;
        for line in [
            format!("link del {name}"),
            format!("link del {name}m"),
            format!("netns del {name}"),
        ] {
            let _ = Command::new("ip").args(line.split(' ')).output();
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.remove();
    }
}
