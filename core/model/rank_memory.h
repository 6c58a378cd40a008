// RankMemory: what one rank of a parallel layout holds, from the headers of a checkpoint or from config.json alone:
// what `moectl inspect --ep-size N` prints. An estimate for planning; a server plans with its device's own numbers
// (core/engine/memory_plan.h). Pure but for the address space of implied_checkpoint(); any thread.
#pragma once

#include <cstdint>
#include <optional>

#include "core/model/config.h"
#include "core/model/safetensors.h"
#include "core/parallel/parallelism.h"

namespace moectl {

struct RankMemoryQuery {
  Parallelism parallelism;
  std::optional<int> num_redundant_experts;  // nullopt: as few as make ep_size divide the experts
  int max_model_len = 0;                     // tokens; 0: the checkpoint's max_position_embeddings
  int64_t gpu_memory_bytes = 0;              // of one GPU; 0: no question of what fits
  double gpu_memory_utilization = 0.9;
};

// Of the first rank, which holds the most: all hold equally many experts, and the last TP rank may have fewer rows of
// the vocabulary.
struct RankMemory {
  Parallelism parallelism;
  int num_experts = 0;                                              // per MoE layer, logical
  int num_local_experts = 0;                                        // physical, of the rank; 0: no experts
  int num_redundant_experts = 0;                                    // of all ranks
  int64_t weight_bytes = 0;                                         // as stored in the checkpoint, MTP modules included
  int64_t kv_bytes_per_token_f32 = 0, kv_bytes_per_token_bf16 = 0;  // all layers and MTP modules

  // With gpu_memory_bytes.
  struct Gpu {
    int64_t memory_bytes = 0;
    int64_t usable_bytes = 0;   // gpu_memory_utilization of it
    int64_t kv_tokens = 0;      // that the KV cache holds in bf16, behind weights and kBufferBytes
    int64_t max_model_len = 0;  // tokens of one sequence, which must fit
    bool fits = false;
    // With the TP size as it is: the smallest EP size that fits; nullopt: none does, or experts are not placed by EP.
    std::optional<int> smallest_ep_size;
  };
  std::optional<Gpu> gpu;
};

// Allowance for activations, expert dispatch, kernel scratch and CUDA graphs of a rank at the default
// --max-num-batched-tokens: DeepSeek-R1, the largest, takes about 4 GB.
inline constexpr int64_t kBufferBytes = 6'000'000'000;

// Throws Error{kBadConfig} for sizes that cannot split the model (check_parallelism, check_shards, make_placement) and
// for a max_model_len that the checkpoint was not made for.
RankMemory rank_memory(const Config& config, const Checkpoint& checkpoint, const RankMemoryQuery& query);

}  // namespace moectl
