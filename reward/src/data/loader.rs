//! Work done ahead in threads and handed over in order: decoding images while the model computes.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

/// Threads that decode: as many as asked for, up to 1,024, else as many as compute ([`usable`](crate::threads::usable)), up to
/// the 32 that feed any model.
pub fn workers(asked: Option<usize>) -> usize {
    const ENOUGH: usize = 32;
    const MOST: usize = 1024;
    asked.map_or_else(|| crate::threads::usable().min(ENOUGH), |asked| asked.min(MOST))
}

/// Applies `work` to `items` in `workers` threads and gives `consume` the results in the order of the items, whatever
/// the number of workers. With 0 the calling thread does the work.
///
/// At most `ahead` (at least 1) items are being worked on or wait to be consumed; `items` is drawn from in the calling
/// thread. A panic of `work` is resumed where its result would have come. When `consume` returns early, no item is
/// started any more and the call returns once those in work are done.
pub fn ordered<T: Send, U: Send, R>(
    items: impl Iterator<Item = T>,
    workers: usize,
    ahead: usize,
    work: impl Fn(T) -> U + Sync,
    consume: impl FnOnce(&mut dyn Iterator<Item = U>) -> R,
) -> R {
    if workers == 0 {
        return consume(&mut items.map(work));
    }
    let (jobs, queue) = unbounded::<Job<T, U>>();
    // Never more threads than items.
    let useful = items.size_hint().1.unwrap_or(usize::MAX);
    thread::scope(|scope| {
        for _ in 0..workers.min(ahead.max(1)).min(useful) {
            scope.spawn(|| {
                for Job { item, answer } in &queue {
                    // Nobody listens once the consumer has left: nothing is lost then.
                    let _ = answer.send(catch_unwind(AssertUnwindSafe(|| work(item))));
                }
            });
        }
        // Dropped at the end of this closure, also when `consume` panics: that lets the workers go.
        let mut results =
            Results { items: items.fuse(), jobs, queue: queue.clone(), pending: VecDeque::new(), ahead: ahead.max(1) };
        consume(&mut results)
    })
}

struct Job<T, U> {
    item: T,
    answer: Sender<thread::Result<U>>,
}

struct Results<I: Iterator<Item = T>, T, U> {
    items: std::iter::Fuse<I>,
    jobs: Sender<Job<T, U>>,
    queue: Receiver<Job<T, U>>,
    pending: VecDeque<Receiver<thread::Result<U>>>,
    ahead: usize,
}

impl<I: Iterator<Item = T>, T, U> Iterator for Results<I, T, U> {
    type Item = U;

    fn next(&mut self) -> Option<U> {
        while self.pending.len() < self.ahead
            && let Some(item) = self.items.next()
        {
            let (answer, result) = bounded(1);
            self.jobs.send(Job { item, answer }).expect("`self.queue` keeps the channel open");
            self.pending.push_back(result);
        }
        let result = self.pending.pop_front()?.recv().expect("a worker answers every job it takes");
        Some(result.unwrap_or_else(|panic| resume_unwind(panic)))
    }
}

impl<I: Iterator<Item = T>, T, U> Drop for Results<I, T, U> {
    fn drop(&mut self) {
        while self.queue.try_recv().is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::time::{Duration, Instant};

    use super::*;

    fn slow_first(item: usize) -> usize {
        thread::sleep(Duration::from_micros(if item.is_multiple_of(7) { 2000 } else { 50 }));
        item * 10
    }

    #[test]
    fn order_is_that_of_the_items_at_any_worker_count() {
        let expected: Vec<usize> = (0..100).map(|item| item * 10).collect();
        for (workers, ahead) in [(0, 4), (1, 1), (2, 0), (3, 8), (16, 4), (4, 1000)] {
            let results: Vec<usize> = ordered(0..100, workers, ahead, slow_first, |results| results.collect());
            assert_eq!(results, expected, "{workers} workers, {ahead} ahead");
        }
        assert_eq!(ordered(0..0, 3, 4, slow_first, |results| results.count()), 0);
    }

    #[test]
    fn works_ahead_but_not_beyond_the_bound() {
        let started = AtomicUsize::new(0);
        let work = |item: usize| started.fetch_add(1, SeqCst) + item;
        ordered(0..100, 4, 5, work, |results| {
            for taken in 1..=20 {
                results.next();
                assert!(started.load(SeqCst) <= taken - 1 + 5);
            }
            let patience = Instant::now();
            while started.load(SeqCst) < 19 + 5 {
                assert!(patience.elapsed() < Duration::from_secs(10), "nobody works ahead");
                thread::yield_now();
            }
        });
    }

    #[test]
    fn a_panic_comes_out_where_its_result_would_have() {
        for workers in [0, 1, 4] {
            let consumed = AtomicUsize::new(0);
            let work = |item: usize| if item == 7 { panic!("item {item} is broken") } else { item };
            let all = || {
                ordered(0..50, workers, 4, work, |results| {
                    results.for_each(|_| {
                        consumed.fetch_add(1, SeqCst);
                    })
                })
            };
            let payload = catch_unwind(AssertUnwindSafe(all)).unwrap_err();
            assert_eq!(payload.downcast_ref::<String>().unwrap(), "item 7 is broken");
            assert_eq!(consumed.load(SeqCst), 7);
        }
    }

    #[test]
    fn leaving_early_starts_nothing_more() {
        let started = AtomicUsize::new(0);
        let work = |item: usize| {
            started.fetch_add(1, SeqCst);
            thread::sleep(Duration::from_millis(20));
            item
        };
        let begin = Instant::now();
        let first = ordered(0.., 2, 1000, work, |results| results.next());
        assert_eq!(first, Some(0));
        assert!(started.load(SeqCst) < 20, "{} of 1000 queued items were started", started.load(SeqCst));
        assert!(begin.elapsed() < Duration::from_secs(2));
    }

    #[test]
    fn a_panic_of_the_consumer_ends_the_workers_too() {
        let consume = |_: &mut dyn Iterator<Item = usize>| -> usize { panic!("the model failed") };
        assert!(catch_unwind(|| ordered(0.., 3, 8, slow_first, consume)).is_err());
    }
}
