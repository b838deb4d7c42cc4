// Several processes: libtorch's own key-value store (TCPStore) and its Gloo collectives, which tch does not bind.
// Conventions as in shim.cpp; handles are owned by the caller and given back to their `_close`.
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/torch.h>

#include <chrono>
#include <cstdlib>
#include <string>
#include <vector>

#include "guarded.h"

using Store = c10::intrusive_ptr<c10d::Store>;
using Group = c10::intrusive_ptr<c10d::ProcessGroupGloo>;
using Work = c10::intrusive_ptr<c10d::Work>;
using Milliseconds = std::chrono::milliseconds;

extern "C" {

// Opens the store at host:port, which this process keeps where `server` is not 0.
int sr_store_open(const char* host, uint16_t port, int server, const char* prefix, uint64_t timeout, Store** out) {
  return guarded([&] {
    // What goes wrong is an error of ours; c10d would print it with a stack as well.
    FLAGS_caffe2_log_level = static_cast<int>(c10::GLOG_FATAL);
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = server != 0;
    options.waitWorkers = false;
    options.timeout = Milliseconds(timeout);
    options.multiTenant = true;
    Store store = c10::make_intrusive<c10d::TCPStore>(host, options);
    *out = new Store(c10::make_intrusive<c10d::PrefixStore>(prefix, store));
  });
}

void sr_store_close(Store* store) { delete store; }

int sr_store_set(Store* store, const char* key, const uint8_t* bytes, size_t length) {
  return guarded([&] { (*store)->set(key, std::vector<uint8_t>(bytes, bytes + length)); });
}

// Waits until the key is set, and hands its value to `take`.
int sr_store_get(Store* store, const char* key, void (*take)(void*, const uint8_t*, size_t), void* data) {
  return guarded([&] {
    const auto value = (*store)->get(key);
    take(data, value.data(), value.size());
  });
}

int sr_store_add(Store* store, const char* key, int64_t amount, int64_t* now) {
  return guarded([&] { *now = (*store)->add(key, amount); });
}

int sr_store_has(Store* store, const char* key, int* has) {
  return guarded([&] { *has = (*store)->check({key}); });
}

// Joins the group of `size` ranks that meet at the store.
int sr_group_open(Store* store, int rank, int size, uint64_t timeout, Group** out) {
  return guarded([&] {
    auto options = c10d::ProcessGroupGloo::Options::create(Milliseconds(timeout));
    const char* interface = std::getenv("GLOO_SOCKET_IFNAME");
    options->devices.push_back(interface ? c10d::ProcessGroupGloo::createDeviceForInterface(interface)
                                         : c10d::ProcessGroupGloo::createDefaultDevice());
    *out = new Group(c10::make_intrusive<c10d::ProcessGroupGloo>(*store, rank, size, options));
  });
}

void sr_group_close(Group* group) { delete group; }

// Begins the sum over all ranks of a contiguous tensor, in its place; `sr_work_wait` ends it.
int sr_all_reduce(Group* group, torch::Tensor* tensor, Work** out) {
  return guarded([&] {
    std::vector<at::Tensor> tensors{*tensor};
    *out = new Work((*group)->allreduce(tensors));
  });
}

// Waits for the work and gives its handle back.
int sr_work_wait(Work* work) {
  const std::unique_ptr<Work> owned(work);
  return guarded([&] { (*owned)->wait(); });
}

// Fills `outputs`, one tensor of the input's shape for each rank.
int sr_all_gather(Group* group, torch::Tensor* const* outputs, size_t count, torch::Tensor* input) {
  return guarded([&] {
    std::vector<std::vector<at::Tensor>> all(1);
    for (size_t i = 0; i < count; i++) all[0].push_back(*outputs[i]);
    std::vector<at::Tensor> inputs{*input};
    (*group)->allgather(all, inputs)->wait();
  });
}

}  // extern "C"
