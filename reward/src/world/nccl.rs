//! NCCL, which adds up between GPUs: NVIDIA's library, opened at run time and called by its C interface on libtorch's default stream.
#![allow(unsafe_code, reason = "calls into a C library; every call says why it is sound")]

use std::ffi::{CStr, c_char, c_int, c_void};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use tch::{Kind, Tensor};

use super::c10d::{Result, Store};

type Communicator = *mut c_void;
type Status = c_int;
type AllReduce =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Communicator, *mut c_void) -> Status;

/// What the ranks of a communicator have in common.
#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([u8; 128]);

/// `ncclSum`.
const SUM: c_int = 0;
/// The stream that libtorch computes in where nobody chooses another.
const DEFAULT_STREAM: *mut c_void = std::ptr::null_mut();
/// The key of the identifier in the store.
const ID: &str = "nccl";

/// The library's functions that are used, as `nccl.h` declares them.
pub(super) struct Nccl {
    get_unique_id: unsafe extern "C" fn(*mut UniqueId) -> Status,
    init_rank: unsafe extern "C" fn(*mut Communicator, c_int, UniqueId, c_int) -> Status,
    all_reduce: AllReduce,
    group_start: unsafe extern "C" fn() -> Status,
    group_end: unsafe extern "C" fn() -> Status,
    abort: unsafe extern "C" fn(Communicator) -> Status,
    error_string: unsafe extern "C" fn(Status) -> *const c_char,
    set_device: unsafe extern "C" fn(c_int) -> c_int,
    /// Keeps the functions.
    _library: Library,
}

impl Nccl {
    /// Opens the library, which libtorch's CUDA half has loaded if it is there.
    pub(super) fn open(name: &str) -> Result<Self> {
        // SAFETY: NCCL's initialisers do nothing that depends on us.
        let library =
            unsafe { Library::open(Some(name), RTLD_NOW | RTLD_GLOBAL) }.map_err(|error| error.to_string())?;
        // SAFETY: each name has the type that `nccl.h` and `cuda_runtime_api.h` declare, unchanged since NCCL 2.0.
        unsafe {
            let this = Library::this();
            let set_device = library.get(b"cudaSetDevice\0").or_else(|_| this.get(b"cudaSetDevice\0"));
            let missing = |error: libloading::Error| error.to_string();
            Ok(Self {
                get_unique_id: *library.get(b"ncclGetUniqueId\0").map_err(missing)?,
                init_rank: *library.get(b"ncclCommInitRank\0").map_err(missing)?,
                all_reduce: *library.get(b"ncclAllReduce\0").map_err(missing)?,
                group_start: *library.get(b"ncclGroupStart\0").map_err(missing)?,
                group_end: *library.get(b"ncclGroupEnd\0").map_err(missing)?,
                abort: *library.get(b"ncclCommAbort\0").map_err(missing)?,
                error_string: *library.get(b"ncclGetErrorString\0").map_err(missing)?,
                set_device: *set_device.map_err(missing)?,
                _library: library,
            })
        }
    }

    fn check(&self, status: Status) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the library gives a text that lives as long as it does.
        let text = unsafe { CStr::from_ptr((self.error_string)(status)) };
        Err(format!("NCCL: {}", text.to_string_lossy()))
    }

    /// Leaves what the ranks have in common in the store; rank 0 does this before any of them joins.
    pub(super) fn invite(&self, store: &Store) -> Result<()> {
        let mut id = UniqueId([0; 128]);
        // SAFETY: a place for the identifier.
        self.check(unsafe { (self.get_unique_id)(&mut id) })?;
        store.set(ID, &id.0)
    }

    /// Makes `gpu` the GPU of this thread.
    pub(super) fn take_device(&self, gpu: usize) -> Result<()> {
        // SAFETY: a number, which CUDA refuses where there is no such device.
        match unsafe { (self.set_device)(gpu as c_int) } {
            0 => Ok(()),
            _ => Err(format!("CUDA device {gpu} cannot be used")),
        }
    }

    /// Joins the other ranks with GPU `gpu`.
    pub(super) fn join(self, store: &Store, rank: usize, size: usize, gpu: usize) -> Result<Ring> {
        let id = store.get(ID)?;
        let id = UniqueId(id.try_into().map_err(|_| "NCCL: rank 0 left no identifier".to_owned())?);
        let mut communicator = std::ptr::null_mut();
        self.take_device(gpu)?;
        // SAFETY: a place for the communicator, and the identifier that all ranks share.
        self.check(unsafe { (self.init_rank)(&mut communicator, size as c_int, id, rank as c_int) })?;
        Ok(Ring { nccl: self, communicator, gpu })
    }
}

/// The ranks' GPUs.
pub(super) struct Ring {
    nccl: Nccl,
    communicator: Communicator,
    gpu: usize,
}

// SAFETY: a communicator may be used from any thread, by one at a time; nothing else holds it.
unsafe impl Send for Ring {}

impl Ring {
    /// Adds up contiguous tensors over all ranks, in their place and in libtorch's stream: whatever is computed next sees the sums.
    pub(super) fn all_reduce(&self, tensors: &[Tensor]) -> Result<()> {
        let nccl = &self.nccl;
        nccl.take_device(self.gpu)?;
        // SAFETY: no arguments.
        nccl.check(unsafe { (nccl.group_start)() })?;
        for tensor in tensors {
            let (data, count) = (tensor.data_ptr(), tensor.numel());
            let kind = data_type(tensor.kind())?;
            // SAFETY: a live communicator, and the tensor's own memory of `count` values of this kind, which is read and written
            // in the stream that all other work on it is in.
            nccl.check(unsafe { (nccl.all_reduce)(data, data, count, kind, SUM, self.communicator, DEFAULT_STREAM) })?;
        }
        // SAFETY: as above.
        nccl.check(unsafe { (nccl.group_end)() })
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: a live communicator, used by nobody after this. The orderly end would wait for ranks that may have gone.
        unsafe { (self.nccl.abort)(self.communicator) };
    }
}

/// `ncclDataType_t`.
fn data_type(kind: Kind) -> Result<c_int> {
    Ok(match kind {
        Kind::Int64 => 4,
        Kind::Half => 6,
        Kind::Float => 7,
        Kind::Double => 8,
        Kind::BFloat16 => 9,
        other => return Err(format!("NCCL: tensors of {other:?} are not added up")),
    })
}

/// Whether all `tensors` are on a GPU.
pub(super) fn are_on_gpus(tensors: &[Tensor]) -> bool {
    !tensors.is_empty() && tensors.iter().all(|tensor| tensor.device().is_cuda())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::world::tests::in_threads;

    /// A library with NCCL's interface that adds up in the memory of one process, between its threads.
    const IMITATION: &str = r#"
        #include <pthread.h>
        #include <stddef.h>
        #include <string.h>
        typedef struct { char bytes[128]; } Id;
        static pthread_barrier_t barrier;
        static int size;
        static float sum[8];
        static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
        static _Thread_local int grouped;
        int cudaSetDevice(int device) { return device < 0; }
        const char* ncclGetErrorString(int status) { return status == 5 ? "invalid usage" : "unhandled"; }
        int ncclGetUniqueId(Id* id) { memset(id, 7, sizeof *id); size = 0; return 0; }
        int ncclCommInitRank(void** out, int ranks, Id id, int rank) {
            if (id.bytes[0] != 7 || id.bytes[127] != 7) return 5;
            pthread_mutex_lock(&lock);
            if (size == 0) { pthread_barrier_init(&barrier, 0, ranks); size = ranks; }
            pthread_mutex_unlock(&lock);
            *out = (void*)(size_t)(rank + 1);
            return 0;
        }
        int ncclGroupStart(void) { grouped = 1; return 0; }
        int ncclGroupEnd(void) { grouped = 0; return 0; }
        int ncclCommAbort(void* communicator) { return 0; }
        int ncclAllReduce(const void* in, void* out, size_t count, int type, int op, void* communicator, void* stream) {
            if (!grouped || type != 7 || op != 0 || !communicator || stream || count > 8) return 5;
            if (pthread_barrier_wait(&barrier) == PTHREAD_BARRIER_SERIAL_THREAD) memset(sum, 0, sizeof sum);
            pthread_barrier_wait(&barrier);
            pthread_mutex_lock(&lock);
            for (size_t i = 0; i < count; i++) sum[i] += ((const float*)in)[i];
            pthread_mutex_unlock(&lock);
            pthread_barrier_wait(&barrier);
            memcpy(out, sum, count * sizeof(float));
            return 0;
        }
    "#;

    #[test]
    fn the_library_is_called_as_its_header_says() {
        let folder = tempfile::tempdir().unwrap();
        let (source, library) = (folder.path().join("nccl.c"), folder.path().join("libimitation.so"));
        fs_err::write(&source, IMITATION).unwrap();
        let built = Command::new("cc").args(["-shared", "-fPIC", "-pthread", "-o"]).args([&library, &source]).status();
        assert!(built.unwrap().success());
        let name = library.to_str().unwrap();
        let sums = in_threads(3, |world| {
            let nccl = Nccl::open(name).unwrap();
            let store = world.store();
            if world.leads() {
                nccl.invite(store).unwrap();
            }
            world.barrier().unwrap();
            let ring = nccl.join(store, world.rank(), 3, world.rank()).unwrap();
            let rank = world.rank() as f32;
            let tensors = [Tensor::from_slice(&[rank, 1.0]), Tensor::from_slice(&[10.0 * rank])];
            ring.all_reduce(&tensors).unwrap();
            let wrong = ring.all_reduce(&[Tensor::from_slice(&[1.0_f64])]).unwrap_err();
            assert_eq!(wrong, "NCCL: invalid usage");
            tensors.map(|tensor| Vec::<f32>::try_from(tensor).unwrap())
        });
        assert_eq!(sums, vec![[vec![3.0, 3.0], vec![30.0]]; 3]);
        assert!(Nccl::open("libno-such-nccl.so").is_err());
    }
}
