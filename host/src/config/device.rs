//! Where sources and artifacts are: the local file system, or an S3-compatible bucket named by a DSN.
//!
//! ```text
//! s3://KEY:SECRET@HOST[:PORT][/BUCKET]?region=REGION[&insecure=true][&url=ENDPOINT]
//! dospaces | backblaze | linode | wasabi://KEY:SECRET@HOST/BUCKET?region=REGION
//! local://localhost
//! ```
//!
//! Key and secret are percent-encoded, and so is the endpoint.

use std::{fmt, str::FromStr};

use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use url::Url;

/// A storage device. As text its secret is masked.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Device {
    /// The file system of this machine.
    #[default]
    Local,
    /// A bucket.
    S3(S3),
}

/// An S3-compatible bucket.
#[derive(Clone, PartialEq, Eq)]
pub struct S3 {
    /// Scheme, host and port of each request: `https://s3.example.com`.
    pub endpoint: String,
    /// The first part of each request's path; `None` where the host names the bucket.
    pub bucket: Option<String>,
    /// What requests are signed for, as in `us-east-1`.
    pub region: String,
    /// The access key's name.
    pub key: String,
    /// Its secret.
    pub secret: String,
}

/// A text that names no storage device. Holds nothing secret.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DsnError {
    /// It is no URL.
    #[error("it is no URL such as s3://KEY:SECRET@HOST/BUCKET?region=REGION")]
    Url(#[source] url::ParseError),
    /// Its scheme names no device.
    #[error("there is no device {0:?}: use local, s3, dospaces, backblaze, linode or wasabi")]
    Scheme(String),
    /// A part is not there.
    #[error("it has no {0}: s3://KEY:SECRET@HOST/BUCKET?region=REGION")]
    Missing(&'static str),
    /// The endpoint cannot be used.
    #[error("its endpoint {0:?} is no URL such as http://127.0.0.1:9000, percent-encoded")]
    Endpoint(String),
}

impl FromStr for Device {
    type Err = DsnError;

    fn from_str(text: &str) -> Result<Self, DsnError> {
        if text.is_empty() {
            return Ok(Self::Local);
        }
        let dsn = match Url::parse(text) {
            // As clients know it: without a host it is this machine.
            Err(url::ParseError::EmptyHost) => return Ok(Self::Local),
            parsed => parsed.map_err(DsnError::Url)?,
        };
        let Some(host) = dsn.host_str().filter(|host| !host.is_empty()) else {
            return Ok(Self::Local);
        };
        match dsn.scheme() {
            "local" | "file" => Ok(Self::Local),
            "s3" => s3(&dsn, host).map(Self::S3),
            provider => hosted(&dsn, provider).map(Self::S3),
        }
    }
}

/// A bucket at the DSN's own host or endpoint: by its path, or by the host's name.
fn s3(dsn: &Url, host: &str) -> Result<S3, DsnError> {
    let scheme = match param(dsn, "insecure").as_deref() {
        Some("true") => "http",
        _ => "https",
    };
    let port = dsn.port().map_or(String::new(), |port| format!(":{port}"));
    let endpoint = param(dsn, "url").unwrap_or_else(|| format!("{scheme}://{host}{port}"));
    let parsed = Url::parse(&endpoint).ok();
    if !parsed.is_some_and(|url| ["http", "https"].contains(&url.scheme()) && url.has_host()) {
        return Err(DsnError::Endpoint(endpoint));
    }
    Ok(S3 {
        endpoint: endpoint.trim_end_matches('/').to_owned(),
        bucket: bucket(dsn),
        region: param(dsn, "region").unwrap_or_else(|| "us-east-1".into()),
        key: key(dsn)?,
        secret: secret(dsn)?,
    })
}

/// A bucket of a provider whose hosts are named after region and bucket.
fn hosted(dsn: &Url, provider: &str) -> Result<S3, DsnError> {
    let domain: fn(&str) -> String = match provider {
        "dospaces" => |region| format!("{region}.digitaloceanspaces.com"),
        "backblaze" => |region| format!("s3.{region}.backblazeb2.com"),
        "linode" => |region| format!("{region}.linodeobjects.com"),
        "wasabi" => |region| format!("s3.{region}.wasabisys.com"),
        other => return Err(DsnError::Scheme(other.into())),
    };
    let bucket = bucket(dsn).ok_or(DsnError::Missing("bucket"))?;
    let region = param(dsn, "region").ok_or(DsnError::Missing("region"))?;
    Ok(S3 {
        endpoint: format!("https://{bucket}.{}", domain(&region)),
        bucket: None,
        region,
        key: key(dsn)?,
        secret: secret(dsn)?,
    })
}

fn param(dsn: &Url, name: &str) -> Option<String> {
    let mut pairs = dsn.query_pairs();
    let value = pairs.find(|(key, _)| key == name)?.1;
    (!value.is_empty()).then(|| value.into_owned())
}

fn bucket(dsn: &Url) -> Option<String> {
    let path = percent_decode_str(dsn.path()).decode_utf8_lossy();
    let bucket = path.trim_matches('/');
    (!bucket.is_empty()).then(|| bucket.to_owned())
}

fn key(dsn: &Url) -> Result<String, DsnError> {
    let key = percent_decode_str(dsn.username()).decode_utf8_lossy();
    Some(key.into_owned())
        .filter(|key| !key.is_empty())
        .ok_or(DsnError::Missing("key"))
}

fn secret(dsn: &Url) -> Result<String, DsnError> {
    let secret = dsn.password().ok_or(DsnError::Missing("secret"))?;
    Ok(percent_decode_str(secret).decode_utf8_lossy().into_owned())
}

impl TryFrom<String> for Device {
    type Error = DsnError;

    fn try_from(text: String) -> Result<Self, DsnError> {
        text.parse()
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("local://localhost"),
            Self::S3(S3 {
                endpoint,
                bucket,
                region,
                key,
                ..
            }) => {
                let bucket = bucket.as_deref().unwrap_or_default();
                write!(f, "s3://{key}:***@{endpoint}/{bucket}?region={region}")
            }
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares `endpoint bucket region key secret`.
    #[track_caller]
    fn check(dsn: &str, expected: Result<&str, &str>) {
        let shown = match dsn.parse::<Device>() {
            Ok(Device::Local) => Ok("local".to_owned()),
            Ok(Device::S3(S3 {
                endpoint,
                bucket,
                region,
                key,
                secret,
            })) => {
                let bucket = bucket.unwrap_or_else(|| "-".into());
                Ok(format!("{endpoint} {bucket} {region} {key} {secret}"))
            }
            Err(error) => Err(error.to_string()),
        };
        assert_eq!(
            shown,
            expected.map(str::to_owned).map_err(str::to_owned),
            "{dsn}"
        );
    }

    #[test]
    fn c105_to_c107_what_names_no_host_is_local() {
        check("", Ok("local"));
        check("local://localhost", Ok("local"));
        check("file://localhost", Ok("local"));
        check("local://", Ok("local"));
        check("file://", Ok("local"));
        check("s3://k:s@/mybucket?region=garage", Ok("local"));
    }

    #[test]
    fn c108_to_c112_buckets_by_path_or_by_host() {
        check(
            "s3://k:s@localhost/mybucket?region=garage&url=http%3A%2F%2F127.0.0.1%3A3900",
            Ok("http://127.0.0.1:3900 mybucket garage k s"),
        );
        check(
            "s3://k:s@localhost?region=garage&url=http%3A%2F%2F127.0.0.1%3A3900",
            Ok("http://127.0.0.1:3900 - garage k s"),
        );
        check(
            "s3://k:s@minio/mybucket?region=us-east-1&insecure=true",
            Ok("http://minio mybucket us-east-1 k s"),
        );
        check(
            "s3://k:s@mybucket.s3.us-east-1.amazonaws.com?region=us-east-1",
            Ok("https://mybucket.s3.us-east-1.amazonaws.com - us-east-1 k s"),
        );
        check(
            "s3://k%2F:s%40%2B@minio:9000/b",
            Ok("https://minio:9000 b us-east-1 k/ s@+"),
        );
    }

    #[test]
    fn providers_name_their_hosts_after_region_and_bucket() {
        let check = |provider: &str, host: &str| {
            let dsn = format!("{provider}://k:s@any/b?region=r");
            check(&dsn, Ok(&format!("https://{host} - r k s")));
        };
        check("dospaces", "b.r.digitaloceanspaces.com");
        check("backblaze", "b.s3.r.backblazeb2.com");
        check("linode", "b.r.linodeobjects.com");
        check("wasabi", "b.s3.r.wasabisys.com");
    }

    #[test]
    fn what_cannot_be_used_is_an_error_that_says_why() {
        let form = "s3://KEY:SECRET@HOST/BUCKET?region=REGION";
        check("/storage", Err(&format!("it is no URL such as {form}")));
        check(
            "awss3://k:s@h/b",
            Err(
                "there is no device \"awss3\": use local, s3, dospaces, backblaze, linode or wasabi",
            ),
        );
        check("s3://h/b", Err(&format!("it has no key: {form}")));
        check("s3://k@h/b", Err(&format!("it has no secret: {form}")));
        check(
            "wasabi://k:s@h/b",
            Err(&format!("it has no region: {form}")),
        );
        check(
            "wasabi://k:s@h?region=r",
            Err(&format!("it has no bucket: {form}")),
        );
        check(
            "s3://k:s@h/b?url=127.0.0.1",
            Err(
                "its endpoint \"127.0.0.1\" is no URL such as http://127.0.0.1:9000, percent-encoded",
            ),
        );
    }

    #[test]
    fn as_text_the_secret_is_masked() {
        let device: Device = "s3://k:hush@h/b".parse().unwrap();
        for text in [device.to_string(), format!("{device:?}"), device.into()] {
            assert_eq!(text, "s3://k:***@https://h/b?region=us-east-1");
        }
    }
}
