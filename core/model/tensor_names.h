// The tensors that a Config implies: the one list of their names, shapes and roles, and of where each goes in
// ModelWeights. The loader and `inspect` visit the same list. Pure.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/model/config.h"
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
  bool linear = false;  // a matrix that may be quantised
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
  virtual void vector(View<const float>& to, const TensorPart& part) = 0;  // flattened: [num_rows * num_cols]
  virtual void table(Weight& to, const TensorSpec& spec) = 0;
  virtual void matrices(Weight& to, std::span<const TensorPart> batch) = 0;  // of one n and k
};

// Visits every tensor's every use, layer by layer; resizes `weights.layers` and `weights.mtp`.
void visit_weights(const Config& config, ModelWeights& weights, TensorVisitor& visitor);

// Each tensor once, layer by layer.
void for_each_tensor(const Config& config, const std::function<void(const TensorSpec&)>& visit);

// "model.layers.3."
std::string layer_prefix(const Config& config, int layer);

}  // namespace moectl
