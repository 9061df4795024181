//! Sandbox slots: a user namespace and the network namespace it owns, made ahead of their use.
//!
//! A slot is used by one sandbox and destroyed with it.
//!
//! ```text
//! <run_dir>/slots/<n>/user   the user namespace, ids first_id + n * 65,536
//! <run_dir>/slots/<n>/net    the network namespace; absent for outbound `host`
//! <run_dir>/slots/<n>/nat    says that CNI has to take an address back
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::Duration,
};

use rustix::mount::{UnmountFlags, mount_bind, unmount};

use super::network::Network;
use crate::{
    config::{Outbound, Sandboxes},
    sys::{self, Holder, IDS},
};

/// How long the end of the pool waits for the thread that fills it.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// Namespaces for one sandbox.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) index: u32,
    /// The id outside that is root inside.
    pub(super) first_id: u32,
    /// Where the user namespace is pinned.
    pub(super) user: PathBuf,
    /// Where the network namespace is pinned, and the namespace itself.
    pub(super) net: Option<(PathBuf, Arc<OwnedFd>)>,
}

/// The slots of a node: those in use are known by index, those made ahead wait here.
#[derive(Debug)]
pub(super) struct Slots {
    dir: PathBuf,
    settings: Sandboxes,
    network: Network,
    state: Mutex<State>,
    /// Told when a thread has ended that makes slots ahead.
    filled: Condvar,
    /// One child is made at a time: one must not inherit another's pipe.
    making: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    used: BTreeSet<u32>,
    /// Those of the used that have no owner and could not be destroyed: tried again at times.
    resisting: BTreeSet<u32>,
    ready: BTreeMap<Outbound, Vec<Slot>>,
    /// Kinds that a thread is making now.
    coming: BTreeSet<Outbound>,
    /// No more are made ahead.
    is_closed: bool,
}

impl Slots {
    pub(super) fn new(run_dir: &Path, settings: Sandboxes) -> io::Result<Self> {
        let dir = run_dir.join("slots");
        fs::create_dir_all(&dir)?;
        let network = Network::new(run_dir, &settings);
        Ok(Self {
            dir,
            settings,
            network,
            state: Mutex::default(),
            filled: Condvar::new(),
            making: Mutex::default(),
        })
    }

    /// A slot made ahead, or a new one. Blocks; the pool is refilled behind it.
    pub(super) fn take(self: &Arc<Self>, outbound: Outbound) -> io::Result<Slot> {
        let ready = self.lock().ready.get_mut(&outbound).and_then(Vec::pop);
        self.refill(outbound);
        match ready {
            Some(slot) => Ok(slot),
            None => self.make(outbound),
        }
    }

    /// A slot made ahead, without waiting.
    pub(super) fn take_ready(self: &Arc<Self>, outbound: Outbound) -> Option<Slot> {
        let slot = self.lock().ready.get_mut(&outbound).and_then(Vec::pop)?;
        self.refill(outbound);
        Some(slot)
    }

    /// Makes slots in the background until the pool of this kind is full.
    pub(super) fn refill(self: &Arc<Self>, outbound: Outbound) {
        {
            let mut state = self.lock();
            let ready = state.ready.get(&outbound).map_or(0, Vec::len);
            if state.is_closed || ready >= self.settings.pool || !state.coming.insert(outbound) {
                return;
            }
        }
        let slots = Arc::clone(self);
        let work = move || slots.fill(outbound);
        if thread::Builder::new()
            .name("opr-slots".into())
            .spawn(work)
            .is_err()
        {
            self.lock().coming.remove(&outbound);
        }
    }

    fn fill(&self, outbound: Outbound) {
        let _ = self.discard_resisting();
        loop {
            {
                let mut state = self.lock();
                let ready = state.ready.get(&outbound).map_or(0, Vec::len);
                if state.is_closed || ready >= self.settings.pool {
                    state.coming.remove(&outbound);
                    self.filled.notify_all();
                    return;
                }
            }
            match self.make(outbound) {
                Ok(slot) => self.keep(outbound, slot),
                Err(error) => {
                    tracing::warn!(%error, ?outbound, "slot was not made ahead");
                    self.lock().coming.remove(&outbound);
                    self.filled.notify_all();
                    return;
                }
            }
        }
    }

    /// Puts a slot into the pool; destroys it where the pool has been closed meanwhile.
    fn keep(&self, outbound: Outbound, slot: Slot) {
        let mut state = self.lock();
        if !state.is_closed {
            state.ready.entry(outbound).or_default().push(slot);
            return;
        }
        drop(state);
        let _ = self.discard(slot.index);
    }

    /// Takes a slot that a sandbox of an earlier process uses.
    pub(super) fn adopt(&self, index: u32) -> io::Result<Slot> {
        let slot = self.open(index)?;
        self.lock().used.insert(index);
        Ok(slot)
    }

    /// Destroys each slot on disk that nobody owns.
    pub(super) fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let Some(index) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let is_strange = self.lock().used.insert(index);
            if is_strange {
                let _ = self.discard(index);
            }
        }
        Ok(())
    }

    /// Whether a sandbox or the pool has this slot.
    pub(super) fn is_used(&self, index: u32) -> bool {
        self.lock().used.contains(&index)
    }

    /// Makes no more slots ahead.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
    }

    /// Makes no more slots ahead, and destroys those that wait in the pool.
    ///
    /// # Errors
    /// `TimedOut` where one is still being made: the thread that makes it destroys it.
    pub(super) fn drain(&self) -> io::Result<()> {
        self.close();
        let (mut state, wait) = self
            .filled
            .wait_timeout_while(self.lock(), DRAIN_LIMIT, |state| !state.coming.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        let ready = std::mem::take(&mut state.ready);
        drop(state);
        let indices = ready.into_values().flatten().map(|slot| slot.index);
        let resisted = self.discard_resisting();
        let discarded: Vec<_> = indices.map(|index| self.discard(index)).collect();
        resisted?;
        discarded.into_iter().collect::<io::Result<()>>()?;
        if wait.timed_out() {
            let message = "a slot is still being made";
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
        Ok(())
    }

    /// Removes the network of all slots, once there are none.
    ///
    /// # Errors
    /// `ResourceBusy` where there are.
    pub(super) fn remove_network(&self) -> io::Result<()> {
        if !self.lock().used.is_empty() {
            let message = "there are slots that use the network";
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, message));
        }
        self.network.remove_all()
    }

    /// Gives back all of a slot. Succeeds where a part of it is gone.
    pub(super) fn destroy(&self, index: u32) -> io::Result<()> {
        let dir = self.dir.join(index.to_string());
        if dir.join("nat").exists() {
            self.network.remove(index, &dir.join("net"))?;
        }
        for name in ["net", "user"] {
            detach(&dir.join(name))?;
        }
        remove_dir(&dir)?;
        self.lock().used.remove(&index);
        Ok(())
    }

    /// Destroys a slot that nobody owns. One that resists keeps its index, is told of and tried again.
    fn discard(&self, index: u32) -> io::Result<()> {
        self.destroy(index).inspect_err(|error| {
            tracing::warn!(%error, slot = index, "slot without an owner was not destroyed");
            self.lock().resisting.insert(index);
        })
    }

    fn discard_resisting(&self) -> io::Result<()> {
        let resisting = std::mem::take(&mut self.lock().resisting);
        let discarded: Vec<_> = resisting
            .into_iter()
            .map(|index| self.discard(index))
            .collect();
        discarded.into_iter().collect()
    }

    fn make(&self, outbound: Outbound) -> io::Result<Slot> {
        let index = self.reserve()?;
        let made = self.pin(index, outbound).and_then(|()| self.open(index));
        if made.is_err() {
            let _ = self.discard(index);
        }
        made
    }

    fn reserve(&self) -> io::Result<u32> {
        let used = &mut self.lock().used;
        let full = || io::Error::new(io::ErrorKind::QuotaExceeded, "no free sandbox slot");
        let index = (0..self.settings.max)
            .find(|index| !used.contains(index))
            .ok_or_else(full)?;
        used.insert(index);
        Ok(index)
    }

    fn pin(&self, index: u32, outbound: Outbound) -> io::Result<()> {
        let dir = self.dir.join(index.to_string());
        fs::create_dir_all(&dir)?;
        let has_net = outbound != Outbound::Host;
        let holder = {
            let _one = self.making.lock().unwrap_or_else(PoisonError::into_inner);
            Holder::new(self.first_id(index)?, has_net)?
        };
        bind(&holder.namespace("user"), &dir.join("user"))?;
        if !has_net {
            return Ok(());
        }
        let net = dir.join("net");
        bind(&holder.namespace("net"), &net)?;
        let netns = fs::File::open(&net)?;
        in_network(netns.as_fd(), || {
            sys::loopback_up()?;
            Network::forbid_version_6()
        })?;
        if outbound == Outbound::Nat {
            fs::write(dir.join("nat"), "")?;
            self.network.add(index, &net)?;
        }
        Ok(())
    }

    fn open(&self, index: u32) -> io::Result<Slot> {
        let dir = self.dir.join(index.to_string());
        let user = dir.join("user");
        fs::metadata(&user)?;
        let path = dir.join("net");
        let net = match fs::File::open(&path) {
            Ok(file) => Some((path, Arc::new(OwnedFd::from(file)))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Slot {
            index,
            first_id: self.first_id(index)?,
            user,
            net,
        })
    }

    fn first_id(&self, index: u32) -> io::Result<u32> {
        index
            .checked_mul(IDS)
            .and_then(|offset| self.settings.first_id.checked_add(offset))
            .ok_or_else(|| io::Error::other("sandbox.first_id leaves too few ids"))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs `work` on a thread of its own inside a network namespace.
pub(super) fn in_network<T: Send>(
    netns: BorrowedFd<'_>,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("opr-net".into())
            .spawn_scoped(scope, move || {
                sys::enter_network(netns).and_then(|()| work())
            })?;
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}

fn bind(source: &str, target: &Path) -> io::Result<()> {
    fs::File::create(target)?;
    Ok(mount_bind(source, target)?)
}

/// Unmounts `path` at once, whoever still uses it. Succeeds where nothing is mounted.
pub(super) fn detach(path: &Path) -> io::Result<()> {
    use rustix::io::Errno;
    loop {
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Removes a folder and all in it, not following links. Succeeds where there is none.
pub(super) fn remove_dir(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
