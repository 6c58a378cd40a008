// Model: one decoder for every architecture, described by Config. A rank owns a Model and calls it on its own thread;
// ranks of a group must call forward() together, a rank with nothing to do with an empty Batch (its experts may be
// needed). Ranks of a TP group make all calls together, with equal batches, and all get the same results.
#pragma once

#include <functional>
#include <memory>

#include "core/comm/all2all_backend.h"
#include "core/comm/communicator.h"
#include "core/model/batch.h"
#include "core/model/config.h"
#include "core/model/safetensors.h"
#include "core/parallel/expert_placement.h"
#include "core/parallel/local_dims.h"
#include "kernels/ops.h"

namespace moectl {

struct ModelWeights;  // weights.h

// Re-exported checkpoints often lack the MTP modules that their config.json promises. Where no tensor of them is there,
// `config` loses them. Returns how many.
int leave_out_absent_mtp(Config& config, const Checkpoint& checkpoint);

// Of a page's layout, with its data type the KV format that workers must share to exchange pages. Raised with any
// change.
inline constexpr int kKvLayoutVersion = 1;

// Paged cache of one rank, for each layer (MTP layers included). MLA: [num_pages, kPageSize, values a token]; GQA:
// [num_pages, num_kv_heads, 2 * kPageSize, head_dim], a page's keys of one head, then its values.
struct KvCache {
  KvCache(const Config& config, const LocalDims& dims, Ops& ops, int64_t num_pages, DType dtype = DType::kF32);
  static int64_t values_per_token(const Config& config, const LocalDims& dims);              // one layer
  static int64_t bytes_per_token(const Config& config, const LocalDims& dims, DType dtype);  // all layers
  KvView layer(int layer_idx) const;

  int64_t num_pages = 0;
  std::vector<Buffer> layers;

 private:
  KvView shape_;  // of each layer, without data
};

struct ModelLimits {
  int max_tokens = 512;  // rows per step
  int max_seqs = 64;     // sequences per step
  int max_logits = 64;   // rows with logits per step
  int max_model_len = 2048;
  bool peers_addressable = true;  // ExpertDispatchConfig
  // How experts' tokens travel between ranks (ExpertDispatchConfig).
  All2AllBackend all2all_backend = All2AllBackend::kAuto;
  bool deterministic_combine = true;
};

class Model {
 public:
  // All references but `placement` must outlive the model. `comm`: of the ranks that the experts are placed on, which
  // pass the same placement; `tp`: of the TP group, whose shards `weights` are; null: tp_size 1. Ranks of a group build
  // together.
  Model(const Config& config, std::shared_ptr<const ModelWeights> weights, Ops& ops, Communicator& comm,
        const ExpertPlacement& placement, KvCache& cache, ModelLimits limits, Communicator* tp = nullptr);
  ~Model();
  // `issued` is called after each layer whose work was put into the device's stream or, if `captured`, into a graph
  // that is being captured: a sign of life within long steps.
  void on_layer(std::function<void(bool captured)> issued);

  // Device memory that a model takes beside weights and cache; the constructor takes it all.
  static int64_t workspace_bytes(const Config& config, const LocalDims& dims, const ModelLimits& limits,
                                 const ExpertPlacement& placement, const Ops& ops);

  // Computes one step: writes the batch's keys and values to the cache, then logits of batch.logits_rows.
  // Returns [num_logits, vocab_size], in device memory once device().stream() is done with it, valid until the next
  // call.
  View<const float> forward(const Batch& batch);
  // Device memory [max_logits] that the tokens chosen from these logits are written to (DeviceSampling) before the
  // next forward(), where that is to go on from them: Batch::token_ids.
  View<int32_t> sampled() const;
  // Tokens that this rank's gates have sent to each physical expert so far: [MoE layers, num_physical_experts], the
  // layers as moe_layers() lists them; in device memory, complete once device().stream() is. Empty: no MoE layers.
  View<const int64_t> expert_counts() const;
  // The main model's states after the final norm, of the last forward(): [num_tokens, hidden_size].
  View<const float> hidden() const;
  // The MTP module (DeepSeek-V3 report, section 2.2): row i of `batch` carries token t(i+1) at position i, row i of
  // `hidden` the main model's state at position i. Returns logits of t(i+2) for batch.logits_rows, valid until the next
  // call.
  View<const float> forward_mtp(const Batch& batch, View<const float> hidden);
  // The module's keys and values of the batch alone: of its layer only what they need is computed, and ranks of other
  // TP groups need not take part.
  void cache_mtp(const Batch& batch, View<const float> hidden);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moectl
