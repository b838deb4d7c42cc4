//! A command of several processes: it meets the others, and where one is lost says which and ends.

use std::time::Duration;

use anyhow::Result;
use reward::world::{Options, World, launch::Launch};

use crate::{cli::WorldArgs, failure, progress::Progress};

/// Runs `body` in the world of processes that this one was started in, alone as a rule.
///
/// # Errors
/// The others cannot be found, or what `body` says.
pub(crate) fn together<T>(
    arguments: &WorldArgs,
    body: impl FnOnce(&World, &Progress) -> reward::Result<T>,
) -> Result<(T, Progress)> {
    let launch = Launch::from_variables(|name| std::env::var(name).ok())?;
    let progress = Progress::of_rank(launch.as_ref().map_or(0, |launch| launch.rank));
    let world = match &launch {
        None => World::alone(),
        Some(launch) => {
            reward::threads::share(launch.local_size);
            let options = Options {
                silence: Duration::from_secs(arguments.rank_timeout.max(3)),
                join: Duration::from_secs(arguments.join_timeout),
                lost: Box::new(|error| {
                    let (kind, hint) = (error.to_string(), error.hint_text().unwrap_or_default().to_owned());
                    failure::report(&reward::Error::data(kind).hint(hint).into(), 0);
                    // At once: the main thread may be in the middle of a computation.
                    signal_hook::low_level::exit(1);
                }),
            };
            World::join(launch, options, &progress)?
        }
    };
    let done = world.run(|world| body(world, &progress))?;
    Ok((done, progress))
}
