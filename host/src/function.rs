//! What was deployed: functions, their builds, and the embedded store that keeps them.
//!
//! How a build is made is `build`'s, how a function runs is `executor`'s.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use sha2::{Digest as _, Sha256};

use crate::{
    config::Limits,
    executor::instance::{Code, InstanceSpec, RestartPolicy},
    id::{ClassName, Digest, FunctionName, InstanceId},
};

pub mod catalog;
pub mod examples;
pub mod metadata;
pub mod store;

pub use catalog::{Catalog, Runtime};
pub use store::{Store, StoreError};

/// The variable that tells a server its function's file.
pub const ENTRYPOINT: &str = "OPEN_RUNTIMES_ENTRYPOINT";

/// How much of a function's name is seen in the names of its instances.
const NAME_IN_INSTANCE: usize = 40;

/// A deployed function: what its instances need.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Function {
    /// Its name, and the first segment of its address.
    pub name: FunctionName,
    /// Its runtime and version, as in `node-22`.
    pub runtime: String,
    /// The function's file, relative to its code.
    pub entrypoint: String,
    /// Variables of its environment.
    pub variables: BTreeMap<String, String>,
    /// Limits of each instance.
    pub limits: Limits,
    /// How long an execution may take. Whole seconds on the wire.
    #[serde(rename = "timeout_s", with = "seconds")]
    pub timeout: Duration,
    /// Class of its instances.
    pub class: ClassName,
    /// Whether what it logs is kept.
    pub logging: bool,
    /// The artifact of its active build; none before the first build has succeeded.
    pub artifact: Option<Digest>,
}

impl Function {
    /// The name of its instances: the function's, cut to 40 characters, and 12 hexadecimal digits that
    /// change with all that instances depend on, so that a change gives new ones.
    pub fn instance_id(&self, runtime: &Runtime) -> InstanceId {
        let runtime_parts = (
            &runtime.name,
            runtime.image.to_string(),
            runtime.protocol,
            &runtime.start,
        );
        let parts = (
            &self.name,
            &self.artifact,
            &self.variables,
            &self.limits,
            &self.entrypoint,
            &self.class,
            runtime_parts,
        );
        let text = serde_json::to_vec(&parts).expect("texts and numbers are JSON");
        let sum = Digest::from_sha256(Sha256::digest(text).into());
        let name = self.name.as_str();
        let name = &name[..name.len().min(NAME_IN_INSTANCE)];
        InstanceId::try_new(format!("{name}.{}", &sum.hex()[..12]))
            .expect("the start of a name and hexadecimal digits are a name")
    }

    /// What an instance of it is made of. `code` is its unpacked artifact and `metadata` what
    /// [`metadata::read`] found in there, which wins over the function's own variables: a build may
    /// name another entrypoint.
    pub fn instance(
        &self,
        runtime: &Runtime,
        code: PathBuf,
        metadata: &BTreeMap<String, String>,
    ) -> InstanceSpec {
        let mut variables = self.variables.clone();
        variables.extend(metadata.iter().map(|(k, v)| (k.clone(), v.clone())));
        let built = metadata.get(ENTRYPOINT).filter(|file| !file.is_empty());
        InstanceSpec {
            id: self.instance_id(runtime),
            function: Some(self.name.clone()),
            class: self.class.clone(),
            image: runtime.image.clone(),
            protocol: runtime.protocol,
            command: Some(runtime.start.clone()),
            entrypoint: built.unwrap_or(&self.entrypoint).clone(),
            variables,
            code: Code::Unpacked(code),
            limits: self.limits,
            restart: RestartPolicy::No,
            keep_alive: None,
        }
    }
}

mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(value.as_secs())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_secs)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A function that `node` runs.
    pub(crate) fn function(name: &str) -> Function {
        Function {
            name: FunctionName::try_new(name).unwrap(),
            runtime: "node-22".into(),
            entrypoint: "index.js".into(),
            variables: BTreeMap::from([("GREETING".into(), "hello".into())]),
            limits: Limits::default(),
            timeout: Duration::from_secs(15),
            class: ClassName::try_new("function").unwrap(),
            logging: true,
            artifact: Some(Digest::from_sha256([1; 32])),
        }
    }

    fn node() -> std::sync::Arc<Runtime> {
        Catalog::load(None).unwrap().find("node").unwrap()
    }

    #[test]
    fn a_change_that_instances_depend_on_gives_another_instance() {
        #[track_caller]
        fn check(change: fn(&mut Function), changes_it: bool) {
            let (before, mut after) = (function("hello"), function("hello"));
            change(&mut after);
            let differs = before.instance_id(&node()) != after.instance_id(&node());
            assert_eq!(differs, changes_it, "{after:?}");
        }
        check(|f| f.artifact = Some(Digest::from_sha256([2; 32])), true);
        check(|f| f.entrypoint = "main.js".into(), true);
        check(|f| f.limits.cpus = 2.0, true);
        check(|f| f.class = ClassName::try_new("gpu").unwrap(), true);
        check(|f| f.variables = BTreeMap::new(), true);
        check(|f| f.timeout = Duration::from_secs(1), false);
        check(|f| f.logging = false, false);
    }

    #[test]
    fn long_names_with_the_same_start_have_different_instances() {
        let (one, two) = (
            function(&format!("{}1", "a".repeat(62))),
            function(&format!("{}2", "a".repeat(62))),
        );
        assert_ne!(one.instance_id(&node()), two.instance_id(&node()));
        assert_eq!(one.instance_id(&node()).as_str().len(), 53);
    }

    #[test]
    fn what_the_build_noted_wins_over_the_functions_variables() {
        let metadata = BTreeMap::from([
            (ENTRYPOINT.to_owned(), "built.js".to_owned()),
            ("GREETING".to_owned(), "built".to_owned()),
        ]);
        let spec = function("hello").instance(&node(), "/code".into(), &metadata);
        assert_eq!(spec.entrypoint, "built.js");
        assert_eq!(spec.variables["GREETING"], "built");
        assert_eq!(spec.code, Code::Unpacked("/code".into()));
        let spec = function("hello").instance(&node(), "/code".into(), &BTreeMap::new());
        assert_eq!(spec.entrypoint, "index.js");
        assert_eq!(spec.variables["GREETING"], "hello");
    }

    #[test]
    fn a_function_reads_back_from_its_document() {
        let document = serde_json::to_string(&function("hello")).unwrap();
        assert!(document.contains(r#""timeout_s":15"#), "{document}");
        let back: Function = serde_json::from_str(&document).unwrap();
        assert_eq!(back, function("hello"));
    }
}
