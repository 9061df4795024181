//! What a bundle remembers of its container, for the `delete` action after this process is gone.
//!
//! `init.json`, version 1: `{"version":1,"pid":4711,"start_time":1234567,"systemd_cgroup":false}`. The pid alone could
//! be another process by then; together with its start time it is not.

use std::{fs, io, path::Path};

use serde::{Deserialize, Serialize};

/// In the bundle.
const FILE: &str = "init.json";

/// The main process and its cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    version: u32,
    /// The main process.
    pub pid: u32,
    /// Clock ticks after boot.
    start_time: u64,
    /// The cgroup is systemd's.
    pub systemd_cgroup: bool,
}

impl Record {
    /// Notes a process that is alive or waits to be reaped.
    ///
    /// # Errors
    /// There is no such process.
    pub fn of(pid: u32, systemd_cgroup: bool) -> io::Result<Self> {
        Ok(Self {
            version: 1,
            pid,
            start_time: start_time(pid)?,
            systemd_cgroup,
        })
    }

    /// # Errors
    /// The bundle cannot be written.
    pub fn write(&self, bundle: &Path) -> io::Result<()> {
        let new = bundle.join(".init.json");
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(new, bundle.join(FILE))
    }

    /// None where the bundle has none, or a bad one.
    #[must_use]
    pub fn read(bundle: &Path) -> Option<Self> {
        let text = fs::read(bundle.join(FILE)).ok()?;
        let record: Self = serde_json::from_slice(&text).ok()?;
        (record.version == 1).then_some(record)
    }

    /// Whether the process is still the one that was noted.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        start_time(self.pid).is_ok_and(|time| time == self.start_time)
    }
}

/// Source: `proc_pid_stat(5)`, field 22; the second field may hold spaces and parentheses.
fn start_time(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    let time = after.split_whitespace().nth(19);
    time.and_then(|time| time.parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_a_process_from_another_with_its_pid() {
        let bundle = tempfile::tempdir().unwrap();
        let record = Record::of(std::process::id(), true).unwrap();
        record.write(bundle.path()).unwrap();
        let read = Record::read(bundle.path()).unwrap();
        assert_eq!(read, record);
        assert!(read.is_alive());
        let other = Record {
            start_time: record.start_time - 1,
            ..record
        };
        assert!(!other.is_alive());
        fs::write(bundle.path().join(FILE), "{}").unwrap();
        assert_eq!(Record::read(bundle.path()), None);
    }
}
