// moe_permute in its two halves, which the expert all-to-all runs apart: rows are numbered once the choices are there,
// and gathered once the tokens are.
#pragma once

#include "kernels/ops.h"

#include "kernels/cpu/path_begin.h"

// Where a choice goes: the rank, and the index among that rank's experts; -1, -1: to no expert.
struct ExpertPlace {
  int64_t rank = -1, local = -1;
};
// `token` of source rank `source`: PlacementView's t and s.
ExpertPlace place_of(const PlacementView& placement, int32_t expert, int64_t source, int64_t token);

// Writes expert_offsets, row_of and scale; reads no token.
void number_rows(const MoePermuteArgs& args);
// Copies the tokens to the rows that number_rows gave them.
void gather_rows(const MoePermuteArgs& args);

#include "kernels/cpu/path_end.h"
