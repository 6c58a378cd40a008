// The tensors that a Config implies, by their names in the checkpoint: the one list of names, shapes and roles. Pure.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "core/model/config.h"

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
  std::vector<int64_t> shape;  // linear layers: [outputs, inputs]
  TensorRole role = TensorRole::kNorm;
  int layer = -1;       // index into Config::layers; -1: outside the layers
  bool linear = false;  // a matrix that may be FP8, with the scales scale_name(name)
  // Of an MTP module: embedding or output head of the main model, stored once more. A checkpoint may leave it out.
  bool shared_copy = false;
};

// Visits every tensor, layer by layer. Nothing is stored, so a config with very many experts costs no memory.
void for_each_tensor(const Config& config, const std::function<void(const TensorSpec&)>& visit);

// "model.layers.3."
std::string layer_prefix(int layer);

// FP8 block scales of a linear layer: F32 [ceil(outputs / block_n), ceil(inputs / block_k)], W = W8 * scale of its
// block.
std::string scale_name(std::string_view weight_name);
bool is_scale_name(std::string_view name);
std::vector<int64_t> scale_shape(const QuantConfig& quant, const std::vector<int64_t>& weight_shape);

}  // namespace moectl
