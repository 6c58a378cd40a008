// Launchers of kernels/cuda/elementwise/kv_copy.cu: pages of all layers of a KV cache to one contiguous piece of memory
// and back, for transfers to other machines and to the host. One launch whatever the number of pages; may be captured
// in a graph.
#pragma once

#include "kernels/ops.h"

namespace moectl::cuda {

struct KvCopyArgs {
  View<std::byte* const> layers;  // [num_layers], on the device: page p of layer l is layers[l] + p * page_bytes
  View<const int32_t> pages;      // [num_pages], on the device; to scatter, each at most once
  int64_t page_bytes = 0;         // of one layer; a multiple of 16
  std::byte* staging = nullptr;   // [num_layers, num_pages, page_bytes], 16-byte aligned; device or pinned host memory
};

// Throw Error{kInternal} for shapes that do not fit, Error{kUnavailable} when the launch fails.
void kv_gather(const KvCopyArgs& args, Stream stream);   // pages to staging
void kv_scatter(const KvCopyArgs& args, Stream stream);  // staging to pages

}  // namespace moectl::cuda
