// CpuDevice: host memory as a device. Streams are the calling thread: everything is done when it returns.
#pragma once

#include "kernels/device.h"

namespace moectl {

class CpuDevice final : public Device {
 public:
  Buffer alloc(int64_t num_bytes) override;
  Buffer alloc_host(int64_t num_bytes) override { return alloc(num_bytes); }
  void upload(void* device, const void* host, int64_t num_bytes) override;
  void copy(void* to, const void* from, int64_t num_bytes, Stream) override { upload(to, from, num_bytes); }
  Memory memory() const override { return {}; }
  Stream stream() override { return {}; }
  void synchronize(Stream) override {}
  Event record_event(Stream) override;  // the time at which it is called
  void wait(const Event&) override {}
  double seconds_between(const Event& begin, const Event& end) override;
  void fork(const std::function<void()>& work) override { work(); }
  void join() override {}
  GraphCapture* graphs() override { return nullptr; }
  PeerOps* peers() override { return nullptr; }
};

}  // namespace moectl
