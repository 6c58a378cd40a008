// Memory of bench.h: one allocation, and kernels that fill it with values that are a function of (fill, index).
#include <cuda_fp8.h>

#include "kernels/cuda/bench/bench.h"
#include "kernels/cuda/runtime/check.h"

namespace moectl::cuda::bench {
namespace kernel {

__device__ uint64_t mix(uint64_t x) {  // splitmix64's finalizer
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// Sum of four uniform numbers: mean 0, standard deviation 1.
__device__ float near_normal(uint64_t seed, int64_t i) {
  const uint64_t bits = mix(seed ^ uint64_t(i) * 0xd1342543de82ef95ull);
  int sum = 0;
  for (int part = 0; part < 4; ++part) sum += int((bits >> (16 * part)) & 0xffff);
  return (float(sum) - 2.0f * 65535.0f) * (1.7320508f / 65535.0f);
}

__device__ void store(float* p, float v) {
  *p = v;
}
__device__ void store(__nv_bfloat16* p, float v) {
  *p = __float2bfloat16(v);
}
__device__ void store(uint8_t* p, float v) {
  *p = uint8_t(__nv_cvt_float_to_fp8(v, __NV_SATFINITE, __NV_E4M3));
}

template <class T>
__global__ void fill(T* out, int64_t n, uint64_t seed, float scale) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < n; i += int64_t(gridDim.x) * blockDim.x)
    store(out + i, near_normal(seed, i) * scale);
}

__global__ void fill_uniform(float* out, int64_t n, uint64_t seed, float low, float high) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < n; i += int64_t(gridDim.x) * blockDim.x)
    out[i] = low + (high - low) * float(mix(seed ^ uint64_t(i)) >> 40) * 0x1p-24f;
}

}  // namespace kernel

namespace {

constexpr int kBlocks = 2048, kThreads = 256;

template <class T>
T* filled(T* out, int64_t n, uint64_t seed, float scale) {
  kernel::fill<<<kBlocks, kThreads>>>(out, n, seed, scale);
  CUDA_CHECK(cudaGetLastError());
  return out;
}

}  // namespace

Memory::Memory(int64_t num_bytes) : capacity_(num_bytes) {
  CUDA_CHECK(cudaMalloc(&base_, size_t(num_bytes)));
}

Memory::~Memory() {
  cudaFree(base_);
}

void Memory::reset() {
  CUDA_CHECK(cudaDeviceSynchronize());
  used_ = 0;
  num_fills_ = 0;
}

void* Memory::alloc_bytes(int64_t num_bytes) {
  const int64_t rounded = (num_bytes + 255) / 256 * 256;
  if (rounded > capacity_ - used_)
    throw Error(Code::kResourceExhausted,
                fmt::format("the case needs more than the {:.1f} GB set aside for one", double(capacity_) / 1e9));
  std::byte* p = base_ + used_;
  used_ += rounded;
  return p;
}

void Memory::copy(void* device, const void* host, int64_t num_bytes) {
  CUDA_CHECK(cudaMemcpy(device, host, size_t(num_bytes), cudaMemcpyHostToDevice));
}

float* Memory::floats(int64_t n, float scale) {
  return filled(alloc<float>(n), n, ++num_fills_, scale);
}

__nv_bfloat16* Memory::bf16(int64_t n, float scale) {
  return filled(alloc<__nv_bfloat16>(n), n, ++num_fills_, scale);
}

uint8_t* Memory::f8(int64_t n, float scale) {
  return filled(alloc<uint8_t>(n), n, ++num_fills_, scale);
}

float* Memory::positive(int64_t n, float low, float high) {
  float* out = alloc<float>(n);
  kernel::fill_uniform<<<kBlocks, kThreads>>>(out, n, ++num_fills_, low, high);
  CUDA_CHECK(cudaGetLastError());
  return out;
}

}  // namespace moectl::cuda::bench
