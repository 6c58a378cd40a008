// Rows of tokens to their experts and back, between ranks that address each other's memory.
#include "kernels/cpu/moe_permute.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/expert_all_to_all.h"

#include "kernels/cpu/path_begin.h"

namespace {

// body(source, choice, local expert) for the choices that are the caller's, by source, token and slot.
template <class Body>
void for_each_choice(const MoePermuteArgs& a, Body&& body) {
  const int64_t num_local = a.expert_offsets.dim(0) - 1;
  for (size_t s = 0; s < a.sources.size(); ++s) {
    const MoeSource& source = a.sources[s];
    for (int64_t i = 0; i < source.expert_idx.size(); ++i) {
      const int64_t token = source.token_begin + i / source.expert_idx.dim(1);
      const ExpertPlace place = place_of(a.placement, source.expert_idx.data[i], int64_t(s), token);
      if (place.rank == a.rank && place.local < num_local) body(source, i, place.local);
    }
  }
}

}  // namespace

ExpertPlace place_of(const PlacementView& p, int32_t expert, int64_t source, int64_t token) {
  if (expert < 0) return {};
  if (!p.rank) return {0, expert};
  if (expert >= p.replica_begin.dim(0) - 1) return {};
  const int32_t first = p.replica_begin(expert), num = p.replica_begin(expert + 1) - first;
  const int64_t physical = first + (source + token) % num;
  return {p.rank(physical), p.local(physical)};
}

void number_rows(const MoePermuteArgs& a) {
  const int64_t num_local = a.expert_offsets.dim(0) - 1;
  int32_t* offsets = a.expert_offsets.data;
  std::fill(offsets, offsets + num_local + 1, 0);
  for_each_choice(a, [&](const MoeSource&, int64_t, int64_t e) { ++offsets[e + 1]; });
  for (int64_t e = 0; e < num_local; ++e) offsets[e + 1] += offsets[e];
  CHECK(offsets[num_local] <= a.x.dim(0), "{} expert rows in a buffer of {}", offsets[num_local], a.x.dim(0));

  for (const MoeSource& source : a.sources)
    std::fill(source.row_of.data, source.row_of.data + source.expert_idx.size(), -1);
  // offsets[e] is the next free row of expert e while rows are assigned, the end of expert e afterwards.
  for_each_choice(a, [&](const MoeSource& source, int64_t i, int64_t e) {
    const int32_t row = offsets[e]++;
    source.row_of.data[i] = row;
    if (a.scale) a.scale.data[row] = source.expert_weight.data[i];
  });
  for (int64_t e = num_local; e > 0; --e) offsets[e] = offsets[e - 1];
  offsets[0] = 0;
}

void gather_rows(const MoePermuteArgs& a) {
  const View<float> x = a.x.f32();
  const int64_t size = x.row_size(), packed_bytes = packed_row_bytes(DType::kF32, size);
  for_each_choice(a, [&](const MoeSource& source, int64_t i, int64_t) {
    const int64_t token = i / source.expert_idx.dim(1);
    const View<float> from = source.x.f32();
    const void* row = source.packed ? reinterpret_cast<const std::byte*>(from.data) + token * packed_bytes
                                    : static_cast<const void*>(from.row(source.token_begin + token));
    std::memcpy(x.row(source.row_of.data[i]), row, size_t(size) * sizeof(float));
  });
}

void CpuOps::moe_permute(const MoePermuteArgs& a, Stream) {
  number_rows(a);
  gather_rows(a);
}

void CpuOps::moe_locate(const MoeLocateArgs& a, Stream) {
  for (int64_t i = 0; i < a.expert_idx.size(); ++i) {
    const int64_t token = a.token_begin + i / a.expert_idx.dim(1);
    const ExpertPlace place = place_of(a.placement, a.expert_idx.data[i], a.rank, token);
    const MoeResults* results = place.rank < 0 ? nullptr : &a.results[size_t(place.rank)];
    a.expert_rows.data[i] =
        results ? static_cast<const std::byte*>(results->out) + results->row_of[i] * a.row_bytes : nullptr;
  }
}

#include "kernels/cpu/path_end.h"
