// The tensors that a Config implies: the one list of their names, shapes and roles, of where each goes in ModelWeights,
// and of the slice that a shard holds. The loader and `inspect` visit the same list. Pure.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/model/config.h"
#include "core/model/shard.h"
#include "core/model/weights.h"

namespace moectl {

enum class TensorRole {
  kEmbedding,
  kOutputHead,
  kNorm,
  kAttention,
  kDenseMlp,
  kGate,
  kSharedExpert,
  kRoutedExpert,
  kMtp
};

struct TensorSpec {
  std::string name;
  std::vector<int64_t> shape;  // linear layers: [outputs, inputs]; fused experts: [num_experts, inputs, outputs]
  TensorRole role = TensorRole::kNorm;
  int layer = -1;       // index into Config::layers; -1: outside the layers
  bool linear = false;  // a matrix that may be quantized
  // Of an MTP module: embedding or output head of the main model, stored once more. A checkpoint may leave it out.
  bool shared_copy = false;
};

// A rectangle of a tensor, perhaps with every other row or column left out: the operand W [n, k] of out = x W^T.
struct TensorPart {
  TensorSpec tensor;
  int64_t slice = 0;                    // of a tensor with three dimensions
  int64_t row_begin = 0, num_rows = 0;  // of the last two dimensions; a vector is one row
  int64_t col_begin = 0, num_cols = 0;
  int64_t col_step = 1;
  bool transpose = false;  // n = num_cols, k = num_rows
};

class TensorVisitor {
 public:
  virtual ~TensorVisitor() = default;
  // Parts of one tensor, flattened and one after the other.
  virtual void vector(View<const float>& to, std::span<const TensorPart> parts) = 0;
  virtual void table(Weight& to, const TensorPart& part) = 0;                // whole rows
  virtual void matrices(Weight& to, std::span<const TensorPart> batch) = 0;  // of one n and k
};

// Visits every tensor's every use, layer by layer; resizes `weights.layers` and `weights.mtp`. Of a tensor that TP
// ranks split the parts are the shard's:
//   by rows: q_b (or q), q, k, v and their biases, w_uk and w_uv, sinks, norms of all heads (their heads); gate and up;
//            embedding and output head (vocabulary)
//   by columns: o (heads), down (intermediate)
// Every rank holds the rest whole: norms, q_a, kv_a, the router, the shared gate, eh_proj, and the biases of o and
// down, which are added once, after the ranks' sum.
void visit_weights(const Config& config, const Shard& shard, ModelWeights& weights, TensorVisitor& visitor);

// Each tensor of the whole model once, layer by layer.
void for_each_tensor(const Config& config, const std::function<void(const TensorSpec&)>& visit);

// "model.layers.3."
std::string layer_prefix(const Config& config, int layer);

}  // namespace moectl
