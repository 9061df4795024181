//! Settings while the node runs: classes listed and tried, all that can change without a restart read anew.

use std::{fmt, sync::Arc};

use serde_json::{Map, Value};

use super::wire::{ClassChange, ClassInfo};
use crate::{
    adapter::{Containerd, EngineError},
    config::{Class, Config, ConfigError},
    executor::Executor,
    id::ClassName,
    telemetry::chain,
};

/// Those that hold at once.
const LIVE: [&str; 2] = ["admission", "class"];

/// Reads the settings as at the start.
pub type ReadConfig = Arc<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>;

/// Changes the classes of a node that runs, and when it admits instances.
#[derive(Clone)]
pub struct Tuning {
    /// What the node was started with.
    config: Arc<Config>,
    adapter: Arc<Containerd>,
    executor: Arc<Executor>,
    read: ReadConfig,
}

/// Classes were not changed; those before go on.
#[derive(Debug, thiserror::Error)]
pub enum TuningError {
    /// There is no such class.
    #[error("there is no class {name}; the settings have {}", known.join(", "))]
    Unknown {
        /// Its name.
        name: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// A value cannot be used.
    #[error("class {name} cannot have that: {reason}")]
    Value {
        /// Of which class.
        name: ClassName,
        /// What would do.
        reason: String,
    },
    /// This kernel lacks a limit.
    #[error("this kernel cannot limit {}", keys.join(", "))]
    Lacking {
        /// As in `build.memory.high`.
        keys: Vec<String>,
    },
    /// The settings cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The kernel refused.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl fmt::Debug for Tuning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tuning").finish_non_exhaustive()
    }
}

impl Tuning {
    /// For a node that was started with `config`.
    pub fn new(
        config: Arc<Config>,
        adapter: Arc<Containerd>,
        executor: Arc<Executor>,
        read: ReadConfig,
    ) -> Self {
        Self {
            config,
            adapter,
            executor,
            read,
        }
    }

    /// The settings' classes and those of admission hold from now on. Logs how that went.
    ///
    /// # Errors
    /// See [`TuningError`].
    pub fn reload(&self) -> Result<ClassChange, TuningError> {
        let reloaded = self.read_again();
        match &reloaded {
            Ok(change) => {
                tracing::info!(lacking = ?change.lacking, restart = ?change.restart, "settings were read anew")
            }
            Err(error) => tracing::error!(
                error = chain(error),
                "settings were not read anew, those before go on"
            ),
        }
        reloaded
    }

    fn read_again(&self) -> Result<ClassChange, TuningError> {
        let config = (self.read)()?;
        let restart = differing(&self.config, &config);
        let mut lacking = self.adapter.set_classes(config.class)?;
        let unknown = self.executor.set_admission(config.admission).into_iter();
        lacking.extend(unknown.map(|key| format!("admission.{key}")));
        Ok(ClassChange { lacking, restart })
    }

    /// What holds now.
    pub(super) fn list(&self) -> Vec<ClassInfo> {
        let classes = self.adapter.classes().all();
        let info = |(name, settings): (&ClassName, &Class)| {
            let (kernel, n_sandboxes) = self.adapter.class_values(name);
            ClassInfo {
                name: name.clone(),
                settings: settings.clone(),
                kernel,
                n_sandboxes,
            }
        };
        classes.iter().map(info).collect()
    }

    /// Changes one class, until settings are read again.
    pub(super) fn try_out(
        &self,
        name: &str,
        changes: Map<String, Value>,
    ) -> Result<(), TuningError> {
        let mut classes = (*self.adapter.classes().all()).clone();
        let known = || classes.keys().map(ToString::to_string).collect();
        let found = ClassName::try_new(name)
            .ok()
            .filter(|name| classes.contains_key(name));
        let Some(name) = found else {
            let known = known();
            return Err(TuningError::Unknown {
                name: name.to_owned(),
                known,
            });
        };
        let keys: Vec<_> = changes.keys().map(|key| format!("{name}.{key}")).collect();
        let class = changed(&classes[&name], changes).map_err(|error| TuningError::Value {
            name: name.clone(),
            reason: error.to_string(),
        })?;
        let before = classes.insert(name.clone(), class);
        let lacking = self.adapter.set_classes(classes.clone())?;
        let lacking: Vec<_> = lacking
            .into_iter()
            .filter(|key| keys.contains(key))
            .collect();
        if lacking.is_empty() {
            tracing::info!(%name, ?keys, "class was changed until settings are read again");
            return Ok(());
        }
        classes.extend(before.map(|class| (name, class)));
        self.adapter.set_classes(classes)?;
        Err(TuningError::Lacking { keys: lacking })
    }
}

fn changed(class: &Class, changes: Map<String, Value>) -> serde_json::Result<Class> {
    let Value::Object(mut settings) = serde_json::to_value(class)? else {
        unreachable!("a class is a table")
    };
    settings.extend(changes);
    serde_json::from_value(Value::Object(settings))
}

/// The settings that differ and hold from the next start on.
fn differing(old: &Config, new: &Config) -> Vec<String> {
    let table = |config: &Config| match serde_json::to_value(config) {
        Ok(Value::Object(table)) => table,
        _ => unreachable!("settings are plain tables"),
    };
    // Without rights, a node has the ids that its user has.
    let mut new = new.clone();
    new.sandbox.first_id = old.sandbox.first_id;
    new.sandbox.max = old.sandbox.max;
    let (old, new) = (table(old), table(&new));
    let keys = old
        .keys()
        .chain(new.keys().filter(|key| !old.contains_key(*key)));
    keys.filter(|key| !LIVE.contains(&&***key) && old.get(*key) != new.get(*key))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_change_of_a_class_is_checked_like_settings() {
        #[track_caller]
        fn check(changes: Value, expected: Result<u64, &str>) {
            let Value::Object(changes) = changes else {
                panic!()
            };
            let class = changed(&Class::default(), changes);
            match expected {
                Ok(weight) => assert_eq!(class.unwrap().cpu_weight, weight),
                Err(text) => assert!(
                    class.as_ref().unwrap_err().to_string().contains(text),
                    "{class:?}"
                ),
            }
        }
        check(json!({ "cpu.weight": 7 }), Ok(7));
        check(json!({ "cpu.max": 0.5 }), Ok(100));
        check(json!({ "cpu.weight": 0 }), Err("0 is not from 1 to 10000"));
        check(json!({ "cpu.wait": 1 }), Err("unknown field `cpu.wait`"));
        check(json!({ "memory.max": "much" }), Err("invalid type"));
    }

    #[test]
    fn what_needs_a_restart_is_told() {
        let mut new = Config::default();
        assert_eq!(differing(&Config::default(), &new), [""; 0]);
        new.class.clear();
        new.admission.queue += 1;
        new.drain_timeout_ms += 1;
        new.executor.queue += 1;
        new.sandbox.max -= 1;
        new.sandbox.pool += 1;
        assert_eq!(
            differing(&Config::default(), &new),
            ["drain_timeout_ms", "executor", "sandbox"]
        );
    }
}
