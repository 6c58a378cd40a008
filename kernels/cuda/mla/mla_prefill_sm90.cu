// Expanded MLA of a prefill chunk at DeepSeek's sizes: 320 multiply-adds per (row, key, head) where absorbed MLA takes
// 1,088. It first expands the compressed KV of all the context to keys and values: 131,072 multiply-adds per (key,
// head), which pays with some hundred rows.
//
// For a group of heads at a time: their part of kv_b_proj in bf16, as one matrix [heads * 256, 512] (W_UK is packed
// transposed, for mla_query); then for a part of the context at a time: gather compressed KV and rotated keys from
// their pages, keys and values by one GEMM, and the attention (mla_prefill_sm90.cuh). Groups and parts are such that
// keys and values fit kKeyValueBytes at any context, and that a group's tiles of rows fill the device several times.
#include "kernels/cuda/mla/mla_prefill_sm90.h"

#include <algorithm>

#include "core/base/check.h"
#include "kernels/cuda/gemm/bf16_gemm.h"
#include "kernels/cuda/gemm/tensor_map.h"
#include "kernels/cuda/gemm/weight.h"
#include "kernels/cuda/mla/mla_prefill_sm90.cuh"
#include "kernels/cuda/runtime/device.cuh"

namespace moectl::cuda {
namespace kernel {
namespace {

constexpr int kMlaRank = 512, kMlaWidth = kMlaRank + kMlaRope, kMlaHead = kMlaNope + kMlaValue, kTile = 128;

// Sixteen elements of row n from column k, in bf16.
__device__ __forceinline__ void load_16(const Matrix& w, int entry, int n, int k, __nv_bfloat16 (&v)[16]) {
  const int element_bytes = w.dtype == DType::kF8E4M3 ? 1 : 2;
  const auto* from = reinterpret_cast<const uint4*>(w.data + entry * w.entry_bytes + k / 128 * w.step_bytes +
                                                    n * w.row_bytes + k % 128 * element_bytes);
  if (element_bytes == 2) {
    *reinterpret_cast<uint4*>(&v[0]) = __ldg(from);
    *reinterpret_cast<uint4*>(&v[8]) = __ldg(from + 1);
    return;
  }
  const float scale = reinterpret_cast<const float*>(
      w.scales)[entry * w.entry_scales + n / 128 * w.row_scales + k / 128 * w.segment_scales];
  const uint4 bytes = __ldg(from);
  const uint32_t words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float2 pair = widen_f8x2(uint16_t(words[i / 2] >> (i % 2 * 16)));
    v[2 * i] = __float2bfloat16(pair.x * scale);
    v[2 * i + 1] = __float2bfloat16(pair.y * scale);
  }
}

// out [heads, 256, 512]: of each head W_UK transposed, then W_UV. Grid: tiles of 128 columns, heads, which of the two.
__global__ void __launch_bounds__(256)
    mla_expand_weights(Matrix w_uk, Matrix w_uv, int first_head, __nv_bfloat16* out) {
  constexpr int kPitch = kTile + 8;
  __shared__ __align__(16) __nv_bfloat16 tile[kTile * kPitch];  // [row of out][column]
  const int column = blockIdx.x * kTile, head = first_head + blockIdx.y, warp = threadIdx.x / 32,
            lane = threadIdx.x % 32;
  const bool keys = blockIdx.z == 0;
#pragma unroll 1
  for (int i = warp; i < kTile / 16 * (kTile / 32); i += 8) {
    const int part = i % (kTile / 16) * 16, row = i / (kTile / 16) * 32 + lane;
    __align__(16) __nv_bfloat16 v[16];
    if (keys) {
      load_16(w_uk, head, column + row, part, v);
#pragma unroll
      for (int j = 0; j < 16; ++j) tile[(part + j) * kPitch + row] = v[j];
    } else {
      load_16(w_uv, head, row, column + part, v);
      *reinterpret_cast<uint4*>(&tile[row * kPitch + part]) = *reinterpret_cast<const uint4*>(&v[0]);
      *reinterpret_cast<uint4*>(&tile[row * kPitch + part + 8]) = *reinterpret_cast<const uint4*>(&v[8]);
    }
  }
  __syncthreads();
  out += (int64_t{blockIdx.y} * kMlaHead + blockIdx.z * kMlaNope) * kMlaRank + column;
  for (int i = threadIdx.x; i < kTile * kTile / 8; i += 256)
    *reinterpret_cast<uint4*>(out + i / (kTile / 8) * kMlaRank + i % (kTile / 8) * 8) =
        *reinterpret_cast<const uint4*>(&tile[i / (kTile / 8) * kPitch + i % (kTile / 8) * 8]);
}

// Positions `begin` .. + `num` of a sequence from its pages: compressed KV [num, 512], rope [num, 64].
__global__ void mla_gather_kv(const uint4* cache, const int32_t* pages, int page_size, int begin, int num,
                              uint4* compressed, uint4* rope) {
  constexpr int kUnits = kMlaWidth / 8, kCompressedUnits = kMlaRank / 8;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < int64_t{num} * kUnits;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int row = int(i / kUnits), unit = int(i % kUnits), position = begin + row;
    const int64_t slot = int64_t{pages[position / page_size]} * page_size + position % page_size;
    const uint4 v = __ldg(cache + slot * kUnits + unit);
    if (unit < kCompressedUnits)
      compressed[int64_t{row} * kCompressedUnits + unit] = v;
    else
      rope[int64_t{row} * (kMlaRope / 8) + unit - kCompressedUnits] = v;
  }
}

}  // namespace
}  // namespace kernel

namespace {

using namespace kernel;
using Shape = MlaPrefill;

constexpr int64_t kKeyValueBytes = int64_t{128} << 20, kMaxPart = 16384;

// Offsets in scratch, in bytes.
struct Layout {
  int64_t num_bytes = 0, stats, weights, compressed, rope, keys_values;
  Layout(int64_t tokens, int64_t heads) {
    auto take = [&](int64_t size) {
      const int64_t begin = num_bytes;
      num_bytes += (size + 255) / 256 * 256;
      return begin;
    };
    weights = take(heads * kMlaHead * kMlaRank * 2);
    compressed = take(kMaxPart * kMlaRank * 2);
    rope = take(kMaxPart * kMlaRope * 2);
    keys_values = take(kKeyValueBytes);
    stats = take(tokens * heads * int64_t(sizeof(float2)));
  }
};

CUtensorMap rows_map(const void* data, int64_t columns, int64_t rows) {
  return make_tensor_map({.type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                          .data = data,
                          .dims = {columns, rows},
                          .stride_bytes = {columns * 2},
                          .box = {64, Shape::kKeys},
                          .swizzle = CU_TENSOR_MAP_SWIZZLE_128B});
}

}  // namespace

bool mla_prefill_sm90_fits(const ScratchShape& shape) {
  return shape.q_head_size == kMlaWidth && shape.out_head_size == kMlaRank &&
         shape.num_heads * kMlaHead * 2 * Shape::kKeys <= kKeyValueBytes;
}

bool mla_prefill_sm90_fits(const MlaPrefillArgs& a) {
  const Matrix &uk = matrix_of(a.w_uk), &uv = matrix_of(a.w_uv);
  auto takes = [](const Matrix& w) { return w.is_fp8_block() || w.dtype == DType::kBF16; };
  auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  return takes(uk) && takes(uv) && uk.n == kMlaRank && uk.k == kMlaNope && uv.n == kMlaValue && uv.k == kMlaRank &&
         a.cache.dtype == DType::kBF16 && a.cache.dim(2) == kMlaWidth && a.q.dim(2) == kMlaQuery &&
         a.out.dim(2) == kMlaValue && a.cos_sin.row_size() == kMlaRope && aligned(a.q.data) && aligned(a.out.data) &&
         aligned(a.cos_sin.data);
}

bool mla_prefill_sm90_pays(int64_t n, int64_t heads, int64_t context) {
  // Multiply-adds per head over TFLOP/s measured on an H200: absorbed attention (its tiles hold 64 heads) with
  // mla_query and mla_output, against expanded attention with the expansion of keys and values.
  const double pairs = double(n) * (double(context) - 0.5 * double(n)), padded = double((heads + 63) / 64 * 64);
  const double absorbed = pairs * 1088 / 780 * padded / double(heads) + double(n) * 131072 / 350;
  const double expanded = pairs * 320 / 600 + double(context) * 131072 / 570;
  return n >= 128 && expanded < absorbed;
}

int64_t mla_prefill_sm90_scratch_bytes(int64_t max_tokens, int64_t num_heads) {
  return Layout(max_tokens, num_heads).num_bytes;
}

void mla_prefill_sm90(const MlaPrefillArgs& a, void* scratch, Stream stream) {
  const int64_t n = a.q.dim(0), heads = a.q.dim(1), context = a.first_position + n, page_size = a.cache.dim(1);
  CHECK(mla_prefill_sm90_fits(a), "mla_prefill: heads of {} and {}, rows of {} in the cache", a.q.dim(2), a.out.dim(2),
        a.cache.dim(2));
  CHECK(a.w_uk.batch == heads && a.w_uv.batch == heads && a.out.dim(0) == n && a.out.dim(1) == heads &&
            a.cos_sin.dim(0) == n && a.first_position >= 0 && a.pages.size() * page_size >= context &&
            context <= INT32_MAX / 2,
        "mla_prefill: {} rows of {} heads, weights of {} and {}, {} x {} results, {} positions in {} pages", n, heads,
        a.w_uk.batch, a.w_uv.batch, a.out.dim(0), a.out.dim(1), context, a.pages.size());
  if (n == 0) return;
  const Layout layout(n, heads);
  auto* const memory = static_cast<std::byte*>(scratch);
  auto* const weights = reinterpret_cast<__nv_bfloat16*>(memory + layout.weights);
  auto* const compressed = reinterpret_cast<uint4*>(memory + layout.compressed);
  auto* const rope = reinterpret_cast<uint4*>(memory + layout.rope);
  std::byte* const keys_values = memory + layout.keys_values;

  const int64_t tiles = (n + Shape::kRows - 1) / Shape::kRows;
  const int64_t multiprocessors = current_device_info().num_multiprocessors;
  int64_t group = heads;
  while (group % 2 == 0 && group / 2 * tiles >= 4 * multiprocessors && group * context * kMlaHead * 2 > kKeyValueBytes)
    group /= 2;
  const int64_t most = std::min(kMaxPart, kKeyValueBytes / (group * kMlaHead * 2)) / Shape::kKeys * Shape::kKeys;
  CHECK(most > 0, "mla_prefill: {} heads", heads);

  MlaPrefillParams p = {};
  p.q = a.q.data;
  p.cos_sin = a.cos_sin.data;
  p.out = a.out.data;
  p.stats = reinterpret_cast<float2*>(memory + layout.stats);
  p.num_tokens = int(n);
  p.num_heads = int(heads);
  p.first_position = int(a.first_position);
  p.scale_log2 = a.scale * kLog2e;
  p.interleaved = a.interleaved;
  allow_shared_memory<kernel::mla_prefill>(Shape::kSharedBytes);
  for (int64_t head = 0; head < heads; head += group) {
    mla_expand_weights<<<dim3(kMlaRank / kTile, unsigned(group), 2), 256, 0, handle(stream)>>>(
        matrix_of(a.w_uk), matrix_of(a.w_uv), int(head), weights);
    CUDA_CHECK(cudaGetLastError());
    for (int64_t begin = 0; begin < context; begin += most) {
      const int64_t num = std::min(most, context - begin);
      if (head == 0 || most < context) {
        mla_gather_kv<<<blocks_for(num * kMlaWidth / 8, 256, 8 * multiprocessors), 256, 0, handle(stream)>>>(
            static_cast<const uint4*>(a.cache.data), a.pages.data, int(page_size), int(begin), int(num), compressed,
            rope);
        CUDA_CHECK(cudaGetLastError());
      }
      const Bf16GemmArgs product = {.a = compressed,
                                    .rows = num,
                                    .n = group * kMlaHead,
                                    .k = kMlaRank,
                                    .w = weights,
                                    .out = keys_values,
                                    .out_type = DType::kBF16};
      GemmConfig config = bf16_gemm_config(product);
      config.early_start = false;  // the preceding kernel may have written the weights
      bf16_gemm(product, config, stream);
      p.first_head = int(head);
      p.part_heads = int(group);
      p.key_begin = int(begin);
      p.key_end = int(begin + num);
      kernel::mla_prefill<<<unsigned(tiles * group), Shape::kThreads, Shape::kSharedBytes, handle(stream)>>>(
          p, rows_map(keys_values, group * kMlaHead, num), rows_map(rope, kMlaRope, num));
      CUDA_CHECK(cudaGetLastError());
    }
  }
}

}  // namespace moectl::cuda
