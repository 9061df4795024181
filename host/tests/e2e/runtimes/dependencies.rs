//! Functions that depend on packages, built as clients build: once with a network, then of the build cache alone.

use flate2::{Compression, write::GzEncoder};

use super::*;

/// What machines trust that reach registries by way of a proxy, and who is told of it in a build.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
const TRUSTING: &[&str] = &[
    "CARGO_HTTP_CAINFO",
    "DENO_CERT",
    "NODE_EXTRA_CA_CERTS",
    "SSL_CERT_FILE",
];

/// A function in a folder of `runtimes/<family>/test`.
struct Dependent {
    family: &'static str,
    folder: &'static str,
    entrypoint: &'static str,
    install: &'static str,
    /// In the place of a registry that is not within reach: a script, which the first build runs before all else.
    repository: Option<&'static str>,
    /// Of the first build, and of all.
    first: &'static [(&'static str, &'static str)],
    variables: &'static [(&'static str, &'static str)],
    /// What it answers by means of what it depends on.
    answer: &'static str,
    /// What a build says that has neither a network nor a cache.
    refusal: &'static str,
}

const BASE: Dependent = Dependent {
    family: "",
    folder: "dependencies",
    entrypoint: "",
    install: "",
    repository: None,
    first: &[],
    variables: &[],
    answer: "Greetings!",
    refusal: "",
};

const DEPENDENTS: &[Dependent] = &[
    Dependent {
        family: "node",
        entrypoint: "index.js",
        install: "npm install",
        answer: "odd: true",
        refusal: "ENOTCACHED",
        ..BASE
    },
    Dependent {
        family: "bun",
        entrypoint: "index.ts",
        install: "bun install",
        answer: "odd: true",
        refusal: "failed to resolve",
        ..BASE
    },
    Dependent {
        family: "deno",
        folder: "imports",
        entrypoint: "mod.ts",
        install: "deno cache mod.ts",
        answer: "odd: true",
        refusal: "Failed loading https://registry.npmjs.org/is-odd",
        ..BASE
    },
    Dependent {
        family: "python",
        entrypoint: "main.py",
        install: "pip install --no-cache-dir -r requirements.txt",
        answer: "six",
        refusal: "No matching distribution found for six",
        ..BASE
    },
    Dependent {
        family: "php",
        entrypoint: "index.php",
        install: "composer update --no-interaction --optimize-autoloader --prefer-dist --no-dev",
        repository: Some("php/test/repository.sh"),
        refusal: "Network disabled",
        ..BASE
    },
    Dependent {
        family: "ruby",
        entrypoint: "index.rb",
        repository: Some("ruby/test/repository.sh"),
        refusal: "Could not find gem 'greeting",
        ..BASE
    },
    Dependent {
        family: "go",
        entrypoint: "main.go",
        repository: Some("go/test/repository.sh"),
        first: &[("GOPROXY", "file:///tmp/repository")],
        // No database on the Internet knows its sums.
        variables: &[("GOSUMDB", "off")],
        refusal: "module lookup disabled by GOPROXY=off",
        ..BASE
    },
    Dependent {
        family: "rust",
        entrypoint: "main.rs",
        answer: "736978",
        refusal: "no matching package named `hex` found",
        ..BASE
    },
    Dependent {
        family: "java",
        entrypoint: "Index.java",
        repository: Some("jvm/test/repository.sh"),
        variables: &[MAVEN],
        refusal: "could not be fetched from file:///tmp/repository/",
        ..BASE
    },
    Dependent {
        family: "kotlin",
        entrypoint: "Index.kt",
        repository: Some("jvm/test/repository.sh"),
        variables: &[MAVEN],
        refusal: "could not be fetched from file:///tmp/repository/",
        ..BASE
    },
];

const MAVEN: (&str, &str) = ("OPEN_RUNTIMES_MAVEN_REPOSITORY", "file:///tmp/repository/");

impl Language {
    /// The same function is built again where nothing is within reach, and not where nothing was kept either.
    pub(super) fn builds_without_a_network(&self, node: &Node) -> Result<()> {
        let dependent = DEPENDENTS
            .iter()
            .find(|dependent| dependent.family == self.family);
        let dependent = dependent.context("a function with dependencies")?;
        let source = self.dependent_source(node, dependent)?;
        let build = |id: &str, cache: &str, is_first: bool| -> Result<Answer> {
            let mut order = dependent.order(node, is_first);
            order["runtimeId"] = json!(id);
            order["image"] = json!(self.image()?);
            order["source"] = json!(source);
            order["cacheKey"] = json!(cache);
            node.api("POST", "/v1/runtimes", &order)
        };

        let first = output(&build("first", "kept", true)?)?;
        ensure!(first.contains("Build cache saved."), "{first}");
        node.opr("class", &["try", "build", "outbound=none"])?;
        let cold = build("cold", "none", false)?;
        let (kind, told) = (&cold.json()["type"], cold.text());
        ensure!(
            kind == "build_failed" && told.contains(dependent.refusal),
            "{told}"
        );
        let again = build("again", "kept", false)?;
        let text = output(&again)?;
        ensure!(text.contains("Build cache hit."), "{text}");

        let execution = json!({
            "image": self.image()?, "source": again.json()["path"], "entrypoint": dependent.entrypoint,
            "runtimeEntrypoint": crate::START, "memory": 1024, "timeout": 45,
        });
        let answer = node.api("POST", "/v1/runtimes/run/executions", &execution)?;
        let result = answer.json();
        ensure!(
            result["statusCode"] == 200 && result["body"] == dependent.answer,
            "{result}\n{text}"
        );
        Ok(())
    }

    /// The function's archive, with what the first build needs beside it.
    fn dependent_source(&self, node: &Node, dependent: &Dependent) -> Result<PathBuf> {
        let path = node.dir().join("dependent.tar.gz");
        let gzip = GzEncoder::new(std::fs::File::create(&path)?, Compression::fast());
        let mut archive = tar::Builder::new(gzip);
        archive.append_dir_all(".", self.path("test").join(dependent.folder))?;
        if let Some(script) = dependent.repository {
            archive.append_path_with_name(self.path("..").join(script), "repository.sh")?;
        }
        if Path::new(CERTIFICATES).exists() {
            archive.append_path_with_name(CERTIFICATES, "ca-certificates.crt")?;
        }
        archive.into_inner()?.finish()?;
        Ok(path)
    }
}

impl Dependent {
    fn order(&self, node: &Node, is_first: bool) -> Value {
        let mut install = self.install.to_owned();
        let mut variables = serde_json::Map::new();
        if Path::new(CERTIFICATES).exists() {
            let copy = json!("/mnt/code/ca-certificates.crt");
            variables.extend(TRUSTING.iter().map(|name| ((*name).into(), copy.clone())));
        }
        let first = if is_first { self.first } else { &[] };
        for (name, value) in self.variables.iter().chain(first) {
            variables.insert((*name).into(), json!(value));
        }
        if is_first && self.repository.is_some() {
            install = ["bash repository.sh", &install]
                .into_iter()
                .filter(|part| !part.is_empty())
                .collect::<Vec<_>>()
                .join(" && ");
        }
        json!({
            "entrypoint": self.entrypoint, "variables": variables,
            "command": format!(
                "tar -zxf /tmp/code.tar.gz -C /mnt/code && bash helpers/build.sh \"{install}\""
            ),
            "destination": node.dir().join("storage/builds"), "remove": true,
            "cpus": 2, "memory": 2048, "timeout": 300,
        })
    }
}

/// What a build wrote that ended well.
fn output(built: &Answer) -> Result<String> {
    ensure!(built.status == 201, "{} {}", built.status, built.text());
    let built = built.json();
    let elements = built["output"].as_array().into_iter().flatten();
    Ok(elements
        .filter_map(|element| element["content"].as_str())
        .collect())
}
