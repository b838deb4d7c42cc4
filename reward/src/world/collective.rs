//! The world of a run, and what its ranks do together.

use std::{cell::OnceCell, collections::HashSet, ops::Range, time::Duration};

use tch::{Device, Kind, Tensor};

use super::{
    c10d::{self, Group, Store, Work},
    launch::Launch,
    nccl::{Nccl, Ring, are_on_gpus},
    shard::Shard,
    watch::{self, Watch},
};
use crate::{
    Error, ErrorKind, Result,
    event::{Event, Observer},
};

/// The ranks of a run. One process alone is a world of size 1, in which nothing is sent.
pub struct World {
    rank: usize,
    size: usize,
    local_rank: usize,
    local_size: usize,
    /// The ranks' GPUs, where sums go between them.
    gpus: OnceCell<Ring>,
    others: Option<Others>,
}

struct Others {
    group: Group,
    watch: Watch,
    /// Where the ranks meet, also to speak of further things.
    store: Store,
    keeps_store: bool,
}

/// Time limits of a world, and what becomes of a rank that has lost another.
pub struct Options {
    /// How long a rank may be silent before it counts as dead.
    pub silence: Duration,
    /// How long ranks wait for one another at the start.
    pub join: Duration,
    /// Called when another rank is lost; as a rule it says so and ends the process.
    pub lost: Box<dyn Fn(&Error) + Send>,
}

/// Bytes from which a tensor is sent by itself; smaller ones share one.
const LARGE: usize = 1 << 20;

impl World {
    /// One process, without others.
    pub fn alone() -> Self {
        Self { rank: 0, size: 1, local_rank: 0, local_size: 1, gpus: OnceCell::new(), others: None }
    }

    /// Meets the other processes of `launch`.
    ///
    /// # Errors
    /// Nobody says where rank 0 is, the store cannot be reached or kept, or not all ranks come in time.
    pub fn join(launch: &Launch, options: Options, observer: &dyn Observer) -> Result<Self> {
        let Launch { rank, size, local_rank, local_size: _, address, port, store_of_launcher, attempt } = launch;
        let (rank, size) = (*rank, *size);
        let Some(address) = address else {
            return Err(Error::usage(format!("rank {rank} of {size} does not know where rank 0 is"))
                .hint("set MASTER_ADDR to the machine of rank 0, and MASTER_PORT to a free port there"));
        };
        let keeps_store = rank == 0 && !store_of_launcher;
        let keeper = match store_of_launcher {
            true => format!("torchrun's store at {address}:{port}"),
            false => format!("rank 0, which keeps the store at {address}:{port},"),
        };
        let refused = |why: String| {
            let error = Error::data(format!("rank {rank} of {size}: no store at {address}:{port}: {why}"));
            error.hint(match keeps_store {
                true => "is another program using MASTER_PORT? give another",
                false => "MASTER_ADDR and MASTER_PORT must be those of rank 0, which must be running and reachable",
            })
        };
        let prefix = format!("social-reward/attempt_{attempt}");
        let open = |server| Store::open(address, *port, server, &prefix, options.join).map_err(refused);
        let store = open(keeps_store)?;
        store.set(&watch::who(rank), me().as_bytes()).map_err(refused)?;
        wait_for_all(&store, size, options.join, observer)?;
        let watch = Watch::begin(open(false)?, rank, size, options.silence, keeper, options.lost);
        // A collective may take as long as it takes: the watch ends it where a rank is lost.
        let forever = Duration::from_secs(30 * 24 * 3600);
        let group = Group::open(&store, rank, size, forever).map_err(|why| {
            watch.failed(&format!("Gloo: {why}"));
            Error::data(format!("rank {rank} of {size}: Gloo: {why}"))
                .hint("GLOO_SOCKET_IFNAME names the network interface to use")
        })?;
        let others = Others { group, watch, store, keeps_store };
        let mut world =
            Self { rank, size, local_rank: *local_rank, local_size: 1, gpus: OnceCell::new(), others: Some(others) };
        // A launcher such as srun may not say it.
        let hosts = world.gather_bytes(host().as_bytes())?;
        world.local_size = hosts.iter().filter(|name| **name == hosts[rank]).count();
        Ok(world)
    }

    /// The number of this process, from 0. Rank 0 writes what the run leaves.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The number of processes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The number of this process on its machine.
    pub fn local_rank(&self) -> usize {
        self.local_rank
    }

    /// The number of processes on this machine, which share its memory.
    pub fn local_size(&self) -> usize {
        self.local_size
    }

    /// Whether this is the rank that writes and reports.
    pub fn leads(&self) -> bool {
        self.rank == 0
    }

    /// The part of `count` things that falls to this rank. Parts differ in length by one at most, follow each other by rank, and
    /// rank 0 has one if any rank has.
    pub fn share(&self, count: usize) -> Range<usize> {
        Shard { index: self.rank, count: self.size }.of(count)
    }

    /// Runs `body` on the first rank of each machine, and then on the others, which find what it has downloaded.
    ///
    /// # Errors
    /// What `body` says, or another rank is lost.
    pub fn first_here<T>(&self, body: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.local_rank > 0 {
            self.barrier()?;
        }
        let done = body()?;
        if self.local_rank == 0 {
            self.barrier()?;
        }
        Ok(done)
    }

    /// Runs `body`, and parts from the other ranks; where it fails, they learn why.
    ///
    /// # Errors
    /// What `body` says.
    pub fn run<T>(self, body: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        let result = body(&self);
        if let Some(Others { watch, keeps_store, .. }) = &self.others {
            // All ranks are interrupted together.
            if let Some(error) = result.as_ref().err().filter(|error| error.kind() != ErrorKind::Interrupted) {
                watch.failed(&error.to_string());
            }
            watch.leave(*keeps_store);
        }
        result
    }

    /// Adds up each tensor over all ranks, in its place. All ranks give tensors of the same shapes in the same order.
    ///
    /// # Errors
    /// Another rank is lost.
    pub fn all_reduce(&self, tensors: &[Tensor]) -> Result<()> {
        let Some(others) = &self.others else { return Ok(()) };
        if let Some(ring) = self.gpus.get().filter(|_| are_on_gpus(tensors)) {
            let dense: Vec<Tensor> = tensors.iter().map(|tensor| tensor.detach().contiguous()).collect();
            self.lost_unless(ring.all_reduce(&dense))?;
            for (tensor, sum) in tensors.iter().zip(&dense) {
                scatter(&[tensor], &sum.view(-1));
            }
            return Ok(());
        }
        let bytes = |tensor: &Tensor| tensor.numel() * tensor.kind().elt_size_in_bytes();
        let (large, small): (Vec<&Tensor>, Vec<&Tensor>) = tensors.iter().partition(|tensor| bytes(tensor) >= LARGE);
        let mut buckets: Vec<Vec<&Tensor>> = large.into_iter().map(|tensor| vec![tensor]).collect();
        let kinds: Vec<Kind> = small.iter().map(|tensor| tensor.kind()).collect();
        for kind in [Kind::Float, Kind::Double, Kind::Int64] {
            let alike: Vec<&Tensor> =
                small.iter().zip(&kinds).filter(|(_, own)| **own == kind).map(|(t, _)| *t).collect();
            if !alike.is_empty() {
                buckets.push(alike);
            }
        }
        let sent: Vec<Tensor> = buckets.iter().map(|bucket| flat(bucket)).collect();
        let works: Vec<_> = sent.iter().map(|tensor| others.group.begin_all_reduce(tensor)).collect();
        for work in works {
            self.lost_unless(work.and_then(Work::wait))?;
        }
        for (bucket, sum) in buckets.iter().zip(&sent) {
            scatter(bucket, sum);
        }
        Ok(())
    }

    /// Tells where this rank computes. Where every rank has a GPU of its own and NCCL, sums of tensors on GPUs go by it from now on. All
    /// ranks call this, whatever their device.
    ///
    /// # Errors
    /// Another rank is lost.
    pub fn compute_on(&self, device: Device) -> Result<()> {
        let Some(others) = &self.others else { return Ok(()) };
        let Device::Cuda(gpu) = device else { return self.gather_bytes(b"").map(drop) };
        let nccl = Nccl::open("libnccl.so.2").and_then(|nccl| nccl.take_device(gpu).map(|()| nccl)).ok();
        let place = nccl.as_ref().map_or(String::new(), |_| format!("{} {gpu}", host()));
        let places = self.gather_bytes(place.as_bytes())?;
        let distinct: HashSet<&Vec<u8>> = places.iter().filter(|place| !place.is_empty()).collect();
        let Some(nccl) = nccl.filter(|_| distinct.len() == self.size) else { return Ok(()) };
        let invited = if self.rank == 0 { nccl.invite(&others.store) } else { Ok(()) };
        if self.any(invited.is_err())? {
            return Ok(());
        }
        let ring = nccl.join(&others.store, self.rank, self.size, gpu).ok();
        if !self.any(ring.is_none())?
            && let Some(ring) = ring
        {
            self.gpus.set(ring).ok();
        }
        Ok(())
    }

    /// What carries the sums of tensors where the ranks compute.
    pub fn backend(&self) -> &'static str {
        if self.gpus.get().is_some() { "NCCL" } else { "Gloo" }
    }

    #[cfg(test)]
    pub(super) fn store(&self) -> &Store {
        self.others.as_ref().map(|others| &others.store).unwrap()
    }

    /// Sums of numbers over all ranks.
    ///
    /// # Errors
    /// Another rank is lost.
    pub fn sum<const N: usize>(&self, numbers: [f64; N]) -> Result<[f64; N]> {
        if self.size == 1 {
            return Ok(numbers);
        }
        let mut sums = numbers;
        let tensor = Tensor::from_slice(&numbers);
        self.all_reduce(&[tensor.shallow_clone()])?;
        tensor.copy_data(&mut sums, N);
        Ok(sums)
    }

    /// Whether any rank says so.
    ///
    /// # Errors
    /// Another rank is lost.
    pub fn any(&self, said: bool) -> Result<bool> {
        Ok(self.sum([f64::from(u8::from(said))])? != [0.0])
    }

    /// The tensors of all ranks, in the order of ranks. They may differ in their first dimension only.
    ///
    /// # Errors
    /// Another rank is lost.
    pub fn all_gather(&self, tensor: &Tensor) -> Result<Vec<Tensor>> {
        let Some(others) = &self.others else { return Ok(vec![tensor.shallow_clone()]) };
        let (device, rows) = (tensor.device(), tensor.size()[0]);
        let counts = self.lost_unless(others.group.all_gather(&Tensor::from_slice(&[rows]), self.size))?;
        let counts: Vec<i64> = counts.iter().map(|count| count.int64_value(&[0])).collect();
        let most = counts.iter().copied().max().unwrap_or(0);
        let mut shape = tensor.size();
        shape[0] = most - rows;
        let padded = Tensor::cat(&[tensor, &Tensor::zeros(shape, (tensor.kind(), device))], 0);
        let all = self.lost_unless(others.group.all_gather(&padded.to_device(Device::Cpu).contiguous(), self.size))?;
        Ok(all.iter().zip(counts).map(|(part, count)| part.narrow(0, 0, count).to_device(device)).collect())
    }

    /// The rows of all ranks as one tensor, in the order of ranks. `parts`: those of this rank, at least one.
    ///
    /// # Errors
    /// Another rank is lost.
    pub fn concatenated(&self, parts: &[Tensor]) -> Result<Tensor> {
        Ok(Tensor::cat(&self.all_gather(&Tensor::cat(parts, 0))?, 0))
    }

    /// As [`Self::concatenated`], of fp32 tensors on one device, where this rank may have no part; nothing if no rank has any.
    ///
    /// # Errors
    /// As there.
    pub fn all_rows(&self, parts: &[Tensor]) -> Result<Option<Tensor>> {
        // The shape of a row is the same where there is one.
        let row: Vec<f64> =
            parts.first().map_or(Vec::new(), |part| part.size()[1..].iter().map(|n| *n as f64).collect());
        let counts = self.numbers(&[row.len() as f64])?;
        let rows = self.numbers(&row)?;
        let Some(dimensions) = counts.into_iter().find(|count| *count > 0.0) else { return Ok(None) };
        let row: Vec<i64> = rows[..dimensions as usize].iter().map(|n| *n as i64).collect();
        let none = || vec![Tensor::zeros([&[0], row.as_slice()].concat(), (Kind::Float, Device::Cpu))];
        self.concatenated(&if parts.is_empty() { none() } else { parts.iter().map(Tensor::shallow_clone).collect() })
            .map(Some)
    }

    /// The numbers of all ranks, in the order of ranks.
    ///
    /// # Errors
    /// Another rank is lost.
    pub fn numbers(&self, own: &[f64]) -> Result<Vec<f64>> {
        if self.size == 1 {
            return Ok(own.to_vec());
        }
        let all = self.concatenated(&[Tensor::from_slice(own)])?;
        let mut numbers = vec![0.0; all.numel()];
        all.copy_data(&mut numbers, all.numel());
        Ok(numbers)
    }

    /// The bytes of all ranks, in the order of ranks.
    ///
    /// # Errors
    /// Another rank is lost.
    pub fn gather_bytes(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        if self.size == 1 {
            return Ok(vec![bytes.to_vec()]);
        }
        let parts = self.all_gather(&Tensor::from_slice(bytes))?;
        Ok(parts
            .iter()
            .map(|part| {
                let mut bytes = vec![0_u8; part.numel()];
                part.copy_data(&mut bytes, part.numel());
                bytes
            })
            .collect())
    }

    /// Waits for all ranks.
    ///
    /// # Errors
    /// Another rank is lost.
    pub fn barrier(&self) -> Result<()> {
        self.any(false).map(drop)
    }

    /// A failed collective means that another rank has gone. The watch finds out which, and ends this process; where it may not,
    /// the failure is an error.
    fn lost_unless<T>(&self, result: c10d::Result<T>) -> Result<T> {
        result.map_err(|why| {
            if let Some(others) = &self.others {
                others.watch.wait();
            }
            Error::data(format!("another rank is lost: {why}"))
        })
    }
}

/// One contiguous tensor on the CPU with the values of all; the only one's own memory where that is such a tensor.
fn flat(tensors: &[&Tensor]) -> Tensor {
    match tensors {
        [one] => one.detach().to_device(Device::Cpu).contiguous().view(-1),
        _ => Tensor::cat(
            &tensors.iter().map(|tensor| tensor.detach().reshape(-1).to_device(Device::Cpu)).collect::<Vec<_>>(),
            0,
        ),
    }
}

/// Gives the values of one flat tensor back to those that it was made of.
fn scatter(tensors: &[&Tensor], flat: &Tensor) {
    tch::no_grad(|| {
        let mut start = 0;
        for tensor in tensors {
            let count = tensor.numel() as i64;
            let part = flat.narrow(0, start, count);
            if part.data_ptr() != tensor.data_ptr() {
                tensor.detach().copy_(&part.view_as(tensor));
            }
            start += count;
        }
    });
}

/// Waits until every rank has said who it is.
fn wait_for_all(store: &Store, size: usize, limit: Duration, observer: &dyn Observer) -> Result<()> {
    let started = std::time::Instant::now();
    let mut said = started;
    loop {
        let mut absent = Vec::new();
        for rank in 0..size {
            match store.has(&watch::who(rank)) {
                Ok(true) => {}
                Ok(false) => absent.push(rank.to_string()),
                Err(why) => return Err(Error::data(format!("rank 0 has gone before all ranks had come: {why}"))),
            }
        }
        if absent.is_empty() {
            return Ok(());
        }
        let absent = format!("{} of {size} ranks: {}", absent.len(), absent.join(", "));
        if started.elapsed() > limit {
            return Err(Error::data(format!(
                "after {} s the world is not complete: absent are {absent}",
                limit.as_secs()
            ))
            .hint("were all of them started, with the same WORLD_SIZE, MASTER_ADDR and MASTER_PORT?"));
        }
        if said.elapsed() > Duration::from_secs(10) {
            said = std::time::Instant::now();
            observer.event(&Event::Note(&format!("waiting for {absent}")));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Machine and number of this process, as messages name it.
pub fn me() -> String {
    format!("{}, process {}", host(), std::process::id())
}

/// The name of this machine.
fn host() -> String {
    fs_err::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "unknown".to_owned(), |name| name.trim().to_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::event::Silent;

    /// Runs `body` on every rank of a world, a thread each; what they give, by rank.
    pub(crate) fn in_threads<T: Send>(size: usize, body: impl Fn(&World) -> T + Sync) -> Vec<T> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let rank = |rank: usize| {
            let address = Some("127.0.0.1".to_owned());
            let (local_rank, local_size, store_of_launcher, attempt) = (rank, size, false, 0);
            let launch = Launch { rank, size, local_rank, local_size, address, port, store_of_launcher, attempt };
            let (silence, join) = (Duration::from_secs(20), Duration::from_secs(20));
            let options = Options { silence, join, lost: Box::new(|_| {}) };
            let world = World::join(&launch, options, &Silent).unwrap();
            world.run(|world| Ok(body(world))).unwrap()
        };
        std::thread::scope(|scope| {
            let ranks: Vec<_> = (0..size).map(|number| scope.spawn(move || rank(number))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    #[test]
    fn sums_and_exchanges_are_of_all_ranks() {
        let found = in_threads(3, |world| {
            let rank = world.rank() as f64;
            // One larger than a bucket, and small ones of several kinds.
            let large = Tensor::full([1 << 19], rank, (Kind::Float, Device::Cpu));
            let counts = Tensor::from_slice(&[world.rank() as i64, 7]);
            let doubles = Tensor::from_slice(&[rank, 0.5]);
            let turned = Tensor::from_slice(&[rank, 10.0, 20.0, 30.0]).view([2, 2]).tr();
            world.all_reduce(&[&large, &counts, &doubles, &turned].map(Tensor::shallow_clone)).unwrap();
            assert!(large.eq(3.0).all().int64_value(&[]) == 1);
            assert_eq!(Vec::<i64>::try_from(&counts).unwrap(), [3, 21]);
            assert_eq!(Vec::<f64>::try_from(&doubles).unwrap(), [3.0, 1.5]);
            assert_eq!(Vec::<Vec<f64>>::try_from(&turned).unwrap(), [[3.0, 60.0], [30.0, 90.0]]);
            assert_eq!(world.sum([rank, 1.0]).unwrap(), [3.0, 3.0]);
            assert!(world.any(world.rank() == 2).unwrap() && !world.any(false).unwrap());
            assert_eq!(world.numbers(&vec![rank; world.rank()]).unwrap(), [1.0, 2.0, 2.0]);
            assert_eq!(world.gather_bytes(&[world.rank() as u8; 2]).unwrap(), [[0, 0], [1, 1], [2, 2]]);
            let rows = Tensor::full([world.rank() as i64, 2], rank, (Kind::Float, Device::Cpu));
            let own = if world.rank() == 0 { Vec::new() } else { vec![rows] };
            let all = world.all_rows(&own).unwrap().unwrap();
            assert_eq!(Vec::<Vec<f64>>::try_from(&all).unwrap(), [[1.0; 2], [2.0; 2], [2.0; 2]]);
            world.share(8)
        });
        assert_eq!(found, [0..3, 3..6, 6..8]);
    }
}
