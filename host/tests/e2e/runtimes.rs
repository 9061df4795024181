//! Each language's image on a node: built as clients build, started as clients start, and spoken to as the protocol says.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    direct::Server,
    node::{Answer, Node},
    table::checks,
};

mod dependencies;

/// A language, whose probe is in a folder of `runtimes/<family>/test`.
struct Language {
    family: &'static str,
    /// Its checks, a file in `runtimes/test`.
    table: &'static str,
    /// The probe's file: a function does what the header `x-action` says.
    probe: &'static str,
    /// A file without a function; none where such a one is not built.
    no_export: Option<&'static str>,
    /// The probe's folder.
    folder: &'static str,
    /// What the build runs, and the part of its output that is packed.
    install: &'static str,
    output: &'static str,
    /// What becomes the server.
    server: &'static str,
}

impl Language {
    const fn scripted(family: &'static str, probe: &'static str, no_export: &'static str) -> Self {
        let no_export = Some(no_export);
        Self {
            family,
            table: "conformance.json",
            probe,
            no_export,
            folder: "fixtures",
            install: "",
            output: "",
            server: SERVER,
        }
    }

    /// A file without a function fails its build.
    const fn compiled(family: &'static str, probe: &'static str) -> Self {
        let scripted = Self::scripted(family, probe, "");
        Self {
            no_export: None,
            ..scripted
        }
    }
}

const NODE: Language = Language::scripted("node", "tests.js", "no-export.js");
const PYTHON: Language = Language::scripted("python", "tests.py", "no-export.py");
const PHP: Language = Language::scripted("php", "tests.php", "no-export.php");
const RUBY: Language = Language::scripted("ruby", "tests.rb", "no-export.rb");
const BUN: Language = Language::scripted("bun", "tests.ts", "no-export.ts");
const DENO: Language = Language::scripted("deno", "tests.ts", "no-export.ts");
const GO: Language = Language::compiled("go", "tests.go");
const RUST: Language = Language::compiled("rust", "tests.rs");
const JAVA: Language = Language::scripted("java", "Tests.java", "NoExport.java");
const CPP: Language = Language::compiled("cpp", "tests.cc");
const SWIFT: Language = Language::compiled("swift", "Tests.swift");
const KOTLIN: Language = Language::scripted("kotlin", "Tests.kt", "NoExport.kt");
const STATIC: Language = Language {
    table: "static.json",
    no_export: None,
    install: "bash build.sh",
    ..Language::scripted("static", "index.html", "")
};
/// A site that a framework renders.
const ASTRO: Language = Language {
    table: "site.json",
    no_export: None,
    folder: "site",
    install: "export NODE_EXTRA_CA_CERTS=/usr/local/build/certificates.crt \
              && source /usr/local/server/helpers/astro/env.sh && npm install && npm run build \
              && bash /usr/local/server/helpers/astro/bundle.sh",
    output: "./dist",
    server: "bash helpers/astro/server.sh",
    ..Language::scripted("node", "server/entry.mjs", "")
};

const SERVER: &str = "bash helpers/server.sh";

/// A copy of the folder with one more file in it.
fn with_file(node: &Node, folder: &Path, file: &Path, name: &str) -> Result<PathBuf> {
    let copy = node.dir().join("source");
    let copied = Command::new("cp")
        .arg("-R")
        .args([folder, &copy])
        .status()?;
    ensure!(copied.success(), "cannot copy {}", folder.display());
    std::fs::copy(file, copy.join(name)).with_context(|| file.display().to_string())?;
    Ok(copy)
}

/// A check of a language on a node.
type Check = fn(&Language, &Node) -> Result<()>;

/// A test for each language: its checks on one node, one after the other.
macro_rules! tests {
    ($($test:ident: $language:ident $($check:ident)*;)*) => {$(
        #[test]
        fn $test() -> Result<()> {
            $language.test(&[$((stringify!($check), Language::$check)),*])
        }
    )*};
}

tests! {
    node: NODE conforms survives_hostile_functions builds_without_a_network;
    python: PYTHON conforms survives_hostile_functions builds_without_a_network;
    php: PHP conforms survives_hostile_functions builds_without_a_network;
    ruby: RUBY conforms survives_hostile_functions builds_without_a_network;
    bun: BUN conforms survives_hostile_functions builds_without_a_network;
    deno: DENO conforms survives_hostile_functions builds_without_a_network;
    go: GO conforms survives_hostile_functions builds_without_a_network;
    rust: RUST conforms survives_hostile_functions builds_without_a_network;
    java: JAVA conforms survives_hostile_functions builds_without_a_network;
    cpp: CPP conforms survives_hostile_functions;
    swift: SWIFT conforms survives_hostile_functions;
    kotlin: KOTLIN conforms survives_hostile_functions builds_without_a_network;
    static_site: STATIC conforms;
    rendered_site: ASTRO conforms;
}

const SECRET: &str = "test-secret-key";
const ENFORCED: &str =
    r#"{"x-custom":"value","X-CUSTOM-UPPERCASE":"Value2","x-open-runtimes-custom":248}"#;
const OPEN: &str = "OPEN_RUNTIMES_SECRET= OPEN_RUNTIMES_HEADERS= OPEN_RUNTIMES_ENV=development";
const TIMINGS: &str = r"local_download=0.200\nremote_download=10.560\n";

impl Language {
    fn test(&self, checks: &[(&str, Check)]) -> Result<()> {
        if !crate::can_run() {
            return Ok(());
        }
        let node = Node::start()?;
        node.import_runtime(self.family)?;
        let failed: Vec<_> = checks
            .iter()
            .filter_map(|(name, check)| Some((name, check(self, &node).err()?)))
            .map(|(name, error)| format!("{} {name}: {error:#}", self.family))
            .collect();
        ensure!(failed.is_empty(), "{}", failed.join("\n"));
        Ok(())
    }

    /// The whole table, each check by its code.
    fn conforms(&self, node: &Node) -> Result<()> {
        self.answers_its_example(node)?;
        let artifact = self.build(node, self.probe)?;
        let empty = self.no_export.map(|file| self.build(node, file));
        let empty = empty.transpose()?;
        let checks = checks(self.table, self.family)?;
        let names: BTreeSet<_> = checks.iter().map(|check| check.server.as_str()).collect();
        let mut servers = BTreeMap::new();
        for name in names {
            let artifact = match name {
                "no-export" => empty.as_ref(),
                _ => Some(&artifact),
            };
            if let Some(artifact) = artifact {
                servers.insert(name, self.start(node, name, artifact)?);
            }
        }
        let mut failed = Vec::new();
        for check in &checks {
            let Some(server) = servers.get(check.server.as_str()) else {
                continue;
            };
            let secret = if check.server == "main" { SECRET } else { "" };
            let wrong = check.run(server, secret, self.probe);
            let wrong = wrong.unwrap_or_else(|error| vec![format!("{error:#}")]);
            failed.extend(wrong.iter().map(|what| format!("{}: {what}", check.id)));
        }
        ensure!(failed.is_empty(), "{}", failed.join("\n"));
        Ok(())
    }

    fn path(&self, part: &str) -> PathBuf {
        let runtimes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtimes");
        runtimes.join(self.family).join(part)
    }

    fn answers_its_example(&self, node: &Node) -> Result<()> {
        node.deploy(
            &self.path("example"),
            "example",
            &["--runtime", self.family],
        )?;
        let answer = node.get("/example/?name=you")?;
        let is_right = answer.status == 200 && answer.text().contains("Hello, ");
        ensure!(is_right, "{}\n{}", answer.text(), node.log());
        Ok(())
    }

    /// Builds the probe with `entrypoint` through the node; the archive that came of it.
    fn build(&self, node: &Node, entrypoint: &str) -> Result<PathBuf> {
        let output = format!("OPEN_RUNTIMES_OUTPUT_DIRECTORY={}", self.output);
        let args = [
            "--runtime",
            self.family,
            "--entrypoint",
            entrypoint,
            "--command",
            self.install,
            "--env",
            &output,
        ];
        let mut source = self.path("test").join(self.folder);
        if !self.output.is_empty() {
            // This machine's certificate authorities: a build reaches registries through its proxy.
            let bundle = Path::new("/etc/ssl/certs/ca-certificates.crt");
            source = with_file(node, &source, bundle, "certificates.crt")?;
        }
        node.deploy(&source, "probe", &args)?;
        let functions: Value = serde_json::from_str(&node.opr("functions", &["--json"])?)?;
        let functions = functions.as_array().context("a list")?;
        let probe = functions
            .iter()
            .find(|function| function["name"] == "probe");
        let digest = probe.and_then(|probe| probe["artifact"].as_str());
        let digest = digest.context("an artifact")?.trim_start_matches("sha256:");
        Ok(node.dir().join(format!("state/artifacts/{digest}.tar.gz")))
    }

    /// Starts a server in the way of the executor API's clients; what the node chooses for them is set by the command.
    fn start(&self, node: &Node, name: &str, artifact: &Path) -> Result<Server> {
        let settings = match name {
            "main" => format!(
                "OPEN_RUNTIMES_SECRET={SECRET} OPEN_RUNTIMES_HEADERS='{ENFORCED}' \
                 CUSTOM_ENV_VAR=customValue OPEN_RUNTIMES_STATIC_FALLBACK=index.html"
            ),
            "tertiary" => {
                format!("{OPEN} && printf '<h1>Custom-branded 404 page' > /mnt/resources/404.html")
            }
            _ => format!("{OPEN} OPEN_RUNTIMES_CACHE_HEADER=Surrogate-Control"),
        };
        let command = format!(
            "export {settings} && printf '{TIMINGS}' > /mnt/telemetry/timings.txt && \
             cp /tmp/code.tar.gz /mnt/code/code.tar.gz && nohup helpers/start.sh \"{}\"",
            self.server
        );
        // No other test of this machine has an instance of this name.
        let instance = format!("{}-{name}-{}", self.family, std::process::id());
        let runtime = json!({
            "runtimeId": instance, "image": self.image()?, "source": artifact,
            "runtimeEntrypoint": command, "memory": 1024,
        });
        let created = node.api("POST", "/v1/runtimes", &runtime)?;
        ensure!(created.status == 201, "{}\n{}", created.text(), node.log());
        Server::wait_for(&instance).with_context(|| node.log())
    }

    /// The image of the catalogue's first version.
    fn image(&self) -> Result<String> {
        let catalog: toml::Table =
            std::fs::read_to_string(self.path("../catalog.toml"))?.parse()?;
        let runtimes = catalog["runtime"].as_array().context("runtimes")?;
        let runtime = runtimes
            .iter()
            .find(|r| r["name"].as_str() == Some(self.family));
        let runtime = runtime.context("the language is in the catalogue")?;
        let version = runtime["versions"][0].as_str().context("a version")?;
        let image = runtime["image"].as_str().context("an image")?;
        Ok(image.replace("{version}", version))
    }

    /// What functions do that mean harm or are wrong: the caller is told in time, and the next execution works.
    fn survives_hostile_functions(&self, node: &Node) -> Result<()> {
        let limits = ["--timeout", "2", "--memory", "256"];
        let args = [
            &[
                "--runtime",
                self.family,
                "--entrypoint",
                self.probe,
                "--command",
                "",
            ],
            &limits[..],
        ]
        .concat();
        node.deploy(&self.path("test").join(self.folder), "probe", &args)?;
        let ask = |action: &str| node.send("POST", "/probe/", &[("x-action", action)], b"body");
        let failing = [
            "errorTest",
            "noResponse",
            "exit",
            "blockingTimeout",
            "longTimeout",
            "memory",
        ];
        for action in failing {
            let answer = ask(action)?;
            ensure!(
                answer.status >= 500,
                "{action}: {} {}",
                answer.status,
                answer.text()
            );
            self.is_well(action, &ask("plaintextResponse")?, node)?;
        }
        let flood = ask("flood")?;
        ensure!(
            flood.status == 200,
            "flood: {} {}",
            flood.status,
            flood.text()
        );
        self.is_well("flood", &ask("plaintextResponse")?, node)?;
        ensure!(ask("binaryResponse1")?.body == [0, 10, 255]);
        let cookies = ask("threeCookies")?.headers;
        let cookies: Vec<_> = cookies
            .iter()
            .filter(|(name, _)| name == "set-cookie")
            .collect();
        let values: Vec<_> = cookies.iter().map(|(_, value)| value.as_str()).collect();
        ensure!(values == ["a=1", "b=2; path=/", "c=3"], "{values:?}");
        Ok(())
    }

    fn is_well(&self, after: &str, answer: &Answer, node: &Node) -> Result<()> {
        let is_well = answer.status == 200 && answer.text() == "Hello World 👋";
        let family = self.family;
        ensure!(
            is_well,
            "{family} after {after}: {} {}\n{}",
            answer.status,
            answer.text(),
            node.log()
        );
        Ok(())
    }
}
