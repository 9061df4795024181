//! Tells when the kernel kills a container's process for want of memory.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    event::{EventfdFlags, eventfd},
    fs::inotify::{self, CreateFlags, WatchFlags},
    io::Errno,
};
use tokio::io::unix::AsyncFd;

use super::{Cgroup, CgroupError, Version, folder, sys};

/// Tells when the kernel kills a container's process for want of memory.
#[derive(Debug)]
pub struct OomWatch {
    descriptor: AsyncFd<OwnedFd>,
    source: Source,
    /// What was counted but not told yet.
    n_untold: u64,
    is_over: bool,
}

/// What is asked when the descriptor is readable.
#[derive(Debug)]
enum Source {
    /// Version 1: an eventfd that the kernel adds 1 to at each want of memory, and at the cgroup's end.
    Eventfd { control: File },
    /// Version 2: inotify tells of changes, counters say which.
    Counters {
        events: File,
        memory: File,
        n_told: u64,
    },
}

/// What a look at the source says.
struct Seen {
    n_kills: u64,
    is_over: bool,
}

impl OomWatch {
    pub(super) fn new(cgroup: &Cgroup) -> Result<Self, CgroupError> {
        let missing = || CgroupError::Missing {
            field: "oom".to_owned(),
            what: "the controller memory".to_owned(),
        };
        let version = cgroup.version("memory").ok_or_else(missing)?;
        let path = cgroup.folder("memory").ok_or_else(missing)?;
        let made = match version {
            Version::V1 => watch_v1(path),
            Version::V2 => watch_v2(path),
        };
        let (descriptor, source) = made?;
        let descriptor = sys::watch(descriptor).map_err(read_error(path))?;
        Ok(Self {
            descriptor,
            source,
            n_untold: 0,
            is_over: false,
        })
    }

    /// Waits for the next kill; nothing where the container's cgroup is at its end. May be dropped and called
    /// again at each point.
    pub async fn next(&mut self) -> Option<()> {
        loop {
            if self.n_untold > 0 {
                self.n_untold -= 1;
                return Some(());
            }
            if self.is_over {
                return None;
            }
            let mut guard = self.descriptor.readable().await.ok()?;
            let Ok(seen) = guard.try_io(|descriptor| self.source.look(descriptor.get_ref())) else {
                continue;
            };
            // A descriptor that cannot be read any more will not tell anything.
            let seen = seen.unwrap_or(Seen {
                n_kills: 0,
                is_over: true,
            });
            self.n_untold = seen.n_kills;
            self.is_over = seen.is_over;
        }
    }
}

fn read_error(path: &Path) -> impl Fn(io::Error) -> CgroupError {
    let path = path.to_owned();
    move |source| CgroupError::Read {
        path: path.clone(),
        source,
    }
}

/// Source: `Documentation/admin-guide/cgroup-v1/memory.rst` of Linux 6.1, "OOM Control".
fn watch_v1(path: &Path) -> Result<(OwnedFd, Source), CgroupError> {
    let error = read_error(path);
    let control = File::open(path.join("memory.oom_control")).map_err(&error)?;
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let descriptor = eventfd(0, flags).map_err(io::Error::from).map_err(&error)?;
    let value = format!("{} {}", descriptor.as_raw_fd(), control.as_raw_fd());
    folder::write(path, "cgroup.event_control", &value).map_err(|source| CgroupError::Write {
        field: "oom".to_owned(),
        file: path.join("cgroup.event_control"),
        source,
    })?;
    Ok((descriptor, Source::Eventfd { control }))
}

/// Source: `Documentation/admin-guide/cgroup-v2.rst` of Linux 6.1, `memory.events`.
fn watch_v2(path: &Path) -> Result<(OwnedFd, Source), CgroupError> {
    let error = read_error(path);
    let descriptor = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
        .map_err(io::Error::from)
        .map_err(&error)?;
    let mut files = Vec::with_capacity(2);
    for name in ["cgroup.events", "memory.events"] {
        let file: PathBuf = path.join(name);
        inotify::add_watch(&descriptor, &file, WatchFlags::MODIFY)
            .map_err(io::Error::from)
            .map_err(read_error(&file))?;
        files.push(File::open(&file).map_err(read_error(&file))?);
    }
    let (Some(memory), Some(events)) = (files.pop(), files.pop()) else {
        unreachable!("two files were pushed");
    };
    let n_told = n_kills(&memory).map_err(&error)?;
    let source = Source::Counters {
        events,
        memory,
        n_told,
    };
    Ok((descriptor, source))
}

fn n_kills(memory: &File) -> io::Result<u64> {
    let text = folder::read_open(memory.as_fd())?;
    Ok(counter(&text, "oom_kill").unwrap_or(0))
}

/// A line's number, as in `oom_kill 3`.
fn counter(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(' ')?;
        (key == name).then(|| value.trim().parse().ok()).flatten()
    })
}

impl Source {
    /// Empties the descriptor, and says what happened since.
    fn look(&mut self, descriptor: &OwnedFd) -> io::Result<Seen> {
        match self {
            Self::Eventfd { control } => {
                let mut count = [0; 8];
                rustix::io::read(descriptor, &mut count)?;
                let n_events = u64::from_ne_bytes(count);
                let is_over = match folder::read_open(control.as_fd()) {
                    Ok(_) => false,
                    Err(error) if folder::is_gone(&error) => true,
                    Err(error) => return Err(error),
                };
                // The end itself is one of the events.
                let n_kills = n_events - u64::from(is_over);
                Ok(Seen { n_kills, is_over })
            }
            Self::Counters {
                events,
                memory,
                n_told,
            } => {
                drain(descriptor)?;
                let is_empty = match folder::read_open(events.as_fd()) {
                    Ok(text) => counter(&text, "populated") == Some(0),
                    Err(error) if folder::is_gone(&error) => true,
                    Err(error) => return Err(error),
                };
                // Read after the other: what was counted before the end is told.
                let n_now = n_kills(memory).unwrap_or(*n_told);
                let n_kills = n_now.saturating_sub(*n_told);
                *n_told = n_now;
                Ok(Seen {
                    n_kills,
                    is_over: is_empty,
                })
            }
        }
    }
}

fn drain(descriptor: &OwnedFd) -> io::Result<()> {
    let mut buffer = [0; 4096];
    let mut n_reads = 0;
    loop {
        match rustix::io::read(descriptor, &mut buffer) {
            Ok(_) => n_reads += 1,
            Err(Errno::AGAIN) if n_reads > 0 => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::counter;

    #[test]
    fn a_counter_is_found_by_its_whole_name() {
        let text = "low 0\noom 7\noom_kill 3\noom_group_kill 9\n";
        for (name, expected) in [("oom_kill", Some(3)), ("oom", Some(7)), ("high", None)] {
            assert_eq!(counter(text, name), expected);
        }
    }
}
