//! The watch over the other ranks: a rank that has died, stands still or failed ends all others within a time limit, by its name.
//!
//! Every rank counts a beat up in the store each second, from a thread of its own, as a step or roll-out may take minutes. Rank 0
//! looks at all beats, the others at rank 0's, so that the store's work grows with the number of ranks only. What one finds is
//! written to the store, where all look for it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::c10d::{self, Store};
use crate::Error;

const BEAT: Duration = Duration::from_secs(1);

/// What is told of a rank that is lost; the process cannot go on, and as a rule ends there.
pub(super) type Lost = Box<dyn Fn(&Error) + Send>;

/// Beats and looks until it is dropped.
pub(super) struct Watch {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    store: Store,
    rank: usize,
    size: usize,
    silence: Duration,
    /// Who keeps the store, for messages.
    keeper: String,
    started: Instant,
    /// Milliseconds from `started` to the last time that the store answered.
    answered: AtomicU64,
    /// Set where this rank looks no more.
    over: AtomicBool,
    /// Set where this rank needs the store no more.
    parted: AtomicBool,
}

impl Watch {
    /// Begins to beat and to look, over a connection `store` of its own. `silence`: how long a rank may be silent.
    pub(super) fn begin(store: Store, rank: usize, size: usize, silence: Duration, keeper: String, lost: Lost) -> Self {
        let shared = Arc::new(Shared {
            store,
            rank,
            size,
            silence,
            keeper,
            started: Instant::now(),
            answered: AtomicU64::new(0),
            over: AtomicBool::new(false),
            parted: AtomicBool::new(false),
        });
        let (own, lost) = (Arc::clone(&shared), Arc::new(std::sync::Mutex::new(lost)));
        let tell = move |why: String| {
            // The first to find something tells it; who comes second waits for the end of the process here.
            let Ok(lost) = lost.lock() else { return };
            lost(
                &Error::data(why)
                    .hint("where a checkpoint was written, the same command with --resume goes on from it"),
            );
        };
        let told = tell.clone();
        let looks = thread::spawn(move || {
            if let Some(why) = own.look() {
                told(why);
            }
        });
        let own = Arc::clone(&shared);
        let listens = thread::spawn(move || {
            if let Some(why) = own.listen() {
                tell(why);
            }
        });
        Self { shared, threads: vec![looks, listens] }
    }

    /// Tells all ranks that this one failed. The first that fails is the cause.
    pub(super) fn failed(&self, why: &str) {
        self.shared.over.store(true, Ordering::Relaxed);
        self.shared.fail(&format!("{} failed: {why}", self.shared.name(self.shared.rank))).ok();
    }

    /// Waits for what another rank died of to come to light, and for the end of this process that follows.
    pub(super) fn wait(&self) {
        thread::sleep(self.shared.silence + 8 * BEAT);
    }

    /// Counts this rank as one that has ended; the one that keeps the store waits for the others.
    pub(super) fn leave(&self, keeps_store: bool) {
        self.shared.over.store(true, Ordering::Relaxed);
        let (store, size) = (&self.shared.store, self.shared.size as i64);
        store.set(&left(self.shared.rank), b"").ok();
        let mut left = store.add("left", 1);
        let limit = Instant::now() + self.shared.silence;
        while keeps_store && left.as_ref().is_ok_and(|left| *left < size) && Instant::now() < limit {
            thread::sleep(Duration::from_millis(20));
            left = store.add("left", 0);
            self.shared.has_answered();
        }
        self.shared.parted.store(true, Ordering::Relaxed);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        self.shared.parted.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            thread.join().ok();
        }
    }
}

impl Shared {
    fn over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Beats and looks; gives what it found.
    fn look(&self) -> Option<String> {
        let mut seen: Vec<(i64, Instant)> = vec![(-1, Instant::now()); if self.rank == 0 { self.size } else { 1 }];
        while !self.over() {
            match self.round(&mut seen) {
                Ok(None) => self.has_answered(),
                Ok(Some(why)) => {
                    // The others read it from the store of rank 0; where rank 0 has failed itself, it waits for them.
                    match self.rank {
                        0 => thread::sleep(2 * BEAT),
                        _ => drop(self.store.add("left", 1)),
                    }
                    return Some(why);
                }
                Err(_) if self.over() => return None,
                Err(why) => return Some(format!("{} is gone: {why}", self.keeper)),
            }
            thread::park_timeout(BEAT);
        }
        None
    }

    fn round(&self, seen: &mut [(i64, Instant)]) -> c10d::Result<Option<String>> {
        self.store.add(&beat(self.rank), 1)?;
        if self.store.has("failed")? {
            return Ok(Some(String::from_utf8_lossy(&self.store.get("failed")?).into_owned()));
        }
        for (rank, (count, since)) in seen.iter_mut().enumerate() {
            let now = self.store.add(&beat(rank), 0)?;
            if now != *count {
                (*count, *since) = (now, Instant::now());
            } else if since.elapsed() > self.silence && !self.has_left(rank)? {
                self.fail(&format!("{} has not answered for {} s", self.name(rank), self.silence.as_secs()))?;
            }
        }
        Ok(None)
    }

    /// Waits until the store has been silent for too long: its connection may stand still, and `look` with it.
    fn listen(&self) -> Option<String> {
        while !self.parted.load(Ordering::Relaxed) {
            thread::park_timeout(BEAT);
            let answered = Duration::from_millis(self.answered.load(Ordering::Relaxed));
            if self.started.elapsed() - answered > self.silence + BEAT {
                return Some(format!("{} has not answered for {} s", self.keeper, self.silence.as_secs()));
            }
        }
        None
    }

    fn has_answered(&self) {
        self.answered.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn has_left(&self, rank: usize) -> c10d::Result<bool> {
        self.store.has(&left(rank))
    }

    fn fail(&self, why: &str) -> c10d::Result<()> {
        // The second look is for a rank that died between its two calls.
        if self.store.add("failures", 1)? == 1 || !self.store.has("failed")? {
            self.store.set("failed", why.as_bytes())?;
        }
        Ok(())
    }

    fn name(&self, rank: usize) -> String {
        name(&self.store, rank)
    }
}

fn beat(rank: usize) -> String {
    format!("beat/{rank}")
}

fn left(rank: usize) -> String {
    format!("left/{rank}")
}

/// A rank as messages name it: its number, machine and process.
pub(super) fn name(store: &Store, rank: usize) -> String {
    let key = who(rank);
    let known = store.has(&key).unwrap_or(false).then(|| store.get(&key).ok()).flatten();
    match known {
        Some(who) => format!("rank {rank} ({})", String::from_utf8_lossy(&who)),
        None => format!("rank {rank}"),
    }
}

/// The key under which a rank says who it is.
pub(super) fn who(rank: usize) -> String {
    format!("who/{rank}")
}
