//! Identifiers and small values that several rooms share, as types.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A text that is no valid identifier.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{kind} {text:?} is not valid: it starts with a letter or digit, holds only letters, digits, `.`, `_` and `-`, and is at most {max} characters long"
)]
pub struct IdError {
    kind: &'static str,
    text: String,
    max: usize,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $max:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// # Errors
            /// The text is empty, too long, or holds a character that a name may not.
            pub fn try_new(text: impl Into<String>) -> Result<Self, IdError> {
                let text = text.into();
                if is_name(&text, $max) {
                    Ok(Self(text))
                } else {
                    Err(IdError { kind: $kind, text, max: $max })
                }
            }

            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::try_new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::try_new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
    };
}

id! {
    /// What an executor client calls an instance (`runtimeId` on the wire).
    InstanceId, "runtimeId", 64
}
id! {
    /// A sandbox: the name of its container, its cgroup and its folders. At most 76 characters, containerd's limit.
    SandboxId, "sandbox id", 76
}
id! {
    /// A deployed function, as in `http://node:8080/<function>/`.
    FunctionName, "function name", 63
}
id! {
    /// A class of sandboxes, as in `[class.build]` of `opr.toml`.
    ClassName, "class name", 32
}
id! {
    /// What clients of the executor API call a build's cache.
    CacheKey, "cacheKey", 128
}

fn is_name(text: &str, max: usize) -> bool {
    let mut bytes = text.bytes();
    text.len() <= max
        && bytes
            .next()
            .is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// A SHA-256 digest, `sha256:` and 64 lower-case hexadecimal digits as text.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// The digest of these bytes' SHA-256 sum.
    pub fn from_sha256(sum: [u8; 32]) -> Self {
        Self(sum.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The 64 hexadecimal digits, without the algorithm: fit for a file name.
    pub fn hex(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

/// A text that is no SHA-256 digest.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a digest such as sha256:<64 hexadecimal digits>")]
pub struct DigestError(String);

impl FromStr for Digest {
    type Err = DigestError;
    fn from_str(text: &str) -> Result<Self, DigestError> {
        match text.strip_prefix("sha256:") {
            Some(hex)
                if hex.len() == 64
                    && hex
                        .bytes()
                        .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) =>
            {
                Ok(Self(hex.to_owned()))
            }
            _ => Err(DigestError(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;
    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, valid: bool) {
        assert_eq!(InstanceId::try_new(text).is_ok(), valid, "{text:?}");
    }

    #[test]
    fn accepts_names_that_are_safe_as_file_names_only() {
        check("a", true);
        check("Project-1.build_2", true);
        check(&"a".repeat(64), true);
        check(&"a".repeat(65), false);
        check("", false);
        check(".hidden", false);
        check("-flag", false);
        check("a/b", false);
        check("a\0", false);
        check("ä", false);
    }

    #[test]
    fn reads_back_the_digest_it_prints() {
        let digest = Digest::from_sha256([0xab; 32]);
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert!("sha256:AB".parse::<Digest>().is_err());
    }
}
