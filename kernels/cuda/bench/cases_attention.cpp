// Attention over a paged bf16 cache: decode (one or two new tokens per sequence) and a prompt, against our portable
// kernel of the same operation. Pages are in random order, as in a server.
#include <algorithm>
#include <random>

#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/bench/bench.h"
#include "kernels/cuda/mla/mla_prefill_sm90.h"
#include "kernels/cuda/mla/mla_project_sm90.h"
#include "kernels/cuda/runtime/kernels.h"

namespace moectl::cuda::bench {
namespace {

constexpr int kPageSize = 64;

// num_seqs sequences whose last num_new positions are computed; each is `context` tokens long with them.
struct Load {
  int64_t num_seqs, context, num_new;
  int64_t num_tokens() const { return num_seqs * num_new; }
  int64_t pages_per_seq() const { return (context + kPageSize - 1) / kPageSize; }
  int64_t num_pages() const { return num_seqs * pages_per_seq(); }
  // The portable kernel takes seconds for more.
  bool portable_too() const { return num_new == 1 && num_seqs <= 64; }
  // Pairs of a new token and a position that it sees.
  double pairs() const {
    return double(num_seqs) * double(num_new) * (double(context - num_new) + 0.5 * double(num_new + 1));
  }
  std::string text() const {
    return num_new == 1        ? fmt::format("decode B{} {}", num_seqs, context)
           : num_new < context ? fmt::format("decode B{} {}, {} per sequence", num_seqs, context, num_new)
                               : fmt::format("prompt {}x{}", num_seqs, context);
  }
};

const std::vector<Load> kLoads = {{1, 4096, 1},   {64, 4096, 1},  {128, 4096, 1}, {256, 4096, 1},
                                  {128, 8192, 1}, {128, 4096, 2}, {1, 4096, 4096}};

// What an attention operation needs besides queries and cache.
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

// portable_args: of the portable kernel.
template <class Args>
Work work_of(const Load& load, const Args& args, const Args& portable_args, const AttentionScratch& scratch,
             void (*op)(const Args&, const AttentionScratch&, Stream)) {
  AttentionScratch portable = scratch;
  portable.portable = true;
  Work work;
  work.run = [=](Stream stream) { op(args, scratch, stream); };
  if (load.portable_too()) work.peers = {[=](Stream stream) { op(portable_args, portable, stream); }};
  return work;
}

Operand bf16_rows(Memory& memory, int64_t tokens, int64_t heads, int64_t width) {
  return Operand(memory.bf16(tokens * heads * width), DType::kBF16, {tokens, heads, width});
}
View<float> f32_rows(Memory& memory, int64_t tokens, int64_t heads, int64_t width) {
  return View<float>(memory.floats(tokens * heads * width), {tokens, heads, width});
}

void set_out(Work& work, const Operand& out) {
  work.out = out.data;
  work.out_bytes = out.num_bytes();
}

std::vector<std::string> portable_peer(const Load& load) {
  if (!load.portable_too()) return {};
  return {"our portable kernel"};
}

Case mla_case(const KernelShape& s, const Load& load) {
  const int64_t heads = s.num_heads, rank = s.kv_lora_rank, width = s.kv_lora_rank + s.qk_rope_head_dim;
  Case c{.kernel = "mla_attention",
         .shape = fmt::format("{} {}", s.name, load.text()),
         .bytes =
             double(load.num_seqs * load.context * width) * 2 + double(load.num_tokens() * heads * (width + rank)) * 2,
         .flops = load.pairs() * double(heads) * 2.0 * double(width + rank),
         .unit = Unit::kBf16,
         .peers = portable_peer(load)};
  c.make = [=](Memory& memory) {
    MlaAttentionArgs args;
    args.q = bf16_rows(memory, load.num_tokens(), heads, width);
    args.cache =
        KvView(memory.bf16(load.num_pages() * kPageSize * width), DType::kBF16, {load.num_pages(), kPageSize, width});
    set_rows(memory, load, args);
    args.kv_lora_rank = int(rank);
    args.scale = 0.05f;
    args.out = bf16_rows(memory, load.num_tokens(), heads, rank);
    MlaAttentionArgs portable = args;
    if (load.portable_too()) {
      portable.q = f32_rows(memory, load.num_tokens(), heads, width);
      portable.out = f32_rows(memory, load.num_tokens(), heads, rank);
    }
    Work work = work_of(load, args, portable, scratch_of(memory, load.num_tokens(), heads, rank), &mla_attention);
    set_out(work, args.out);
    return work;
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
         .peers = portable_peer(load)};
  c.make = [=](Memory& memory) {
    GqaAttentionArgs args;
    args.q = {memory.floats(load.num_tokens() * heads * dim), {load.num_tokens(), heads, dim}};
    args.cache = KvView(memory.bf16(load.num_pages() * kv_heads * 2 * kPageSize * dim), DType::kBF16,
                        {load.num_pages(), kv_heads, 2 * kPageSize, dim});
    set_rows(memory, load, args);
    args.page_size = kPageSize;
    args.scale = 0.09f;
    args.out = {memory.alloc<float>(load.num_tokens() * heads * dim), {load.num_tokens(), heads, dim}};
    Work work = work_of(load, args, args, scratch_of(memory, load.num_tokens(), heads, dim), &gqa_attention);
    set_out(work, args.out);
    return work;
  };
  return c;
}

// The two products per head around it: queries into the latent space, and outputs from it; against the kernel for any
// weight.
std::vector<std::string> tiles_peer() {
  return {"mma.sync tiles, f32 latents"};
}

// x [tokens, heads, x_size] by each head's weight to out [tokens, heads, out_size].
MlaProject by_head(const Weight& w, const void* x, int64_t x_size, void* out, int64_t out_size, int64_t tokens) {
  return {.w = matrix_of(w),
          .x = x,
          .x_row = w.batch * x_size,
          .x_head = x_size,
          .out = out,
          .out_row = w.batch * out_size,
          .out_head = out_size,
          .num_tokens = tokens,
          .num_heads = w.batch};
}

Case query_case(const KernelShape& s, int64_t tokens) {
  const int64_t heads = s.num_heads, nope = s.qk_nope_head_dim, rope = s.qk_rope_head_dim, rank = s.kv_lora_rank;
  Case c{.kernel = "mla_query",
         .shape = fmt::format("{} {} tokens, {} heads {}x{}", s.name, tokens, heads, rank, nope),
         .bytes = double(heads * rank * nope) * (s.f8 ? 1 : 2) +
                  double(tokens * heads) * double(4 * (nope + rope) + 2 * (rank + rope)),
         .flops = 2.0 * double(tokens * heads) * double(rank * nope),
         .unit = Unit::kBf16,
         .peers = tiles_peer()};
  c.make = [=](Memory& memory) {
    MlaQueryArgs args;
    args.q = {memory.floats(tokens * heads * (nope + rope)), {tokens, heads, nope + rope}};
    args.w_uk = random_weight(memory, s.f8, heads, rank, nope);
    args.cos_sin = {memory.floats(tokens * rope, 0.5f), {tokens, rope}};
    args.out = f32_rows(memory, tokens, heads, rank + rope);
    const Operand out = bf16_rows(memory, tokens, heads, rank + rope);
    const MlaProject project = by_head(args.w_uk, args.q.data, nope + rope, out.data, rank + rope, tokens);
    Work work;
    work.run = [=](Stream stream) { mla_project_in(project, {args.cos_sin.data, rope, true}, stream); };
    work.peers = {[args](Stream stream) { mla_query(args, {.tensor_cores = true}, stream); }};
    set_out(work, out);
    return work;
  };
  return c;
}

Case output_case(const KernelShape& s, int64_t tokens) {
  const int64_t heads = s.num_heads, dim = s.v_head_dim, rank = s.kv_lora_rank;
  Case c{.kernel = "mla_output",
         .shape = fmt::format("{} {} tokens, {} heads {}x{}", s.name, tokens, heads, dim, rank),
         .bytes = double(heads * rank * dim) * (s.f8 ? 1 : 2) +
                  double(tokens * heads) * double((s.f8 ? 5 : 4) * dim + 2 * rank),
         .flops = 2.0 * double(tokens * heads) * double(rank * dim),
         .unit = Unit::kBf16,
         .peers = tiles_peer()};
  c.make = [=](Memory& memory) {
    MlaOutputArgs args;
    args.latent = f32_rows(memory, tokens, heads, rank);
    args.w_uv = random_weight(memory, s.f8, heads, dim, rank);
    const View<float> out(memory.alloc<float>(tokens * heads * dim), {tokens, heads, dim});
    args.out = out;
    const MlaProject project =
        by_head(args.w_uv, bf16_rows(memory, tokens, heads, rank).data, rank, out.data, dim, tokens);
    Fp8Rows copy;
    if (s.f8) copy = fp8_rows_at(memory.alloc<std::byte>(fp8_rows_bytes(tokens, heads * dim)), tokens, heads * dim);
    Work work;
    work.run = [=](Stream stream) { mla_project_out(project, nullptr, copy, stream); };
    work.peers = {[args](Stream stream) { mla_output(args, {.tensor_cores = true}, stream); }};
    set_out(work, out);
    return work;
  };
  return c;
}

// A prefill chunk from queries to outputs, expanded, against the three operations of absorbed MLA.
Case prefill_case(const KernelShape& s, int64_t context, int64_t n) {
  const int64_t heads = s.num_heads, nope = s.qk_nope_head_dim, rope = s.qk_rope_head_dim, rank = s.kv_lora_rank,
                dim = s.v_head_dim;
  const Load load = {1, context, n};
  Case c{.kernel = "mla_prefill",
         .shape = fmt::format("{} {} rows, context {}", s.name, n, context),
         .bytes = double(n * heads) * double(4 * (nope + rope + dim)) + double(context * (rank + rope)) * 2,
         .flops = 2.0 * double(heads) *
                  (load.pairs() * double(nope + rope + dim) + double(context) * double(rank * (nope + dim))),
         .unit = Unit::kBf16,
         .peers = {"absorbed"}};
  c.make = [=](Memory& memory) {
    MlaAttentionArgs rows;
    set_rows(memory, load, rows);
    MlaPrefillArgs args;
    args.q = {memory.floats(n * heads * (nope + rope)), {n, heads, nope + rope}};
    args.w_uk = random_weight(memory, s.f8, heads, rank, nope);
    args.w_uv = random_weight(memory, s.f8, heads, dim, rank);
    args.cos_sin = {memory.floats(n * rope, 0.5f), {n, rope}};
    args.cache = KvView(memory.bf16(load.num_pages() * kPageSize * (rank + rope)), DType::kBF16,
                        {load.num_pages(), kPageSize, rank + rope});
    args.pages = {rows.page_table.data, {load.pages_per_seq()}};
    args.first_position = context - n;
    args.scale = 0.05f;
    args.out = {memory.alloc<float>(n * heads * dim), {n, heads, dim}};
    rows.q = bf16_rows(memory, n, heads, rank + rope);
    rows.cache = args.cache;
    rows.kv_lora_rank = int(rank);
    rows.scale = args.scale;
    rows.out = bf16_rows(memory, n, heads, rank);
    const AttentionScratch scratch = scratch_of(memory, n, heads, rank);
    void* const memory_of_ours = memory.alloc<std::byte>(mla_prefill_sm90_scratch_bytes(n, heads));
    const MlaProject in = by_head(args.w_uk, args.q.data, nope + rope, rows.q.data, rank + rope, n);
    const MlaProject out = by_head(args.w_uv, rows.out.data, rank, args.out.data, dim, n);
    Work work;
    work.run = [=](Stream stream) { mla_prefill_sm90(args, memory_of_ours, stream); };
    work.peers = {[=](Stream stream) {
      mla_project_in(in, {args.cos_sin.data, rope, true}, stream);
      mla_attention(rows, scratch, stream);
      mla_project_out(out, nullptr, {}, stream);
    }};
    set_out(work, args.out);
    return work;
  };
  return c;
}

}  // namespace

void add_attention_cases(const KernelShape& s, Cases& cases) {
  for (const Load& load : kLoads) cases.push_back(s.kv_lora_rank > 0 ? mla_case(s, load) : gqa_case(s, load));
  if (s.kv_lora_rank == 0) return;
  for (const int64_t tokens : {1, 64, 128, 4096}) {
    cases.push_back(query_case(s, tokens));
    cases.push_back(output_case(s, tokens));
  }
  for (const auto& [context, n] : std::vector<std::pair<int64_t, int64_t>>{
           {4096, 256}, {4096, 2048}, {4096, 4096}, {16384, 256}, {16384, 2048}, {16384, 4096}})
    cases.push_back(prefill_case(s, context, n));
}

}  // namespace moectl::cuda::bench
