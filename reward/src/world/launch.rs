//! How the processes of a run were started: by torchrun, Slurm's `srun`, Open MPI's `mpirun`, or a loop that sets torchrun's variables.

use crate::{Error, Result};

/// The port where the processes meet if nobody says another, as in PyTorch.
const PORT: u16 = 29_500;

/// Who this process is among those that were started together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The number of this process, from 0.
    pub rank: usize,
    /// The number of processes, the world size.
    pub size: usize,
    /// The number of this process on its machine, which picks its GPU.
    pub local_rank: usize,
    /// The number of processes on its machine, which share its cores.
    pub local_size: usize,
    /// The machine of rank 0, which all can reach, where anybody says so.
    pub address: Option<String>,
    /// The port there.
    pub port: u16,
    /// Whether the launcher keeps the store where the processes meet (torchrun does); rank 0 keeps it otherwise.
    pub store_of_launcher: bool,
    /// How often torchrun has started these processes again.
    pub attempt: usize,
}

impl Launch {
    /// What the variables of a launcher say; `None` if none was used, or for a single process.
    ///
    /// `RANK` and `WORLD_SIZE` come first (torchrun, accelerate, Kubernetes' PyTorchJob), then Open MPI's, then Slurm's. Slurm's
    /// count within `srun` only: a batch script that is not run by `srun` is one process, whatever its job has.
    ///
    /// # Errors
    /// Variables are missing or make no sense together.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let text = |name: &str| variable(name).filter(|value| !value.is_empty());
        let number = |name: &str| -> Result<Option<usize>> {
            let parsed = text(name).map(|value| {
                value.parse().map_err(|_| Error::usage(format!("variable {name}: `{value}` is not a whole number")))
            });
            parsed.transpose()
        };
        let of_torchrun = [number("RANK")?, number("WORLD_SIZE")?];
        let of_open_mpi = [number("OMPI_COMM_WORLD_RANK")?, number("OMPI_COMM_WORLD_SIZE")?];
        let of_slurm = [number("SLURM_PROCID")?, number("SLURM_STEP_NUM_TASKS")?];
        let (rank, size, [local_rank, local_size], address) = match (of_torchrun, of_open_mpi, of_slurm) {
            ([Some(rank), Some(size)], ..) => (rank, size, [number("LOCAL_RANK")?, number("LOCAL_WORLD_SIZE")?], None),
            ([Some(_), None], ..) => return Err(half("RANK", "WORLD_SIZE")),
            ([None, Some(size)], ..) if size > 1 => return Err(half("WORLD_SIZE", "RANK")),
            (_, [Some(rank), Some(size)], _) => {
                let local = [number("OMPI_COMM_WORLD_LOCAL_RANK")?, number("OMPI_COMM_WORLD_LOCAL_SIZE")?];
                (rank, size, local, (local[1] == Some(size)).then(|| "127.0.0.1".to_owned()))
            }
            (_, _, [Some(rank), Some(size)]) => {
                // srun gives each of its tasks cores of its own.
                let local = [number("SLURM_LOCALID")?, Some(1)];
                (rank, size, local, text("SLURM_STEP_NODELIST").and_then(|list| first_host(&list)))
            }
            _ => return Ok(None),
        };
        if rank >= size {
            return Err(Error::usage(format!(
                "rank {rank} of a world of {size}: ranks go from 0 to the size less one"
            )));
        }
        if size == 1 {
            return Ok(None);
        }
        let address = text("MASTER_ADDR").or(address);
        // Without a word, ranks that meet at this machine's own address are all here.
        let all_here = address.as_deref().is_some_and(|address| ["127.0.0.1", "localhost", "::1"].contains(&address));
        let port = match text("MASTER_PORT") {
            Some(port) => {
                port.parse().map_err(|_| Error::usage(format!("variable MASTER_PORT: `{port}` is no port")))?
            }
            // Jobs that share a machine meet at ports of their own.
            None => number("SLURM_JOB_ID")?.map_or(PORT, |job| 20_000 + (job % 10_000) as u16),
        };
        Ok(Some(Self {
            rank,
            size,
            local_rank: local_rank.unwrap_or(if all_here { rank } else { 0 }),
            local_size: local_size.unwrap_or(if all_here { size } else { 1 }),
            address,
            port,
            store_of_launcher: text("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value == "True"),
            attempt: number("TORCHELASTIC_RESTART_COUNT")?.unwrap_or(0),
        }))
    }
}

fn half(set: &str, missing: &str) -> Error {
    Error::usage(format!("variable {set} is set, but {missing} is not")).hint(
        "start with torchrun, srun or mpirun, or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT for each process",
    )
}

/// The first host of Slurm's list, as `node[03-07,9],login` → `node03`.
fn first_host(list: &str) -> Option<String> {
    let end = list.find(['[', ',']).unwrap_or(list.len());
    let (name, rest) = list.split_at(end);
    let number = match rest.strip_prefix('[') {
        Some(inside) => &inside[..inside.find(['-', ',', ']'])?],
        None => "",
    };
    Some(format!("{name}{number}")).filter(|host| !host.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(variables: &[(&str, &str)]) -> Result<Option<Launch>> {
        Launch::from_variables(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn torchrun() {
        let all = [
            ("RANK", "3"),
            ("WORLD_SIZE", "4"),
            ("LOCAL_RANK", "1"),
            ("LOCAL_WORLD_SIZE", "2"),
            ("MASTER_ADDR", "node7"),
            ("MASTER_PORT", "1234"),
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
            ("TORCHELASTIC_RESTART_COUNT", "2"),
            // An srun around torchrun does not count.
            ("SLURM_PROCID", "0"),
            ("SLURM_STEP_NUM_TASKS", "2"),
        ];
        let wanted = Launch {
            rank: 3,
            size: 4,
            local_rank: 1,
            local_size: 2,
            address: Some("node7".to_owned()),
            port: 1234,
            store_of_launcher: true,
            attempt: 2,
        };
        assert_eq!(launch(&all).unwrap(), Some(wanted));
    }

    #[test]
    fn one_process_needs_no_address() {
        for variables in [
            vec![],
            vec![("RANK", "0"), ("WORLD_SIZE", "1")],
            vec![("WORLD_SIZE", "1")],
            vec![("RANK", ""), ("WORLD_SIZE", "")],
            // A batch script, and a shell within srun.
            vec![("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8"), ("SLURM_JOB_ID", "7")],
            vec![("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "1"), ("SLURM_STEP_NODELIST", "a")],
        ] {
            assert_eq!(launch(&variables).unwrap(), None, "{variables:?}");
        }
    }

    #[test]
    fn slurm_and_open_mpi() {
        let slurm = [
            ("SLURM_PROCID", "5"),
            ("SLURM_STEP_NUM_TASKS", "8"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_STEP_NODELIST", "gpu-a[003-006,9],other"),
            ("SLURM_JOB_ID", "1234567"),
        ];
        let found = launch(&slurm).unwrap().unwrap();
        assert_eq!((found.rank, found.size, found.local_rank, found.port), (5, 8, 1, 24_567));
        assert_eq!(found.address.as_deref(), Some("gpu-a003"));
        let mpi = [
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ];
        let found = launch(&mpi).unwrap().unwrap();
        assert_eq!((found.rank, found.size, found.local_rank, found.local_size), (1, 2, 1, 2));
        assert_eq!((found.address.as_deref(), found.port), (Some("127.0.0.1"), PORT));
        assert_eq!(launch(&mpi[..3]).unwrap().unwrap().address, None);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (variables, said) in [
            (vec![("WORLD_SIZE", "2")], "variable WORLD_SIZE is set, but RANK is not"),
            (vec![("RANK", "0")], "variable RANK is set, but WORLD_SIZE is not"),
            (vec![("RANK", "2"), ("WORLD_SIZE", "2")], "rank 2 of a world of 2: ranks go from 0 to the size less one"),
            (vec![("RANK", "-1"), ("WORLD_SIZE", "2")], "variable RANK: `-1` is not a whole number"),
            (
                vec![("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "x")],
                "variable MASTER_PORT: `x` is no port",
            ),
        ] {
            assert_eq!(launch(&variables).unwrap_err().to_string(), said);
        }
    }

    #[test]
    fn hosts() {
        for (list, host) in [("a", "a"), ("a,b", "a"), ("n[1-2]", "n1"), ("n[07,9]", "n07"), ("c-[1]", "c-1")] {
            assert_eq!(first_host(list).as_deref(), Some(host));
        }
    }
}
