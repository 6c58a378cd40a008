// Staging: pinned host memory through which checkpoint bytes reach the device. While one part is copied, the team fills
// the next; a load is bound by reading the files. One a rank, used on its thread.
#pragma once

#include <algorithm>
#include <array>

#include "core/base/check.h"
#include "core/base/parallel.h"
#include "kernels/cuda/check.h"

namespace moectl::cuda {

class Staging {
 public:
  explicit Staging(int num_threads) : pool_(num_threads, false) {
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  ~Staging() {
    for (Part& part : parts_) {
      if (part.done) cudaEventDestroy(part.done);
      if (part.memory) cudaFreeHost(part.memory);
    }
    cudaStreamDestroy(stream_);
  }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  cudaStream_t stream() const { return stream_; }

  // Fills num_panels panels at `device`, each of num_rows rows of row_bytes. fill(begin, end, to, pitch) writes rows
  // [begin, end) to host memory, panel p's from to + p * pitch on, on any member of the team. The copies are in
  // stream() when this returns.
  template <class Fill>
  void panels(std::byte* device, int64_t num_rows, int64_t num_panels, int64_t row_bytes, Fill&& fill) {
    const int64_t across = num_panels * row_bytes, per_part = kPartBytes / across;
    CHECK(across > 0 && per_part > 0, "rows of {} bytes through parts of {}", across, kPartBytes);
    for (int64_t first = 0; first < num_rows; first += per_part) {
      const int64_t num = std::min(per_part, num_rows - first);
      std::byte* to = next();
      pool_.parallel_for(num, kMinFill / across + 1, [&](int64_t begin, int64_t end) {
        fill(first + begin, first + end, to + begin * row_bytes, num * row_bytes);
      });
      const size_t width = size_t(num * row_bytes);
      std::byte* out = device + first * row_bytes;
      if (num_panels == 1)  // rows may be further apart in all than a pitch may be
        CUDA_CHECK(cudaMemcpyAsync(out, to, width, cudaMemcpyHostToDevice, stream_));
      else
        CUDA_CHECK(cudaMemcpy2DAsync(out, size_t(num_rows * row_bytes), to, width, width, size_t(num_panels),
                                     cudaMemcpyHostToDevice, stream_));
      CUDA_CHECK(cudaEventRecord(parts_[current_].done, stream_));
    }
  }
  template <class Fill>
  void rows(std::byte* device, int64_t num_rows, int64_t row_bytes, Fill&& fill) {
    panels(device, num_rows, 1, row_bytes,
           [&](int64_t begin, int64_t end, std::byte* to, int64_t) { fill(begin, end, to); });
  }
  // f(i) for i in [0, n), on any member of the team.
  template <class F>
  void each(int64_t n, F&& f) {
    pool_.parallel_for(n, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) f(i);
    });
  }
  void wait() { CUDA_CHECK(cudaStreamSynchronize(stream_)); }

 private:
  static constexpr int64_t kPartBytes = int64_t{32} << 20, kMinFill = 32 << 10;
  struct Part {
    std::byte* memory = nullptr;
    cudaEvent_t done = nullptr;
  };

  // Memory whose last copy is done.
  std::byte* next() {
    current_ = (current_ + 1) % parts_.size();
    Part& part = parts_[current_];
    if (!part.memory) {
      CUDA_CHECK(cudaMallocHost(&part.memory, size_t(kPartBytes)));
      CUDA_CHECK(cudaEventCreateWithFlags(&part.done, cudaEventDisableTiming));
    } else {
      CUDA_CHECK(cudaEventSynchronize(part.done));
    }
    return part.memory;
  }

  ThreadPool pool_;
  cudaStream_t stream_ = nullptr;
  std::array<Part, 3> parts_;
  size_t current_ = 0;
};

}  // namespace moectl::cuda
