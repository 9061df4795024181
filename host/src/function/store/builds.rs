//! What is known of builds: when, how they ended, and what they wrote.

use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OptionalExtension as _, Row, types::Type};
use serde::Serialize;

use super::{Store, StoreError, write_function};
use crate::{
    function::Function,
    id::{Digest, FunctionName},
};

/// Builds of one function that are remembered, with their logs.
const KEPT: u32 = 10;

const COLUMNS: &str =
    "id, function, state, queued_ms, started_ms, ended_ms, message, artifact, size_bytes";

/// One build.
///
/// As JSON `{"id":1,"function":"hello","state":"failed","queued_ms":1,…,"message":"…"}`;
/// times are milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Build {
    /// Its number, unique on this node.
    pub id: i64,
    /// Whose it is.
    pub function: FunctionName,
    /// How far it is.
    pub state: BuildState,
    /// When it was asked for.
    pub queued_ms: i64,
    /// When its turn came.
    pub started_ms: Option<i64>,
    /// When it ended.
    pub ended_ms: Option<i64>,
    /// Why it failed.
    pub message: Option<String>,
    /// What it made.
    pub artifact: Option<Digest>,
    /// The artifact's size.
    pub size_bytes: Option<i64>,
}

/// How far a build is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BuildState {
    /// It waits for its turn.
    Queued,
    /// It runs.
    Running,
    /// Its artifact is the function's, or was.
    Succeeded,
    /// It made nothing.
    Failed,
}

impl BuildState {
    /// As in the database, in JSON and in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Queued, Self::Running, Self::Succeeded, Self::Failed]
            .into_iter()
            .find(|state| state.as_str() == text)
    }
}

impl Store {
    /// Records that a build was asked for, and forgets the oldest ones of the function.
    ///
    /// # Errors
    /// The disk refused.
    pub async fn queue_build(&self, function: &FunctionName) -> Result<i64, StoreError> {
        let name = function.clone();
        self.write("record a build", move |connection, _| {
            connection.execute(
                "INSERT INTO builds (function, state, queued_ms) VALUES (?1, 'queued', ?2)",
                (name.as_str(), now_ms()),
            )?;
            let id = connection.last_insert_rowid();
            connection.execute(
                "DELETE FROM builds WHERE function = ?1 AND ended_ms IS NOT NULL AND id NOT IN
                 (SELECT id FROM builds WHERE function = ?1 ORDER BY id DESC LIMIT ?2)",
                (name.as_str(), KEPT),
            )?;
            Ok(id)
        })
        .await
    }

    /// Records that a build's turn came.
    ///
    /// # Errors
    /// The disk refused.
    pub async fn start_build(&self, id: i64) -> Result<(), StoreError> {
        self.write("record a build", move |connection, _| {
            connection.execute(
                "UPDATE builds SET state = 'running', started_ms = ?2 WHERE id = ?1",
                (id, now_ms()),
            )?;
            Ok(())
        })
        .await
    }

    /// Records a build's failure and what it wrote.
    ///
    /// # Errors
    /// The disk refused.
    pub async fn fail_build(
        &self,
        id: i64,
        message: String,
        log: Vec<u8>,
    ) -> Result<(), StoreError> {
        self.write("record a build", move |connection, _| {
            connection.execute(
                "UPDATE builds SET state = 'failed', ended_ms = ?2, message = ?3, log = ?4 WHERE id = ?1",
                (id, now_ms(), message, log),
            )?;
            Ok(())
        })
        .await
    }

    /// Records a build's success, what it wrote, and its function, all or nothing.
    ///
    /// # Errors
    /// The disk refused; then the previous function is still the recorded one.
    pub async fn succeed_build(
        &self,
        id: i64,
        function: std::sync::Arc<Function>,
        size_bytes: u64,
        log: Vec<u8>,
    ) -> Result<(), StoreError> {
        self.write("record a build", move |connection, functions| {
            let artifact = function.artifact.as_ref().map(Digest::to_string);
            let size_bytes = i64::try_from(size_bytes).unwrap_or(i64::MAX);
            connection.execute(
                "UPDATE builds SET state = 'succeeded', ended_ms = ?2, artifact = ?3, size_bytes = ?4, log = ?5
                 WHERE id = ?1",
                (id, now_ms(), artifact, size_bytes, log),
            )?;
            write_function(connection, &function)?;
            functions.insert(function.name.clone(), function);
            Ok(())
        })
        .await
    }

    /// The builds of one function, or of all; the newest first.
    ///
    /// # Errors
    /// The disk refused.
    pub async fn builds(&self, function: Option<&FunctionName>) -> Result<Vec<Build>, StoreError> {
        let name = function.map(ToString::to_string);
        self.read("read builds", move |connection| {
            let text = format!(
                "SELECT {COLUMNS} FROM builds WHERE ?1 IS NULL OR function = ?1 ORDER BY id DESC"
            );
            connection
                .prepare_cached(&text)?
                .query_map([name], build)?
                .collect()
        })
        .await
    }

    /// What a build wrote; none where there is no such build, or where it has not ended.
    ///
    /// # Errors
    /// The disk refused.
    pub async fn build_log(&self, id: i64) -> Result<Option<Vec<u8>>, StoreError> {
        self.read("read a build's log", move |connection| {
            let mut query = connection.prepare_cached("SELECT log FROM builds WHERE id = ?1")?;
            Ok(query
                .query_row([id], |row| row.get(0))
                .optional()?
                .flatten())
        })
        .await
    }
}

/// Ends the builds that an earlier process did not.
pub(super) fn fail_unfinished(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute(
        "UPDATE builds SET state = 'failed', ended_ms = ?1, message = 'the node stopped during the build'
         WHERE state IN ('queued', 'running')",
        [now_ms()],
    )?;
    Ok(())
}

/// Milliseconds since 1970; 0 where the clock is before that.
pub(super) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

fn build(row: &Row<'_>) -> rusqlite::Result<Build> {
    let (function, state): (String, String) = (row.get(1)?, row.get(2)?);
    let artifact: Option<String> = row.get(7)?;
    Ok(Build {
        id: row.get(0)?,
        function: FunctionName::try_new(function).map_err(|e| unreadable(1, e))?,
        state: BuildState::parse(&state).ok_or_else(|| unreadable(2, "unknown state"))?,
        queued_ms: row.get(3)?,
        started_ms: row.get(4)?,
        ended_ms: row.get(5)?,
        message: row.get(6)?,
        artifact: artifact
            .map(|text| text.parse())
            .transpose()
            .map_err(|e: crate::id::DigestError| unreadable(7, e))?,
        size_bytes: row.get(8)?,
    })
}

fn unreadable(
    column: usize,
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, error.into())
}
