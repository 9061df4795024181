//! Which call a method and a path mean.

use http::Method;

/// A call of the executor API. An id is a path segment as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    Health,
    Metrics,
    List,
    Create,
    Get(String),
    Delete(String),
    Execute(String),
    Logs(String),
    Commands(String),
}

impl Route {
    /// Empty segments are ignored, segments are not decoded, `HEAD` is `GET`.
    pub(super) fn find(method: &Method, path: &str) -> Option<Self> {
        let method = if method == Method::HEAD {
            "GET"
        } else {
            method.as_str()
        };
        let segments: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        match (method, segments.as_slice()) {
            ("GET", ["v1", "health"]) => Some(Self::Health),
            ("GET", ["metrics"]) => Some(Self::Metrics),
            ("GET", ["v1", "runtimes"]) => Some(Self::List),
            ("POST", ["v1", "runtimes"]) => Some(Self::Create),
            ("GET", ["v1", "runtimes", id]) => Some(Self::Get((*id).to_owned())),
            ("DELETE", ["v1", "runtimes", id]) => Some(Self::Delete((*id).to_owned())),
            ("POST", ["v1", "runtimes", id, "executions" | "execution"]) => {
                Some(Self::Execute((*id).to_owned()))
            }
            ("GET", ["v1", "runtimes", id, "logs"]) => Some(Self::Logs((*id).to_owned())),
            ("POST", ["v1", "runtimes", id, "commands"]) => Some(Self::Commands((*id).to_owned())),
            _ => None,
        }
    }

    /// Whether a call needs no key.
    pub(super) fn is_open(&self) -> bool {
        match self {
            Self::Health | Self::Metrics => true,
            Self::List
            | Self::Create
            | Self::Get(_)
            | Self::Delete(_)
            | Self::Execute(_)
            | Self::Logs(_)
            | Self::Commands(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(method: &str, path: &str, expected: Option<Route>) {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        assert_eq!(Route::find(&method, path), expected, "{method} {path}");
    }

    #[test]
    fn finds_the_call() {
        let id = || "a".to_owned();
        check("GET", "/v1/health", Some(Route::Health));
        check("HEAD", "/v1/health/", Some(Route::Health));
        check("GET", "/metrics", Some(Route::Metrics));
        check("GET", "//v1//runtimes/", Some(Route::List));
        check("POST", "/v1/runtimes", Some(Route::Create));
        check("GET", "/v1/runtimes/a", Some(Route::Get(id())));
        check("GET", "/v1/runtimes/%61", Some(Route::Get("%61".into())));
        check("DELETE", "/v1/runtimes/a", Some(Route::Delete(id())));
        check(
            "POST",
            "/v1/runtimes/a/executions",
            Some(Route::Execute(id())),
        );
        check(
            "POST",
            "/v1/runtimes/a/execution",
            Some(Route::Execute(id())),
        );
        check("GET", "/v1/runtimes/a/logs", Some(Route::Logs(id())));
        check(
            "POST",
            "/v1/runtimes/a/commands",
            Some(Route::Commands(id())),
        );
        check("GET", "/v1/unknown", None);
        check("GET", "/V1/health", None);
        check("PUT", "/v1/runtimes", None);
        check("POST", "/v1/runtimes/a/commands/b", None);
        check("GET", "/", None);
    }
}
