// Copies of KV pages: one thread block for each piece of kPiece bytes of a page of a layer. Each thread has its loads
// of 16 bytes in flight before the first store, and enough blocks fit a multiprocessor to keep the memory busy.
#include "kernels/cuda/elementwise/kv_copy.h"

#include <climits>

#include "core/base/check.h"
#include "kernels/cuda/runtime/check.h"

namespace moectl::cuda {
namespace kernel {

constexpr int kThreads = 128, kVectors = 4;
constexpr int kPiece = kThreads * kVectors * int(sizeof(uint4));

// Grid [pieces * pages, layers].
template <bool kGather>
__global__ void __launch_bounds__(kThreads) kv_copy(std::byte* const* layers, const int32_t* pages, int num_pages,
                                                    int page_vectors, int pieces, std::byte* staging) {
  const int slot = int(blockIdx.x) / pieces, piece = int(blockIdx.x) % pieces, layer = int(blockIdx.y);
  uint4* page = reinterpret_cast<uint4*>(layers[layer]) + int64_t{pages[slot]} * page_vectors;
  uint4* copy = reinterpret_cast<uint4*>(staging) + (int64_t{layer} * num_pages + slot) * page_vectors;
  const uint4* from = kGather ? page : copy;
  uint4* to = kGather ? copy : page;
  const int begin = piece * kThreads * kVectors + int(threadIdx.x);
  uint4 v[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i)
    if (begin + i * kThreads < page_vectors) v[i] = __ldcs(from + begin + i * kThreads);
#pragma unroll
  for (int i = 0; i < kVectors; ++i)
    if (begin + i * kThreads < page_vectors) __stcs(to + begin + i * kThreads, v[i]);
}

}  // namespace kernel

namespace {

template <bool kGather>
void copy(const KvCopyArgs& a, Stream stream) {
  const int64_t num_layers = a.layers.size(), num_pages = a.pages.size(), unit = int64_t(sizeof(uint4));
  CHECK(a.page_bytes > 0 && a.page_bytes % unit == 0 && a.page_bytes <= INT_MAX && num_layers <= 65535,
        "a copy of pages of {} bytes in {} layers; a page is a multiple of {}", a.page_bytes, num_layers, unit);
  CHECK(reinterpret_cast<uintptr_t>(a.staging) % uintptr_t(unit) == 0, "staging memory at {} is not aligned to {}",
        static_cast<const void*>(a.staging), unit);
  const int64_t pieces = (a.page_bytes + kernel::kPiece - 1) / kernel::kPiece;
  CHECK(pieces * num_pages <= INT_MAX, "a copy of {} pages of {} bytes", num_pages, a.page_bytes);
  if (num_layers == 0 || num_pages == 0) return;
  kernel::kv_copy<kGather><<<dim3(unsigned(pieces * num_pages), unsigned(num_layers)), kernel::kThreads, 0,
                             static_cast<cudaStream_t>(stream.handle)>>>(
      a.layers.data, a.pages.data, int(num_pages), int(a.page_bytes / unit), int(pieces), a.staging);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace

void kv_gather(const KvCopyArgs& args, Stream stream) {
  copy<true>(args, stream);
}
void kv_scatter(const KvCopyArgs& args, Stream stream) {
  copy<false>(args, stream);
}

}  // namespace moectl::cuda
