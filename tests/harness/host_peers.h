// HostPeers: host memory as a device with PeerOps, so that what ranks on GPUs do on the host runs without a GPU.
// Streams are the calling thread, as on CpuDevice. GPUs that it says cannot reach each other are told apart by
// `reachable`.
#pragma once

#include <atomic>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "kernels/cpu_device.h"
#include "kernels/peer.h"

namespace moectl::test {

class HostPeers final : public Device, private PeerOps {
 public:
  explicit HostPeers(int ordinal, bool reachable = true) : ordinal_(ordinal), reachable_(reachable) {}

  Buffer alloc(int64_t num_bytes) override { return cpu_.alloc(num_bytes); }
  Buffer alloc_host(int64_t num_bytes) override { return cpu_.alloc_host(num_bytes); }
  void upload(void* device, const void* host, int64_t num_bytes) override { cpu_.upload(device, host, num_bytes); }
  void copy(void* to, const void* from, int64_t num_bytes, Stream s) override { cpu_.copy(to, from, num_bytes, s); }
  Memory memory() const override { return {}; }
  Stream stream() override { return {}; }
  void synchronize(Stream) override {}
  Event record_event(Stream s) override { return cpu_.record_event(s); }
  void wait(const Event&) override {}
  double seconds_between(const Event& begin, const Event& end) override { return cpu_.seconds_between(begin, end); }
  void fork(const std::function<void()>& work) override { work(); }
  void join() override {}
  GraphCapture* graphs() override { return nullptr; }
  PeerOps* peers() override { return this; }

 private:
  int ordinal() const override { return ordinal_; }
  std::string connect(int ordinal) override {
    return reachable_ || ordinal == ordinal_ ? "" : fmt::format("GPU {} cannot reach GPU {}", ordinal_, ordinal);
  }
  void barrier(const PeerBarrierArgs&, Stream) override { throw Error(Code::kInternal, "no barrier on the host"); }
  void sum(const PeerSumArgs& a, Stream) override {
    for (int64_t i = 0; i < a.out.size(); ++i) {
      float total = a.rows[0][i];
      for (size_t r = 1; r < a.rows.size(); ++r) total = total + a.rows[r][i];
      a.out(i) = total;
    }
  }
  void all_reduce(const PeerAllReduceArgs&, Stream) override {
    throw Error(Code::kInternal, "no all-reduce on the host");
  }
  void mark(const PeerMarkArgs& a, Stream) override {
    std::atomic_ref(a.status->at).store(a.operation.code());
    std::atomic_ref(a.status->marks).store(++*a.num_marks);
  }
  void launch(const char*, Stream stream, const std::function<void(Stream)>& call) override { call(stream); }

  CpuDevice cpu_;
  const int ordinal_;
  const bool reachable_;
};

inline std::vector<std::unique_ptr<HostPeers>> host_peers(int size, bool reachable = true) {
  std::vector<std::unique_ptr<HostPeers>> all;
  for (int r = 0; r < size; ++r) all.push_back(std::make_unique<HostPeers>(r, reachable));
  return all;
}

inline std::vector<Device*> devices_of(const std::vector<std::unique_ptr<HostPeers>>& peers) {
  std::vector<Device*> devices;
  for (const auto& p : peers) devices.push_back(p.get());
  return devices;
}

}  // namespace moectl::test
