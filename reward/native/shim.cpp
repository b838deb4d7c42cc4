// What tch does not bind of libtorch: gradient checkpointing, the fused optimizer steps, the gradient norm, memory,
// operator times.
// Every function returns 0, or -1 with the reason in sr_last_error(). Tensors are borrowed `torch::Tensor*`, as in tch.
#include <ATen/DeviceAccelerator.h>
#include <ATen/record_function.h>
#include <torch/torch.h>

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "guarded.h"

thread_local std::string last_error;

namespace {

std::vector<at::Tensor> gather(torch::Tensor* const* tensors, size_t count) {
  std::vector<at::Tensor> all;
  all.reserve(count);
  for (size_t i = 0; i < count; i++) all.push_back(*tensors[i]);
  return all;
}

// Runs the Rust closure: borrows the input, returns an owned output, or null after a panic with its message.
using Run = torch::Tensor* (*)(void* closure, torch::Tensor* input, char* message, size_t capacity);
using Drop = void (*)(void* closure);

// The Rust closure, owned by the graph node that will call it again.
struct Closure : torch::CustomClassHolder {
  void* closure;
  Run run;
  Drop drop;
  Closure(void* closure, Run run, Drop drop) : closure(closure), run(run), drop(drop) {}
  ~Closure() override { drop(closure); }
  at::Tensor call(at::Tensor input) const {
    char message[512] = "";
    torch::Tensor* output = run(closure, &input, message, sizeof message);
    if (!output) throw std::runtime_error(message);
    at::Tensor result = std::move(*output);
    delete output;
    return result;
  }
};

// Keeps the block's input only; backward runs the block again with gradients on (Chen et al. 2016, arXiv 1604.06174).
// inputs[0] is the block's input; the rest are its parameters, named here so that a node is recorded, and their gradients
// returned, even where the input itself requires none.
struct Checkpoint : torch::autograd::Function<Checkpoint> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, at::TensorList inputs,
                            c10::intrusive_ptr<Closure> closure) {
    context->save_for_backward(inputs.vec());
    context->saved_data["closure"] = c10::IValue::make_capsule(closure);
    return closure->call(inputs[0].detach());
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list output_gradients) {
    auto inputs = context->get_saved_variables();
    auto capsule = context->saved_data["closure"].toCapsule();
    auto& closure = static_cast<Closure&>(*capsule);
    at::AutoGradMode gradients_on(true);
    const bool input_requires_grad = inputs[0].requires_grad();
    at::Tensor input = inputs[0].detach().set_requires_grad(input_requires_grad);
    at::Tensor output = closure.call(input);

    torch::autograd::variable_list wanted;
    std::vector<size_t> places;
    for (size_t i = 0; i < inputs.size(); i++) {
      if (!inputs[i].requires_grad()) continue;
      wanted.push_back(i == 0 ? input : inputs[i]);
      places.push_back(i);
    }
    auto found = torch::autograd::grad({output}, wanted, {output_gradients[0]}, /*retain_graph=*/false,
                                       /*create_graph=*/false, /*allow_unused=*/true);
    torch::autograd::variable_list gradients(inputs.size() + 1);  // + 1: the closure has none
    for (size_t i = 0; i < places.size(); i++) gradients[places[i]] = found[i];
    return gradients;
  }
};

// Seconds spent in each operator itself, without those it calls, on the thread that profiles.
struct Times {
  using Clock = std::chrono::steady_clock;
  struct Call {
    Clock::time_point start;
    double inner = 0;
  };
  std::vector<Call> stack;
  std::map<std::string, double> seconds;
};

thread_local Times times;

std::unique_ptr<at::ObserverContext> operator_starts(const at::RecordFunction&) {
  times.stack.push_back({Times::Clock::now()});
  return nullptr;
}

void operator_ends(const at::RecordFunction& function, at::ObserverContext*) {
  if (times.stack.empty()) return;
  const auto call = times.stack.back();
  times.stack.pop_back();
  const double took = std::chrono::duration<double>(Times::Clock::now() - call.start).count();
  times.seconds[function.name()] += took - call.inner;
  if (!times.stack.empty()) times.stack.back().inner += took;
}

}  // namespace

extern "C" {

const char* sr_last_error() { return last_error.c_str(); }

// Takes ownership of `closure`. `*output` is owned by the caller.
int sr_checkpoint(torch::Tensor* const* inputs, size_t count, void* closure, Run run, Drop drop, torch::Tensor** output) {
  return guarded([&] {
    auto owned = c10::make_intrusive<Closure>(closure, run, drop);
    auto all = gather(inputs, count);
    *output = new torch::Tensor(at::GradMode::is_enabled() ? Checkpoint::apply(at::TensorList(all), owned)
                                                           : owned->call(all[0]));
  });
}

// One Adam (decoupled = 0: L2 decay in the gradient) or AdamW (decoupled = 1) step in place, fused.
int sr_adam_step(torch::Tensor* const* parameters, torch::Tensor* const* gradients, torch::Tensor* const* means,
                 torch::Tensor* const* squares, torch::Tensor* const* steps, size_t count, double rate, double beta1,
                 double beta2, double weight_decay, double epsilon, int decoupled) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    auto p = gather(parameters, count), g = gather(gradients, count), m = gather(means, count),
         v = gather(squares, count), t = gather(steps, count);
    at::_foreach_add_(t, 1);  // the kernels read the count of this step
    if (decoupled) {
      at::_fused_adamw_(p, g, m, v, {}, t, rate, beta1, beta2, weight_decay, epsilon, false, false);
    } else {
      at::_fused_adam_(p, g, m, v, {}, t, rate, beta1, beta2, weight_decay, epsilon, false, false);
    }
  });
}

// The Euclidean norm over all gradients together.
int sr_gradient_norm(torch::Tensor* const* gradients, size_t count, double* norm) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    *norm = at::stack(at::_foreach_norm(gather(gradients, count), 2)).norm().item<double>();
  });
}


// Of an accelerator: the most bytes its tensors ever took, and what is free and there in all.
int sr_memory(int index, uint64_t* peak, uint64_t* free, uint64_t* total) {
  return guarded([&] {
    const auto device = static_cast<c10::DeviceIndex>(index);
    const auto kind = static_cast<size_t>(at::CachingAllocator::StatType::AGGREGATE);
    *peak = static_cast<uint64_t>(at::accelerator::getDeviceStats(device).allocated_bytes[kind].peak);
    std::tie(*free, *total) = at::accelerator::getMemoryInfo(device);
  });
}

// Gives cached blocks of the accelerator back, after it ran out of memory.
int sr_empty_cache() {
  return guarded([] { at::accelerator::emptyCache(); });
}

// Runs `body(data)`, then tells `report` every operator that ran on this thread, with its own seconds.
int sr_operator_times(void (*body)(void*), void (*report)(void*, const char*, double), void* data) {
  return guarded([&] {
    times = {};
    const auto callback = at::addThreadLocalCallback(
        at::RecordFunctionCallback(operator_starts, operator_ends).scopes({at::RecordScope::FUNCTION}));
    body(data);
    at::removeCallback(callback);
    for (const auto& [name, seconds] : times.seconds) report(data, name.c_str(), seconds);
  });
}

}  // extern "C"
