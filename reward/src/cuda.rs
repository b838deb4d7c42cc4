//! One program for CPU and CUDA: only `libtorch_cpu` is linked, and libtorch's CUDA half is opened at run time where it
//! lies beside it. That has to happen before libtorch is first asked about CUDA, because it keeps the answer.

#![allow(unsafe_code, reason = "opening a library runs its initialisers, calling into it trusts its signature")]

use std::{
    error::Error as _,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY, RTLD_NOW};

/// What became of libtorch's CUDA half in this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CudaHalf {
    /// No `libtorch_cuda.so` beside `libtorch_cpu.so`.
    Absent,
    /// It is there, but this machine has no NVIDIA driver, so it was left alone (it takes seconds to load).
    NoDriver(PathBuf),
    /// Open: `tch::Cuda` may now be asked.
    Open(PathBuf),
    /// It is there, and so is a driver, but the loader refused it.
    Refused {
        /// The library.
        path: PathBuf,
        /// The loader's message.
        reason: String,
    },
}

/// Opens libtorch's CUDA half if this machine can use it; once per process. [`DeviceName::resolve`] does it where a device may be
/// CUDA; whoever asks `tch::Cuda` without that calls it first.
///
/// [`DeviceName::resolve`]: crate::device::DeviceName::resolve
pub fn prepare() -> &'static CudaHalf {
    static HALF: OnceLock<CudaHalf> = OnceLock::new();
    HALF.get_or_init(|| match libtorch_cpu().map(|cpu| cpu.with_file_name("libtorch_cuda.so")) {
        Some(path) if path.exists() => {
            if !has_driver() {
                return CudaHalf::NoDriver(path);
            }
            match open(&path) {
                Ok(()) => CudaHalf::Open(path),
                Err(reason) => CudaHalf::Refused { path, reason },
            }
        }
        _ => CudaHalf::Absent,
    })
}

/// The CUDA devices this program can use, after [`prepare`].
pub fn device_count() -> usize {
    match prepare() {
        CudaHalf::Open(_) if tch::Cuda::is_available() => usize::try_from(tch::Cuda::device_count()).unwrap_or(0),
        _ => 0,
    }
}

/// Whether the NVIDIA driver's library is on this machine: the one that the CUDA runtime itself looks for.
pub fn has_driver() -> bool {
    // SAFETY: the driver's library has no initialiser that depends on us; it is closed again at once.
    unsafe { Library::open(Some("libcuda.so.1"), RTLD_LAZY) }.is_ok()
}

/// The file that `libtorch_cpu.so` was loaded from into this process.
pub fn libtorch_cpu() -> Option<PathBuf> {
    mapped_file(&fs_err::read_to_string("/proc/self/maps").ok()?, "libtorch_cpu.so")
}

/// The version of the libtorch loaded into this process, as `2.11.0`.
pub fn libtorch_version() -> Option<String> {
    // SAFETY: `uint64_t aoti_torch_abi_version()` is part of libtorch's stable C interface.
    let version = unsafe { Library::this().get::<unsafe extern "C" fn() -> u64>(b"aoti_torch_abi_version\0").ok()?() };
    let [major, minor, patch, ..] = version.to_be_bytes();
    Some(format!("{major}.{minor}.{patch}"))
}

/// Opens a library for good and lets it register itself with those already loaded.
fn open(path: &Path) -> Result<(), String> {
    // SAFETY: libtorch's own library beside the libtorch in use; its initialisers register the CUDA kernels.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }
        .map_err(|error| error.source().map_or_else(|| error.to_string(), ToString::to_string))?;
    // Closing it would leave the kernels registered and gone.
    let _ = library.into_raw();
    Ok(())
}

/// The path of the mapped file of that name, from the text of `/proc/PID/maps`: `address perms offset dev inode   path`.
fn mapped_file(maps: &str, name: &str) -> Option<PathBuf> {
    maps.lines()
        .filter_map(|line| line.find('/').map(|start| Path::new(&line[start..])))
        .find(|path| path.file_name().is_some_and(|found| found == name))
        .map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_file_is_found_by_name_also_in_a_folder_with_spaces() {
        let maps = "7f00-7f01 r--p 00000000 08:01 42                         /a b/lib/libtorch_cpu.so\n\
                    7f01-7f02 rw-p 00000000 00:00 0 \n\
                    7f02-7f03 r--p 00000000 08:01 43                         /a b/lib/libc10.so\n";
        assert_eq!(mapped_file(maps, "libtorch_cpu.so"), Some(PathBuf::from("/a b/lib/libtorch_cpu.so")));
        assert_eq!(mapped_file(maps, "libtorch_cuda.so"), None);
    }

    #[test]
    fn the_loaded_libtorch_tells_its_place_and_version() {
        // A call, so that the linker keeps libtorch in the test program.
        assert!(tch::get_num_threads() > 0);
        assert!(libtorch_cpu().unwrap().exists());
        assert_eq!(libtorch_version().as_deref(), Some("2.11.0"));
    }

    /// Run on a libtorch with CUDA, this opens the real library, with or without a driver.
    #[test]
    fn the_cuda_half_opens_where_it_lies_beside() {
        assert!(tch::get_num_threads() > 0);
        let path = libtorch_cpu().unwrap().with_file_name("libtorch_cuda.so");
        if path.exists() {
            open(&path).unwrap();
            assert_eq!(tch::Cuda::is_available(), device_count() > 0);
        } else {
            assert!(open(&path).unwrap_err().contains("libtorch_cuda.so"));
            assert_eq!(prepare(), &CudaHalf::Absent);
            assert_eq!(device_count(), 0);
        }
    }
}
