// Rows of tokens to their experts and back: the reading half of the exchange between ranks of one address space.
#include <algorithm>
#include <cstring>

#include "kernels/cpu/cpu_ops.h"

#include "kernels/cpu/path_begin.h"

void CpuOps::moe_permute(const MoePermuteArgs& a, Stream) {
  const int64_t num_local = a.expert_offsets.dim(0) - 1, size = a.x.row_size();
  int32_t* offsets = a.expert_offsets.data;
  const auto local = [&](int32_t expert) {  // index among the caller's experts, or -1
    const int64_t e = expert - a.expert_begin;
    return expert >= 0 && e >= 0 && e < num_local ? e : -1;
  };
  std::fill(offsets, offsets + num_local + 1, 0);
  for (const MoeSource& source : a.sources)
    for (int64_t i = 0; i < source.expert_idx.size(); ++i)
      if (const int64_t e = local(source.expert_idx.data[i]); e >= 0) ++offsets[e + 1];
  for (int64_t e = 0; e < num_local; ++e) offsets[e + 1] += offsets[e];
  CHECK(offsets[num_local] <= a.x.dim(0), "{} expert rows in a buffer of {}", offsets[num_local], a.x.dim(0));

  // offsets[e] is the next free row of expert e while rows are dealt out, the end of expert e afterwards.
  for (const MoeSource& source : a.sources)
    for (int64_t i = 0; i < source.expert_idx.size(); ++i) {
      const int64_t e = local(source.expert_idx.data[i]);
      if (e < 0) continue;
      const int32_t row = offsets[e]++;
      source.row_of.data[i] = row;
      if (a.scale) a.scale.data[row] = source.expert_weight.data[i];
      std::memcpy(a.x.row(row), source.x.row(i / source.expert_idx.dim(1)), size_t(size) * sizeof(float));
    }
  for (int64_t e = num_local; e > 0; --e) offsets[e] = offsets[e - 1];
  offsets[0] = 0;
}

void CpuOps::moe_locate(const MoeLocateArgs& a, Stream) {
  for (int64_t i = 0; i < a.expert_idx.size(); ++i) {
    const int32_t expert = a.expert_idx.data[i];
    if (expert < 0) {
      a.expert_rows.data[i] = nullptr;
      continue;
    }
    const MoeOwner& owner = a.owners[size_t(expert / a.num_local_experts)];
    a.expert_rows.data[i] = owner.out + int64_t{owner.row_of[i]} * a.hidden_size;
  }
}

#include "kernels/cpu/path_end.h"
