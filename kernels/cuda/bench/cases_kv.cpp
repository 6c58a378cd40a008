// Copies of KV pages, against a device copy.
#include "kernels/cuda/bench/bench.h"
#include "kernels/cuda/elementwise/kv_copy.h"

namespace moectl::cuda::bench {
namespace {

Case gather_case(const KernelShape& s, int num_pages) {
  constexpr int kLayers = 32, kPageSize = 64;
  const int64_t values = s.kv_lora_rank > 0 ? s.kv_lora_rank + s.qk_rope_head_dim : 2 * s.num_kv_heads * s.head_dim;
  const int64_t page_bytes = kPageSize * values * 2, pool_pages = 2 * num_pages;
  Case c{.kernel = "kv_gather",
         .shape = fmt::format("{} {} layers, {} pages of {} bytes", s.name, kLayers, num_pages, page_bytes),
         .bytes = 2.0 * double(kLayers * num_pages * page_bytes),
         .peers = copy_peer()};
  c.make = [=, bytes = c.bytes](Memory& memory) {
    std::vector<std::byte*> layers;
    for (int l = 0; l < kLayers; ++l)
      layers.push_back(reinterpret_cast<std::byte*>(memory.bf16(pool_pages * page_bytes / 2)));
    std::vector<int32_t> pages;  // every other one, in an order that jumps: 7 has no factor in common
    for (int i = 0; i < num_pages; ++i) pages.push_back(2 * (i * 7 % num_pages));
    KvCopyArgs args;
    args.layers = View<std::byte* const>(memory.upload(layers), {kLayers});
    args.pages = View<const int32_t>(memory.upload(pages), {num_pages});
    args.page_bytes = page_bytes;
    args.staging = memory.alloc<std::byte>(kLayers * num_pages * page_bytes);
    Work work;
    work.run = [args](Stream stream) { kv_gather(args, stream); };
    work.peers = {copy_of(memory, bytes)};
    work.out = args.staging;
    work.out_bytes = kLayers * num_pages * page_bytes;
    return work;
  };
  return c;
}

}  // namespace

void add_kv_cases(const KernelShape& s, Cases& cases) {
  for (const int num_pages : {1, 16, 128}) cases.push_back(gather_case(s, num_pages));
}

}  // namespace moectl::cuda::bench
