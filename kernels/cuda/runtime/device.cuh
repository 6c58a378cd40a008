// What launchers and portable kernels share: the stream of an operation, preparation of kernels per device,
// programmatic dependent launch; dtypes widened to f32, sums over a warp.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>
#include <utility>

#include "kernels/cuda/runtime/check.h"
#include "kernels/cuda/runtime/device.h"
#include "kernels/ops.h"

namespace moectl::cuda {

inline cudaStream_t handle(Stream stream) {
  return static_cast<cudaStream_t>(stream.handle);
}

// Blocks for `items` at `per_block` each; a grid-stride loop covers what a grid of `most` blocks does not.
inline unsigned blocks_for(int64_t items, int64_t per_block, int64_t most = int64_t{1} << 30) {
  const int64_t blocks = (items + per_block - 1) / per_block;
  return unsigned(blocks < most ? blocks : most);
}

// Lets launches of kKernel on the current device take `num_bytes` of dynamic shared memory, which above 48 KB needs the
// kernel's consent. A driver call at the first launch on each device. num_bytes is the same in every call.
template <auto* kKernel>
void allow_shared_memory(int num_bytes) {
  static PerDevice<bool> allowed;
  allowed.get([&] {
    CUDA_CHECK(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, num_bytes));
    return true;
  });
}

// Programmatic dependent launch (PDL): the kernel's blocks may become resident while the kernels before it still run,
// which hides the latency of its launch. Every thread of it calls kernel::wait_for_earlier() before it touches what
// another kernel writes or reads. Only on Hopper: elsewhere code for 8.0 may run, which cannot wait.
template <class... Params, class... Args>
void launch_early(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                  Args&&... args) {
  cudaLaunchAttribute early;
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = takes_hopper_kernels() ? 1 : 0;
  CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, Params(std::forward<Args>(args))...));
}

namespace kernel {

// Waits until the kernels before this one are done and their writes visible. The next kernel may already launch; it
// waits in turn.
__device__ __forceinline__ void wait_for_earlier() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The two halves of it, for kernels that wait for other devices: blocks of the next kernel, which would only wait, must
// not fill a GPU that another rank needs to get on.
__device__ __forceinline__ void wait_for_earlier_only() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void let_next_launch() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// The same, but the next kernel launches only when the kernels before this one are done, and may read what they wrote
// without waiting.
__device__ __forceinline__ void wait_for_earlier_before_next() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

inline constexpr int kWarp = 32;
inline constexpr unsigned kAll = 0xffffffffu;

__device__ inline float widen_bf16(uint16_t x) {
  return __uint_as_float(uint32_t{x} << 16);
}
__device__ inline float widen_f16(uint16_t x) {
  return __half2float(__ushort_as_half(x));
}

// Exact. sm_89 and later convert two at once; before that, the bits form an f16 that is off by a factor of 2^8.
__device__ inline float2 widen_f8x2(uint16_t x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  return __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(x, __NV_E4M3)));
#else
  auto one = [](uint32_t b) { return widen_f16(uint16_t((b & 0x80u) << 8 | (b & 0x7fu) << 7)) * 256.0f; };
  return {one(x & 0xffu), one(x >> 8)};
#endif
}
__device__ inline float widen_e8m0(uint8_t x) {
  return __uint_as_float(x == 0 ? 0x00400000u : uint32_t{x} << 23);
}

// The value of an OCP e2m1 element: sign, two bits of exponent with bias 1, one bit of mantissa. They are moved into an
// f32 whose exponent is off by 126, which also makes the subnormal 0.5 right.
__device__ inline float widen_e2m1(uint32_t q) {
  return __uint_as_float((q & 8u) << 28 | (q & 7u) << 22) * 0x1p126f;
}

// The f32 value of an element of an operand or a cache.
template <class T>
__device__ float to_f32(T x);
template <>
__device__ inline float to_f32<float>(float x) {
  return x;
}
template <>
__device__ inline float to_f32<__nv_bfloat16>(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
template <>
__device__ inline float to_f32<__half>(__half x) {
  return __half2float(x);
}

// Rounded to nearest even, `low` in the low half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ void store_bf16(__nv_bfloat16* to, float4 v) {  // 8 bytes
  *reinterpret_cast<uint2*>(to) = {pack_bf16(v.x, v.y), pack_bf16(v.z, v.w)};
}

// c += A B of one m16n8k16 in bf16 (PTX's fragments; compute capability 8.0 and later).
__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline float warp_sum(float v) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(kAll, v, offset);
  return v;
}

}  // namespace kernel
}  // namespace moectl::cuda
