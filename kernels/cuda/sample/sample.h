// Launcher of kernels/cuda/sample/sample.cu. Views point to device memory; the call returns before the kernels are
// done, launches the same three kernels whatever the parameters of the rows, and may be captured in a CUDA graph.
#pragma once

#include "kernels/ops.h"

namespace moectl::cuda {

constexpr int64_t kMaxSampledVocab = 1 << 20;

// About a copy of the logits, and 50 kB per row, for at most 256 rows: more rows are sampled in batches of that size.
int64_t sample_scratch_bytes(int64_t max_rows, int64_t vocab_size);

// Samples the tokens that core/engine/sampler.h samples. `scratch` is 256-byte aligned, of sample_scratch_bytes for
// these rows or more; its contents do not matter between two calls. A row without a token (SampledRow::status) gets id
// 0. Throws Error{kInternal} for shapes that do not fit each other, Error{kUnavailable} when a launch fails.
void sample_rows(const SampleRowsArgs& args, std::byte* scratch, Stream stream);

}  // namespace moectl::cuda
