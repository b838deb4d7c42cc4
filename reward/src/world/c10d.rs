//! libtorch's own engine of many processes, c10d: the store where they meet and Gloo's collectives (`native/world.cpp`).
#![allow(unsafe_code, reason = "bindings of the C++ shim; every call says why it is sound")]

use std::{
    ffi::{CString, c_char, c_int, c_void},
    time::Duration,
};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::native::last_error;

unsafe extern "C" {
    fn sr_store_open(
        host: *const c_char,
        port: u16,
        server: c_int,
        prefix: *const c_char,
        timeout: u64,
        out: *mut *mut c_void,
    ) -> c_int;
    fn sr_store_close(store: *mut c_void);
    fn sr_store_set(store: *mut c_void, key: *const c_char, bytes: *const u8, length: usize) -> c_int;
    fn sr_store_get(
        store: *mut c_void,
        key: *const c_char,
        take: unsafe extern "C" fn(*mut c_void, *const u8, usize),
        data: *mut c_void,
    ) -> c_int;
    fn sr_store_add(store: *mut c_void, key: *const c_char, amount: i64, now: *mut i64) -> c_int;
    fn sr_store_has(store: *mut c_void, key: *const c_char, has: *mut c_int) -> c_int;
    fn sr_group_open(store: *mut c_void, rank: c_int, size: c_int, timeout: u64, out: *mut *mut c_void) -> c_int;
    fn sr_group_close(group: *mut c_void);
    fn sr_all_reduce(group: *mut c_void, tensor: *mut C_tensor, out: *mut *mut c_void) -> c_int;
    fn sr_work_wait(work: *mut c_void) -> c_int;
    fn sr_all_gather(
        group: *mut c_void,
        outputs: *const *const C_tensor,
        count: usize,
        input: *const C_tensor,
    ) -> c_int;
}

/// Result with the first line of c10d's message.
pub(super) type Result<T> = std::result::Result<T, String>;

fn check(status: c_int) -> Result<()> {
    // The lines after the first are a stack.
    if status == 0 { Ok(()) } else { Err(last_error().lines().next().unwrap_or_default().to_owned()) }
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|error| error.to_string())
}

fn milliseconds(time: Duration) -> u64 {
    time.as_millis() as u64
}

/// A key-value store that all ranks reach. Its calls may come from any thread, and wait for one another.
pub(super) struct Store(*mut c_void);

// SAFETY: c10d's TCPStore guards its connection with a mutex.
unsafe impl Send for Store {}
// SAFETY: as above.
unsafe impl Sync for Store {}

impl Store {
    /// Connects, for at most `timeout`, to the store at `host`:`port`; with `server`, keeps it there. Keys begin with `prefix`.
    pub(super) fn open(host: &str, port: u16, server: bool, prefix: &str, timeout: Duration) -> Result<Self> {
        let (host, prefix, mut store) = (c_string(host)?, c_string(prefix)?, std::ptr::null_mut());
        // SAFETY: two NUL-terminated strings, and a place for the handle.
        check(unsafe {
            sr_store_open(host.as_ptr(), port, c_int::from(server), prefix.as_ptr(), milliseconds(timeout), &mut store)
        })?;
        Ok(Self(store))
    }

    pub(super) fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        let key = c_string(key)?;
        // SAFETY: a live handle, a NUL-terminated string, and `value` with its length.
        check(unsafe { sr_store_set(self.0, key.as_ptr(), value.as_ptr(), value.len()) })
    }

    /// Waits for the key.
    pub(super) fn get(&self, key: &str) -> Result<Vec<u8>> {
        unsafe extern "C" fn take(data: *mut c_void, bytes: *const u8, length: usize) {
            // SAFETY: `data` is the vector below; `bytes` has `length` bytes, or none.
            let (value, bytes) = unsafe {
                (
                    &mut *data.cast::<Vec<u8>>(),
                    if length == 0 { &[] } else { std::slice::from_raw_parts(bytes, length) },
                )
            };
            value.extend_from_slice(bytes);
        }
        let (key, mut value) = (c_string(key)?, Vec::new());
        // SAFETY: a live handle, a NUL-terminated string, and `value`, which outlives the call.
        check(unsafe { sr_store_get(self.0, key.as_ptr(), take, std::ptr::from_mut(&mut value).cast()) })?;
        Ok(value)
    }

    /// Adds to the number of a key, 0 at first, and gives it.
    pub(super) fn add(&self, key: &str, amount: i64) -> Result<i64> {
        let (key, mut now) = (c_string(key)?, 0);
        // SAFETY: a live handle, a NUL-terminated string, and a place for the answer.
        check(unsafe { sr_store_add(self.0, key.as_ptr(), amount, &mut now) })?;
        Ok(now)
    }

    pub(super) fn has(&self, key: &str) -> Result<bool> {
        let (key, mut has) = (c_string(key)?, 0);
        // SAFETY: as above.
        check(unsafe { sr_store_has(self.0, key.as_ptr(), &mut has) })?;
        Ok(has != 0)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: the handle is live, and used by nobody after this.
        unsafe { sr_store_close(self.0) };
    }
}

/// Gloo's collectives, over tensors on the CPU.
pub(super) struct Group(*mut c_void);

// SAFETY: a process group may be called from any thread; every rank makes its calls in one order, from one thread at a time.
unsafe impl Send for Group {}
// SAFETY: as above.
unsafe impl Sync for Group {}

impl Group {
    /// Meets the other ranks at `store`. Every collective ends within `timeout`.
    pub(super) fn open(store: &Store, rank: usize, size: usize, timeout: Duration) -> Result<Self> {
        let mut group = std::ptr::null_mut();
        // SAFETY: a live store, which the group keeps alive, and a place for the handle.
        check(unsafe { sr_group_open(store.0, rank as c_int, size as c_int, milliseconds(timeout), &mut group) })?;
        Ok(Self(group))
    }

    /// Begins to add up a contiguous tensor over all ranks, in its place.
    pub(super) fn begin_all_reduce<'a>(&self, tensor: &'a Tensor) -> Result<Work<'a>> {
        let mut work = std::ptr::null_mut();
        // SAFETY: a live group, a valid tensor which the work keeps alive, and a place for the handle.
        check(unsafe { sr_all_reduce(self.0, tensor.as_ptr().cast_mut(), &mut work) })?;
        Ok(Work(work, std::marker::PhantomData))
    }

    /// The tensors of all ranks, which have one shape.
    pub(super) fn all_gather(&self, tensor: &Tensor, size: usize) -> Result<Vec<Tensor>> {
        let outputs: Vec<Tensor> = (0..size).map(|_| tensor.empty_like()).collect();
        let pointers: Vec<*const C_tensor> = outputs.iter().map(Tensor::as_ptr).collect();
        // SAFETY: a live group, and valid tensors of one shape.
        check(unsafe { sr_all_gather(self.0, pointers.as_ptr(), pointers.len(), tensor.as_ptr()) })?;
        Ok(outputs)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // SAFETY: the handle is live, and used by nobody after this.
        unsafe { sr_group_close(self.0) };
    }
}

/// A collective under way over a tensor that is borrowed for it.
pub(super) struct Work<'a>(*mut c_void, std::marker::PhantomData<&'a Tensor>);

impl Work<'_> {
    pub(super) fn wait(self) -> Result<()> {
        // SAFETY: the handle is live and given back once.
        check(unsafe { sr_work_wait(self.0) })
    }
}
