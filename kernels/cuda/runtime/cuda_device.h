// CudaDevice: one GPU as a rank's device: memory, the rank's stream and its side stream, events, graphs, and the errors
// that name what failed. Used on the rank's thread; knows no kernels and no model.
#pragma once

#include <cuda_runtime.h>

#include <utility>

#include "core/base/error.h"
#include "kernels/cuda/runtime/device.h"
#include "kernels/device.h"
#include "kernels/peer.h"

namespace moectl::cuda {

class CudaDevice final : public Device, private GraphCapture, private PeerOps {
 public:
  CudaDevice(int ordinal, bool portable);
  ~CudaDevice() override;

  Buffer alloc(int64_t num_bytes) override;
  Buffer alloc_host(int64_t num_bytes) override;
  Buffer allocate(int64_t num_bytes);  // like alloc(), not cleared
  void upload(void* device, const void* host, int64_t num_bytes) override;
  void copy(void* to, const void* from, int64_t num_bytes, Stream) override;
  Memory memory() const override;
  Stream stream() override { return {stream_}; }
  void synchronize(Stream) override;
  Event record_event(Stream) override;
  void wait(const Event&) override;
  double seconds_between(const Event& begin, const Event& end) override;
  void fork(const std::function<void()>& work) override;
  void join() override;
  GraphCapture* graphs() override { return blocking_ ? nullptr : this; }  // captured kernels would not be waited for

  PeerOps* peers() override { return this; }

  // Makes this GPU the calling thread's.
  void activate() const;
  bool on_side_stream() const { return on_side_; }
  // Runs launch(stream) on the stream that work goes to now; an error names the operation.
  template <class Launch>
  void run(const char* operation, Stream stream, Launch&& launch) {
    try {
      activate();
      const PortableLaunches portable(portable_);
      launch(on_side_ ? Stream{side_} : stream.handle ? stream : Stream{stream_});
    } catch (const Error& e) {
      if (e.code() != Code::kUnavailable) throw;
      throw launch_failed(operation, e);
    }
    last_operation_ = operation;
  }

 private:
  Graph capture(const std::function<void()>& work) override;
  void replay(const Graph&, Stream) override;
  int64_t graph_rows(int64_t rows) const override;
  int ordinal() const override { return ordinal_; }
  std::string connect(int ordinal) override;
  void barrier(const PeerBarrierArgs&, Stream) override;
  void sum(const PeerSumArgs&, Stream) override;
  void mark(const PeerMarkArgs&, Stream) override;
  void launch(const char* operation, Stream, const std::function<void(Stream)>& call) override;
  void all_reduce(const PeerAllReduceArgs&, Stream) override;
  void check_done(cudaError_t status) const;
  Error lost(cudaError_t status, const char* operation) const;
  Error launch_failed(const char* operation, const Error& why) const;

  const int ordinal_;
  const bool portable_;
  bool blocking_ = false;  // CUDA_LAUNCH_BLOCKING=1: every launch waits for its kernel
  cudaStream_t stream_ = nullptr, side_ = nullptr;
  cudaEvent_t forked_ = nullptr, joined_ = nullptr;
  bool on_side_ = false;   // fork() is issuing work
  bool unjoined_ = false;  // the side stream has work that stream_ does not wait for yet
  const char* last_operation_ = "none";
};

}  // namespace moectl::cuda
