//! A run of many processes: rank 0 alone holds its folder, and all ranks have the same settings, inputs and checkpoint.

use std::path::Path;

use serde::{Serialize, de::DeserializeOwned};

use super::{
    RunFolder, changed_settings,
    inputs::Inputs,
    place::{self, Settings},
};
use tch::{Device, Tensor};

use crate::{Error, Result, world::World};

/// Settings that may differ between ranks.
const OWN: [&str; 3] = ["device", "threads", "num_workers"];

impl RunFolder {
    /// Claims the folder of a run with settings `config` for rank 0, and makes it ready to be looked at by all. The other ranks, which only read there, get nothing. `flag` is the one that names the folder.
    ///
    /// # Errors
    /// As [`place::check_new`], [`RunFolder::claim`] and [`RunFolder::settle`]; or another rank is lost.
    pub fn claim_first(
        world: &World,
        config: &impl Settings,
        resume: bool,
        path: &Path,
        flag: &str,
    ) -> Result<Option<Self>> {
        let mut folder = None;
        if world.leads() {
            // Before the folder is touched; `resume_point` looks again once nobody else can touch it.
            place::check_new(config, resume)?;
            let claimed = Self::claim(path, flag)?;
            claimed.settle(config)?;
            folder = Some(claimed);
        }
        world.barrier()?;
        if !path.is_dir() {
            return Err(Error::data(format!("rank {} does not see {}", world.rank(), path.display()))
                .hint(format!("--{flag} must be on a disk that all machines share")));
        }
        Ok(folder)
    }
}

/// Makes sure that all ranks were given the settings of rank 0.
///
/// # Errors
/// This rank was not; or another rank is lost.
pub fn same_settings(world: &World, config: &impl Serialize) -> Result<()> {
    let Some(first) = of_first::<serde_json::Value>(world, config)? else { return Ok(()) };
    let changed = changed_settings(config, &first, &OWN);
    if changed.is_empty() {
        return Ok(());
    }
    Err(Error::data(format!("rank 0 has other settings than this rank: {}", changed.join(", ")))
        .hint("all ranks take the same command line"))
}

/// Makes sure that all ranks go on after the same `step`, or all begin.
///
/// # Errors
/// This rank does not; or another rank is lost.
pub fn same_start(world: &World, step: Option<usize>) -> Result<()> {
    match of_first::<Option<usize>>(world, &step)? {
        Some(first) if first != step => {
            let words = |step: Option<usize>| step.map_or("nowhere".to_owned(), |step| format!("step {step}"));
            Err(Error::data(format!("rank 0 goes on from {}, this rank from {}", words(first), words(step)))
                .hint("does this machine see the run's folder as rank 0 does?"))
        }
        _ => Ok(()),
    }
}

/// Makes sure that all ranks read the inputs that rank 0 read.
///
/// # Errors
/// This rank did not; or another rank is lost.
pub fn same_inputs(world: &World, inputs: &Inputs) -> Result<()> {
    match of_first::<Inputs>(world, inputs)? {
        Some(first) => inputs.check_same_as_first(&first),
        None => Ok(()),
    }
}

/// Makes sure that what trains is the same to the bit on all ranks after step `step`.
///
/// # Errors
/// It is not on this rank; or another rank is lost.
pub fn same_weights<'a>(world: &World, step: usize, trained: impl Iterator<Item = &'a Tensor>) -> Result<()> {
    if world.size() == 1 {
        return Ok(());
    }
    let mut hash = blake3::Hasher::new();
    for tensor in trained {
        let tensor = tensor.detach().to_device(Device::Cpu).contiguous();
        let mut bytes = vec![0_u8; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        tensor.copy_data_u8(&mut bytes, tensor.numel());
        hash.update(&bytes);
    }
    let own = hash.finalize();
    if world.gather_bytes(own.as_bytes())?[0] == own.as_bytes() {
        return Ok(());
    }
    Err(Error::data(format!("step {step}: the weights of this rank are not those of rank 0"))
        .hint("do all machines have the same kind of processor and GPU, and the same libtorch?"))
}

/// Gives every rank the value of rank 0; nothing for a process alone.
fn of_first<T: DeserializeOwned>(world: &World, mine: &impl Serialize) -> Result<Option<T>> {
    if world.size() == 1 {
        return Ok(None);
    }
    let wrong = |error| Error::data("what rank 0 sent cannot be read").caused_by(error);
    let all = world.gather_bytes(&serde_json::to_vec(mine).map_err(wrong)?)?;
    serde_json::from_slice(&all[0]).map(Some).map_err(wrong)
}
