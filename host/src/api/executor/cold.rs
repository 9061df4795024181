//! What a client says of the instance that it wants, and the specification made of it.

use std::{collections::BTreeMap, time::Duration};

use super::{
    error::ApiError,
    params::{ParamError, Params, given, int_loose, one_of, one_of_loose},
    value::Value,
};
use crate::{
    config::{Config, Limits},
    executor::instance::{Code, InstanceSpec, Protocol, ProtocolError, RestartPolicy},
    id::{ClassName, InstanceId},
};

/// Bytes of what the wire calls a megabyte of memory.
const MEGABYTE: u64 = 1_000_000;

/// A wanted instance, as on the wire. Texts that count as not given are `None`.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Cold {
    pub(super) image: Option<String>,
    pub(super) source: Option<String>,
    pub(super) entrypoint: String,
    pub(super) variables: BTreeMap<String, Value>,
    pub(super) runtime_entrypoint: Option<String>,
    pub(super) cpus: f64,
    pub(super) memory: i32,
    /// None where the client names none: that of the instance that is there, or the newest.
    pub(super) protocol: Option<Protocol>,
    pub(super) restart: RestartPolicy,
    pub(super) keep_alive: Option<Duration>,
}

impl Cold {
    /// The specification of instance `id`. `own` are the host's variables, which win over the client's.
    pub(super) fn spec(
        &self,
        id: InstanceId,
        own: &[(&str, &str)],
    ) -> Result<InstanceSpec, ApiError> {
        let image = self.image.as_deref().unwrap_or_default();
        let image = image
            .parse::<opr_images::Reference>()
            .map_err(|error| ApiError::bad_request(error.to_string()))?;
        let protocol = self.protocol.unwrap_or(Protocol::V5);
        let mut variables = self.variables()?;
        variables.extend(
            own.iter()
                .map(|(name, value)| ((*name).into(), (*value).into())),
        );
        no_nul("entrypoint", &self.entrypoint)?;
        Ok(InstanceSpec {
            id,
            function: None,
            class: ClassName::try_new("runtime").expect("a constant that is a name"),
            image,
            protocol,
            command: self.command(protocol)?,
            entrypoint: self.entrypoint.clone(),
            variables,
            code: self
                .source
                .as_ref()
                .map_or(Code::None, |path| Code::Archive(path.clone())),
            limits: self.limits()?,
            restart: self.restart,
            keep_alive: self.keep_alive,
        })
    }

    /// The client's variables as an environment.
    pub(super) fn variables(&self) -> Result<BTreeMap<String, String>, ApiError> {
        environment(&self.variables)
    }

    /// Without a line of the client's a container waits; one of the old protocol has its server in the image.
    fn command(&self, protocol: Protocol) -> Result<Option<Vec<String>>, ApiError> {
        let words: &[&str] = match (&self.runtime_entrypoint, protocol) {
            (Some(line), _) => &["bash", "-c", no_nul("runtimeEntrypoint", line)?],
            (None, Protocol::V2) => return Ok(None),
            (None, Protocol::V4 | Protocol::V5) => return Ok(Some(idle())),
        };
        Ok(Some(words.iter().map(|word| (*word).to_owned()).collect()))
    }

    fn limits(&self) -> Result<Limits, ApiError> {
        let memory = u64::try_from(self.memory)
            .map_err(|_| ApiError::bad_request("memory is negative; 0 is no limit"))?;
        if self.cpus < 0.0 {
            return Err(ApiError::bad_request("cpus is negative; 0 is no limit"));
        }
        Ok(Limits {
            cpus: self.cpus,
            memory_bytes: memory * MEGABYTE,
        })
    }
}

/// The main process of a container that waits for what is run beside it.
pub(super) fn idle() -> Vec<String> {
    ["tail", "-f", "/dev/null"].map(Into::into).to_vec()
}

/// Reads `version`: a protocol that the settings allow, in any case.
pub(super) fn version(params: &mut Params, config: &Config) -> Result<Option<Protocol>, ApiError> {
    let allowed = one_of_loose(&config.executor.runtime_versions);
    let version = params.optional("version", allowed)?;
    let protocol = version.map(|version| version.parse()).transpose();
    protocol.map_err(|error: ProtocolError| ApiError::bad_request(error.to_string()))
}

/// Reads `restartPolicy`.
pub(super) fn restart_policy(params: &mut Params) -> Result<RestartPolicy, ParamError> {
    let name = params.optional("restartPolicy", one_of(RestartPolicy::NAMES))?;
    Ok(name.map_or(RestartPolicy::No, |name| {
        name.parse().expect("one of its names")
    }))
}

/// Reads `keepAlive`, which older executors do not know: how long the instance stays unused. Seconds.
pub(super) fn keep_alive(params: &mut Params) -> Result<Option<Duration>, ApiError> {
    let seconds = params.optional("keepAlive", int_loose)?.map(u64::try_from);
    let seconds = seconds.transpose();
    let seconds = seconds.map_err(|_| ApiError::bad_request("keepAlive is negative"))?;
    Ok(seconds.map(Duration::from_secs))
}

/// An id as a file name may have it.
pub(super) fn instance_id(text: &str) -> Result<InstanceId, ApiError> {
    InstanceId::try_new(text).map_err(|error| ApiError::bad_request(error.to_string()))
}

/// Reads an optional text where the empty text and `0` count as not given.
pub(super) fn given_text(
    params: &mut Params,
    name: &'static str,
    read: impl FnOnce(Value) -> Result<String, String>,
) -> Result<Option<String>, ParamError> {
    params.optional(name, read).map(given)
}

/// Values become texts; names lose what a variable's name may not have.
fn environment(variables: &BTreeMap<String, Value>) -> Result<BTreeMap<String, String>, ApiError> {
    let mut environment = BTreeMap::new();
    for (name, value) in variables {
        let stripped: String = name
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || "_.-".contains(*c))
            .collect();
        let text = value
            .to_text()
            .and_then(|text| String::from_utf8(text.into_owned()).ok())
            .ok_or_else(|| ApiError::bad_request(format!("Variable {name:?} is no text.")))?;
        no_nul(name, &text)?;
        if !stripped.is_empty() {
            environment.insert(stripped, text);
        }
    }
    Ok(environment)
}

/// A process's arguments and environment end at a NUL.
pub(super) fn no_nul<'a>(name: &str, text: &'a str) -> Result<&'a str, ApiError> {
    if text.contains('\0') {
        Err(ApiError::bad_request(format!(
            "{name} holds a NUL character."
        )))
    } else {
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(json: &str) -> BTreeMap<String, Value> {
        match Value::from(serde_json::from_str::<serde_json::Value>(json).unwrap()) {
            Value::Map(map) => map,
            other => panic!("{other:?} is no map"),
        }
    }

    fn cold() -> Cold {
        Cold {
            image: Some("openruntimes/node:v5-22".into()),
            cpus: 2.5,
            memory: 512,
            ..Cold::default()
        }
    }

    fn id() -> InstanceId {
        instance_id("a").unwrap()
    }

    #[test]
    fn variables_become_texts_under_clean_names() {
        #[track_caller]
        fn check(json: &str, expected: Result<&str, &str>) {
            let read = environment(&variables(json))
                .map(|read| format!("{read:?}"))
                .map_err(|error| error.message);
            assert_eq!(
                read,
                expected.map(str::to_owned).map_err(str::to_owned),
                "{json}"
            );
        }
        check(
            r#"{"A B=":"x","b":true,"c":2.5,"d":null,"=":1}"#,
            Ok(r#"{"AB": "x", "b": "1", "c": "2.5", "d": ""}"#),
        );
        check(r#"{"a":{}}"#, Err("Variable \"a\" is no text."));
        check(r#"{"a":"\u0000"}"#, Err("a holds a NUL character."));
    }

    #[test]
    fn the_command_is_the_clients_line_or_waits() {
        let command = |line: Option<&str>, version: &str| {
            let cold = Cold {
                runtime_entrypoint: line.map(Into::into),
                protocol: Some(version.parse().unwrap()),
                ..cold()
            };
            cold.spec(id(), &[])
                .unwrap()
                .command
                .map(|words| words.join("|"))
        };
        assert_eq!(command(Some("a b"), "v5").as_deref(), Some("bash|-c|a b"));
        assert_eq!(command(Some("a b"), "v2").as_deref(), Some("bash|-c|a b"));
        assert_eq!(command(None, "v5").as_deref(), Some("tail|-f|/dev/null"));
        assert_eq!(command(None, "v2"), None);
    }

    #[test]
    fn limits_are_in_megabytes_and_cores() {
        let limits = cold().spec(id(), &[]).unwrap().limits;
        assert_eq!((limits.cpus, limits.memory_bytes), (2.5, 512_000_000));
        for wrong in [
            Cold {
                memory: -1,
                ..cold()
            },
            Cold {
                cpus: -1.0,
                ..cold()
            },
        ] {
            assert_eq!(
                wrong.spec(id(), &[]).unwrap_err().kind,
                "execution_bad_request"
            );
        }
    }

    #[test]
    fn what_is_no_image_or_id_is_the_callers_fault() {
        let wrong = Cold {
            image: Some("a b".into()),
            ..cold()
        };
        assert_eq!(wrong.spec(id(), &[]).unwrap_err().status.as_u16(), 400);
        assert_eq!(instance_id("../a").unwrap_err().status.as_u16(), 400);
    }
}
