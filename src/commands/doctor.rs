//! `social-reward doctor`: what this machine and this build have, what is missing, and how to get it.

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use crate::cli::DoctorArgs;

/// What this machine and this build have. `--json` prints it as it is.
#[derive(Debug, Serialize)]
pub(crate) struct Doctor {
    /// Version of this program.
    pub(crate) version: &'static str,
    /// `release`, or `debug` (several times slower outside libtorch).
    pub(crate) build: &'static str,
    /// The training engine; none in a portable build.
    pub(crate) libtorch: Option<Libtorch>,
    /// `libjpeg-turbo`, or `image` (slower, and not the pixels of Python's Pillow to the last bit).
    pub(crate) jpeg_decoder: &'static str,
    /// The processor.
    pub(crate) cpu: Cpu,
    /// The main memory.
    pub(crate) memory: Memory,
    /// Bytes free for us on the disk of the current folder.
    pub(crate) free_disk_bytes: Option<u64>,
    /// The processes that were started together; none for one alone.
    pub(crate) ranks: Option<Ranks>,
    /// What would make this machine or build better.
    pub(crate) missing: Vec<Missing>,
}

/// Processes that were started together, and how fast they exchange.
#[derive(Debug, Serialize)]
#[cfg_attr(not(feature = "torch"), allow(dead_code, reason = "the portable build trains nothing"))]
pub(crate) struct Ranks {
    /// The number of this process.
    pub(crate) rank: usize,
    /// The number of processes.
    pub(crate) size: usize,
    /// Machine and process of each rank.
    pub(crate) all: Vec<String>,
    /// Where they met, and who keeps the store there.
    pub(crate) store: String,
    /// What carries their sums.
    pub(crate) backend: &'static str,
    /// Seconds of a sum of four bytes, the median.
    pub(crate) small_sum_seconds: f64,
    /// Bytes a second of a sum of 64 MB.
    pub(crate) large_sum_rate: f64,
}

/// The libtorch in use.
#[derive(Debug, Serialize)]
pub(crate) struct Libtorch {
    /// As `2.11.0`.
    pub(crate) version: Option<String>,
    /// The file `libtorch_cpu.so` was loaded from.
    pub(crate) path: Option<PathBuf>,
    /// CPU threads it computes with.
    pub(crate) threads: i32,
    /// CUDA devices it can use.
    pub(crate) cuda_devices: usize,
    /// What became of its CUDA half, in words.
    pub(crate) cuda: String,
}

/// The processor.
#[derive(Debug, Serialize)]
pub(crate) struct Cpu {
    /// As the system names it.
    pub(crate) model: Option<String>,
    /// Threads this process may use.
    pub(crate) threads: usize,
    /// Those instruction sets that decide the speed here, as the system spells them.
    pub(crate) features: Vec<String>,
}

/// The main memory, in bytes.
#[derive(Debug, Serialize)]
pub(crate) struct Memory {
    /// Memory of the machine.
    pub(crate) total_bytes: Option<u64>,
    /// Free, or freed at need.
    pub(crate) available_bytes: Option<u64>,
    /// The limit of this container or slice, if it has one.
    pub(crate) limit_bytes: Option<u64>,
}

/// Something that is not there.
#[derive(Debug, Serialize)]
pub(crate) struct Missing {
    /// What.
    pub(crate) what: &'static str,
    /// What cannot be done, or is slower, without it.
    pub(crate) meaning: String,
    /// How to get it.
    pub(crate) hint: &'static str,
}

pub(crate) fn run(arguments: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let report = Doctor { ranks: ranks(arguments)?, ..report() };
    if report.ranks.as_ref().is_some_and(|ranks| ranks.rank > 0) {
        return Ok(ExitCode::SUCCESS);
    }
    let text = if arguments.json { serde_json::to_string_pretty(&report)? } else { report.to_string() };
    super::print(text.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

/// Looks at this machine and this build.
fn report() -> Doctor {
    let mut missing = Vec::new();
    let libtorch = libtorch(&mut missing);
    let turbojpeg = cfg!(feature = "turbojpeg");
    if !turbojpeg {
        missing.push(Missing {
            what: "libjpeg-turbo",
            meaning:
                "JPEGs are decoded by the image crate: about 2.5 times slower, pixels up to a few levels off Pillow's"
                    .to_owned(),
            hint: "install cmake and nasm, then `make build`",
        });
    }
    Doctor {
        version: env!("CARGO_PKG_VERSION"),
        build: if cfg!(debug_assertions) { "debug" } else { "release" },
        libtorch,
        jpeg_decoder: if turbojpeg { "libjpeg-turbo" } else { "image" },
        cpu: cpu(&read("/proc/cpuinfo")),
        memory: memory(&read("/proc/meminfo"), &read("/sys/fs/cgroup/memory.max")),
        free_disk_bytes: rustix::fs::statvfs(".").ok().map(|disk| disk.f_bavail * disk.f_frsize),
        ranks: None,
        missing,
    }
}

#[cfg(not(feature = "torch"))]
fn ranks(_: &DoctorArgs) -> anyhow::Result<Option<Ranks>> {
    Ok(None)
}

/// Meets the processes that were started with this one, and adds up with them.
#[cfg(feature = "torch")]
fn ranks(arguments: &DoctorArgs) -> anyhow::Result<Option<Ranks>> {
    use std::time::Instant;

    use reward::{device::DeviceName, world::launch::Launch};
    use tch::{Device, Kind, Tensor};

    const LARGE: i64 = 16 << 20;
    let Some(launch) = Launch::from_variables(|name| std::env::var(name).ok())? else { return Ok(None) };
    let measured = crate::together::together(&arguments.world, |world, _| {
        // Between GPUs where all ranks have one, as the gradients of a training.
        let device = DeviceName::Auto.resolve(launch.local_rank)?;
        world.compute_on(device)?;
        let seconds = |values: i64| -> reward::Result<f64> {
            let tensor = Tensor::ones([values], (Kind::Float, device));
            let mut times = Vec::new();
            for _ in 0..11 {
                world.barrier()?;
                let started = Instant::now();
                world.all_reduce(&[tensor.shallow_clone()])?;
                if let Device::Cuda(gpu) = device {
                    tch::Cuda::synchronize(gpu as i64);
                }
                times.push(started.elapsed().as_secs_f64());
            }
            times.sort_by(f64::total_cmp);
            Ok(times[5])
        };
        let all = world.gather_bytes(reward::world::me().as_bytes())?;
        let all = all.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        let (small, large) = (seconds(1)?, seconds(LARGE)?);
        Ok((all, small, (4 * LARGE) as f64 / large, world.backend()))
    })?;
    let (all, small_sum_seconds, large_sum_rate, backend) = measured.0;
    let address = launch.address.unwrap_or_default();
    let keeper = if launch.store_of_launcher { "torchrun" } else { "rank 0" };
    Ok(Some(Ranks {
        rank: launch.rank,
        size: launch.size,
        all,
        store: format!("{address}:{}, kept by {keeper}", launch.port),
        backend,
        small_sum_seconds,
        large_sum_rate,
    }))
}

#[cfg(feature = "torch")]
fn libtorch(missing: &mut Vec<Missing>) -> Option<Libtorch> {
    use reward::cuda::{self, CudaHalf};

    let cuda_devices = cuda::device_count();
    let cuda = match cuda::prepare() {
        CudaHalf::Absent if cuda::has_driver() => {
            missing.push(Missing {
                what: "CUDA",
                meaning: "this machine has an NVIDIA driver, but libtorch is the CPU's alone: all runs on the CPU"
                    .to_owned(),
                hint: "`scripts/setup-libtorch --cuda`, then `make build`",
            });
            "no libtorch_cuda.so beside libtorch_cpu.so".to_owned()
        }
        CudaHalf::Absent => "no NVIDIA driver, and no libtorch_cuda.so".to_owned(),
        CudaHalf::NoDriver(_) => "libtorch_cuda.so is there, but no NVIDIA driver (libcuda.so.1)".to_owned(),
        CudaHalf::Refused { path, reason } => {
            missing.push(Missing {
                what: "CUDA",
                meaning: format!("{} could not be opened ({reason}): all runs on the CPU", path.display()),
                hint: "most often a library of NVIDIA's is absent: `scripts/setup-libtorch --cuda` brings the full set",
            });
            "libtorch_cuda.so could not be opened".to_owned()
        }
        CudaHalf::Open(_) if cuda_devices == 0 => {
            missing.push(Missing {
                what: "CUDA",
                meaning: "libtorch_cuda.so is open, but it finds no device it can use: all runs on the CPU".to_owned(),
                hint: "`nvidia-smi` should list a device, and a driver of 580 or newer (CUDA 13)",
            });
            "open, but no device".to_owned()
        }
        CudaHalf::Open(_) => "ready".to_owned(),
    };
    Some(Libtorch {
        version: cuda::libtorch_version(),
        path: cuda::libtorch_cpu(),
        threads: tch::get_num_threads(),
        cuda_devices,
        cuda,
    })
}

#[cfg(not(feature = "torch"))]
fn libtorch(missing: &mut Vec<Missing>) -> Option<Libtorch> {
    missing.push(Missing {
        what: "libtorch",
        meaning: "a portable build: it scores and validates on the CPU, it cannot train or use a GPU".to_owned(),
        hint: "`make build` sets libtorch up and builds with it",
    });
    None
}

/// A file of the system's, or nothing where it has none.
fn read(path: &str) -> String {
    fs_err::read_to_string(path).unwrap_or_default()
}

fn cpu(cpuinfo: &str) -> Cpu {
    let value = |key: &str| {
        cpuinfo
            .lines()
            .find_map(|line| line.split_once(':').filter(|(name, _)| name.trim() == key))
            .map(|(_, value)| value.trim())
    };
    let known = ["avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16"];
    let flags: Vec<&str> =
        value("flags").or_else(|| value("Features")).unwrap_or_default().split_whitespace().collect();
    Cpu {
        model: value("model name").map(str::to_owned),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        features: known.into_iter().filter(|name| flags.contains(name)).map(str::to_owned).collect(),
    }
}

fn memory(meminfo: &str, cgroup_limit: &str) -> Memory {
    let bytes = |key: &str| {
        let kibibytes: u64 =
            meminfo.lines().find_map(|line| line.strip_prefix(key))?.split_whitespace().next()?.parse().ok()?;
        Some(kibibytes * 1024)
    };
    Memory {
        total_bytes: bytes("MemTotal:"),
        available_bytes: bytes("MemAvailable:"),
        limit_bytes: cgroup_limit.trim().parse().ok(), // "max" where there is none
    }
}

impl fmt::Display for Doctor {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, build, libtorch, jpeg_decoder, cpu, memory, free_disk_bytes, ranks, missing } = self;
        writeln!(out, "social-reward {version} ({build} build)")?;
        match libtorch {
            Some(Libtorch { version, path, threads, cuda_devices, cuda }) => {
                let version = version.as_deref().unwrap_or("of unknown version");
                let path = path.as_ref().map_or_else(|| "?".to_owned(), |path| path.display().to_string());
                writeln!(out, "  libtorch  {version}, {threads} threads, from {path}")?;
                writeln!(out, "  CUDA      {cuda_devices} devices: {cuda}")?;
            }
            None => writeln!(out, "  libtorch  none: scores and validates, does not train")?,
        }
        writeln!(out, "  JPEG      {jpeg_decoder}")?;
        let model = cpu.model.as_deref().unwrap_or("unknown");
        writeln!(out, "  CPU       {model}, {} threads, {}", cpu.threads, cpu.features.join(" "))?;
        let Memory { total_bytes, available_bytes, limit_bytes } = memory;
        write!(out, "  memory    {} of {} available", Gibibytes(*available_bytes), Gibibytes(*total_bytes))?;
        if limit_bytes.is_some() {
            write!(out, ", limited to {}", Gibibytes(*limit_bytes))?;
        }
        writeln!(out, "\n  disk      {} free here", Gibibytes(*free_disk_bytes))?;
        if let Some(Ranks { size, all, store, backend, small_sum_seconds, large_sum_rate, .. }) = ranks {
            writeln!(out, "  ranks     {size} over {backend}, met at {store}")?;
            for (rank, name) in all.iter().enumerate() {
                writeln!(out, "            {rank}: {name}")?;
            }
            let (micro, mega) = (small_sum_seconds * 1e6, large_sum_rate / 1e6);
            writeln!(out, "            a sum of 4 bytes takes {micro:.0} µs, one of 64 MB runs at {mega:.0} MB/s")?;
        }
        if missing.is_empty() {
            return write!(out, "nothing is missing");
        }
        write!(out, "missing:")?;
        for Missing { what, meaning, hint } in missing {
            write!(out, "\n  {what}: {meaning}\n  hint: {hint}")?;
        }
        Ok(())
    }
}

/// Bytes, shown in GiB.
struct Gibibytes(Option<u64>);

impl fmt::Display for Gibibytes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(bytes) => write!(out, "{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
            None => write!(out, "?"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_and_memory_are_read_from_the_systems_files() {
        let cpu = cpu("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu avx2 avx512f sse\n");
        assert_eq!(cpu.model.as_deref(), Some("Some CPU @ 2 GHz"));
        assert_eq!(cpu.features, ["avx2", "avx512f"]);
        let memory = memory("MemTotal:       24000000 kB\nMemAvailable:   20000000 kB\n", "max\n");
        assert_eq!(memory.total_bytes, Some(24_000_000 * 1024));
        assert_eq!(memory.available_bytes, Some(20_000_000 * 1024));
        assert_eq!(memory.limit_bytes, None);
    }

    #[test]
    fn the_report_names_what_this_build_lacks() {
        let report = report();
        let lacks = |what| report.missing.iter().any(|missing| missing.what == what);
        assert_eq!(report.libtorch.is_none(), lacks("libtorch"));
        assert_eq!(report.jpeg_decoder == "image", lacks("libjpeg-turbo"));
        let text = report.to_string();
        assert!(text.starts_with("social-reward "), "{text}");
        for missing in &report.missing {
            assert!(text.contains(missing.hint), "{text}");
        }
    }
}
