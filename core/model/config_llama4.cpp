// Llama 4's text model (llama4_text) as transformers computes it: layers with RoPE attend inside chunks, every fourth
// has no RoPE, sees everything and scales its queries with the position; routing weights multiply the experts' input.
#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/model/config_readers.h"

namespace moectl {

namespace {

// no_rope_layers: 1 for a layer with RoPE (sic). Empty or absent: every no_rope_layer_interval-th has none.
std::vector<bool> read_rope_layers(const Fields& f, int num_layers) {
  const std::vector<int32_t> flags = f.integers("no_rope_layers", 0, 1);
  const int64_t interval = f.integer("no_rope_layer_interval", 1, limits::kLayers);
  if (!flags.empty() && int(flags.size()) != num_layers)
    f.fail("no_rope_layers", fmt::format("one entry for each of {} layers", num_layers));
  std::vector<bool> rope;
  for (int i = 0; i < num_layers; ++i) rope.push_back(flags.empty() ? (i + 1) % interval != 0 : flags[size_t(i)] == 1);
  return rope;
}

// moe_layers; absent: every interleave_moe_layer_step-th.
std::vector<bool> read_moe_layers(const Fields& f, int num_layers) {
  const std::vector<int32_t> listed = f.integers("moe_layers", 0, limits::kLayers);
  const int64_t step = f.integer("interleave_moe_layer_step", 1, limits::kLayers);
  std::vector<bool> moe;
  for (int i = 0; i < num_layers; ++i)
    moe.push_back(f.has("moe_layers") ? std::find(listed.begin(), listed.end(), i) != listed.end()
                                      : (i + 1) % step == 0);
  return moe;
}

// layer_types; absent: chunks where there is RoPE.
std::vector<bool> read_chunked_layers(const Fields& f, const std::vector<bool>& rope) {
  const std::vector<std::string> types = f.texts("layer_types");
  if (types.empty()) return rope;
  if (types.size() != rope.size()) f.fail("layer_types", fmt::format("one entry for each of {} layers", rope.size()));
  std::vector<bool> chunked;
  for (const std::string& type : types) {
    if (type != "chunked_attention" && type != "full_attention")
      f.fail("layer_types", "\"chunked_attention\" or \"full_attention\" in each entry");
    chunked.push_back(type == "chunked_attention");
  }
  return chunked;
}

// true, false, or (in the first published files) a number that is not 0.
bool read_temperature_tuning(const Fields& f) {
  const nlohmann::json* value = f.find("attn_temperature_tuning");
  if (value && value->is_number()) return f.number("attn_temperature_tuning", 0.0, 1e6) != 0.0;
  return f.boolean_or("attn_temperature_tuning", false);
}

}  // namespace

void read_llama4_text(const Fields& f, Config& c) {
  read_gqa(f, c);
  c.gqa.qkv_bias = c.gqa.o_bias = f.boolean_or("attention_bias", false);
  if (f.boolean_or("use_qk_norm", true)) c.gqa.qk_norm = QkNorm::kHeadL2AfterRope;
  c.gqa.temperature_floor = float(f.number("floor_scale", 1e-3, 1e9));
  c.gqa.temperature_scale = float(f.number("attn_scale", 0.0, 1e3));
  c.rope = read_rope(f, read_whole_rotary_dim(f, c.gqa.head_dim), c.max_position_embeddings);
  c.rope.interleaved = true;

  MoeConfig& moe = c.moe;
  read_experts(f, "num_experts_per_tok", moe);
  moe.moe_intermediate_size = int(f.integer("intermediate_size", 1, limits::kMoeIntermediate));
  moe.shared_intermediate_size = moe.moe_intermediate_size;
  moe.num_shared_experts = 1;
  moe.scoring = GateScoring::kSigmoid;
  moe.scale_input = true;
  c.intermediate_size = int(f.integer("intermediate_size_mlp", 1, limits::kIntermediate));
  c.names.mlp = c.names.moe = "feed_forward.";
  c.names.router = "router";
  c.names.shared = "shared_expert.";
  c.names.experts = TensorNames::Experts::kFusedHalves;

  const std::vector<bool> rope = read_rope_layers(f, c.num_layers), is_moe = read_moe_layers(f, c.num_layers);
  const std::vector<bool> chunked = read_chunked_layers(f, rope);
  const bool tuning = read_temperature_tuning(f), any_chunked = std::count(chunked.begin(), chunked.end(), true) > 0;
  f.ignore({"attention_chunk_size"});  // it plays no part where no layer has chunks
  const int chunk = any_chunked ? int(f.integer("attention_chunk_size", 1, limits::kPositions)) : 0;
  for (size_t i = 0; i < rope.size(); ++i)
    c.layers.push_back({.attention = AttentionKind::kGqa,
                        .feed_forward = is_moe[i] ? FeedForwardKind::kMoe : FeedForwardKind::kDense,
                        .chunk = chunked[i] ? chunk : 0,
                        .rope = rope[i],
                        .temperature = tuning && !rope[i]});
}

}  // namespace moectl
