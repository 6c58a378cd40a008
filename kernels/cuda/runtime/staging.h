// Staging: pinned host memory through which checkpoint bytes reach the device. While one part is copied, the team fills
// the next; a load is bound by reading the files. One a rank, used on its thread.
#pragma once

#include <algorithm>
#include <array>

#include "core/base/check.h"
#include "core/base/parallel.h"
#include "kernels/cuda/runtime/check.h"

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

  // Fills num_entries entries at `device`, one behind the other, each of num_panels panels of num_rows rows of
  // row_bytes. fill(entry, begin, end, to, pitch) writes rows [begin, end) of one entry to host memory, panel p's from
  // to + p * pitch on, on any member of the team. The copies are in stream() when this returns.
  template <class Fill>
  void entries(std::byte* device, int64_t num_entries, int64_t num_rows, int64_t num_panels, int64_t row_bytes,
               Fill&& fill) {
    const int64_t entry_bytes = num_rows * num_panels * row_bytes;
    if (num_panels > 1 && entry_bytes > kPartBytes) {
      for (int64_t i = 0; i < num_entries; ++i)
        large_entry(device + i * entry_bytes, i, num_rows, num_panels, row_bytes, fill);
      return;
    }
    // As many rows as fit, of several entries where these are small: with one panel rows follow each other throughout.
    const int64_t total = num_entries * num_rows, across = num_panels * row_bytes;
    const int64_t per_part = num_panels == 1 ? kPartBytes / row_bytes : kPartBytes / entry_bytes * num_rows;
    check_fits(across, per_part);
    for (int64_t first = 0; first < total; first += per_part) {
      const int64_t num = std::min(per_part, total - first);
      std::byte* part = next();
      pool_.parallel_for(num, kMinFill / across + 1, [&](int64_t begin, int64_t end) {
        while (begin < end) {
          const int64_t entry = (first + begin) / num_rows, row = (first + begin) % num_rows;
          const int64_t here = std::min(end - begin, num_rows - row);
          fill(entry, row, row + here, part + (begin - row) * across + row * row_bytes, num_rows * row_bytes);
          begin += here;
        }
      });
      CUDA_CHECK(cudaMemcpyAsync(device + first * across, part, size_t(num * across), cudaMemcpyHostToDevice, stream_));
      CUDA_CHECK(cudaEventRecord(parts_[current_].done, stream_));
    }
  }
  // f(i) for i in [0, n), on any member of the team.
  template <class F>
  void each(int64_t n, F&& f) {
    pool_.parallel_for(n, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) f(i);
    });
  }
  // What is put into `other` from now on finds the copies done.
  void join(cudaStream_t other) {
    if (parts_[current_].done) CUDA_CHECK(cudaStreamWaitEvent(other, parts_[current_].done));
  }

 private:
  static constexpr int64_t kPartBytes = int64_t{32} << 20, kMinFill = 32 << 10;
  struct Part {
    std::byte* memory = nullptr;
    cudaEvent_t done = nullptr;
  };

  static void check_fits(int64_t across, int64_t per_part) {
    CHECK(across > 0 && per_part > 0, "rows of {} bytes through parts of {}", across, kPartBytes);
  }

  // One that is larger than a part: some rows of all panels at a time.
  template <class Fill>
  void large_entry(std::byte* device, int64_t entry, int64_t num_rows, int64_t num_panels, int64_t row_bytes,
                   Fill&& fill) {
    const int64_t across = num_panels * row_bytes, per_part = kPartBytes / across;
    check_fits(across, per_part);
    for (int64_t first = 0; first < num_rows; first += per_part) {
      const int64_t num = std::min(per_part, num_rows - first), pitch = num * row_bytes;
      std::byte* part = next();
      pool_.parallel_for(num, kMinFill / across + 1, [&](int64_t begin, int64_t end) {
        fill(entry, first + begin, first + end, part + begin * row_bytes, pitch);
      });
      CUDA_CHECK(cudaMemcpy2DAsync(device + first * row_bytes, size_t(num_rows * row_bytes), part, size_t(pitch),
                                   size_t(pitch), size_t(num_panels), cudaMemcpyHostToDevice, stream_));
      CUDA_CHECK(cudaEventRecord(parts_[current_].done, stream_));
    }
  }

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
