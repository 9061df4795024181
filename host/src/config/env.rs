//! The environment variables of a node. A test compares the table in README.md with these constants.

use super::{Config, ConfigError};

/// The executor API's key. Text; default empty, which refuses every caller.
pub const SECRET: &str = "OPR_EXECUTOR_SECRET";
/// `development` adds details to error answers; anything else is production.
pub const ENV: &str = "OPR_EXECUTOR_ENV";
/// Protocol versions that the API accepts, separated by commas; default `v5`.
pub const RUNTIME_VERSIONS: &str = "OPR_EXECUTOR_RUNTIME_VERSIONS";
/// Idle time after which an instance is reaped. Seconds; default 60.
pub const INACTIVE_THRESHOLD: &str = "OPR_EXECUTOR_INACTIVE_THRESHOLD";
/// The same, as older installations spell it.
pub const INACTIVE_TRESHOLD: &str = "OPR_EXECUTOR_INACTIVE_TRESHOLD";
/// Time between two looks for idle instances. Seconds; default 10.
pub const MAINTENANCE_INTERVAL: &str = "OPR_EXECUTOR_MAINTENANCE_INTERVAL";
/// Connection attempts for one execution, at least. Default 5.
pub const RETRY_ATTEMPTS: &str = "OPR_EXECUTOR_RETRY_ATTEMPTS";
/// Pause between them. Milliseconds; default 500.
pub const RETRY_DELAY_MS: &str = "OPR_EXECUTOR_RETRY_DELAY_MS";
/// The `version` field of errors.
pub const VERSION: &str = "OPR_EXECUTOR_VERSION";
/// What this host calls itself. Default: the kernel's node name.
pub const HOSTNAME: &str = "OPR_HOSTNAME";
/// What lasts. Absolute path; default `/var/lib/opr`.
pub const STATE_DIR: &str = "OPR_STATE_DIR";
/// What a reboot ends. Absolute path; default `/run/opr`.
pub const RUN_DIR: &str = "OPR_RUN_DIR";
/// Where functions are served, `address:port`; default `0.0.0.0:8080`.
pub const GATEWAY_LISTEN: &str = "OPR_GATEWAY_LISTEN";
/// Where the executor API is served, `address:port`; default `0.0.0.0:9900`.
pub const EXECUTOR_LISTEN: &str = "OPR_EXECUTOR_LISTEN";
/// Socket of a containerd to use instead of the node's own. Absolute path.
pub const CONTAINERD_ADDRESS: &str = "OPR_CONTAINERD_ADDRESS";
/// Which log lines are written, as in `info,opr_host=debug`; default `info`.
pub const LOG: &str = "OPR_LOG";
/// The command line's settings file. Default `/etc/opr/opr.toml` where that exists.
pub const CONFIG: &str = "OPR_CONFIG";
/// Where the command line keeps what builds of images download. Default `~/.cache/opr`.
pub const CACHE_DIR: &str = "OPR_CACHE_DIR";
/// The password of `opr images pull --user`.
pub const REGISTRY_PASSWORD: &str = "OPR_REGISTRY_PASSWORD";

/// All of the above.
pub const ALL: &[&str] = &[
    SECRET,
    ENV,
    RUNTIME_VERSIONS,
    INACTIVE_THRESHOLD,
    INACTIVE_TRESHOLD,
    MAINTENANCE_INTERVAL,
    RETRY_ATTEMPTS,
    RETRY_DELAY_MS,
    VERSION,
    HOSTNAME,
    STATE_DIR,
    RUN_DIR,
    GATEWAY_LISTEN,
    EXECUTOR_LISTEN,
    CONTAINERD_ADDRESS,
    LOG,
    CONFIG,
    CACHE_DIR,
    REGISTRY_PASSWORD,
];

type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

pub(super) fn apply(config: &mut Config, var: Lookup<'_>) -> Result<(), ConfigError> {
    let executor = &mut config.executor;
    set(var, SECRET, "text", &mut executor.secret)?;
    if let Some(env) = given(var, ENV) {
        executor.is_development = env == "development";
    }
    if let Some(list) = given(var, RUNTIME_VERSIONS) {
        executor.runtime_versions = list.split(',').map(|v| v.trim().to_lowercase()).collect();
    }
    set(
        var,
        INACTIVE_TRESHOLD,
        "whole seconds",
        &mut executor.inactive_threshold_s,
    )?;
    set(
        var,
        INACTIVE_THRESHOLD,
        "whole seconds",
        &mut executor.inactive_threshold_s,
    )?;
    set(
        var,
        MAINTENANCE_INTERVAL,
        "whole seconds",
        &mut executor.maintenance_interval_s,
    )?;
    set(
        var,
        RETRY_ATTEMPTS,
        "a whole number",
        &mut executor.retry_attempts,
    )?;
    set(
        var,
        RETRY_DELAY_MS,
        "whole milliseconds",
        &mut executor.retry_delay_ms,
    )?;
    set(var, VERSION, "text", &mut executor.version)?;
    set(var, HOSTNAME, "text", &mut config.hostname)?;
    set(var, STATE_DIR, "a path", &mut config.state_dir)?;
    set(var, RUN_DIR, "a path", &mut config.run_dir)?;
    set(
        var,
        GATEWAY_LISTEN,
        "an address and port",
        &mut config.gateway_listen,
    )?;
    set(
        var,
        EXECUTOR_LISTEN,
        "an address and port",
        &mut config.executor_listen,
    )?;
    if let Some(address) = given(var, CONTAINERD_ADDRESS) {
        config.containerd.address = Some(address.into());
    }
    set(var, LOG, "a filter", &mut config.log)
}

/// An empty variable counts as unset, as in existing deployments.
fn given(var: Lookup<'_>, name: &str) -> Option<String> {
    var(name).filter(|value| !value.is_empty())
}

fn set<T: std::str::FromStr>(
    var: Lookup<'_>,
    name: &str,
    accepted: &'static str,
    field: &mut T,
) -> Result<(), ConfigError> {
    if let Some(value) = given(var, name) {
        *field = value.parse().map_err(|_| ConfigError::Value {
            name: name.to_owned(),
            value,
            accepted,
        })?;
    }
    Ok(())
}
