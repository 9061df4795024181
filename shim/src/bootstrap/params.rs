//! What containerd tells `start`, and the form of the answer that it reads.
//!
//! | containerd | asks by | reads |
//! |---|---|---|
//! | 1.6 to 2.2 | flags, environment, runtime options on standard input | a bare address, which means version 2 |
//! | 2.3 and later | `BootstrapParams` on standard input | `BootstrapResult` |
//!
//! Source: containerd's `core/runtime/v2/README.md`, section "Bootstrap protocol".

use std::{
    env,
    io::{self, IsTerminal, Read},
};

use containerd_shim::{
    Flags, StartOpts,
    bootstrap::{BootstrapParams, BootstrapResult},
    protos::{
        TASK_API_VERSION,
        protobuf::{Message, well_known_types::any::Any},
    },
};

use super::{BootstrapError, encode};

/// Source: containerd's own bound.
const MAX_INPUT: u64 = 10 << 20;

/// The answer's form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Address,
    Message,
}

/// Reads standard input to its end.
pub(super) fn read(flags: &Flags) -> Result<(StartOpts, Form), BootstrapError> {
    let mut input = Vec::new();
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        let read = stdin.lock().take(MAX_INPUT).read_to_end(&mut input);
        read.map_err(|source| BootstrapError::File {
            what: "read",
            path: "standard input".into(),
            source,
        })?;
    }
    parse(&input, flags)
}

impl Form {
    pub(super) fn write(self, address: &str) -> Result<Vec<u8>, BootstrapError> {
        match self {
            Self::Address => Ok(address.as_bytes().to_vec()),
            Self::Message => encode(&BootstrapResult {
                version: TASK_API_VERSION,
                address: address.to_owned(),
                protocol: "ttrpc".to_owned(),
                ..BootstrapResult::default()
            }),
        }
    }
}

fn parse(input: &[u8], flags: &Flags) -> Result<(StartOpts, Form), BootstrapError> {
    let params = BootstrapParams::parse_from_bytes(input).ok();
    let Some(params) = params.filter(|params| !params.instance_id.is_empty()) else {
        return Ok((from_flags(input, flags), Form::Address));
    };
    if params.instance_id == flags.id && params.namespace == flags.namespace {
        let mut options = StartOpts::from(params);
        options.debug |= flags.debug;
        return Ok((options, Form::Message));
    }
    // Runtime options are an `Any`, whose two fields have the numbers of the first two here.
    let only_two = BootstrapParams {
        instance_id: params.instance_id.clone(),
        namespace: params.namespace.clone(),
        ..BootstrapParams::default()
    };
    if params == only_two {
        return Ok((from_flags(input, flags), Form::Address));
    }
    Err(BootstrapError::Request(format!(
        "standard input speaks of {}/{}, the flags of {}/{}",
        params.namespace, params.instance_id, flags.namespace, flags.id
    )))
}

fn from_flags(input: &[u8], flags: &Flags) -> StartOpts {
    let variable = |name| env::var(name).unwrap_or_default();
    let options = Any::parse_from_bytes(input).ok();
    let address = match flags.address.as_str() {
        "" => variable("GRPC_ADDRESS"),
        address => address.to_owned(),
    };
    StartOpts {
        id: flags.id.clone(),
        namespace: flags.namespace.clone(),
        publish_binary: flags.publish_binary.clone(),
        address,
        ttrpc_address: variable("TTRPC_ADDRESS"),
        debug: flags.debug,
        extensions: options
            .filter(|options| !options.type_url.is_empty())
            .into_iter()
            .collect(),
        ..StartOpts::default()
    }
}

#[cfg(test)]
mod tests {
    use containerd_shim::{api::Options, bootstrap::Extension, util::convert_to_any};

    use super::*;

    fn flags() -> Flags {
        Flags {
            id: "c1".to_owned(),
            namespace: "tests".to_owned(),
            address: "/run/c.sock".to_owned(),
            ..Flags::default()
        }
    }

    fn options() -> Any {
        let options = Options {
            shim_cgroup: "/shims".to_owned(),
            ..Options::default()
        };
        convert_to_any(Box::new(options)).unwrap()
    }

    fn params(id: &str) -> Vec<u8> {
        let params = BootstrapParams {
            instance_id: id.to_owned(),
            namespace: "tests".to_owned(),
            containerd_ttrpc_address: "/run/t.sock".to_owned(),
            socket_dir: Some("/run/s".to_owned()),
            extensions: vec![Extension {
                value: MessageField::some(options()),
                ..Extension::default()
            }],
            ..BootstrapParams::default()
        };
        params.write_to_bytes().unwrap()
    }

    use containerd_shim::protos::protobuf::MessageField;

    #[track_caller]
    fn check(input: &[u8], expected: Form) -> StartOpts {
        let (options, form) = parse(input, &flags()).unwrap();
        assert_eq!(form, expected);
        assert_eq!(
            (options.id.as_str(), options.namespace.as_str()),
            ("c1", "tests")
        );
        options
    }

    #[test]
    fn knows_each_form() {
        check(b"", Form::Address);
        let legacy = check(&options().write_to_bytes().unwrap(), Form::Address);
        let found: Options = legacy.extension().unwrap().unwrap();
        assert_eq!(found.shim_cgroup, "/shims");
        let new = check(&params("c1"), Form::Message);
        let found: Options = new.extension().unwrap().unwrap();
        assert_eq!(found.shim_cgroup, "/shims");
        assert_eq!(new.socket_dir.as_deref(), Some("/run/s"));
        assert!(parse(&params("c2"), &flags()).is_err());
    }

    #[test]
    fn answers_in_each_form() {
        assert_eq!(Form::Address.write("unix:///s").unwrap(), b"unix:///s");
        let bytes = Form::Message.write("unix:///s").unwrap();
        let result = BootstrapResult::parse_from_bytes(&bytes).unwrap();
        assert_eq!((result.version, result.address.as_str()), (3, "unix:///s"));
    }
}
