// Attention over a paged bf16 cache: decode (one or two new tokens a sequence) and a prompt, beside our own plain
// kernel of the same operation. Pages lie in random order, as in a server.
#include <algorithm>
#include <random>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/bench/bench.h"
#include "kernels/cuda/kernels.h"

namespace moectl::cuda::bench {
namespace {

constexpr int kPageSize = 64;

// num_seqs sequences whose last num_new positions are computed; each is `context` tokens long with them.
struct Load {
  int64_t num_seqs, context, num_new;
  int64_t num_tokens() const { return num_seqs * num_new; }
  int64_t pages_per_seq() const { return (context + kPageSize - 1) / kPageSize; }
  int64_t num_pages() const { return num_seqs * pages_per_seq(); }
  // The plain kernel takes seconds for more.
  bool plain_too() const { return num_new == 1 && num_seqs <= 64; }
  // Pairs of a new token and a position that it sees.
  double pairs() const {
    return double(num_seqs) * double(num_new) * (double(context - num_new) + 0.5 * double(num_new + 1));
  }
  std::string text() const {
    return num_new == 1        ? fmt::format("decode B{} {}", num_seqs, context)
           : num_new < context ? fmt::format("decode B{} {}, {} a sequence", num_seqs, context, num_new)
                               : fmt::format("prompt {}x{}", num_seqs, context);
  }
};

const std::vector<Load> kLoads = {{1, 4096, 1},   {64, 4096, 1},  {128, 4096, 1}, {256, 4096, 1},
                                  {128, 8192, 1}, {128, 4096, 2}, {1, 4096, 4096}};

// What an attention operation needs beside queries and cache.
template <class Args>
void set_rows(Memory& memory, const Load& load, Args& args) {
  std::vector<int32_t> pages(static_cast<size_t>(load.num_pages())), seqs, positions;
  for (size_t i = 0; i < pages.size(); ++i) pages[i] = int32_t(i);
  std::shuffle(pages.begin(), pages.end(), std::mt19937_64(1));
  for (int64_t s = 0; s < load.num_seqs; ++s)
    for (int64_t i = 0; i < load.num_new; ++i) {
      seqs.push_back(int32_t(s));
      positions.push_back(int32_t(load.context - load.num_new + i));
    }
  args.page_table = {memory.upload(pages), {load.num_seqs, load.pages_per_seq()}};
  args.seq_idx = {memory.upload(seqs), {load.num_tokens()}};
  args.positions = {memory.upload(positions), {load.num_tokens()}};
}

AttentionScratch scratch_of(Memory& memory, int64_t tokens, int64_t heads, int64_t value_size) {
  AttentionScratch scratch;
  scratch.num_bytes = attention_scratch_bytes(tokens, heads, value_size);
  scratch.data = memory.alloc<std::byte>(scratch.num_bytes);
  scratch.num_counters = attention_counters(tokens, heads);
  scratch.counters = memory.upload(std::vector<int32_t>(size_t(scratch.num_counters), 0));
  return scratch;
}

template <class Args>
Work work_of(const Load& load, const Args& args, const AttentionScratch& scratch,
             void (*op)(const Args&, const AttentionScratch&, Stream)) {
  AttentionScratch plain = scratch;
  plain.plain = true;
  Work work;
  work.run = [=](Stream stream) { op(args, scratch, stream); };
  if (load.plain_too()) work.peers = {[=](Stream stream) { op(args, plain, stream); }};
  work.out = args.out.data;
  work.out_bytes = args.out.size() * 4;
  return work;
}

std::vector<std::string> plain_peer(const Load& load) {
  if (!load.plain_too()) return {};
  return {"our plain kernel"};
}

Case mla_case(const KernelShape& s, const Load& load) {
  const int64_t heads = s.num_heads, rank = s.kv_lora_rank, width = s.kv_lora_rank + s.qk_rope_head_dim;
  Case c{.kernel = "mla_attention",
         .shape = fmt::format("{} {}", s.name, load.text()),
         .bytes =
             double(load.num_seqs * load.context * width) * 2 + double(load.num_tokens() * heads * (width + rank)) * 4,
         .flops = load.pairs() * double(heads) * 2.0 * double(width + rank),
         .unit = Unit::kBf16,
         .peers = plain_peer(load)};
  c.make = [=](Memory& memory) {
    MlaAttentionArgs args;
    args.q = {memory.floats(load.num_tokens() * heads * width), {load.num_tokens(), heads, width}};
    args.cache =
        KvView(memory.bf16(load.num_pages() * kPageSize * width), DType::kBF16, {load.num_pages(), kPageSize, width});
    set_rows(memory, load, args);
    args.kv_lora_rank = int(rank);
    args.scale = 0.05f;
    args.out = {memory.alloc<float>(load.num_tokens() * heads * rank), {load.num_tokens(), heads, rank}};
    return work_of(load, args, scratch_of(memory, load.num_tokens(), heads, rank), &mla_attention);
  };
  return c;
}

Case gqa_case(const KernelShape& s, const Load& load) {
  const int64_t heads = s.num_heads, kv_heads = s.num_kv_heads, dim = s.head_dim;
  Case c{.kernel = "gqa_attention",
         .shape = fmt::format("{} {}", s.name, load.text()),
         .bytes = double(load.num_seqs * load.context * kv_heads * dim) * 2 * 2 +
                  double(load.num_tokens() * heads * dim) * 8,
         .flops = load.pairs() * double(heads) * 4.0 * double(dim),
         .unit = Unit::kBf16,
         .peers = plain_peer(load)};
  c.make = [=](Memory& memory) {
    GqaAttentionArgs args;
    args.q = {memory.floats(load.num_tokens() * heads * dim), {load.num_tokens(), heads, dim}};
    args.cache = KvView(memory.bf16(load.num_pages() * kv_heads * 2 * kPageSize * dim), DType::kBF16,
                        {load.num_pages(), kv_heads, 2 * kPageSize, dim});
    set_rows(memory, load, args);
    args.page_size = kPageSize;
    args.scale = 0.09f;
    args.out = {memory.alloc<float>(load.num_tokens() * heads * dim), {load.num_tokens(), heads, dim}};
    return work_of(load, args, scratch_of(memory, load.num_tokens(), heads, dim), &gqa_attention);
  };
  return c;
}

// The two products by head around it: queries into the latent space, and results out of it.
Case query_case(const KernelShape& s, int64_t tokens) {
  const int64_t heads = s.num_heads, nope = s.qk_nope_head_dim, rope = s.qk_rope_head_dim, rank = s.kv_lora_rank;
  Case c{.kernel = "mla_query",
         .shape = fmt::format("{} {} tokens, {} heads {}x{}", s.name, tokens, heads, rank, nope),
         .bytes = double(heads * rank * nope) * (s.f8 ? 1 : 2) + double(tokens * heads * (nope + rank + 2 * rope)) * 4,
         .flops = 2.0 * double(tokens * heads) * double(rank * nope),
         .unit = Unit::kBf16};
  c.make = [=](Memory& memory) {
    MlaQueryArgs args;
    args.q = {memory.floats(tokens * heads * (nope + rope)), {tokens, heads, nope + rope}};
    args.w_uk = random_weight(memory, s.f8, heads, rank, nope);
    args.cos_sin = {memory.floats(tokens * rope, 0.5f), {tokens, rope}};
    args.out = {memory.alloc<float>(tokens * heads * (rank + rope)), {tokens, heads, rank + rope}};
    Work work;
    work.run = [args](Stream stream) { mla_query(args, {.tensor_cores = true}, stream); };
    work.out = args.out.data;
    work.out_bytes = args.out.size() * 4;
    return work;
  };
  return c;
}

Case output_case(const KernelShape& s, int64_t tokens) {
  const int64_t heads = s.num_heads, dim = s.v_head_dim, rank = s.kv_lora_rank;
  Case c{.kernel = "mla_output",
         .shape = fmt::format("{} {} tokens, {} heads {}x{}", s.name, tokens, heads, dim, rank),
         .bytes = double(heads * rank * dim) * (s.f8 ? 1 : 2) + double(tokens * heads * (dim + rank)) * 4,
         .flops = 2.0 * double(tokens * heads) * double(rank * dim),
         .unit = Unit::kBf16};
  c.make = [=](Memory& memory) {
    MlaOutputArgs args;
    args.latent = {memory.floats(tokens * heads * rank), {tokens, heads, rank}};
    args.w_uv = random_weight(memory, s.f8, heads, dim, rank);
    args.out = {memory.alloc<float>(tokens * heads * dim), {tokens, heads, dim}};
    Work work;
    work.run = [args](Stream stream) { mla_output(args, {.tensor_cores = true}, stream); };
    work.out = args.out.data;
    work.out_bytes = args.out.size() * 4;
    return work;
  };
  return c;
}

}  // namespace

void add_attention_cases(const KernelShape& s, Cases& cases) {
  for (const Load& load : kLoads) cases.push_back(s.kv_lora_rank > 0 ? mla_case(s, load) : gqa_case(s, load));
  if (s.kv_lora_rank == 0) return;
  for (const int64_t tokens : {1, 128, 4096}) {
    cases.push_back(query_case(s, tokens));
    cases.push_back(output_case(s, tokens));
  }
}

}  // namespace moectl::cuda::bench
