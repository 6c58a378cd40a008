// Warpgroup matrix instructions of Hopper: D[64, N] (+)= A[64, K] B[N, K]^T in f32, A and B in shared memory (or A in
// registers), issued by the 128 threads of a warpgroup together. Owns nothing. sm_90a only.
//
// Use: wgmma_fence(); wgmma_f8<N>(d, a, b, 0); ...; wgmma_commit(); wgmma_wait<0>(); then d may be read. `scale_d` 0
// overwrites d, 1 adds. Thread t of the warpgroup holds rows r = 16 * (t / 32) + t % 32 / 4 and r + 8, and of each
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
// Keeps the compiler from moving reads and writes of an accumulator across this place.
template <int N>
__device__ __forceinline__ void wgmma_pin(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Descriptor of an operand in shared memory. kSwizzle bytes a row (128, 64, 32), as TMA writes it with that swizzle;
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

// The same for K-major operands with 128-byte swizzle in two halves: the upper one is constant, so that a loop moves
// 32-bit numbers only.
__device__ __forceinline__ uint32_t wgmma_desc_low(uint32_t addr) {
  return (addr & 0x3ffff) >> 4 | 1u << 16;
}
__device__ __forceinline__ uint64_t wgmma_desc_from(uint32_t low) {
  return uint64_t{0x40000040} << 32 | low;
}

// The instructions want their registers spelt out: pieces of eight operands and their numbers.
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
#define MOECTL_T8 MOECTL_P0
#define MOECTL_D8(d) "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
#define MOECTL_T16 MOECTL_T8 ", " MOECTL_P1
#define MOECTL_D16(d) MOECTL_D8(d), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
#define MOECTL_T24 MOECTL_T16 ", " MOECTL_P2
#define MOECTL_D24(d) MOECTL_D16(d), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23])
#define MOECTL_T32 MOECTL_T24 ", " MOECTL_P3
#define MOECTL_D32(d) MOECTL_D24(d), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define MOECTL_T40 MOECTL_T32 ", " MOECTL_P4
#define MOECTL_D40(d) MOECTL_D32(d), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39])
#define MOECTL_T48 MOECTL_T40 ", " MOECTL_P5
#define MOECTL_D48(d) MOECTL_D40(d), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47])
#define MOECTL_T56 MOECTL_T48 ", " MOECTL_P6
#define MOECTL_D56(d) MOECTL_D48(d), "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55])
#define MOECTL_T64 MOECTL_T56 ", " MOECTL_P7
#define MOECTL_D64(d) MOECTL_D56(d), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define MOECTL_T72 MOECTL_T64 ", " MOECTL_P8
#define MOECTL_D72(d) MOECTL_D64(d), "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71])
#define MOECTL_T80 MOECTL_T72 ", " MOECTL_P9
#define MOECTL_D80(d) MOECTL_D72(d), "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79])
#define MOECTL_T88 MOECTL_T80 ", " MOECTL_P10
#define MOECTL_D88(d) MOECTL_D80(d), "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87])
#define MOECTL_T96 MOECTL_T88 ", " MOECTL_P11
#define MOECTL_D96(d) MOECTL_D88(d), "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95])
#define MOECTL_T104 MOECTL_T96 ", " MOECTL_P12
#define MOECTL_D104(d) MOECTL_D96(d), "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103])
#define MOECTL_T112 MOECTL_T104 ", " MOECTL_P13
#define MOECTL_D112(d) MOECTL_D104(d), "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111])
#define MOECTL_T120 MOECTL_T112 ", " MOECTL_P14
#define MOECTL_D120(d) MOECTL_D112(d), "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119])
#define MOECTL_T128 MOECTL_T120 ", " MOECTL_P15
#define MOECTL_D128(d) MOECTL_D120(d), "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])
#define MOECTL_T4 "%0, %1, %2, %3"
#define MOECTL_D4(d) "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
// clang-format on

// e4m3 x e4m3, K = 32 elements a call.
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
MOECTL_WGMMA_F8(8, 4, 4, 5, 6);
MOECTL_WGMMA_F8(16, 8, 8, 9, 10);
MOECTL_WGMMA_F8(32, 16, 16, 17, 18);
MOECTL_WGMMA_F8(48, 24, 24, 25, 26);
MOECTL_WGMMA_F8(64, 32, 32, 33, 34);
MOECTL_WGMMA_F8(96, 48, 48, 49, 50);
MOECTL_WGMMA_F8(128, 64, 64, 65, 66);
MOECTL_WGMMA_F8(160, 80, 80, 81, 82);
MOECTL_WGMMA_F8(176, 88, 88, 89, 90);
MOECTL_WGMMA_F8(192, 96, 96, 97, 98);

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

// bf16 x bf16, K = 16 elements a call. kTransA / kTransB: that operand lies MN-major in shared memory.
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
MOECTL_WGMMA_BF16(8, 4, 4, 5, 6, 7, 8);
MOECTL_WGMMA_BF16(16, 8, 8, 9, 10, 11, 12);
MOECTL_WGMMA_BF16(32, 16, 16, 17, 18, 19, 20);
MOECTL_WGMMA_BF16(48, 24, 24, 25, 26, 27, 28);
MOECTL_WGMMA_BF16(64, 32, 32, 33, 34, 35, 36);
MOECTL_WGMMA_BF16(96, 48, 48, 49, 50, 51, 52);
MOECTL_WGMMA_BF16(128, 64, 64, 65, 66, 67, 68);
MOECTL_WGMMA_BF16(160, 80, 80, 81, 82, 83, 84);
MOECTL_WGMMA_BF16(192, 96, 96, 97, 98, 99, 100);
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
MOECTL_WGMMA_BF16_REG(96, 48, 48, 49, 50, 51, 52, 53, 54);
MOECTL_WGMMA_BF16_REG(128, 64, 64, 65, 66, 67, 68, 69, 70);
MOECTL_WGMMA_BF16_REG(192, 96, 96, 97, 98, 99, 100, 101, 102);
MOECTL_WGMMA_BF16_REG(256, 128, 128, 129, 130, 131, 132, 133, 134);

#undef MOECTL_WGMMA_F8
#undef MOECTL_WGMMA_F8_REG
#undef MOECTL_WGMMA_BF16
#undef MOECTL_WGMMA_BF16_REG

}  // namespace moectl::cuda::hopper
