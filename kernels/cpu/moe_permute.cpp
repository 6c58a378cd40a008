// Rows of tokens to their experts and back, between ranks that address each other's memory.
#include <algorithm>
#include <cstring>

#include "kernels/cpu/cpu_ops.h"

#include "kernels/cpu/path_begin.h"

namespace {

// The physical expert that a choice of token `token` of source rank `source` goes to; -1: none.
int32_t physical_expert(const PlacementView& p, int32_t expert, int64_t source, int64_t token) {
  if (expert < 0 || expert >= p.replica_begin.dim(0) - 1) return -1;
  const int32_t first = p.replica_begin(expert), num = p.replica_begin(expert + 1) - first;
  return first + int32_t((source + token) % num);
}

}  // namespace

void CpuOps::moe_permute(const MoePermuteArgs& a, Stream) {
  const int64_t num_local = a.expert_offsets.dim(0) - 1, size = a.x.row_size();
  int32_t* offsets = a.expert_offsets.data;
  const View<float> x = a.x.f32();
  // body(source, choice, local expert) for the choices that are the caller's, by source, token and slot.
  const auto for_each_choice = [&](auto&& body) {
    for (size_t s = 0; s < a.sources.size(); ++s) {
      const MoeSource& source = a.sources[s];
      for (int64_t i = 0; i < source.expert_idx.size(); ++i) {
        int64_t e = source.expert_idx.data[i];
        if (a.placement.rank) {
          const int64_t token = source.token_begin + i / source.expert_idx.dim(1);
          const int32_t p = physical_expert(a.placement, int32_t(e), int64_t(s), token);
          e = p >= 0 && a.placement.rank(p) == a.rank ? a.placement.local(p) : -1;
        }
        if (e >= 0 && e < num_local) body(source, i, e);
      }
    }
  };
  std::fill(offsets, offsets + num_local + 1, 0);
  for_each_choice([&](const MoeSource&, int64_t, int64_t e) { ++offsets[e + 1]; });
  for (int64_t e = 0; e < num_local; ++e) offsets[e + 1] += offsets[e];
  CHECK(offsets[num_local] <= x.dim(0), "{} expert rows in a buffer of {}", offsets[num_local], x.dim(0));

  // offsets[e] is the next free row of expert e while rows are assigned, the end of expert e afterwards.
  for_each_choice([&](const MoeSource& source, int64_t i, int64_t e) {
    const int32_t row = offsets[e]++;
    source.row_of.data[i] = row;
    if (a.scale) a.scale.data[row] = source.expert_weight.data[i];
    const int64_t token = source.token_begin + i / source.expert_idx.dim(1);
    std::memcpy(x.row(row), source.x.f32().row(token), size_t(size) * sizeof(float));
  });
  for (int64_t e = num_local; e > 0; --e) offsets[e] = offsets[e - 1];
  offsets[0] = 0;
}

void CpuOps::moe_locate(const MoeLocateArgs& a, Stream) {
  for (int64_t i = 0; i < a.expert_idx.size(); ++i) {
    int32_t expert = a.expert_idx.data[i];
    size_t rank = 0;
    if (a.placement.rank) {
      expert = physical_expert(a.placement, expert, a.rank, a.token_begin + i / a.expert_idx.dim(1));
      if (expert >= 0) rank = size_t(a.placement.rank(expert));
    }
    const MoeResults& results = a.results[rank];
    a.expert_rows.data[i] =
        expert < 0 ? nullptr : static_cast<const std::byte*>(results.out) + results.row_of[i] * a.row_bytes;
  }
}

#include "kernels/cpu/path_end.h"
