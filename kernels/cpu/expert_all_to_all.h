// CpuExpertAllToAll: the expert all-to-all of ranks that are threads of one process. Everything runs on the calling
// thread, waits included: polls that yield the core, and sleep when a peer takes long. f32 rows only.
//
// It runs the steps of the low-latency form for any number of tokens: choices, their signal, tokens, their signal.
#pragma once

#include "kernels/expert_all_to_all.h"

#include "kernels/cpu/path_begin.h"

class CpuExpertAllToAll final : public ExpertAllToAll {
 public:
  // After an abort or a timeout: no rows (expert_offsets are zeros).
  void dispatch(const DispatchArgs&, Stream) override;
  // After an abort or a timeout: no results (expert_rows are null).
  void combine(const CombineArgs&, Stream) override;
};

#include "kernels/cpu/path_end.h"
