// Packing of checkpoint matrices into the CUDA layout (weight.h), once at load: threads write rows into pinned memory
// while earlier rows are copied; FP8 data is searched for NaN on the device.
#include "kernels/cuda/gemm/weight.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/cuda/gemm/fp8_gemm.h"
#include "kernels/cuda/runtime/cuda_ops.h"
#include "kernels/cuda/runtime/device.cuh"
#include "kernels/matrix_spec.h"

namespace moectl::cuda {
namespace kernel {

// Sets *found where any byte of words [num_words] is an e4m3 NaN.
__global__ void find_f8_nan(const uint4* words, int64_t num_words, int* found) {
  bool bad = false;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < num_words;
       i += int64_t{gridDim.x} * blockDim.x) {
    const uint4 v = words[i];
    for (uint32_t w : {v.x, v.y, v.z, v.w}) bad |= (((w & 0x7f7f7f7fu) + 0x01010101u) & 0x80808080u) != 0;
  }
  if (bad) *found = 1;
}

}  // namespace kernel

namespace {

using namespace spec;

constexpr int64_t kStep = 128;  // k's of a panel of FP8, and of the strides in Matrix

int64_t round_up(int64_t n, int64_t to) {
  return ceil_div(n, to) * to;
}

// Whether the scales, which go by `block` from the start of a dimension of `size`, are constant within every kFp8Block
// of a range that begins at `begin`.
bool on_grid(int64_t block, int64_t size, int64_t begin) {
  return block >= size || (block % kFp8Block == 0 && begin % kFp8Block == 0);
}
bool in_panels(const MatrixSpec& m) {
  return m.dtype == DType::kF8E4M3 && num_outputs(m) % 8 == 0 && on_grid(m.block_n, m.rows, m.row_begin) &&
         on_grid(m.block_k, m.cols, m.col_begin) && m.row_step == 1 && m.col_step == 1;
}

struct Segments {
  int64_t first, num;
};
Segments segments_of(const MatrixSpec& m, const Matrix& w) {
  const int64_t begin = w.is_fp8_block() ? 0 : m.transpose ? m.row_begin : m.col_begin;
  const int64_t first = std::min(w.k, w.segment - begin % w.segment);
  return {first, 1 + ceil_div(w.k - first, w.segment)};
}

// Where rows of one entry are written: element (n, k) has `bytes` bytes.
struct Target {
  std::byte* data;
  int64_t row_bytes, pitch;  // to the next row; to the next panel (0: one panel)

  std::byte* at(int64_t n, int64_t k, int64_t bytes) const {
    return data + n * row_bytes + (pitch ? k / kStep * pitch + k % kStep * bytes : k * bytes);
  }
};

// T: an unsigned integer as large as the matrix's elements. Rows [begin, end) of W.
template <class T>
void fill_elements(const MatrixSpec& m, int64_t k_size, int64_t begin, int64_t end, const Target& out) {
  constexpr int64_t kBytes = sizeof(T), kStrip = 64;
  const T flip = m.dtype == DType::kU8 ? T(0x80) : T(0);  // value + 128 to a signed value
  const int64_t stride = row_bytes(m), part = out.pitch ? kStep : k_size;
  if (!m.transpose && m.col_step == 1) {
    for (int64_t n = begin; n < end; ++n) {
      const std::byte* in = m.data + (m.row_begin + n * m.row_step) * stride + m.col_begin * kBytes;
      for (int64_t k = 0; k < k_size; k += part) {
        const int64_t num = std::min(part, k_size - k);
        std::byte* to = out.at(n - begin, k, kBytes);
        std::memcpy(to, in + k * kBytes, size_t(num * kBytes));
        for (int64_t i = 0; flip && i < num; ++i) reinterpret_cast<T*>(to)[i] ^= flip;
      }
    }
    return;
  }
  // A strip of rows at a time: a line of the source holds elements of all of them when the matrix is transposed.
  for (int64_t n0 = begin; n0 < end; n0 += kStrip)
    for (int64_t k = 0; k < k_size; ++k)
      for (int64_t n = n0; n < std::min(end, n0 + kStrip); ++n) {
        const Place from = place(m, n, k);
        T x;
        std::memcpy(&x, m.data + from.row * stride + from.col * kBytes, sizeof x);
        *reinterpret_cast<T*>(out.at(n - begin, k, kBytes)) = x ^ flip;
      }
}

void fill_nibbles(const MatrixSpec& m, int64_t k_size, int64_t begin, int64_t end, const Target& out) {
  // Rows of the checkpoint hold the same words.
  const bool same = m.nibble_order == NibbleOrder::kRows && !m.transpose && m.col_step == 1 && m.col_begin % 8 == 0;
  const int64_t words = ceil_div(k_size, 8);
  for (int64_t n = begin; n < end; ++n) {
    auto* to = reinterpret_cast<uint32_t*>(out.at(n - begin, 0, 0));
    const Place first = place(m, n, 0);
    if (same) {
      std::memcpy(to, m.data + first.row * row_bytes(m) + first.col / 8 * 4, size_t(words * 4));
      continue;
    }
    for (int64_t i = 0; i < words; ++i) {
      to[i] = 0;
      for (int64_t k = i * 8; k < std::min(k_size, i * 8 + 8); ++k)
        to[i] |= nibble_at(m, place(m, n, k)) << (k % 8 * 4);
    }
  }
}

void fill_widened(const MatrixSpec& m, int64_t k_size, int64_t begin, int64_t end, const Target& out) {
  for (int64_t n = begin; n < end; ++n)
    for (int64_t k = 0; k < k_size; ++k) {
      const Place from = place(m, n, k);
      *reinterpret_cast<float*>(out.at(n - begin, k, 4)) = scale_at(m, from) * number_at(m, from);
    }
}

// Rows [begin, end) of W, and zeros after k.
void fill_rows(const MatrixSpec& m, const Matrix& w, int64_t begin, int64_t end, const Target& out) {
  const int64_t used = w.is_fp8_block()     ? w.k - (ceil_div(w.k, kStep) - 1) * kStep
                       : is_nibble(w.dtype) ? ceil_div(w.k, 8) * 4
                                            : w.k * dtype_bytes(w.dtype);
  if (used < w.row_bytes)
    for (int64_t n = 0; n < end - begin; ++n) {
      std::byte* last = out.data + n * w.row_bytes + (out.pitch ? (w.k - 1) / kStep * out.pitch : 0);
      std::memset(last + used, 0, size_t(w.row_bytes - used));
    }
  if (m.scales && !w.scales) return fill_widened(m, w.k, begin, end, out);
  if (is_nibble(m.dtype)) return fill_nibbles(m, w.k, begin, end, out);
  switch (dtype_bytes(m.dtype)) {
    case 1:
      return fill_elements<uint8_t>(m, w.k, begin, end, out);
    case 2:
      return fill_elements<uint16_t>(m, w.k, begin, end, out);
    default:
      return fill_elements<uint32_t>(m, w.k, begin, end, out);
  }
}

// Scales of all blocks of rows and segments of one entry to `scales` (in the order of Matrix), zero points to `zeros`.
void fill_scales(const MatrixSpec& m, const Matrix& w, std::byte* scales, uint8_t* zeros) {
  const int64_t size = dtype_bytes(w.scale_dtype);
  const Segments segments = segments_of(m, w);
  for (int64_t block = 0; block < ceil_div(w.n, w.block_n); ++block)
    for (int64_t s = 0; s < segments.num; ++s) {
      const Place from = place(m, block * w.block_n, s ? segments.first + (s - 1) * w.segment : 0);
      const int64_t to = block * w.row_scales + s * w.segment_scales;
      const float scale = scale_at(m, from);
      if (m.dtype == DType::kF8E4M3)
        std::memcpy(scales + to * size, &scale, sizeof scale);
      else
        std::memcpy(scales + to * size, m.scales + scale_index(m, from) * size, size_t(size));
      if (zeros) zeros[to] = uint8_t(zero_at(m, from));
    }
}

void set_layout(Matrix& w, int64_t n, int64_t k, bool panels) {
  w.n = n;
  w.k = k;
  if (panels) {
    w.row_bytes = kStep;
    w.step_bytes = n * kStep;
    w.entry_bytes = ceil_div(k, kStep) * w.step_bytes;
    w.block_n = kFp8Block;
    return;
  }
  w.step_bytes = kStep * dtype_bits(w.dtype) / 8;
  w.row_bytes = w.dtype == DType::kBF16 ? round_up(k, 64) * 2
                : is_nibble(w.dtype)    ? round_up(ceil_div(k, 8) * 4, 16)
                                        : round_up(k * dtype_bytes(w.dtype), 16);
  w.entry_bytes = n * w.row_bytes;
}

void set_scales(Matrix& w, std::span<const MatrixSpec> batch) {
  const MatrixSpec& first = batch[0];
  const int64_t block = first.transpose ? first.block_n : first.block_k;
  w.segment = w.is_fp8_block() ? kFp8Block : block;
  w.segments_of_four = w.segments_of_sixteen = true;
  for (const MatrixSpec& m : batch) {
    CHECK(w.is_fp8_block() || (m.transpose ? m.block_n : m.block_k) == block, "{} has other blocks than {}", m.name,
          first.name);
    const Segments s = segments_of(m, w);
    w.num_segments = std::max(w.num_segments, s.num);
    auto begin_at = [&](int64_t grain) { return s.first == w.k || (s.first % grain == 0 && w.segment % grain == 0); };
    w.segments_of_four &= begin_at(4);
    w.segments_of_sixteen &= begin_at(16);
  }
  if (first.dtype != DType::kF8E4M3) w.scale_dtype = first.scale_dtype;
  if (w.is_fp8_block()) {
    w.row_scales = 1;
    w.segment_scales = round_up(ceil_div(w.n, kFp8Block), 4);  // Fp8Weight::scale_stride
    w.entry_scales = w.num_segments * w.segment_scales;
  } else {
    w.row_scales = w.num_segments;
    w.segment_scales = 1;
    w.entry_scales = w.n * w.num_segments;
  }
}

}  // namespace

Weight CudaOps::pack(std::span<const MatrixSpec> batch) {
  CHECK(!batch.empty(), "pack needs at least one matrix");
  device_.activate();
  const MatrixSpec& first = batch[0];
  CHECK(num_outputs(first) > 0 && num_inputs(first) > 0, "{}: cannot pack a {} x {} matrix", first.name,
        num_outputs(first), num_inputs(first));
  const bool widened = needs_widening(first), scaled = first.scales && !widened;
  for (const MatrixSpec& m : batch) {
    check_matrix(m, first);
    CHECK(needs_widening(m) == widened, "{} has other blocks than {}", m.name, first.name);
  }
  auto weight = std::make_shared<DeviceWeight>();
  Matrix& w = weight->matrix;
  w.dtype = widened ? DType::kF32 : first.dtype == DType::kU8 ? DType::kI8 : first.dtype;
  set_layout(w, num_outputs(first), num_inputs(first), scaled && std::all_of(batch.begin(), batch.end(), in_panels));
  const int64_t num_entries = int64_t(batch.size()), data_bytes = num_entries * w.entry_bytes;
  int64_t num_bytes = data_bytes;
  weight->data = device_.allocate(data_bytes);
  w.data = weight->data.get();
  Staging& staging = this->staging();
  if (scaled) {
    set_scales(w, batch);
    const int64_t size = dtype_bytes(w.scale_dtype), scale_bytes = w.entry_scales * size;
    weight->scales = device_.alloc(num_entries * scale_bytes);
    weight->first_segment = device_.alloc(num_entries * 4);
    w.scales = weight->scales.get();
    w.first_segment = reinterpret_cast<const int32_t*>(weight->first_segment.get());
    if (first.zeros) {
      weight->zeros = device_.alloc(num_entries * w.entry_scales);
      w.zeros = reinterpret_cast<const uint8_t*>(weight->zeros.get());
    }
    num_bytes += num_entries * (scale_bytes + (first.zeros ? w.entry_scales : 0));
    std::vector<std::byte> scales(static_cast<size_t>(num_entries * scale_bytes));
    std::vector<uint8_t> zeros(first.zeros ? size_t(num_entries * w.entry_scales) : 0);
    std::vector<int32_t> ends(batch.size());
    staging.each(num_entries, [&](int64_t i) {
      ends[size_t(i)] = int32_t(segments_of(batch[size_t(i)], w).first);
      fill_scales(batch[size_t(i)], w, scales.data() + i * scale_bytes,
                  zeros.empty() ? nullptr : zeros.data() + i * w.entry_scales);
    });
    device_.upload(weight->scales.get(), scales.data(), int64_t(scales.size()));
    device_.upload(weight->zeros.get(), zeros.data(), int64_t(zeros.size()));
    device_.upload(weight->first_segment.get(), ends.data(), num_entries * 4);
  }
  const int64_t num_panels = w.is_fp8_block() ? ceil_div(w.k, kStep) : 1;
  staging.entries(weight->data.get(), num_entries, w.n, num_panels, w.row_bytes,
                  [&](int64_t i, int64_t begin, int64_t end, std::byte* to, int64_t pitch) {
                    fill_rows(batch[size_t(i)], w, begin, end, {to, w.row_bytes, num_panels > 1 ? pitch : 0});
                  });
  if (w.dtype == DType::kF8E4M3 && has_f8_nan(w.data, data_bytes)) {
    for (const MatrixSpec& m : batch) check_no_f8_nan(m);  // says where
    CHECK(false, "{}: NaN on the device only: its memory or the copy is faulty", first.name);
  }
  staging.join(static_cast<cudaStream_t>(device_.stream().handle));
  return {num_entries, w.n, w.k, w.dtype, linear_operand(w), num_bytes, weight};
}

Weight CudaOps::pack_rows(const MatrixSpec& table) {
  CHECK(!table.scales, "{}: tables with scales are not supported", table.name);
  MatrixSpec whole = table;
  whole.row_begin = whole.col_begin = 0;
  whole.row_step = whole.col_step = 1;
  whole.num_rows = table.rows;
  whole.num_cols = table.cols;
  whole.transpose = false;
  return pack({&whole, 1});
}

bool CudaOps::has_f8_nan(const std::byte* data, int64_t num_bytes) {
  const cudaStream_t stream = staging().stream();
  int* found = reinterpret_cast<int*>(flag_.get());
  CUDA_CHECK(cudaMemsetAsync(found, 0, sizeof *found, stream));
  kernel::find_f8_nan<<<blocks_for(num_bytes / 16, 1024, 1024), 256, 0, stream>>>(reinterpret_cast<const uint4*>(data),
                                                                                  num_bytes / 16, found);
  CUDA_CHECK(cudaGetLastError());
  int host = 0;
  CUDA_CHECK(cudaMemcpyAsync(&host, found, sizeof host, cudaMemcpyDeviceToHost, stream));
  CUDA_CHECK(cudaStreamSynchronize(stream));
  return host != 0;
}

}  // namespace moectl::cuda
