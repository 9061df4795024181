//! The embedded database of one node: functions and their builds, in `<state_dir>/opr.db`.
//!
//! Reads of functions come from memory, since every execution asks. A write reaches the disk first and
//! memory after it, on a thread that may block. One process holds the database, so memory is never stale.
//!
//! SQLite in WAL mode with `synchronous = FULL`: each commit is synced, and deployments are too rare for
//! that to cost anything, while a deployment that was answered must outlive a power cut.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use rusqlite::{Connection, ErrorCode};

use super::Function;
use crate::id::FunctionName;

mod builds;

pub use builds::{Build, BuildState};

const FILE: &str = "opr.db";
/// Marks a database as this program's: "opr" and a nought.
const APPLICATION_ID: i64 = 0x6f70_7200;
/// How long a process that is just ending may still hold the database.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// What brings a database of version n (its `user_version`) to n + 1. Never changed, only added to.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE functions (
        name TEXT PRIMARY KEY, document TEXT NOT NULL, updated_ms INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE builds (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        function TEXT NOT NULL, state TEXT NOT NULL,
        queued_ms INTEGER NOT NULL, started_ms INTEGER, ended_ms INTEGER,
        message TEXT, artifact TEXT, size_bytes INTEGER, log BLOB
    ) STRICT;
    CREATE INDEX builds_by_function ON builds (function, id);
"];

/// Functions and builds that last.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    connection: Mutex<Connection>,
    functions: ArcSwap<Functions>,
}

type Functions = BTreeMap<FunctionName, Arc<Function>>;

/// The database failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Its file cannot be made or opened.
    #[error("cannot open the database {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is damaged. It is left as it is.
    #[error("the database {path} is damaged: {what}; restore it, or move it away to start afresh")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// The file is another program's. It is left as it is.
    #[error("{path} is no database of this program")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A newer version of this program wrote it. It is left as it is.
    #[error("the database {path} has version {found}, but this program knows {known} at most")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: usize,
        /// The newest known one.
        known: usize,
    },
    /// Another process holds it.
    #[error("the database {path} is in use by another process")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// A statement failed: the disk is full, or it broke.
    #[error("cannot {what} in the database {path}")]
    Statement {
        /// What was to be done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
}

impl Store {
    /// Opens the database in `state_dir`, made where there is none. Blocks: called once, at start.
    ///
    /// Builds that an earlier process left unfinished are marked as failed.
    ///
    /// # Errors
    /// See [`StoreError`]; what cannot be understood is never overwritten.
    pub fn open(state_dir: &Path) -> Result<Self, StoreError> {
        let path = state_dir.join(FILE);
        create(&path).map_err(|source| StoreError::Open {
            path: path.clone(),
            source,
        })?;
        let mut connection =
            Connection::open(&path).map_err(|e| failed("open tables", &path, e))?;
        prepare(&connection, &path)?;
        migrate(&mut connection, &path)?;
        builds::fail_unfinished(&connection).map_err(|e| failed("end builds", &path, e))?;
        let functions = load(&connection, &path)?;
        Ok(Self {
            inner: Arc::new(Inner {
                path,
                connection: Mutex::new(connection),
                functions: ArcSwap::from_pointee(functions),
            }),
        })
    }

    /// A function, from memory.
    pub fn get(&self, name: &FunctionName) -> Option<Arc<Function>> {
        self.inner.functions.load().get(name).cloned()
    }

    /// All functions by name, from memory.
    pub fn list(&self) -> Vec<Arc<Function>> {
        self.inner.functions.load().values().cloned().collect()
    }

    /// Records a function, in the place of the one of its name.
    ///
    /// # Errors
    /// The disk refused; then nothing has changed.
    pub async fn put(&self, function: Function) -> Result<Arc<Function>, StoreError> {
        let function = Arc::new(function);
        let kept = function.clone();
        self.write("record a function", move |connection, functions| {
            write_function(connection, &kept)?;
            functions.insert(kept.name.clone(), kept);
            Ok(())
        })
        .await?;
        Ok(function)
    }

    /// Removes a function and what is known of its builds. Answers the function, where there was one.
    ///
    /// # Errors
    /// The disk refused; then nothing has changed.
    pub async fn remove(&self, name: &FunctionName) -> Result<Option<Arc<Function>>, StoreError> {
        let name = name.clone();
        self.write("remove a function", move |connection, functions| {
            connection.execute("DELETE FROM functions WHERE name = ?1", [name.as_str()])?;
            connection.execute("DELETE FROM builds WHERE function = ?1", [name.as_str()])?;
            Ok(functions.remove(&name))
        })
        .await
    }

    /// Runs one transaction, and shows its functions to readers once it is on disk. Goes on where the
    /// caller goes away.
    async fn write<T: Send + 'static>(
        &self,
        what: &'static str,
        step: impl FnOnce(&Connection, &mut Functions) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = self.inner.clone();
        let work = move || {
            let mut connection = inner.lock();
            let mut functions = Functions::clone(&inner.functions.load());
            let outcome = connection.transaction().and_then(|transaction| {
                let outcome = step(&transaction, &mut functions)?;
                transaction.commit()?;
                Ok(outcome)
            });
            let outcome = outcome.map_err(|source| failed(what, &inner.path, source))?;
            inner.functions.store(Arc::new(functions));
            Ok(outcome)
        };
        tokio::task::spawn_blocking(work)
            .await
            .expect("a transaction does not panic, and is not cancelled")
    }

    /// Asks the disk.
    async fn read<T: Send + 'static>(
        &self,
        what: &'static str,
        step: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = self.inner.clone();
        let work = move || step(&inner.lock()).map_err(|e| failed(what, &inner.path, e));
        tokio::task::spawn_blocking(work)
            .await
            .expect("a query does not panic, and is not cancelled")
    }
}

impl Inner {
    /// A panic in a transaction rolls it back, so that the connection stays good.
    fn lock(&self) -> std::sync::MutexGuard<'_, Connection> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// SQLite gives its further files the mode of this one. Variables may be secrets.
fn create(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))
}

fn prepare(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let fail = |source| failed("read", path, source);
    connection.busy_timeout(BUSY_TIMEOUT).map_err(fail)?;
    let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let n_tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(fail)?;
    if n_tables > 0 && number("application_id").map_err(fail)? != APPLICATION_ID {
        return Err(StoreError::Foreign {
            path: path.to_owned(),
        });
    }
    let found = usize::try_from(number("user_version").map_err(fail)?).unwrap_or(usize::MAX);
    if found > MIGRATIONS.len() {
        return Err(StoreError::Newer {
            path: path.to_owned(),
            found,
            known: MIGRATIONS.len(),
        });
    }
    connection
        .execute_batch(
            "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
             PRAGMA foreign_keys = ON; PRAGMA trusted_schema = OFF;",
        )
        .map_err(fail)?;
    let what: String = connection
        .pragma_query_value(None, "quick_check", |row| row.get(0))
        .map_err(fail)?;
    if what != "ok" {
        return Err(corrupt(path, what));
    }
    Ok(())
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let mut run = || {
        let transaction = connection.transaction()?;
        let found: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
        for step in MIGRATIONS
            .iter()
            .skip(usize::try_from(found).unwrap_or_default())
        {
            transaction.execute_batch(step)?;
        }
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", MIGRATIONS.len())?;
        transaction.commit()
    };
    run().map_err(|source| failed("bring tables up to date", path, source))
}

fn load(connection: &Connection, path: &Path) -> Result<Functions, StoreError> {
    let fail = |source| failed("read functions", path, source);
    let mut query = connection
        .prepare("SELECT name, document FROM functions")
        .map_err(fail)?;
    let rows = query
        .query_map([], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
        })
        .map_err(fail)?;
    let mut functions = Functions::new();
    for row in rows {
        let (name, document) = row.map_err(fail)?;
        let function: Function = serde_json::from_str(&document)
            .map_err(|error| corrupt(path, format!("function {name}: {error}")))?;
        functions.insert(function.name.clone(), Arc::new(function));
    }
    Ok(functions)
}

fn write_function(connection: &Connection, function: &Function) -> rusqlite::Result<()> {
    let document = serde_json::to_string(function)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    connection.execute(
        "INSERT INTO functions (name, document, updated_ms) VALUES (?1, ?2, ?3)
         ON CONFLICT (name) DO UPDATE SET document = excluded.document, updated_ms = excluded.updated_ms",
        (function.name.as_str(), document, builds::now_ms()),
    )?;
    Ok(())
}

fn failed(what: &'static str, path: &Path, source: rusqlite::Error) -> StoreError {
    match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            corrupt(path, source.to_string())
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::InUse {
            path: path.to_owned(),
        },
        _ => StoreError::Statement {
            what,
            path: path.to_owned(),
            source,
        },
    }
}

fn corrupt(path: &Path, what: String) -> StoreError {
    StoreError::Corrupt {
        path: path.to_owned(),
        what,
    }
}

#[cfg(test)]
mod tests;
