//! One registry's HTTP API, as far as a pull needs it (OCI distribution-spec, "Pull").
//!
//! `oci-client` answers the registry's challenge and fetches tokens. The transfers are made here,
//! since a blob that was cut off must go on at its offset, a `Retry-After` must be seen, and no
//! document may be larger than what fits in memory.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use oci_client::{
    RegistryOperation,
    client::{Client as OciClient, ClientConfig, ClientProtocol},
    secrets::RegistryAuth,
};
use reqwest::{
    Response, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONTENT_RANGE, HeaderMap, RANGE, RETRY_AFTER},
};
use tokio::sync::Mutex;

use crate::{
    PullError, Reference,
    content::MAX_DOCUMENT,
    document::{DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, digest_of},
};

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a registry may send nothing.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// How a registry is asked for an image.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    /// Without a name; a token is fetched where the registry wants one.
    #[default]
    Anonymous,
    /// By name and password: sent to the registry, or to the token service it names.
    Basic {
        /// The name.
        username: String,
        /// The password.
        password: String,
    },
    /// By a token of the registry's.
    Bearer(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("Anonymous"),
            Self::Basic { username, .. } => write!(f, "Basic({username}, …)"),
            Self::Bearer(_) => f.write_str("Bearer(…)"),
        }
    }
}

/// A request that did not succeed, and whether repeating it makes sense.
pub(crate) struct Failure {
    pub(crate) error: PullError,
    /// `None`: repeating is of no use. Otherwise the least time to wait.
    pub(crate) retry: Option<Duration>,
}

impl From<PullError> for Failure {
    fn from(error: PullError) -> Self {
        Self { error, retry: None }
    }
}

/// A repository of a registry, and what it takes to get in.
pub(crate) struct Registry {
    http: reqwest::Client,
    oci: OciClient,
    reference: Reference,
    base: String,
    credentials: Credentials,
    /// The `Authorization` that the registry accepted last.
    authorization: Mutex<Option<String>>,
}

impl Registry {
    pub(crate) fn new(
        reference: &Reference,
        credentials: &Credentials,
        is_insecure: bool,
    ) -> Result<Self, PullError> {
        let failed = |source: reqwest::Error| PullError::Connection {
            registry: reference.registry().to_owned(),
            source: source.into(),
        };
        let mut http = reqwest::Client::builder();
        if reference.is_loopback() {
            // A proxy has a loopback of its own.
            http = http.no_proxy();
        }
        let http = http
            .user_agent(concat!("opr/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .build()
            .map_err(failed)?;
        let host = reference.to_oci().resolve_registry().to_owned();
        let (scheme, protocol) = match is_insecure {
            true => ("http", ClientProtocol::Http),
            false => ("https", ClientProtocol::Https),
        };
        let config = ClientConfig {
            protocol,
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            ..Default::default()
        };
        Ok(Self {
            http,
            oci: OciClient::new(config),
            reference: reference.clone(),
            base: format!("{scheme}://{host}/v2/{}", reference.repository()),
            credentials: credentials.clone(),
            authorization: Mutex::default(),
        })
    }

    /// The manifest or index `name`, a tag or a digest, and its media type.
    pub(crate) async fn manifest(&self, name: &str) -> Result<(Vec<u8>, String), Failure> {
        let accept = [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST].join(", ");
        let response = self
            .get(&format!("manifests/{name}"), Some(&accept), 0)
            .await?;
        let told = text(response.headers(), "docker-content-digest");
        let media_type = text(response.headers(), "content-type").unwrap_or_default();
        let bytes = self.document(name, response).await?;
        let found = digest_of(&bytes);
        let told = told.filter(|digest| digest.starts_with("sha256:"));
        let expected = Some(name.to_owned())
            .filter(|name| name.contains(':'))
            .or(told);
        match expected {
            Some(expected) if expected != found => Err(self.mismatch(&expected, found)),
            _ => Ok((bytes, media_type)),
        }
    }

    /// A small blob.
    pub(crate) async fn config(&self, digest: &str) -> Result<Vec<u8>, Failure> {
        let response = self.get(&format!("blobs/{digest}"), None, 0).await?;
        let bytes = self.document(digest, response).await?;
        match digest_of(&bytes) {
            found if found == digest => Ok(bytes),
            found => Err(self.mismatch(digest, found)),
        }
    }

    /// The blob from `offset` on, and the offset at which the registry really starts: 0 where it
    /// does not know ranges.
    pub(crate) async fn blob(&self, digest: &str, offset: u64) -> Result<(Response, u64), Failure> {
        let response = self.get(&format!("blobs/{digest}"), None, offset).await?;
        if response.status() != StatusCode::PARTIAL_CONTENT {
            return Ok((response, 0));
        }
        let range = response
            .headers()
            .get(CONTENT_RANGE)
            .and_then(|value| value.to_str().ok());
        let start = range.and_then(|r| r.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
        Ok((response, start.unwrap_or(offset)))
    }

    /// A connection that broke while a body came in.
    pub(crate) fn broken(&self, source: reqwest::Error) -> Failure {
        let registry = self.reference.registry().to_owned();
        let error = PullError::Connection {
            registry,
            source: source.into(),
        };
        Failure {
            error,
            retry: Some(Duration::ZERO),
        }
    }

    async fn get(
        &self,
        path: &str,
        accept: Option<&str>,
        offset: u64,
    ) -> Result<Response, Failure> {
        let send = |authorization: Option<String>| {
            let mut request = self.http.get(format!("{}/{path}", self.base));
            if let Some(accept) = accept {
                request = request.header(ACCEPT, accept);
            }
            if let Some(authorization) = authorization {
                request = request.header(AUTHORIZATION, authorization);
            }
            if offset > 0 {
                request = request.header(RANGE, format!("bytes={offset}-"));
            }
            request.send()
        };
        let known = self.authorization.lock().await.clone();
        let mut response = send(known.clone())
            .await
            .map_err(|error| self.broken(error))?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let fresh = self.authorize(known).await?;
            response = send(fresh).await.map_err(|error| self.broken(error))?;
        }
        match response.status() {
            status if status.is_success() => Ok(response),
            status => Err(self.refused(path, status, response).await),
        }
    }

    /// Gets an `Authorization` other than `stale`; several layers that need one ask once.
    async fn authorize(&self, stale: Option<String>) -> Result<Option<String>, Failure> {
        let mut authorization = self.authorization.lock().await;
        if *authorization != stale {
            return Ok(authorization.clone());
        }
        let auth = match &self.credentials {
            Credentials::Anonymous => RegistryAuth::Anonymous,
            Credentials::Basic { username, password } => {
                RegistryAuth::Basic(username.clone(), password.clone())
            }
            Credentials::Bearer(token) => RegistryAuth::Bearer(token.clone()),
        };
        let token = self
            .oci
            .auth(&self.reference.to_oci(), &auth, RegistryOperation::Pull)
            .await;
        let token = token.map_err(|source| {
            use oci_client::errors::OciDistributionError::RequestError;
            let retry = matches!(source, RequestError(_)).then_some(Duration::ZERO);
            let reference = self.reference.clone();
            let error = PullError::Unauthorized {
                reference,
                source: Some(Box::new(source)),
            };
            Failure { error, retry }
        })?;
        *authorization = match (token, &self.credentials) {
            (Some(token), _) => Some(format!("Bearer {token}")),
            (None, Credentials::Basic { username, password }) => {
                use base64::Engine as _;
                let pair = format!("{username}:{password}");
                Some(format!(
                    "Basic {}",
                    base64::prelude::BASE64_STANDARD.encode(pair)
                ))
            }
            (None, _) => None,
        };
        Ok(authorization.clone())
    }

    /// What an unhappy status means.
    async fn refused(&self, path: &str, status: StatusCode, response: Response) -> Failure {
        let after = retry_after(response.headers(), SystemTime::now());
        let reference = self.reference.clone();
        let error = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => PullError::Unauthorized {
                reference,
                source: None,
            },
            StatusCode::NOT_FOUND => PullError::Absent {
                reference,
                path: path.to_owned(),
            },
            status => {
                let body = self.document(path, response).await.unwrap_or_default();
                let message = String::from_utf8_lossy(&body)
                    .trim()
                    .chars()
                    .take(300)
                    .collect();
                PullError::Status {
                    reference,
                    status: status.as_u16(),
                    message,
                }
            }
        };
        let may_retry = status.is_server_error()
            || matches!(
                status,
                StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
            );
        Failure {
            error,
            retry: may_retry.then(|| after.unwrap_or_default()),
        }
    }

    /// The whole of a body that fits in memory.
    async fn document(&self, name: &str, mut response: Response) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|error| self.broken(error))? {
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > MAX_DOCUMENT {
                let reference = self.reference.clone();
                return Err(PullError::TooLarge {
                    reference,
                    name: name.to_owned(),
                }
                .into());
            }
        }
        Ok(bytes)
    }

    fn mismatch(&self, expected: &str, found: String) -> Failure {
        let (reference, expected) = (self.reference.clone(), expected.to_owned());
        PullError::Mismatch {
            reference,
            expected,
            found,
        }
        .into()
    }
}

/// How long `Retry-After` asks to wait, in seconds or until a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match value.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(value)
            .ok()?
            .duration_since(now)
            .ok(),
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(value: &str, expected: Option<u64>) {
        let headers = HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(
            retry_after(&headers, now),
            expected.map(Duration::from_secs),
            "{value}"
        );
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        check("7", Some(7));
        check("Sun, 06 Nov 1994 08:49:47 GMT", Some(10));
        check("Sun, 06 Nov 1994 08:49:00 GMT", None);
        check("soon", None);
        check("-1", None);
    }

    #[test]
    fn secrets_are_not_printed() {
        let basic = Credentials::Basic {
            username: "ann".into(),
            password: "hunter2".into(),
        };
        assert_eq!(format!("{basic:?}"), "Basic(ann, …)");
        assert_eq!(
            format!("{:?}", Credentials::Bearer("hunter2".into())),
            "Bearer(…)"
        );
    }
}
