//! What was deployed: functions, their builds, and the embedded store that keeps them.
//!
//! How a build is made is `build`'s, how a function runs is `executor`'s.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    config::Limits,
    id::{ClassName, Digest, FunctionName},
};

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
