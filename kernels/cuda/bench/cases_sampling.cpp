// Sampling tokens from logits, against a copy of the logits.
#include <random>

#include "kernels/cuda/bench/bench.h"
#include "kernels/cuda/sample/sample.h"

namespace moectl::cuda::bench {
namespace {

Case sample_case(const KernelShape& s, int64_t rows, const char* name, const SamplingRow& how) {
  Case c{.kernel = "sample_rows",
         .shape = fmt::format("{} {}x{}, {}", s.name, rows, s.vocab_size, name),
         .bytes = double(rows * s.vocab_size) * 4,
         .peers = copy_peer()};
  c.make = [=, bytes = c.bytes](Memory& memory) {
    SampleRowsArgs args;
    // Standard deviation 4: some hundred tokens have most of the probability.
    args.logits = {memory.floats(rows * s.vocab_size, 4.0f), {rows, s.vocab_size}};
    std::vector<SamplingRow> each(size_t(rows), how);
    std::mt19937_64 rng(1);
    for (SamplingRow& row : each) row.uniform = double(rng() >> 11) * 0x1p-53;
    args.rows = {memory.upload(each), {rows}};
    args.out = {memory.alloc<SampledRow>(rows), {rows}};
    args.next_token_ids = {memory.alloc<int32_t>(rows), {rows}};
    auto* scratch = memory.alloc<std::byte>(sample_scratch_bytes(rows, s.vocab_size));
    Work work;
    work.run = [=](Stream stream) { sample_rows(args, scratch, stream); };
    work.peers = {copy_of(memory, bytes)};
    work.out = args.next_token_ids.data;
    work.out_bytes = rows * 4;
    return work;
  };
  return c;
}

}  // namespace

void add_sampling_cases(const KernelShape& s, Cases& cases) {
  const SamplingRow greedy{.temperature = 0.0f}, usual{.temperature = 0.7f, .top_k = 50, .top_p = 0.9f},
      nucleus{.temperature = 1.0f, .top_p = 0.95f}, whole{.temperature = 1.0f, .num_logprobs = 5};
  for (const int64_t rows : {1, 64, 256}) {
    cases.push_back(sample_case(s, rows, "greedy", greedy));
    cases.push_back(sample_case(s, rows, "top-k 50, top-p 0.9", usual));
    cases.push_back(sample_case(s, rows, "top-p 0.95", nucleus));
    cases.push_back(sample_case(s, rows, "temperature 1, 5 logprobs", whole));
  }
}

}  // namespace moectl::cuda::bench
