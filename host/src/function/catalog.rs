//! The runtimes that this node knows: `runtimes/catalog.toml`, as it was at build time or from a file.
//!
//! ```toml
//! [[runtime]]
//! name = "node"
//! versions = ["22"]                          # the first is the default
//! image = "openruntimes/node:v5-{version}"
//! protocol = "v5"
//! entrypoint = "index.js"
//! build = { manifest = "package.json", command = "npm install" }
//! start = ["node", "src/server.js"]
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use opr_images::Reference;
use serde::Deserialize;

use crate::executor::instance::Protocol;

const EMBEDDED: &str = include_str!("../../../runtimes/catalog.toml");
const VERSION: &str = "{version}";

/// The known runtimes, each version of each.
#[derive(Debug, Clone)]
pub struct Catalog {
    runtimes: Vec<Arc<Runtime>>,
}

/// One version of one language environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// Its full name, as in `node-22`.
    pub name: String,
    /// The name without the version, as in `node`.
    pub family: String,
    /// Its image.
    pub image: Reference,
    /// How the server in it is spoken to.
    pub protocol: Protocol,
    /// The function's file when a deployment names none.
    pub entrypoint: String,
    /// What installs a function's dependencies when a deployment names no command.
    pub build: Option<Install>,
    /// The server's command, run in the image's working directory without a shell.
    pub start: Vec<String>,
}

/// A command for functions that have a certain file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Install {
    /// The file, as in `package.json`.
    pub manifest: String,
    /// The command, as in `npm install`.
    pub command: String,
}

/// A catalogue that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The file cannot be read.
    #[error("cannot read the catalogue of runtimes {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no catalogue. The cause shows line, column and what is accepted.
    #[error("cannot understand the catalogue of runtimes {origin}")]
    Parse {
        /// The file, or `built in`.
        origin: String,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A runtime in it cannot be used.
    #[error("runtime {name:?} in the catalogue {what}")]
    Runtime {
        /// Its name.
        name: String,
        /// What is wrong with it.
        what: String,
    },
}

/// A name that no runtime has.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("there is no runtime {name:?}; this node knows {known}")]
pub struct UnknownRuntime {
    /// The name.
    pub name: String,
    /// The names that there are, separated by commas.
    pub known: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    runtime: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    versions: Vec<String>,
    image: String,
    protocol: Protocol,
    entrypoint: String,
    build: Option<Install>,
    start: Vec<String>,
}

impl Catalog {
    /// The catalogue of `file`, or the one built in.
    ///
    /// # Errors
    /// See [`CatalogError`].
    pub fn load(file: Option<&Path>) -> Result<Self, CatalogError> {
        let Some(path) = file else {
            return Self::parse(EMBEDDED, "built in");
        };
        let text = fs::read_to_string(path).map_err(|source| CatalogError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, &path.display().to_string())
    }

    fn parse(text: &str, origin: &str) -> Result<Self, CatalogError> {
        let document: Document = toml::from_str(text).map_err(|source| CatalogError::Parse {
            origin: origin.to_owned(),
            source: source.into(),
        })?;
        let mut runtimes: Vec<Arc<Runtime>> = Vec::new();
        for entry in document.runtime {
            for runtime in entry.expand()? {
                if runtimes.iter().any(|other| other.name == runtime.name) {
                    return Err(wrong(&runtime.name, "is there twice"));
                }
                runtimes.push(Arc::new(runtime));
            }
        }
        Ok(Self { runtimes })
    }

    /// The runtime of this name, as in `node-22`, or as in `node` for the default version.
    ///
    /// # Errors
    /// No runtime has that name.
    pub fn find(&self, name: &str) -> Result<Arc<Runtime>, UnknownRuntime> {
        // Versions of a family stand in the catalogue's order, the default first.
        let full = self.runtimes.iter().find(|runtime| runtime.name == name);
        full.or_else(|| self.runtimes.iter().find(|runtime| runtime.family == name))
            .cloned()
            .ok_or_else(|| UnknownRuntime {
                name: name.to_owned(),
                known: self.names(),
            })
    }

    /// All runtimes in the catalogue's order.
    pub fn list(&self) -> &[Arc<Runtime>] {
        &self.runtimes
    }

    fn names(&self) -> String {
        let names: Vec<_> = self.runtimes.iter().map(|r| r.name.as_str()).collect();
        names.join(", ")
    }
}

impl Runtime {
    /// Its version, as in `22`.
    pub fn version(&self) -> &str {
        let version = self.name.strip_prefix(&self.family);
        version.unwrap_or_default().trim_start_matches('-')
    }
}

impl Entry {
    /// One runtime for each version.
    fn expand(self) -> Result<Vec<Runtime>, CatalogError> {
        if self.versions.is_empty() {
            return Err(wrong(&self.name, "has no versions"));
        }
        if self.start.is_empty() {
            return Err(wrong(&self.name, "has no start command"));
        }
        let one = |version: &String| {
            let name = format!("{}-{version}", self.name);
            let image = self.image.replace(VERSION, version);
            let image = image
                .parse()
                .map_err(|error| wrong(&name, format!("names no image: {error}")))?;
            let start = self.start.iter().map(|word| word.replace(VERSION, version));
            Ok(Runtime {
                family: self.name.clone(),
                image,
                protocol: self.protocol,
                entrypoint: self.entrypoint.clone(),
                build: self.build.clone(),
                start: start.collect(),
                name,
            })
        };
        self.versions.iter().map(one).collect()
    }
}

fn wrong(name: &str, what: impl Into<String>) -> CatalogError {
    CatalogError::Runtime {
        name: name.to_owned(),
        what: what.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = r#"
[[runtime]]
name = "node"
versions = ["22", "20"]
image = "openruntimes/node:v5-{version}"
protocol = "v5"
entrypoint = "index.js"
start = ["node", "src/server.js"]
[[runtime]]
name = "node-ml"
versions = ["1"]
image = "openruntimes/node-ml:v5-{version}"
protocol = "v5"
entrypoint = "index.js"
start = ["node", "/opt/{version}/server.js"]
"#;

    #[track_caller]
    fn check(name: &str, expected: Option<&str>) {
        let catalog = Catalog::parse(TWO, "test").unwrap();
        let found = catalog.find(name).ok().map(|runtime| runtime.name.clone());
        assert_eq!(found.as_deref(), expected, "{name}");
    }

    #[test]
    fn finds_a_version_and_takes_the_first_where_none_is_named() {
        check("node-22", Some("node-22"));
        check("node-20", Some("node-20"));
        check("node", Some("node-22"));
        check("node-ml", Some("node-ml-1"));
        check("node-21", None);
        check("nod", None);
        check("", None);
    }

    #[test]
    fn an_unknown_runtime_is_told_which_are_known() {
        let error = Catalog::parse(TWO, "test").unwrap().find("cobol");
        assert_eq!(
            error.unwrap_err().to_string(),
            "there is no runtime \"cobol\"; this node knows node-22, node-20, node-ml-1"
        );
    }

    #[test]
    fn the_version_is_put_into_image_and_command() {
        let runtime = Catalog::parse(TWO, "test")
            .unwrap()
            .find("node-ml")
            .unwrap();
        assert_eq!(
            runtime.image.to_string(),
            "docker.io/openruntimes/node-ml:v5-1"
        );
        assert_eq!(runtime.start, ["node", "/opt/1/server.js"]);
        assert_eq!(runtime.version(), "1");
    }

    #[test]
    fn the_built_in_catalogue_is_valid() {
        let catalog = Catalog::load(None).unwrap();
        let node = catalog.find("node-22").unwrap();
        assert_eq!(node.entrypoint, "index.js");
        assert!(catalog.find("python").is_ok());
    }

    #[test]
    fn a_wrong_catalogue_says_what_is_wrong() {
        #[track_caller]
        fn check(from: &str, to: &str, expected: &str) {
            let error = Catalog::parse(&TWO.replacen(from, to, 1), "test").unwrap_err();
            let chain = format!("{:#}", anyhow::Error::new(error));
            assert!(chain.contains(expected), "{chain}");
        }
        check("entrypoint", "entry", "unknown field `entry`");
        check(
            "[\"22\", \"20\"]",
            "[]",
            "\"node\" in the catalogue has no versions",
        );
        check(
            "\"20\"",
            "\"22\"",
            "\"node-22\" in the catalogue is there twice",
        );
        check(
            "[\"node\", \"src/server.js\"]",
            "[]",
            "has no start command",
        );
        check("openruntimes/node:", "A b:", "names no image");
        check("\"v5\"", "\"v9\"", "unknown variant `v9`");
    }
}
