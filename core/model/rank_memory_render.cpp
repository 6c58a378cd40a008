// RankMemory in words and as JSON.
#include <nlohmann/json.hpp>

#include "core/model/inspect_text.h"
#include "core/model/rank_memory.h"

namespace moectl {
namespace {

void add_gpu(const RankMemory::Gpu& gpu, InspectText& t) {
  t.line("one GPU", fmt::format("{}: {} usable, {} of them for activations, buffers and CUDA graphs",
                                bytes_text(gpu.memory_bytes), bytes_text(gpu.usable_bytes), bytes_text(kBufferBytes)));
  t.line("fits", fmt::format("{}: KV cache of {} tokens in bf16, one sequence takes {}", gpu.fits ? "yes" : "no",
                             thousands(gpu.kv_tokens), thousands(gpu.max_model_len)));
  t.line("smallest EP size", gpu.smallest_ep_size ? thousands(*gpu.smallest_ep_size) : "none fits");
}

}  // namespace

void add_ranks(const RankMemory& rank, InspectText& t) {
  const Parallelism& p = rank.parallelism;
  t.section("Memory per rank");
  t.line("ranks", fmt::format("{}: EP {}, DP {}, TP {}", p.world_size(), p.ep_size, p.dp_size, p.tp_size));
  if (rank.num_experts > 0)
    t.line("experts", fmt::format("{} of {} in each MoE layer{}", rank.num_local_experts, rank.num_experts,
                                  rank.num_redundant_experts > 0
                                      ? fmt::format(", {} redundant ones over all ranks", rank.num_redundant_experts)
                                      : ""));
  t.line("weights", fmt::format("{} ({} bytes)", bytes_text(rank.weight_bytes), thousands(rank.weight_bytes)));
  t.line("KV cache", fmt::format("{} bytes per token in bf16, {} in f32", thousands(rank.kv_bytes_per_token_bf16),
                                 thousands(rank.kv_bytes_per_token_f32)));
  if (rank.gpu) add_gpu(*rank.gpu, t);
}

nlohmann::json to_json(const RankMemory& rank) {
  const Parallelism& p = rank.parallelism;
  nlohmann::json j = {
      {"num_ranks", p.world_size()},
      {"ep_size", p.ep_size},
      {"dp_size", p.dp_size},
      {"tp_size", p.tp_size},
      {"num_local_experts", rank.num_local_experts},
      {"num_redundant_experts", rank.num_redundant_experts},
      {"weight_bytes", rank.weight_bytes},
      {"kv_bytes_per_token", {{"f32", rank.kv_bytes_per_token_f32}, {"bf16", rank.kv_bytes_per_token_bf16}}}};
  if (const auto& gpu = rank.gpu)
    j["gpu"] = {
        {"memory_bytes", gpu->memory_bytes},
        {"usable_bytes", gpu->usable_bytes},
        {"buffer_bytes", kBufferBytes},
        {"kv_cache_tokens", gpu->kv_tokens},
        {"max_model_len", gpu->max_model_len},
        {"fits", gpu->fits},
        {"smallest_ep_size", gpu->smallest_ep_size ? nlohmann::json(*gpu->smallest_ep_size) : nlohmann::json(nullptr)}};
  return j;
}

}  // namespace moectl
