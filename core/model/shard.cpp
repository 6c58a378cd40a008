#include "core/model/shard.h"

#include <algorithm>
#include <numeric>

#include "core/base/error.h"
#include "core/model/quant_tensors.h"
#include "core/model/tensor_names.h"

namespace moectl {
namespace {

bool has_layer(const Config& config, FeedForwardKind kind) {
  return std::any_of(config.layers.begin(), config.layers.end(),
                     [&](const LayerConfig& layer) { return layer.feed_forward == kind; });
}

// The first matrix of each visit: the others of a batch are split alike.
class FirstMatrices final : public TensorVisitor {
 public:
  FirstMatrices(const Config& config, const LocalDims& dims) {
    Shard shard = {.dims = dims};
    if (config.moe.num_experts > 0) shard.experts = {0};
    ModelWeights none;
    visit_weights(config, shard, none, *this);
  }
  const std::vector<TensorPart>& get() const { return parts_; }

 private:
  void vector(View<const float>&, std::span<const TensorPart>) override {}
  void table(Weight&, const TensorPart&) override {}
  void matrices(Weight&, std::span<const TensorPart> batch) override { parts_.push_back(batch.front()); }
  std::vector<TensorPart> parts_;
};

// Where p's TP ranks divide a scale block; empty: nowhere. Ranks hold equal slices, so every boundary is a multiple of
// the first rank's end. (Vocabulary slices are equal but for the last.)
std::string block_fault(const Config& config, const Checkpoint& checkpoint, const Parallelism& p) {
  const ModelDims dims = model_dims(config);
  const std::vector<TensorPart> whole = FirstMatrices(config, whole_model(config).dims).get(),
                                part = FirstMatrices(config, local_dims(dims, p, 0, dims.num_experts)).get();
  for (size_t i = 0; i < part.size(); ++i) {
    const TensorPart& t = part[i];
    const bool by_rows = t.num_rows != whole[i].num_rows;
    if (!by_rows && t.num_cols == whole[i].num_cols) continue;
    const StoredMatrix stored = find_matrix(config.quant, checkpoint, t.tensor, t.slice);
    if (!stored.missing.empty() || !stored.wrong.empty()) continue;  // the loader refuses it in better words
    const ScaleBlock block = scale_block(stored);
    const int64_t end = by_rows ? t.row_begin + t.num_rows : t.col_begin + t.num_cols * t.col_step;
    const int64_t size = by_rows ? block.rows : block.cols;
    if (end % size != 0)
      return fmt::format("{} would be split at {} {}, inside a scale block of {}", t.tensor.name,
                         by_rows ? "row" : "column", end, size);
  }
  return "";
}

}  // namespace

ModelDims model_dims(const Config& config) {
  const MoeConfig& moe = config.moe;
  ModelDims dims = {.num_heads = config.num_heads, .vocab_size = config.vocab_size};
  if (config.attention() == AttentionKind::kGqa) dims.num_kv_heads = config.gqa.num_kv_heads;
  if (has_layer(config, FeedForwardKind::kDense)) dims.intermediate_size = config.intermediate_size;
  if (has_layer(config, FeedForwardKind::kMoe)) {
    dims.num_experts = moe.num_experts;
    dims.moe_intermediate_size = moe.moe_intermediate_size;
    if (moe.num_shared_experts > 0) dims.shared_intermediate_size = moe.shared_intermediate_size;
  }
  return dims;
}

ExpertPlacement plan_placement(const Config& config, int ep_size, std::optional<int> num_redundant_experts) {
  const int num_experts = model_dims(config).num_experts, num_redundant = num_redundant_experts.value_or(0);
  if (num_experts == 0 && num_redundant == 0) return {};
  if (num_experts == 0)
    throw Error(Code::kBadConfig,
                fmt::format("--num-redundant-experts {}: this checkpoint has no experts; use 0", num_redundant));
  try {
    return make_placement(num_experts, ep_size, num_redundant_experts);
  } catch (const Error& e) {
    throw Error(e.code(), fmt::format("--num-redundant-experts {}: {}", num_redundant, e.what()));
  }
}

Shard whole_model(const Config& config) {
  const ModelDims dims = model_dims(config);
  Shard shard = {.dims = local_dims(dims, {}, 0, dims.num_experts)};
  shard.experts.resize(size_t(dims.num_experts));
  std::iota(shard.experts.begin(), shard.experts.end(), 0);
  return shard;
}

Shard rank_shard(const Config& config, const Parallelism& p, int rank, std::vector<int32_t> experts) {
  const int num_physical = int(experts.size()) * p.ep_size;
  return {local_dims(model_dims(config), p, rank, num_physical), std::move(experts)};
}

void check_shards(const Config& config, const Checkpoint& checkpoint, const Parallelism& p) {
  if (p.tp_size == 1) return;
  const std::string fault = block_fault(config, checkpoint, p);
  if (fault.empty()) return;
  std::vector<int> legal;
  for (Parallelism other = {.dp_size = p.dp_size}; other.tp_size <= config.num_heads; ++other.tp_size) {
    other.ep_size = p.ep_size == 1 ? 1 : other.world_size();
    if (tp_fault(other, model_dims(config)).empty() && block_fault(config, checkpoint, other).empty())
      legal.push_back(other.tp_size);
  }
  throw Error(Code::kBadConfig,
              fmt::format("--tensor-parallel-size {}: {}; use {}", p.tp_size, fault, nearest_sizes(legal, p.tp_size)));
}

}  // namespace moectl
