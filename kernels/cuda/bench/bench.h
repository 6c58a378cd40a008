// The cases of `moectl bench kernels` on CUDA, as data, and the memory of one case. Each family of kernels has one file
// of cases (cases_*.cpp); bench.cu measures. A case is a kernel at a shape; it makes its inputs right before it is
// measured, several sets of them, so that repeats do not hit L2.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <functional>
#include <regex>
#include <string>
#include <vector>

#include "kernels/bench_kernels.h"
#include "kernels/cuda/gemm/fp8_gemm.h"
#include "kernels/ops.h"

namespace moectl::cuda::bench {

// A bump allocator of device memory, 256-byte aligned, released at once by reset(). Contents are a function of the
// order of allocations: equal cases get equal inputs in every run.
class Memory {
 public:
  explicit Memory(int64_t num_bytes);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  void reset();
  int64_t capacity() const { return capacity_; }
  int64_t used() const { return used_; }

  // Throws Error{kResourceExhausted} when it is full.
  template <class T>
  T* alloc(int64_t n) {
    return static_cast<T*>(alloc_bytes(n * int64_t(sizeof(T))));
  }
  // Near-normal random numbers with standard deviation `scale`.
  float* floats(int64_t n, float scale = 1.0f);
  __nv_bfloat16* bf16(int64_t n, float scale = 1.0f);
  uint8_t* f8(int64_t n, float scale = 100.0f);  // e4m3, at most +-448
  // Uniform in [low, high): scales.
  float* positive(int64_t n, float low, float high);
  template <class T>
  T* upload(const std::vector<T>& host) {
    T* device = alloc<T>(int64_t(host.size()));
    copy(device, host.data(), int64_t(host.size() * sizeof(T)));
    return device;
  }

 private:
  void* alloc_bytes(int64_t num_bytes);
  void copy(void* device, const void* host, int64_t num_bytes);

  std::byte* base_ = nullptr;
  int64_t capacity_ = 0, used_ = 0;
  uint64_t num_fills_ = 0;
};

// What a case does with one set of inputs. Functions only enqueue, and own nothing that is not in Memory.
struct Work {
  std::function<void(Stream)> run;
  std::vector<std::function<void(Stream)>> peers;  // in the order of Case::peers
  const void* out = nullptr;                       // of `run`, for the hash
  int64_t out_bytes = 0;                           // a multiple of 4
};

enum class Unit { kNone, kBf16, kF8 };  // the tensor cores' dtype for the flops

struct Case {
  std::string kernel, shape;
  double bytes = 0, flops = 0;  // the least that must move (each operand once) and be computed
  Unit unit = Unit::kNone;
  std::vector<std::string> peers;
  std::function<Work(Memory&)> make;
};

using Cases = std::vector<Case>;

// The peer of an operation that only moves rows: a device copy of half its bytes, which reads and writes as many.
std::vector<std::string> copy_peer();
std::function<void(Stream)> copy_of(Memory& memory, double bytes);

// `batch` matrices [n, k], bf16 or FP8 with block scales, as the backend packs them; in `memory`, which owns them.
Weight random_weight(Memory& memory, bool f8, int64_t batch, int64_t n, int64_t k);
Fp8Weight fp8_weight_of(const Weight& weight);
const std::byte* weight_data(const Weight& weight);
Fp8Rows random_fp8_rows(Memory& memory, int64_t rows, int64_t k);

// One function per family; each adds the cases of `shape`.
void add_gemm_cases(const KernelShape& shape, Cases& cases);         // cases_gemm.cpp
void add_grouped_cases(const KernelShape& shape, Cases& cases);      // cases_grouped.cpp
void add_sampling_cases(const KernelShape& shape, Cases& cases);     // cases_sampling.cpp
void add_kv_cases(const KernelShape& shape, Cases& cases);           // cases_kv.cpp
void add_attention_cases(const KernelShape& shape, Cases& cases);    // cases_attention.cpp
void add_moe_cases(const KernelShape& shape, Cases& cases);          // cases_moe.cpp
void add_elementwise_cases(const KernelShape& shape, Cases& cases);  // cases_elementwise.cpp

// On the current device; the cases whose "kernel shape" the filter finds.
KernelReport run(const KernelBenchOptions& options, const std::regex& filter);
double read_bandwidth();  // bytes a second

}  // namespace moectl::cuda::bench
