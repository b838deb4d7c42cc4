//! The number of threads that a process computes with: what the user asked for, else what it may use. It is one where a model is
//! so small that threads would only wait for one another.

use std::{
    num::NonZeroUsize,
    sync::atomic::{AtomicUsize, Ordering},
};

/// The number that the user asked for; 0 where nobody did.
static ASKED: AtomicUsize = AtomicUsize::new(0);

/// Asks for a number of threads (`--threads`), for the whole process, before the first model is loaded. `None` asks for none,
/// and leaves what was asked for before.
pub fn ask(threads: Option<NonZeroUsize>) {
    if let Some(threads) = threads {
        ASKED.store(threads.get(), Ordering::Relaxed);
    }
    #[cfg(feature = "torch")]
    tch::set_num_threads(most() as i32);
    #[cfg(not(feature = "torch"))]
    if let Some(threads) = threads {
        // Fails where candle's pool runs already; it then keeps its threads.
        rayon::ThreadPoolBuilder::new().num_threads(threads.get()).build_global().ok();
    }
}

/// Processes of this run on this machine, which share its cores.
static SHARING: AtomicUsize = AtomicUsize::new(1);

/// Tells of the number of processes of this run on this machine, before the first model is loaded.
pub fn share(processes: usize) {
    SHARING.store(processes.max(1), Ordering::Relaxed);
    ask(None);
}

/// The threads to use where nothing else is said: those asked for, else as many as this process may use. That is by its affinity
/// and by the quota of its cgroup, shared among the processes of a run.
pub fn usable() -> usize {
    let sharing = SHARING.load(Ordering::Relaxed);
    match ASKED.load(Ordering::Relaxed) {
        0 => std::thread::available_parallelism().map_or(1, usize::from).div_euclid(sharing).max(1),
        asked => asked,
    }
}

/// Threads of a model that is not small: those asked for, else what `OMP_NUM_THREADS` says, else the usable ones. A core's two
/// hardware threads are counted once.
#[cfg(feature = "torch")]
fn most() -> usize {
    static LIBTORCHS: std::sync::LazyLock<usize> = std::sync::LazyLock::new(|| tch::get_num_threads().max(1) as usize);
    match ASKED.load(Ordering::Relaxed) {
        0 if std::env::var_os("OMP_NUM_THREADS").is_some() => *LIBTORCHS,
        0 => usable().min(*LIBTORCHS),
        asked => asked,
    }
}

/// Multiplications of the largest product of one image below which a model is small.
///
/// Measured on two cores of a Xeon with waiting threads asleep. With 2.4 million (`random:sd-tiny`, `random:sd-toy`) one thread
/// trains 1.4 to 2 times as fast as two. With 240 million (SD 2.1 at 128²) two are faster. Published models have more.
#[cfg(feature = "torch")]
const SMALL: usize = 16_000_000;

/// Tells of a model that is loaded, by the multiplications of its largest product for one image. Sets libtorch's threads to one
/// while all models are small and the user asked for no number.
#[cfg(feature = "torch")]
pub fn settle(multiplications: usize) {
    static LARGEST: AtomicUsize = AtomicUsize::new(0);
    let largest = LARGEST.fetch_max(multiplications, Ordering::Relaxed).max(multiplications);
    let asked = ASKED.load(Ordering::Relaxed) > 0 || std::env::var_os("OMP_NUM_THREADS").is_some();
    tch::set_num_threads(if largest < SMALL && !asked { 1 } else { most() as i32 });
}
