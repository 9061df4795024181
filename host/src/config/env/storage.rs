//! The variables of the storage device: a DSN, or the older ones that name its parts.

use std::fmt::Write as _;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::{Lookup, given};
use crate::config::{ConfigError, Device, Storage};

/// The device of sources and results, as a DSN; default `local://localhost`.
pub const CONNECTION_STORAGE: &str = "OPR_EXECUTOR_CONNECTION_STORAGE";
/// The device of builds' caches, as a DSN. Default: the same.
pub const CONNECTION_BUILD_CACHE_STORAGE: &str = "OPR_EXECUTOR_CONNECTION_BUILD_CACHE_STORAGE";
/// The device where no DSN names another: `local`, `s3`, `dospaces`, `backblaze`, `linode` or `wasabi`.
pub const STORAGE_DEVICE: &str = "OPR_EXECUTOR_STORAGE_DEVICE";
/// Access key of the S3 device.
pub const STORAGE_S3_ACCESS_KEY: &str = "OPR_EXECUTOR_STORAGE_S3_ACCESS_KEY";
/// Its secret.
pub const STORAGE_S3_SECRET: &str = "OPR_EXECUTOR_STORAGE_S3_SECRET";
/// Its region.
pub const STORAGE_S3_REGION: &str = "OPR_EXECUTOR_STORAGE_S3_REGION";
/// Its bucket.
pub const STORAGE_S3_BUCKET: &str = "OPR_EXECUTOR_STORAGE_S3_BUCKET";
/// Its host. Default: AWS's of bucket and region.
pub const STORAGE_S3_HOST: &str = "OPR_EXECUTOR_STORAGE_S3_HOST";
/// Its endpoint, as in `http://minio:9000`; wins over the host.
pub const STORAGE_S3_ENDPOINT: &str = "OPR_EXECUTOR_STORAGE_S3_ENDPOINT";
/// Access key of the DigitalOcean Spaces device.
pub const STORAGE_DO_SPACES_ACCESS_KEY: &str = "OPR_EXECUTOR_STORAGE_DO_SPACES_ACCESS_KEY";
/// Its secret.
pub const STORAGE_DO_SPACES_SECRET: &str = "OPR_EXECUTOR_STORAGE_DO_SPACES_SECRET";
/// Its region.
pub const STORAGE_DO_SPACES_REGION: &str = "OPR_EXECUTOR_STORAGE_DO_SPACES_REGION";
/// Its bucket.
pub const STORAGE_DO_SPACES_BUCKET: &str = "OPR_EXECUTOR_STORAGE_DO_SPACES_BUCKET";
/// Access key of the Backblaze device.
pub const STORAGE_BACKBLAZE_ACCESS_KEY: &str = "OPR_EXECUTOR_STORAGE_BACKBLAZE_ACCESS_KEY";
/// Its secret.
pub const STORAGE_BACKBLAZE_SECRET: &str = "OPR_EXECUTOR_STORAGE_BACKBLAZE_SECRET";
/// Its region.
pub const STORAGE_BACKBLAZE_REGION: &str = "OPR_EXECUTOR_STORAGE_BACKBLAZE_REGION";
/// Its bucket.
pub const STORAGE_BACKBLAZE_BUCKET: &str = "OPR_EXECUTOR_STORAGE_BACKBLAZE_BUCKET";
/// Access key of the Linode device.
pub const STORAGE_LINODE_ACCESS_KEY: &str = "OPR_EXECUTOR_STORAGE_LINODE_ACCESS_KEY";
/// Its secret.
pub const STORAGE_LINODE_SECRET: &str = "OPR_EXECUTOR_STORAGE_LINODE_SECRET";
/// Its region.
pub const STORAGE_LINODE_REGION: &str = "OPR_EXECUTOR_STORAGE_LINODE_REGION";
/// Its bucket.
pub const STORAGE_LINODE_BUCKET: &str = "OPR_EXECUTOR_STORAGE_LINODE_BUCKET";
/// Access key of the Wasabi device.
pub const STORAGE_WASABI_ACCESS_KEY: &str = "OPR_EXECUTOR_STORAGE_WASABI_ACCESS_KEY";
/// Its secret.
pub const STORAGE_WASABI_SECRET: &str = "OPR_EXECUTOR_STORAGE_WASABI_SECRET";
/// Its region.
pub const STORAGE_WASABI_REGION: &str = "OPR_EXECUTOR_STORAGE_WASABI_REGION";
/// Its bucket.
pub const STORAGE_WASABI_BUCKET: &str = "OPR_EXECUTOR_STORAGE_WASABI_BUCKET";

/// DSNs of existing deployments that name no device of their own: the older variables may.
const NO_CHOICE: &[&str] = &[
    "local://localhost",
    "file://localhost",
    "local://",
    "file://",
];

pub(super) fn apply(storage: &mut Storage, var: Lookup<'_>) -> Result<(), ConfigError> {
    let dsn = given(var, CONNECTION_STORAGE);
    let is_open = dsn.as_deref().is_none_or(|dsn| NO_CHOICE.contains(&dsn));
    if let Some(dsn) = dsn {
        storage.device = device(CONNECTION_STORAGE, &dsn)?;
    }
    if is_open && let Some(dsn) = older_dsn(var) {
        storage.device = device(STORAGE_DEVICE, &dsn)?;
    }
    if let Some(dsn) = given(var, CONNECTION_BUILD_CACHE_STORAGE) {
        storage.build_cache = Some(device(CONNECTION_BUILD_CACHE_STORAGE, &dsn)?);
    }
    Ok(())
}

fn device(name: &str, dsn: &str) -> Result<Device, ConfigError> {
    dsn.parse().map_err(|source| ConfigError::Dsn {
        name: name.to_owned(),
        source,
    })
}

/// The DSN that the older variables amount to; none where they name this machine.
fn older_dsn(var: Lookup<'_>) -> Option<String> {
    let scheme = given(var, STORAGE_DEVICE)?.to_lowercase();
    let [key, secret, region, bucket] = match scheme.as_str() {
        "local" => return None,
        "dospaces" => [
            STORAGE_DO_SPACES_ACCESS_KEY,
            STORAGE_DO_SPACES_SECRET,
            STORAGE_DO_SPACES_REGION,
            STORAGE_DO_SPACES_BUCKET,
        ],
        "backblaze" => [
            STORAGE_BACKBLAZE_ACCESS_KEY,
            STORAGE_BACKBLAZE_SECRET,
            STORAGE_BACKBLAZE_REGION,
            STORAGE_BACKBLAZE_BUCKET,
        ],
        "linode" => [
            STORAGE_LINODE_ACCESS_KEY,
            STORAGE_LINODE_SECRET,
            STORAGE_LINODE_REGION,
            STORAGE_LINODE_BUCKET,
        ],
        "wasabi" => [
            STORAGE_WASABI_ACCESS_KEY,
            STORAGE_WASABI_SECRET,
            STORAGE_WASABI_REGION,
            STORAGE_WASABI_BUCKET,
        ],
        // An unknown one is refused by the DSN's reader.
        _ => [
            STORAGE_S3_ACCESS_KEY,
            STORAGE_S3_SECRET,
            STORAGE_S3_REGION,
            STORAGE_S3_BUCKET,
        ],
    }
    .map(|name| given(var, name).unwrap_or_default());
    let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let place = match (scheme.as_str(), s3_place(var)) {
        ("s3", None) => amazon(&bucket, &region),
        ("s3", Some(host)) => format!("{host}/{}", encoded(&bucket)),
        _ => format!("localhost/{}", encoded(&bucket)),
    };
    let mut dsn = format!("{scheme}://{}:{}@{place}", encoded(&key), encoded(&secret));
    let _ = write!(dsn, "?region={}", encoded(&region));
    if scheme == "s3"
        && let Some(endpoint) = given(var, STORAGE_S3_ENDPOINT)
    {
        let _ = write!(dsn, "&url={}", encoded(&endpoint));
    }
    Some(dsn)
}

/// The host of an S3 device that is not AWS's own.
fn s3_place(var: Lookup<'_>) -> Option<String> {
    match given(var, STORAGE_S3_ENDPOINT) {
        Some(_) => Some("localhost".into()),
        None => given(var, STORAGE_S3_HOST),
    }
}

fn amazon(bucket: &str, region: &str) -> String {
    let domain = if region.starts_with("cn-") {
        "amazonaws.cn"
    } else {
        "amazonaws.com"
    };
    format!("{bucket}.s3.{region}.{domain}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storage(vars: &[(&str, &str)]) -> Result<Storage, ConfigError> {
        let mut storage = Storage::default();
        let var = |name: &str| {
            let found = vars.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        apply(&mut storage, &var).map(|()| storage)
    }

    const S3: &[(&str, &str)] = &[
        (STORAGE_DEVICE, "S3"),
        (STORAGE_S3_ACCESS_KEY, "k"),
        (STORAGE_S3_SECRET, "a/b+c"),
        (STORAGE_S3_BUCKET, "b"),
    ];

    #[track_caller]
    fn check(more: &[(&str, &str)], expected: &str) {
        let storage = storage(&[S3, more].concat()).unwrap();
        assert_eq!(storage.device.to_string(), expected, "{more:?}");
        if let Device::S3(bucket) = storage.device {
            assert_eq!(bucket.secret, "a/b+c");
        }
    }

    #[test]
    fn the_older_variables_name_the_device_where_no_dsn_does() {
        check(
            &[(STORAGE_S3_REGION, "eu-1")],
            "s3://k:***@https://b.s3.eu-1.amazonaws.com/?region=eu-1",
        );
        check(
            &[
                (STORAGE_S3_REGION, "cn-north-1"),
                (CONNECTION_STORAGE, "local://localhost"),
            ],
            "s3://k:***@https://b.s3.cn-north-1.amazonaws.cn/?region=cn-north-1",
        );
        check(
            &[
                (STORAGE_S3_HOST, "minio:9000"),
                (CONNECTION_STORAGE, "file://"),
            ],
            "s3://k:***@https://minio:9000/b?region=us-east-1",
        );
        check(
            &[
                (STORAGE_S3_HOST, "no"),
                (STORAGE_S3_ENDPOINT, "http://minio:9000"),
            ],
            "s3://k:***@http://minio:9000/b?region=us-east-1",
        );
        check(
            &[(CONNECTION_STORAGE, "local://files")],
            "local://localhost",
        );
        check(
            &[(CONNECTION_STORAGE, "s3://k:a%2Fb%2Bc@h/other")],
            "s3://k:***@https://h/other?region=us-east-1",
        );
        let wasabi = storage(&[
            (STORAGE_DEVICE, "wasabi"),
            (STORAGE_WASABI_ACCESS_KEY, "k"),
            (STORAGE_WASABI_SECRET, "s"),
            (STORAGE_WASABI_REGION, "r"),
            (STORAGE_WASABI_BUCKET, "b"),
        ]);
        assert_eq!(
            wasabi.unwrap().device.to_string(),
            "s3://k:***@https://b.s3.r.wasabisys.com/?region=r"
        );
    }

    #[test]
    fn the_cache_has_a_device_of_its_own_where_one_is_named() {
        assert_eq!(storage(&[]).unwrap(), Storage::default());
        let both = storage(&[
            (CONNECTION_STORAGE, "s3://k:s@h/a"),
            (CONNECTION_BUILD_CACHE_STORAGE, "local://localhost"),
        ]);
        assert_eq!(both.unwrap().build_cache, Some(Device::Local));
    }

    #[test]
    fn what_names_no_device_is_told_without_its_secret() {
        #[track_caller]
        fn check(vars: &[(&str, &str)], expected: &str) {
            let error = storage(vars).unwrap_err();
            let text = format!("{:#}", anyhow::Error::new(error));
            assert!(text.contains(expected) && !text.contains("hush"), "{text}");
        }
        check(
            &[(CONNECTION_STORAGE, "s4://k:hush@h/b")],
            "OPR_EXECUTOR_CONNECTION_STORAGE names no storage device: there is no device \"s4\"",
        );
        check(
            &[(STORAGE_DEVICE, "linode"), (STORAGE_LINODE_SECRET, "hush")],
            "OPR_EXECUTOR_STORAGE_DEVICE names no storage device: it has no bucket",
        );
    }
}
