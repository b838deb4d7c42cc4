//! Memory for decoding: one budget for all threads, so that many large pictures are decoded one after the other.

use std::{
    ffi::OsStr,
    path::Path,
    sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError},
};

/// Bytes that decoding and preprocessing take for a pixel at most. They are the picture, its rows under way (of a progressive
/// JPEG: all coefficients), and a 16-bit copy with its colours weighed by alpha.
pub(super) const BYTES_PER_PIXEL: u64 = 16;

/// Half of the memory this process may take when the first picture is decoded.
static BUDGET: LazyLock<Budget> = LazyLock::new(|| Budget::new(available().unwrap_or(u64::MAX) >> 1));

/// Memory that is handed out in shares.
struct Budget {
    bytes: u64,
    taken: Mutex<u64>,
    given_back: Condvar,
}

/// A share of the budget, given back when dropped.
#[derive(Debug)]
pub(super) struct Share<'a> {
    budget: &'a Budget,
    bytes: u64,
}

/// Waits until a picture of so many pixels fits into the budget beside those under way, or until none is.
pub(super) fn share_for(pixels: u64) -> Share<'static> {
    BUDGET.share(pixels.saturating_mul(BYTES_PER_PIXEL))
}

impl std::fmt::Debug for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.bytes)
    }
}

impl Budget {
    fn new(bytes: u64) -> Self {
        Self { bytes, taken: Mutex::new(0), given_back: Condvar::new() }
    }

    fn taken(&self) -> MutexGuard<'_, u64> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn share(&self, bytes: u64) -> Share<'_> {
        let mut taken = self.taken();
        while *taken > 0 && taken.saturating_add(bytes) > self.bytes {
            taken = self.given_back.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        *taken = taken.saturating_add(bytes);
        Share { budget: self, bytes }
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        let mut taken = self.budget.taken();
        *taken = taken.saturating_sub(self.bytes);
        drop(taken);
        self.budget.given_back.notify_all();
    }
}

/// Bytes this process may still take: what the machine has free, and what its control groups leave it.
fn available() -> Option<u64> {
    let meminfo = fs_err::read_to_string("/proc/meminfo").ok()?;
    let free = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let free = free.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10;
    let group = fs_err::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = fs_err::read_to_string("/proc/self/limits").unwrap_or_default();
    let left = [left_by_groups(Path::new("/sys/fs/cgroup"), &group), left_by_limits(&limits)];
    left.into_iter().flatten().chain([free]).min()
}

/// The smaller of this process's limits (`ulimit -v`, `ulimit -d`); `limits`: `/proc/self/limits`.
fn left_by_limits(limits: &str) -> Option<u64> {
    let of =
        |name: &str| limits.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok();
    [of("Max data size"), of("Max address space")].into_iter().flatten().min()
}

/// What the limits of this process's control group and those above it leave. `root`: where they are mounted; `membership`:
/// `/proc/self/cgroup`.
fn left_by_groups(root: &Path, membership: &str) -> Option<u64> {
    let number = |folder: &Path, name: &str| fs_err::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let left = |folder: &Path, limit: &str, usage: &str| {
        Some(number(folder, limit)?.saturating_sub(number(folder, usage).unwrap_or(0)))
    };
    let paths = membership.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let path = Path::new(path.trim_start_matches('/'));
        match controllers {
            // Version 2.
            "" => Some((root.to_owned(), path, "memory.max", "memory.current")),
            _ if controllers.split(',').any(|controller| controller == "memory") => {
                let root = root.join(OsStr::new("memory"));
                Some((root, path, "memory.limit_in_bytes", "memory.usage_in_bytes"))
            }
            _ => None,
        }
    });
    paths
        .flat_map(|(root, path, limit, usage)| {
            path.ancestors().filter_map(|path| left(&root.join(path), limit, usage)).collect::<Vec<_>>()
        })
        .min()
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU64, Ordering::SeqCst},
        thread,
        time::Duration,
    };

    use super::*;

    #[test]
    fn shares_wait_for_one_another_and_the_largest_is_alone() {
        let (budget, most, now) = (Budget::new(100), AtomicU64::new(0), AtomicU64::new(0));
        thread::scope(|scope| {
            for bytes in [40, 60, 500, 30, 70, 100, 500, 1] {
                let (budget, most, now) = (&budget, &most, &now);
                scope.spawn(move || {
                    for _ in 0..20 {
                        let share = budget.share(bytes);
                        let taken = now.fetch_add(bytes, SeqCst) + bytes;
                        assert!(taken <= 100 || taken == 500, "{taken}");
                        most.fetch_max(taken, SeqCst);
                        thread::sleep(Duration::from_micros(50));
                        now.fetch_sub(bytes, SeqCst);
                        drop(share);
                    }
                });
            }
        });
        assert_eq!((most.into_inner(), *budget.taken()), (500, 0));
    }

    #[test]
    fn the_smallest_of_the_groups_counts() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, text).unwrap();
        };
        assert_eq!(left_by_groups(folder.path(), "0::/\n"), None);
        write("a/memory.max", "1000\n");
        write("a/memory.current", "300\n");
        write("a/b/memory.max", "max\n");
        assert_eq!(left_by_groups(folder.path(), "0::/a/b\n"), Some(700));
        write("a/b/memory.max", "400\n");
        assert_eq!(left_by_groups(folder.path(), "0::/a/b\n"), Some(400));
        write("memory/c/memory.limit_in_bytes", "50\n");
        assert_eq!(left_by_groups(folder.path(), "5:cpu:/x\n4:memory:/c\n"), Some(50));
        let limits = "Max data size             2147483648           unlimited            bytes\n";
        assert_eq!(
            (left_by_limits(limits), left_by_limits("Max data size  unlimited unlimited bytes")),
            (Some(2 << 30), None)
        );
        assert!(available().unwrap() > 0);
    }
}
