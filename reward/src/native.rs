//! The C++ shim (`native/shim.cpp`): what tch does not bind of libtorch.
#![allow(unsafe_code, reason = "the one place where Rust and C++ meet; every call says why it is sound")]

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
};

use tch::{Device, Tensor};
use torch_sys::C_tensor;

type Run = unsafe extern "C" fn(*mut c_void, *mut C_tensor, *mut c_char, usize) -> *mut C_tensor;
type Drop = unsafe extern "C" fn(*mut c_void);
type Closure = Box<dyn Fn(&Tensor) -> Tensor + Send>;

unsafe extern "C" {
    fn sr_last_error() -> *const c_char;
    fn sr_checkpoint(
        inputs: *const *const C_tensor,
        count: usize,
        closure: *mut c_void,
        run: Run,
        drop: Drop,
        output: *mut *mut C_tensor,
    ) -> c_int;
    fn sr_adam_step(
        parameters: *const *const C_tensor,
        gradients: *const *const C_tensor,
        means: *const *const C_tensor,
        squares: *const *const C_tensor,
        steps: *const *const C_tensor,
        count: usize,
        rate: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        epsilon: f64,
        decoupled: c_int,
    ) -> c_int;
    fn sr_gradient_norm(gradients: *const *const C_tensor, count: usize, norm: *mut f64) -> c_int;
    fn sr_memory(index: c_int, peak: *mut u64, free: *mut u64, total: *mut u64) -> c_int;
    fn sr_empty_cache() -> c_int;
    fn sr_operator_times(
        body: unsafe extern "C" fn(*mut c_void),
        report: unsafe extern "C" fn(*mut c_void, *const c_char, f64),
        data: *mut c_void,
    ) -> c_int;
}

/// A failure that libtorch reports by panicking, through tch, with the first line of its message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// No memory is left, on a GPU or a CPU.
    OutOfMemory(String),
    /// Anything else.
    Libtorch(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::OutOfMemory(text) | Self::Libtorch(text)) = self;
        formatter.write_str(text)
    }
}

/// Runs `body`; a panic of libtorch becomes a value.
///
/// # Errors
/// What libtorch says.
pub fn guarded<T>(body: impl FnOnce() -> T) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(body)).map_err(|panic| {
        let text = panic_text(&*panic);
        let lower = text.to_lowercase();
        match ["out of memory", "can't allocate memory", "not enough memory", "alloc_failed"]
            .iter()
            .any(|said| lower.contains(said))
        {
            true => Failure::OutOfMemory(text),
            false => Failure::Libtorch(text),
        }
    })
}

/// The first line of a panic's message.
fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    said(text.unwrap_or("unknown failure")).to_owned()
}

/// The text of libtorch in the message of a panic, without the call that failed, the place in its code and the stack.
fn said(text: &str) -> &str {
    let text = text.split_once("value: Torch(\"").map_or(text, |(_, inside)| inside.trim_end_matches("\")"));
    let line = text.lines().next().unwrap_or_default();
    // Within a quoted message the end of a line is spelled out.
    let line = line.split("\\n").next().unwrap_or_default();
    match line.strip_prefix("[enforce fail at ").and_then(|rest| rest.split_once(". ")) {
        Some((_, what)) => what,
        None => line,
    }
}

fn pointers<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Vec<*const C_tensor> {
    tensors.into_iter().map(Tensor::as_ptr).collect()
}

/// Panics like a plain tch operation, with libtorch's own message.
#[track_caller]
#[allow(clippy::panic, reason = "the contract of every tch operation; the trainer's one boundary catches it")]
fn check(status: c_int) {
    if status != 0 {
        panic!("{}", last_error());
    }
}

/// Why this thread's last call of the shim failed.
pub(crate) fn last_error() -> String {
    // SAFETY: the shim keeps a NUL-terminated string per thread until the next failing call.
    unsafe { CStr::from_ptr(sr_last_error()) }.to_string_lossy().into_owned()
}

/// Runs `block` on `x` without keeping its activations; the backward pass runs it again (gradient checkpointing).
///
/// `parameters` are the tensors the block uses: named so that their gradients flow even where `x` needs none. Without
/// gradient mode this is `block(x)`.
///
/// # Panics
/// Where `block` or libtorch does, now or in the backward pass.
pub fn checkpoint(x: &Tensor, parameters: &[Tensor], block: impl Fn(&Tensor) -> Tensor + Send + 'static) -> Tensor {
    unsafe extern "C" fn run(
        closure: *mut c_void,
        input: *mut C_tensor,
        message: *mut c_char,
        capacity: usize,
    ) -> *mut C_tensor {
        // SAFETY: `closure` is the box made below, alive as long as the graph node that calls this; `input` is borrowed.
        let (closure, input) = unsafe { (&*closure.cast::<Closure>(), Tensor::clone_from_ptr(input)) };
        match catch_unwind(AssertUnwindSafe(|| closure(&input))) {
            Ok(mut output) => {
                let pointer = output.as_mut_ptr();
                std::mem::forget(output);
                pointer
            }
            Err(panic) => {
                let text = panic_text(&*panic);
                let length = text.len().min(capacity - 1);
                // SAFETY: `message` has room for `capacity` bytes and is zeroed.
                unsafe { std::ptr::copy_nonoverlapping(text.as_ptr().cast(), message, length) };
                std::ptr::null_mut()
            }
        }
    }
    unsafe extern "C" fn drop(closure: *mut c_void) {
        // SAFETY: called once, by the destructor of the owner.
        std::mem::drop(unsafe { Box::from_raw(closure.cast::<Closure>()) });
    }
    let closure: Box<Closure> = Box::new(Box::new(block));
    let inputs = pointers(std::iter::once(x).chain(parameters));
    let mut output = std::ptr::null_mut();
    // SAFETY: the pointers are valid for the call; the shim takes the closure over and hands the output to us.
    check(unsafe {
        sr_checkpoint(inputs.as_ptr(), inputs.len(), Box::into_raw(closure).cast(), run, drop, &mut output)
    });
    // SAFETY: a successful call gives an owned tensor.
    unsafe { Tensor::from_ptr(output) }
}

/// The tensors of one optimizer step, in the same order everywhere.
pub struct AdamTensors<'a> {
    /// fp32 leaves, updated in place.
    pub parameters: Vec<&'a Tensor>,
    /// Gradients of the parameters.
    pub gradients: Vec<Tensor>,
    /// First moments, updated in place.
    pub means: Vec<&'a Tensor>,
    /// Second moments, updated in place.
    pub squares: Vec<&'a Tensor>,
    /// Step counts (fp32 scalars), updated in place.
    pub steps: Vec<&'a Tensor>,
}

/// Hyper-parameters of Adam.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamSettings {
    /// Learning rate.
    pub rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// AdamW (decay applied to the weights) instead of Adam (added to the gradient).
    pub decoupled: bool,
}

/// One fused Adam or AdamW step.
///
/// # Panics
/// Where libtorch does.
pub fn adam_step(tensors: &AdamTensors, settings: AdamSettings) {
    let AdamSettings { rate, beta1, beta2, weight_decay, epsilon, decoupled } = settings;
    let parameters = pointers(tensors.parameters.iter().copied());
    let gradients = pointers(&tensors.gradients);
    let [means, squares, steps] =
        [&tensors.means, &tensors.squares, &tensors.steps].map(|all| pointers(all.iter().copied()));
    // SAFETY: five arrays of the same length of valid tensors.
    check(unsafe {
        sr_adam_step(
            parameters.as_ptr(),
            gradients.as_ptr(),
            means.as_ptr(),
            squares.as_ptr(),
            steps.as_ptr(),
            parameters.len(),
            rate,
            beta1,
            beta2,
            weight_decay,
            epsilon,
            c_int::from(decoupled),
        )
    });
}

/// The Euclidean norm over all gradients together; 0 for none.
///
/// # Panics
/// Where libtorch does.
pub fn gradient_norm(gradients: &[Tensor]) -> f64 {
    if gradients.is_empty() {
        return 0.0;
    }
    let (all, mut norm) = (pointers(gradients), 0.0);
    // SAFETY: valid tensors, and a place for the answer.
    check(unsafe { sr_gradient_norm(all.as_ptr(), all.len(), &mut norm) });
    norm
}

/// Bytes of memory, of a device or of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// The most that was taken so far: by tensors on an accelerator, by the whole process on a CPU.
    pub peak: u64,
    /// What is free now.
    pub free: u64,
}

/// The memory of `device`; nothing where the system does not say.
pub fn memory(device: Device) -> Option<Memory> {
    if let Device::Cuda(index) = device {
        let (mut peak, mut free, mut total) = (0, 0, 0);
        // SAFETY: three places for the answers.
        let status = unsafe { sr_memory(index as c_int, &mut peak, &mut free, &mut total) };
        return (status == 0).then_some(Memory { peak, free });
    }
    let figure = |file: &str, name: &str| -> Option<u64> {
        let text = fs_err::read_to_string(file).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
    };
    Some(Memory { peak: figure("/proc/self/status", "VmHWM:")?, free: figure("/proc/meminfo", "MemAvailable:")? })
}

/// Gives back what an accelerator holds ready for tensors, after it ran out of memory.
pub fn empty_cache(device: Device) {
    if device.is_cuda() {
        // SAFETY: no arguments; a failure changes nothing.
        unsafe { sr_empty_cache() };
    }
}

/// Runs `work` and gives the seconds that each libtorch operator took by itself on this thread, the longest first.
///
/// # Panics
/// Where `work` or libtorch does.
pub fn operator_times<F: FnOnce()>(work: F) -> Vec<(String, f64)> {
    struct Data<F> {
        work: Option<F>,
        panic: Option<Box<dyn std::any::Any + Send>>,
        times: Vec<(String, f64)>,
    }
    unsafe extern "C" fn body<F: FnOnce()>(data: *mut c_void) {
        // SAFETY: `data` is the `Data<F>` below, lent for the call and used by nobody else.
        let data = unsafe { &mut *data.cast::<Data<F>>() };
        if let Some(work) = data.work.take() {
            data.panic = catch_unwind(AssertUnwindSafe(work)).err();
        }
    }
    unsafe extern "C" fn report<F>(data: *mut c_void, name: *const c_char, seconds: f64) {
        // SAFETY: as above; `name` is NUL-terminated and lives for the call.
        let (data, name) = unsafe { (&mut *data.cast::<Data<F>>(), CStr::from_ptr(name)) };
        data.times.push((name.to_string_lossy().into_owned(), seconds));
    }
    let mut data = Data { work: Some(work), panic: None, times: Vec::new() };
    // SAFETY: both callbacks get back the pointer to `data`, which outlives the call.
    check(unsafe { sr_operator_times(body::<F>, report::<F>, std::ptr::from_mut(&mut data).cast()) });
    if let Some(panic) = data.panic {
        std::panic::resume_unwind(panic);
    }
    data.times.sort_by(|left, right| right.1.total_cmp(&left.1));
    data.times
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn what_libtorch_says_is_told_in_one_line() {
        let Err(Failure::OutOfMemory(text)) = guarded(|| Tensor::zeros([1 << 60], (Kind::Float, Device::Cpu))) else {
            panic!("an exabyte was there")
        };
        assert!(text.contains("tried to allocate") && !text.contains("enforce") && !text.contains("frame"), "{text}");
        let Err(Failure::Libtorch(text)) =
            guarded(|| Tensor::from_slice(&[1.0]).matmul(&Tensor::from_slice(&[1.0, 2.0])))
        else {
            panic!("shapes fit")
        };
        assert_eq!(
            text,
            "inconsistent tensor size, expected tensor [1] and src [2] to have the same number of elements, but got 1 and 2 elements respectively"
        );
    }

    fn weight_gradient(checkpointed: bool, input_requires_grad: bool) -> (Vec<f32>, bool) {
        let weight = Tensor::from_slice(&[0.5_f32, -1.0, 2.0, 0.25]).view([2, 2]).set_requires_grad(true);
        let x = Tensor::from_slice(&[1.0_f32, 2.0]).view([1, 2]).set_requires_grad(input_requires_grad);
        let own = weight.shallow_clone();
        let block = move |x: &Tensor| x.matmul(&own).sigmoid();
        let y = if checkpointed { checkpoint(&x, &[weight.shallow_clone()], block) } else { block(&x) };
        y.sum(Kind::Float).backward();
        (Vec::try_from(weight.grad().flatten(0, -1)).unwrap(), x.grad().defined())
    }

    #[test]
    fn checkpointed_gradients_equal_plain_ones_even_when_the_input_needs_none() {
        for input_requires_grad in [false, true] {
            let (plain, _) = weight_gradient(false, input_requires_grad);
            let (checkpointed, input_gradient) = weight_gradient(true, input_requires_grad);
            assert_eq!(plain, checkpointed);
            assert!(plain.iter().all(|value| *value != 0.0));
            assert_eq!(input_gradient, input_requires_grad);
        }
    }

    #[test]
    fn a_panicking_block_is_an_error_of_the_backward_pass() {
        let weight = Tensor::ones([1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let calls = std::sync::atomic::AtomicUsize::new(0);
        let own = weight.shallow_clone();
        let y = checkpoint(&weight, &[], move |x| {
            assert_eq!(calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed), 0, "second call");
            x * &own
        });
        let message = y.f_backward().unwrap_err().to_string();
        assert!(message.contains("second call"), "{message}");
    }

    #[test]
    fn operators_that_ran_are_timed() {
        let x = Tensor::ones([64, 64], (Kind::Float, Device::Cpu));
        let times = operator_times(|| drop(x.matmul(&x).relu()));
        let names: Vec<&str> = times.iter().map(|(name, _)| name.as_str()).collect();
        assert!(names.contains(&"aten::mm") && names.contains(&"aten::relu"), "{names:?}");
        assert!(times.iter().all(|(_, seconds)| *seconds >= 0.0));
    }

    #[test]
    fn gradient_norm_of_3_and_4_is_5() {
        let gradients = [Tensor::from_slice(&[3.0_f32]), Tensor::from_slice(&[0.0_f32, 4.0])];
        assert_eq!(gradient_norm(&gradients), 5.0);
    }
}
