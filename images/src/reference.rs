//! Names of images, normalised the way Docker's clients do.
//!
//! `node:20` is `docker.io/library/node:20`; a name without tag and digest means `latest`. Two
//! references that mean the same image are equal and print alike, so the text of one is its key in
//! containerd.

use std::{fmt, net::IpAddr, str::FromStr};

/// The full name of an image: registry, repository, and tag or digest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: Box<str>,
    repository: Box<str>,
    tag: Option<Box<str>>,
    digest: Option<Box<str>>,
}

/// The text is not a name of an image.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not an image reference such as node:20 or registry.example/team/app:1")]
pub struct ReferenceError {
    text: String,
    source: oci_client::ParseError,
}

impl Reference {
    /// The registry's host and port, as in `docker.io` or `127.0.0.1:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path in the registry, as in `library/node`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, as in `20`; absent where the reference has only a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, as in `sha256:…`, where the reference names one.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// The same repository with another tag.
    ///
    /// # Errors
    /// When `tag` is not the text of a tag.
    pub fn with_tag(&self, tag: &str) -> Result<Self, ReferenceError> {
        format!("{}/{}:{tag}", self.registry, self.repository).parse()
    }

    /// Whether the registry is this machine itself, which is spoken to without TLS.
    pub(crate) fn is_loopback(&self) -> bool {
        let host = match self.registry.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
            _ => &self.registry,
        };
        let address = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// The name as the registry client spells it.
    pub(crate) fn to_oci(&self) -> oci_client::Reference {
        let (registry, repository) = (self.registry.to_string(), self.repository.to_string());
        match (&self.tag, &self.digest) {
            (_, Some(digest)) => {
                oci_client::Reference::with_digest(registry, repository, digest.to_string())
            }
            (Some(tag), None) => {
                oci_client::Reference::with_tag(registry, repository, tag.to_string())
            }
            (None, None) => {
                oci_client::Reference::with_tag(registry, repository, "latest".to_owned())
            }
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let parsed: oci_client::Reference = text.parse().map_err(|source| ReferenceError {
            text: text.to_owned(),
            source,
        })?;
        let digest = parsed.digest().map(Box::from);
        let tag = parsed.tag().map(Box::from);
        let tag = if digest.is_none() {
            tag.or_else(|| Some("latest".into()))
        } else {
            tag
        };
        Ok(Self {
            registry: parsed.registry().into(),
            repository: parsed.repository().into(),
            tag,
            digest,
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<&str>) {
        let found = text.parse::<Reference>().ok().map(|r| r.to_string());
        assert_eq!(found.as_deref(), expected, "{text}");
    }

    #[test]
    fn normalises_as_docker_does() {
        check("node", Some("docker.io/library/node:latest"));
        check("node:20", Some("docker.io/library/node:20"));
        check(
            "openruntimes/node:v5-22",
            Some("docker.io/openruntimes/node:v5-22"),
        );
        check(
            "docker.io/library/node:20",
            Some("docker.io/library/node:20"),
        );
        check(
            "index.docker.io/library/node:20",
            Some("docker.io/library/node:20"),
        );
        check("127.0.0.1:5000/a/b:c", Some("127.0.0.1:5000/a/b:c"));
        check("localhost/a", Some("localhost/a:latest"));
        let digest = format!("sha256:{}", "a".repeat(64));
        check(
            &format!("a@{digest}"),
            Some(&format!("docker.io/library/a@{digest}")),
        );
        check(
            &format!("a:1@{digest}"),
            Some(&format!("docker.io/library/a:1@{digest}")),
        );
    }

    #[test]
    fn refuses_what_is_no_name() {
        check("", None);
        check("Node", None);
        check("a b", None);
        check("a:", None);
        check("../etc/passwd", None);
        check("a@sha256:12", None);
    }

    #[test]
    fn a_name_parses_to_itself() {
        for text in [
            "node",
            "a/b:c",
            "[::1]:5000/a",
            "registry.example:5000/x/y:z",
        ] {
            if let Ok(first) = text.parse::<Reference>() {
                assert_eq!(first.to_string().parse::<Reference>().unwrap(), first);
            }
        }
    }

    #[test]
    fn only_this_machine_is_loopback() {
        let loopback = |t: &str| t.parse::<Reference>().unwrap().is_loopback();
        assert!(loopback("127.0.0.1:5000/a"));
        assert!(loopback("localhost:5000/a"));
        assert!(loopback("localhost/a"));
        assert!(!loopback("127.0.0.1.example/a"));
        assert!(!loopback("10.0.0.1:5000/a"));
        assert!(!loopback("node"));
    }
}
