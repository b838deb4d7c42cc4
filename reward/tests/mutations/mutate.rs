//! Seeded damage to a small valid file, and the check that every reader of it owes: the same result, or one line of error
//! that names the file; never a panic, memory without bound, or another result in silence.

use std::{
    fmt::Debug,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Once,
    time::{Duration, Instant},
};

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::process::{Resource, Rlimit, setrlimit};

/// Memory that a test program may take, in bytes.
const MEMORY: u64 = 2 << 30;

/// Damaged files per reader, the same in every run.
const COUNT: u64 = 1000;

/// An environment variable: for how many seconds each reader is tried (`make fuzz`). Beyond the first thousand files it need
/// only keep within memory, without a panic, and say what is wrong in one line.
const SECONDS: &str = "MUTATION_SECONDS";

/// A seed for each damaged file; from now on this program has no more than [`MEMORY`].
pub(crate) fn seeds() -> impl Iterator<Item = u64> {
    static LIMIT: Once = Once::new();
    LIMIT.call_once(|| {
        setrlimit(Resource::Data, Rlimit { current: Some(MEMORY), maximum: Some(MEMORY) }).unwrap();
    });
    let seconds = std::env::var(SECONDS).map_or(0, |text| text.parse().unwrap());
    let end = Instant::now() + Duration::from_secs(seconds);
    (0..).take_while(move |seed| *seed < COUNT || Instant::now() < end)
}

/// Writes `valid` under `path`, damaged in a thousand ways one after the other, and reads it each time. Whatever can be
/// read must equal what the undamaged file gives; so `read` gives what damage cannot change unseen (names and shapes, not
/// the values of weights).
pub(crate) fn check<T: PartialEq + Debug>(path: &Path, valid: &[u8], read: impl Fn() -> reward::Result<T>) {
    let seeds = seeds();
    fs_err::write(path, valid).unwrap();
    let wanted = read().unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    for seed in seeds {
        let damaged = damage(valid, seed);
        if damaged == valid {
            continue;
        }
        fs_err::write(path, &damaged).unwrap();
        let place = || {
            let first = valid.iter().zip(&damaged).take_while(|(before, after)| before == after).count();
            let around = first.saturating_sub(60)..damaged.len().min(first + 200);
            format!("seed {seed}, from byte {first}: {}", damaged[around].escape_ascii())
        };
        match catch_unwind(AssertUnwindSafe(&read)).unwrap_or_else(|_| panic!("a panic, {}", place())) {
            // Among very many, some cut out a whole setting: a valid file that says something else.
            Ok(found) => assert!(seed >= COUNT || found == wanted, "{found:?} for {wanted:?}, {}", place()),
            Err(error) => {
                let message = error.to_string();
                assert!(message.contains(name) && !message.contains('\n'), "{message}\n{}", place());
            }
        }
    }
    fs_err::write(path, valid).unwrap();
}

/// One to three of: flipped bits, other bytes, a cut end, a part removed, doubled or zeroed, a number made huge.
pub(crate) fn damage(valid: &[u8], seed: u64) -> Vec<u8> {
    let mut stream = ChaCha8Rng::seed_from_u64(seed);
    let mut bytes = valid.to_vec();
    for _ in 0..stream.random_range(1..=3) {
        if bytes.is_empty() {
            break;
        }
        let at = stream.random_range(0..bytes.len());
        let end = (at + stream.random_range(1..=64)).min(bytes.len());
        match stream.random_range(0..8) {
            0 => bytes[at] ^= 1 << stream.random_range(0..8),
            1 => stream.fill_bytes(&mut bytes[at..end]),
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            5 => bytes[at..end].fill(0),
            6 => bytes[at..end].fill(0xff),
            _ => {
                // A digit of a number in text becomes many.
                let digit = (at..bytes.len()).find(|place| bytes[*place].is_ascii_digit());
                let place = digit.unwrap_or(at);
                bytes.splice(place..place, *b"99999999999");
            }
        }
    }
    bytes
}
