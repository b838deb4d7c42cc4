//! Lets libtorch's threads sleep while they wait for one another, which libgomp reads from the environment before `main`.
//!
//! A waiting thread of libgomp spins unless `OMP_WAIT_POLICY` is `passive`. Beside another busy process the thread that it waits
//! for is often not scheduled. A training step of a small model then takes many times as long. The variable is read when libgomp
//! is loaded, so a command that computes is started once more with it. This is before any library of this process is initialised:
//! 0.03 s, where initialising libtorch takes ten times as long.

#![allow(unsafe_code, reason = "runs before the standard library does: C's argument vectors, and a call of execve")]

use std::ffi::{CStr, c_char, c_int};

type Strings = *const *const c_char;

/// Commands whose start is followed by computing.
const COMPUTING: [&CStr; 4] = [c"reward", c"diffusion", c"evaluate", c"demo"];
/// Variables by which a user decides how threads wait.
const DECIDED: [&[u8]; 2] = [b"OMP_WAIT_POLICY=", b"GOMP_SPINCOUNT="];
/// Variables that are passed on; with more than these, the process goes on as it is.
const MOST: usize = 4096;

unsafe extern "C" {
    fn execve(path: *const c_char, arguments: Strings, environment: Strings) -> c_int;
}

/// Called by the dynamic linker once everything is in place, before the first library is initialised.
#[used]
#[unsafe(link_section = ".preinit_array")]
static BEFORE_LIBRARIES: extern "C" fn(c_int, Strings, Strings) = wait_asleep;

extern "C" fn wait_asleep(count: c_int, arguments: Strings, environment: Strings) {
    if count < 2 {
        return;
    }
    // SAFETY: the kernel hands over at least `count` valid strings.
    let command = unsafe { CStr::from_ptr(*arguments.add(1)) };
    if !COMPUTING.contains(&command) {
        return;
    }
    // One more for the variable, one for the null pointer at the end.
    let mut passed_on = [std::ptr::null(); MOST + 2];
    let mut length = 0;
    loop {
        // SAFETY: the environment ends with a null pointer, at which this loop ends.
        let variable = unsafe { *environment.add(length) };
        if variable.is_null() {
            break;
        }
        // SAFETY: what is no null pointer is a valid string.
        let text = unsafe { CStr::from_ptr(variable) }.to_bytes();
        if length == MOST || DECIDED.iter().any(|name| text.starts_with(name)) {
            return;
        }
        passed_on[length] = variable;
        length += 1;
    }
    passed_on[length] = c"OMP_WAIT_POLICY=passive".as_ptr();
    // SAFETY: both vectors end with a null pointer. Where it fails (no /proc), the process goes on as it is.
    unsafe { execve(c"/proc/self/exe".as_ptr(), arguments, passed_on.as_ptr()) };
}
