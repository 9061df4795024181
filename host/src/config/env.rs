//! The environment variables of a node. A test compares the table in README.md with these constants.

use super::{Config, ConfigError};

mod storage;

pub use storage::*;

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
/// Images that are pulled at the start, separated by commas: full references.
pub const IMAGES: &str = "OPR_EXECUTOR_IMAGES";
/// Runtimes of the catalogue whose images are pulled at the start, separated by commas, as in `node-22`.
pub const RUNTIMES: &str = "OPR_EXECUTOR_RUNTIMES";
/// `disabled`: no image is pulled at the start.
pub const IMAGE_PULL: &str = "OPR_EXECUTOR_IMAGE_PULL";
/// Name and password for images of Docker Hub.
pub const DOCKER_HUB_USERNAME: &str = "OPR_EXECUTOR_DOCKER_HUB_USERNAME";
/// See above.
pub const DOCKER_HUB_PASSWORD: &str = "OPR_EXECUTOR_DOCKER_HUB_PASSWORD";
/// Of existing deployments; without effect, as each sandbox has a network of its own.
pub const NETWORK: &str = "OPR_EXECUTOR_NETWORK";
/// Of existing deployments; without effect, as errors go to the log and to `/metrics`.
pub const LOGGING_PROVIDER: &str = "OPR_EXECUTOR_LOGGING_PROVIDER";
/// See above.
pub const LOGGING_CONFIG: &str = "OPR_EXECUTOR_LOGGING_CONFIG";
/// Of existing deployments' sample files; without effect.
pub const IMAGE: &str = "OPR_EXECUTOR_IMAGE";
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
    CONNECTION_STORAGE,
    CONNECTION_BUILD_CACHE_STORAGE,
    STORAGE_DEVICE,
    STORAGE_S3_ACCESS_KEY,
    STORAGE_S3_SECRET,
    STORAGE_S3_REGION,
    STORAGE_S3_BUCKET,
    STORAGE_S3_HOST,
    STORAGE_S3_ENDPOINT,
    STORAGE_DO_SPACES_ACCESS_KEY,
    STORAGE_DO_SPACES_SECRET,
    STORAGE_DO_SPACES_REGION,
    STORAGE_DO_SPACES_BUCKET,
    STORAGE_BACKBLAZE_ACCESS_KEY,
    STORAGE_BACKBLAZE_SECRET,
    STORAGE_BACKBLAZE_REGION,
    STORAGE_BACKBLAZE_BUCKET,
    STORAGE_LINODE_ACCESS_KEY,
    STORAGE_LINODE_SECRET,
    STORAGE_LINODE_REGION,
    STORAGE_LINODE_BUCKET,
    STORAGE_WASABI_ACCESS_KEY,
    STORAGE_WASABI_SECRET,
    STORAGE_WASABI_REGION,
    STORAGE_WASABI_BUCKET,
    IMAGES,
    RUNTIMES,
    IMAGE_PULL,
    DOCKER_HUB_USERNAME,
    DOCKER_HUB_PASSWORD,
    NETWORK,
    LOGGING_PROVIDER,
    LOGGING_CONFIG,
    IMAGE,
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

/// Variables of existing deployments that change nothing here.
const WITHOUT_EFFECT: &[&str] = &[NETWORK, LOGGING_PROVIDER, LOGGING_CONFIG, IMAGE];

type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The variables that are set, but change nothing.
pub fn without_effect(var: Lookup<'_>) -> Vec<&'static str> {
    let is_set = |name: &&&str| given(var, name).is_some();
    WITHOUT_EFFECT.iter().filter(is_set).copied().collect()
}

pub(super) fn apply(config: &mut Config, var: Lookup<'_>) -> Result<(), ConfigError> {
    executor(config, var)?;
    storage::apply(&mut config.storage, var)?;
    images(config, var);
    for (name, field) in [(HOSTNAME, &mut config.hostname), (LOG, &mut config.log)] {
        if let Some(text) = given(var, name) {
            *field = text;
        }
    }
    for (name, field) in [
        (STATE_DIR, &mut config.state_dir),
        (RUN_DIR, &mut config.run_dir),
    ] {
        if let Some(path) = given(var, name) {
            *field = path.into();
        }
    }
    for (name, field) in [
        (GATEWAY_LISTEN, &mut config.gateway_listen),
        (EXECUTOR_LISTEN, &mut config.executor_listen),
    ] {
        set(var, name, "an address and port", field)?;
    }
    if let Some(address) = given(var, CONTAINERD_ADDRESS) {
        config.containerd.address = Some(address.into());
    }
    Ok(())
}

fn executor(config: &mut Config, var: Lookup<'_>) -> Result<(), ConfigError> {
    let executor = &mut config.executor;
    if let Some(secret) = given(var, SECRET) {
        executor.secret = secret;
    }
    if let Some(env) = given(var, ENV) {
        executor.is_development = env == "development";
    }
    if let Some(list) = given(var, RUNTIME_VERSIONS) {
        executor.runtime_versions = words(&list.to_lowercase());
    }
    // The one that is spelt right wins.
    for name in [INACTIVE_TRESHOLD, INACTIVE_THRESHOLD] {
        let field = &mut executor.inactive_threshold_s;
        set(var, name, "whole seconds", field)?;
    }
    let field = &mut executor.maintenance_interval_s;
    set(var, MAINTENANCE_INTERVAL, "whole seconds", field)?;
    let field = &mut executor.retry_attempts;
    set(var, RETRY_ATTEMPTS, "a whole number", field)?;
    let field = &mut executor.retry_delay_ms;
    set(var, RETRY_DELAY_MS, "whole milliseconds", field)?;
    if let Some(version) = given(var, VERSION) {
        executor.version = version;
    }
    Ok(())
}

fn images(config: &mut Config, var: Lookup<'_>) {
    let pull = &mut config.pull;
    if let Some(list) = given(var, IMAGES) {
        pull.images = words(&list);
    }
    if let Some(list) = given(var, RUNTIMES) {
        pull.runtimes = words(&list);
    }
    if given(var, IMAGE_PULL).is_some_and(|pull| pull == "disabled") {
        (pull.images, pull.runtimes) = (Vec::new(), Vec::new());
    }
    let login = (
        given(var, DOCKER_HUB_USERNAME),
        given(var, DOCKER_HUB_PASSWORD),
    );
    if let (Some(user), Some(password)) = login {
        let registry = super::DOCKER_HUB.to_owned();
        config
            .registry
            .insert(registry, super::Login { user, password });
    }
}

/// What stands between commas.
fn words(list: &str) -> Vec<String> {
    let words = list.split(',').map(str::trim);
    words
        .filter(|word| !word.is_empty())
        .map(Into::into)
        .collect()
}

/// A text; the empty one and `0` count as unset, as in existing deployments.
fn given(var: Lookup<'_>, name: &str) -> Option<String> {
    var(name).filter(|value| !value.is_empty() && value != "0")
}

/// A number or an address; an empty variable counts as unset.
fn set<T: std::str::FromStr>(
    var: Lookup<'_>,
    name: &str,
    accepted: &'static str,
    field: &mut T,
) -> Result<(), ConfigError> {
    if let Some(value) = var(name).filter(|value| !value.is_empty()) {
        *field = value.parse().map_err(|_| ConfigError::Value {
            name: name.to_owned(),
            value,
            accepted,
        })?;
    }
    Ok(())
}
