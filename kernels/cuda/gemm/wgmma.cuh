// Warpgroup matrix instructions of Hopper: D[64, N] (+)= A[64, K] B[N, K]^T in f32, A and B in shared memory (or A in
// registers), issued by the 128 threads of a warpgroup together. Owns nothing. sm_90a only.
//
// Use: wgmma_fence(); WgmmaF8<N>::mma(d, a, b, 0); ...; wgmma_commit(); wgmma_wait<0>(); then d may be read. `scale_d`
// 0 overwrites d, 1 adds. Thread t of the warpgroup holds rows r = 16 * (t / 32) + t % 32 / 4 and r + 8, and of each
// group of eight columns j the two from 8 j + 2 (t % 4): d[4 j], d[4 j + 1] of row r, d[4 j + 2], d[4 j + 3] of row r
// + 8.
#pragma once

#include <cstdint>

namespace moectl::cuda::hopper {

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int N>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
// Keeps the compiler from moving reads and writes of an accumulator across this point.
template <int N>
__device__ __forceinline__ void wgmma_pin(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Descriptor of an operand in shared memory. kSwizzle bytes per row (128, 64, 32), as TMA writes it with that swizzle;
// the tile's base is aligned to eight such rows. K-major operands (rows along K): stride_bytes from one group of eight
// rows to the next, leading_bytes unused. The k-th slice of K of a swizzled row begins 32 k bytes further: add 2 k to
// the descriptor. MN-major (transposed) operands: leading_bytes between repetitions along M or N, stride_bytes along K.
template <int kSwizzle = 128>
__device__ __forceinline__ uint64_t wgmma_desc(uint32_t addr, uint32_t stride_bytes = 8 * kSwizzle,
                                               uint32_t leading_bytes = 16) {
  static_assert(kSwizzle == 128 || kSwizzle == 64 || kSwizzle == 32);
  constexpr uint64_t layout = kSwizzle == 128 ? 1 : kSwizzle == 64 ? 2 : 3;
  return uint64_t((addr & 0x3ffff) >> 4) | uint64_t(leading_bytes >> 4) << 16 | uint64_t(stride_bytes >> 4) << 32 |
         layout << 62;
}

// The same for K-major operands with 128-byte swizzle in two halves: the upper one is constant, so that a loop only
// computes 32-bit values.
__device__ __forceinline__ uint32_t wgmma_desc_low(uint32_t addr) {
  return (addr & 0x3ffff) >> 4 | 1u << 16;
}
__device__ __forceinline__ uint64_t wgmma_desc_from(uint32_t low) {
  return uint64_t{0x40000040} << 32 | low;
}

// The instructions take their registers one by one. MOECTL_T<R>: the names of an accumulator's R registers, built of
// runs of eight; MOECTL_D<R>: their constraints.
// clang-format off
#define MOECTL_P0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define MOECTL_P1 "%8, %9, %10, %11, %12, %13, %14, %15"
#define MOECTL_P2 "%16, %17, %18, %19, %20, %21, %22, %23"
#define MOECTL_P3 "%24, %25, %26, %27, %28, %29, %30, %31"
#define MOECTL_P4 "%32, %33, %34, %35, %36, %37, %38, %39"
#define MOECTL_P5 "%40, %41, %42, %43, %44, %45, %46, %47"
#define MOECTL_P6 "%48, %49, %50, %51, %52, %53, %54, %55"
#define MOECTL_P7 "%56, %57, %58, %59, %60, %61, %62, %63"
#define MOECTL_P8 "%64, %65, %66, %67, %68, %69, %70, %71"
#define MOECTL_P9 "%72, %73, %74, %75, %76, %77, %78, %79"
#define MOECTL_P10 "%80, %81, %82, %83, %84, %85, %86, %87"
#define MOECTL_P11 "%88, %89, %90, %91, %92, %93, %94, %95"
#define MOECTL_P12 "%96, %97, %98, %99, %100, %101, %102, %103"
#define MOECTL_P13 "%104, %105, %106, %107, %108, %109, %110, %111"
#define MOECTL_P14 "%112, %113, %114, %115, %116, %117, %118, %119"
#define MOECTL_P15 "%120, %121, %122, %123, %124, %125, %126, %127"
#define MOECTL_T4 "%0, %1, %2, %3"
#define MOECTL_T8 MOECTL_P0
#define MOECTL_T16 MOECTL_T8 ", " MOECTL_P1
#define MOECTL_T32 MOECTL_T16 ", " MOECTL_P2 ", " MOECTL_P3
#define MOECTL_T64 MOECTL_T32 ", " MOECTL_P4 ", " MOECTL_P5 ", " MOECTL_P6 ", " MOECTL_P7
#define MOECTL_T88 MOECTL_T64 ", " MOECTL_P8 ", " MOECTL_P9 ", " MOECTL_P10
#define MOECTL_T128 MOECTL_T64 ", " MOECTL_P8 ", " MOECTL_P9 ", " MOECTL_P10 ", " MOECTL_P11 ", " MOECTL_P12 ", " MOECTL_P13 ", " MOECTL_P14 ", " MOECTL_P15
#define MOECTL_EIGHT(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define MOECTL_D4(d) "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#define MOECTL_D8(d) MOECTL_EIGHT(d, 0)
#define MOECTL_D16(d) MOECTL_D8(d), MOECTL_EIGHT(d, 8)
#define MOECTL_D32(d) MOECTL_D16(d), MOECTL_EIGHT(d, 16), MOECTL_EIGHT(d, 24)
#define MOECTL_D64(d) MOECTL_D32(d), MOECTL_EIGHT(d, 32), MOECTL_EIGHT(d, 40), MOECTL_EIGHT(d, 48), MOECTL_EIGHT(d, 56)
#define MOECTL_D88(d) MOECTL_D64(d), MOECTL_EIGHT(d, 64), MOECTL_EIGHT(d, 72), MOECTL_EIGHT(d, 80)
#define MOECTL_D128(d) MOECTL_D64(d), MOECTL_EIGHT(d, 64), MOECTL_EIGHT(d, 72), MOECTL_EIGHT(d, 80), MOECTL_EIGHT(d, 88), MOECTL_EIGHT(d, 96), MOECTL_EIGHT(d, 104), MOECTL_EIGHT(d, 112), MOECTL_EIGHT(d, 120)
// clang-format on

// e4m3 x e4m3, K = 32 elements per call.
template <int N>
struct WgmmaF8;
#define MOECTL_WGMMA_F8(N, R, A, B, S)                                                                          \
  template <>                                                                                                   \
  struct WgmmaF8<N> {                                                                                           \
    static __device__ __forceinline__ void mma(float (&d)[R], uint64_t a, uint64_t b, int scale_d) {            \
      asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, %" #S                                                    \
                   ", 0;\n"                                                                                     \
                   " wgmma.mma_async.sync.aligned.m64n" #N "k32.f32.e4m3.e4m3 {" MOECTL_T##R "}, %" #A ", %" #B \
                                                                                             ", p, 1, 1;\n}"    \
                   : MOECTL_D##R(d)                                                                             \
                   : "l"(a), "l"(b), "r"(scale_d));                                                             \
    }                                                                                                           \
  }
MOECTL_WGMMA_F8(16, 8, 8, 9, 10);
MOECTL_WGMMA_F8(64, 32, 32, 33, 34);
MOECTL_WGMMA_F8(128, 64, 64, 65, 66);
MOECTL_WGMMA_F8(176, 88, 88, 89, 90);

// The same with A in registers: a[0], a[1] rows r and r + 8 of bytes 4 (t % 4) .. of the 32, a[2], a[3] of those + 16
// (what ldmatrix_x4 loads).
template <int N>
struct WgmmaF8Reg;
#define MOECTL_WGMMA_F8_REG(N, R, A0, A1, A2, A3, B, S)                                                          \
  template <>                                                                                                    \
  struct WgmmaF8Reg<N> {                                                                                         \
    static __device__ __forceinline__ void mma(float (&d)[R], const uint32_t (&a)[4], uint64_t b, int scale_d) { \
      asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, %" #S                                                     \
                   ", 0;\n"                                                                                      \
                   " wgmma.mma_async.sync.aligned.m64n" #N "k32.f32.e4m3.e4m3 {" MOECTL_T##R                     \
                   "}, {%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B ", p, 1, 1;\n}"                           \
                   : MOECTL_D##R(d)                                                                              \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(scale_d));                          \
    }                                                                                                            \
  }
MOECTL_WGMMA_F8_REG(64, 32, 32, 33, 34, 35, 36, 37);

// bf16 x bf16, K = 16 elements per call. kTransA / kTransB: that operand is MN-major in shared memory.
template <int N, int kTransA = 0, int kTransB = 0>
struct WgmmaBf16;
#define MOECTL_WGMMA_BF16(N, R, A, B, S, U, V)                                                       \
  template <int kTransA, int kTransB>                                                                \
  struct WgmmaBf16<N, kTransA, kTransB> {                                                            \
    static __device__ __forceinline__ void mma(float (&d)[R], uint64_t a, uint64_t b, int scale_d) { \
      asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, %" #S                                         \
                   ", 0;\n"                                                                          \
                   " wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" MOECTL_T##R         \
                   "}, %" #A ", %" #B ", p, 1, 1, %" #U ", %" #V ";\n}"                              \
                   : MOECTL_D##R(d)                                                                  \
                   : "l"(a), "l"(b), "r"(scale_d), "n"(kTransA), "n"(kTransB));                      \
    }                                                                                                \
  }
MOECTL_WGMMA_BF16(16, 8, 8, 9, 10, 11, 12);
MOECTL_WGMMA_BF16(64, 32, 32, 33, 34, 35, 36);
MOECTL_WGMMA_BF16(128, 64, 64, 65, 66, 67, 68);
MOECTL_WGMMA_BF16(256, 128, 128, 129, 130, 131, 132);

// The same with A in registers: a[0], a[1] rows r and r + 8 of columns 2 (t % 4) and the next, a[2], a[3] of those + 8.
template <int N, int kTransB = 0>
struct WgmmaBf16Reg;
#define MOECTL_WGMMA_BF16_REG(N, R, A0, A1, A2, A3, B, S, V)                                                     \
  template <int kTransB>                                                                                         \
  struct WgmmaBf16Reg<N, kTransB> {                                                                              \
    static __device__ __forceinline__ void mma(float (&d)[R], const uint32_t (&a)[4], uint64_t b, int scale_d) { \
      asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, %" #S                                                     \
                   ", 0;\n"                                                                                      \
                   " wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" MOECTL_T##R                     \
                   "}, {%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B ", p, 1, 1, %" #V ";\n}"                  \
                   : MOECTL_D##R(d)                                                                              \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(scale_d), "n"(kTransB));            \
    }                                                                                                            \
  }
MOECTL_WGMMA_BF16_REG(8, 4, 4, 5, 6, 7, 8, 9, 10);
MOECTL_WGMMA_BF16_REG(32, 16, 16, 17, 18, 19, 20, 21, 22);
MOECTL_WGMMA_BF16_REG(64, 32, 32, 33, 34, 35, 36, 37, 38);
MOECTL_WGMMA_BF16_REG(128, 64, 64, 65, 66, 67, 68, 69, 70);
MOECTL_WGMMA_BF16_REG(256, 128, 128, 129, 130, 131, 132, 133, 134);

#undef MOECTL_WGMMA_F8
#undef MOECTL_WGMMA_F8_REG
#undef MOECTL_WGMMA_BF16
#undef MOECTL_WGMMA_BF16_REG

}  // namespace moectl::cuda::hopper
