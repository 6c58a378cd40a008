// The report in words and as JSON. Untrusted strings in it (names, messages) are escaped before they reach a terminal.
#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/model/inspect.h"
#include "core/model/inspect_text.h"
#include "core/model/json_fields.h"

namespace moectl {

using nlohmann::json;

namespace {

const char* scoring_name(GateScoring s) {
  return s == GateScoring::kSigmoid ? "sigmoid" : "softmax";
}

const char* select_name(GateSelect s) {
  switch (s) {
    case GateSelect::kGreedy:
      return "greedy";
    case GateSelect::kGroupMax:
      return "group_limited_greedy";
    case GateSelect::kGroupTop2:
      return "noaux_tc";
  }
  return "?";
}

int count_layers(const Config& c, FeedForwardKind kind) {
  int n = 0;
  for (int i = 0; i < c.num_layers; ++i) n += c.layers[i].feed_forward == kind;
  return n;
}

// kU8 is how int8 numbers are packed.
std::string_view quant_dtype(const Config& c) {
  return dtype_name(c.quant.dtype == DType::kU8 ? DType::kI8 : c.quant.dtype);
}

std::string quant_text(const Config& c) {
  const QuantConfig& q = c.quant;
  if (q.form == QuantForm::kNone) return "none";
  const std::string scales = q.block_n > 1    ? fmt::format("{} x {} block", q.block_n, q.block_k)
                             : q.block_k > 0  ? fmt::format("{} inputs of an output", q.block_k)
                             : q.block_n == 1 ? "output"
                                              : "matrix or output";
  return fmt::format("{}: {}, one scale for each {}", q.scheme, quant_dtype(c), scales);
}

const char* rope_kind_name(RopeScaling s) {
  switch (s) {
    case RopeScaling::kNone:
      return "default";
    case RopeScaling::kLinear:
      return "linear";
    case RopeScaling::kYarn:
      return "yarn";
    case RopeScaling::kLlama3:
      return "llama3";
  }
  return "?";
}

std::string rope_text(const RopeConfig& r) {
  std::string s = fmt::format("theta {}, {} of each head in {}", r.theta, r.dim, r.interleaved ? "pairs" : "halves");
  switch (r.scaling) {
    case RopeScaling::kNone:
      break;
    case RopeScaling::kLinear:
      s += fmt::format(", linear {}x", r.factor);
      break;
    case RopeScaling::kYarn:
      s += fmt::format(", YaRN {}x beyond {}", r.factor, thousands(r.original_max_position));
      break;
    case RopeScaling::kLlama3:
      s += fmt::format(", Llama 3 scaling {}x beyond {}", r.factor, thousands(r.original_max_position));
      break;
  }
  return s;
}

const char* qk_norm_name(QkNorm n) {
  switch (n) {
    case QkNorm::kNone:
      return "none";
    case QkNorm::kHeadBeforeRope:
      return "head_before_rope";
    case QkNorm::kHeadAfterRope:
      return "head_after_rope";
    case QkNorm::kHeadL2AfterRope:
      return "head_l2_after_rope";
    case QkNorm::kAllBeforeRope:
      return "all_before_rope";
  }
  return "?";
}

std::string attention_text(const Config& c) {
  if (c.attention() == AttentionKind::kMla)
    return fmt::format("MLA, {} heads; cached for each token: latent {} + RoPE key {}{}", c.num_heads,
                       c.mla.kv_lora_rank, c.mla.qk_rope_head_dim, c.mla.bias ? "; biases" : "");
  const GqaConfig& g = c.gqa;
  std::string s = fmt::format("GQA, {} heads on {} of {} keys and values", c.num_heads, g.num_kv_heads, g.head_dim);
  if (g.qkv_bias) s += g.o_bias ? "; biases on q, k, v, o" : "; biases on q, k, v";
  switch (g.qk_norm) {
    case QkNorm::kNone:
      break;
    case QkNorm::kHeadBeforeRope:
      s += "; q and k normed by head";
      break;
    case QkNorm::kHeadAfterRope:
      s += "; q and k normed by head after RoPE";
      break;
    case QkNorm::kHeadL2AfterRope:
      s += "; q and k normed by head after RoPE, without weights";
      break;
    case QkNorm::kAllBeforeRope:
      s += "; q and k normed over all heads";
      break;
  }
  if (g.sinks) s += "; sinks";
  return s;
}

// "window of 128 tokens in 12 of 24 layers", ...: what not every layer does. Empty: all see everything, with RoPE.
std::vector<std::string> layer_lines(const Config& c) {
  int windows = 0, chunks = 0, no_rope = 0, temperature = 0, window = 0, chunk = 0;
  for (int i = 0; i < c.num_layers; ++i) {
    const LayerConfig& l = c.layers[size_t(i)];
    windows += l.window > 0;
    chunks += l.chunk > 0;
    no_rope += !l.rope;
    temperature += l.temperature;
    window = std::max(window, l.window);
    chunk = std::max(chunk, l.chunk);
  }
  std::vector<std::string> lines;
  auto add = [&](int n, const std::string& what) {
    if (n > 0) lines.push_back(fmt::format("{} in {} of {} layers", what, n, c.num_layers));
  };
  add(windows, fmt::format("window of {} tokens", thousands(window)));
  add(chunks, fmt::format("chunks of {} tokens", thousands(chunk)));
  add(no_rope, "no RoPE");
  add(temperature, "queries scaled with the position");
  return lines;
}

std::string gate_text(const MoeConfig& m) {
  std::string s = fmt::format("{} scores, {}", scoring_name(m.scoring), select_name(m.select));
  if (m.has_router_bias) s += ", router bias";
  if (m.has_correction_bias) s += m.select == GateSelect::kGroupTop2 ? " with correction bias" : ", correction bias";
  if (m.normalize_topk) s += ", normalised";
  if (m.routed_scaling_factor != 1.0f) s += fmt::format(", times {}", m.routed_scaling_factor);
  if (m.scale_input) s += ", applied to the experts' input";
  return s;
}

void model_section(const Config& c, InspectText& t) {
  t.section("Model");
  std::string layers = fmt::format("{} ({} dense, {} MoE)", c.num_layers, count_layers(c, FeedForwardKind::kDense),
                                   count_layers(c, FeedForwardKind::kMoe));
  if (c.num_mtp_layers > 0) layers += fmt::format(" + {}", plural(c.num_mtp_layers, "MTP module", "MTP modules"));
  t.line("layers", layers);
  t.line("hidden size", thousands(c.hidden_size));
  t.line("attention", attention_text(c));
  for (const std::string& s : layer_lines(c)) t.line("", s);
  t.line("RoPE", rope_text(c.rope));
  const MoeConfig& m = c.moe;
  std::string experts = fmt::format("{} routed, {} for each token", m.num_experts, m.num_experts_per_tok);
  if (m.num_groups > 1) experts += fmt::format(" from {} of {} groups", m.num_topk_groups, m.num_groups);
  experts += fmt::format("; {} shared{}", m.num_shared_experts, m.has_shared_gate ? " with a gate" : "");
  if (m.activation.kind == Activation::Kind::kClampedSwiGlu)
    experts += fmt::format("; SwiGLU clamped at {}", m.activation.limit);
  t.line("experts", experts);
  t.line("gate", gate_text(m));
  t.line("vocabulary", thousands(c.vocab_size));
  t.line("context", fmt::format("{} tokens", thousands(c.max_position_embeddings)));
  t.line("quantisation", quant_text(c));
}

void parameters_section(const InspectReport& r, InspectText& t) {
  const InspectReport::Parameters& p = r.parameters;
  t.section(r.has_weights ? "Parameters" : "Parameters (as config.json implies: no weights here)");
  if (!r.config) return t.number("all tensors", p.total, "block scales not counted");
  const Config& c = *r.config;
  t.number("total", p.total,
           c.num_mtp_layers > 0 ? "main model + MTP; block scales not counted" : "block scales not counted");
  t.number("main model", p.main,
           fmt::format("embedding ({}){} included", thousands(p.embedding),
                       c.tie_word_embeddings ? ", also the output head," : " and output head"));
  if (c.num_mtp_layers > 0)
    t.number("MTP", p.mtp,
             fmt::format("its copies of embedding and output head ({}) not counted", thousands(p.shared_copies)));
  t.number("active per token", p.active,
           fmt::format("main model with {} of {} routed experts{}", c.moe.num_experts_per_tok, c.moe.num_experts,
                       c.tie_word_embeddings ? "" : "; embedding table (looked up) not counted"));
}

void weights_section(const InspectReport& r, InspectText& t) {
  t.section("Weights");
  t.line("files",
         fmt::format("{}, {}, {} ({} bytes)", plural(int64_t(r.files.size()), "file", "files"),
                     plural(r.num_tensors, "tensor", "tensors"), bytes_text(r.num_bytes), thousands(r.num_bytes)));
  for (const InspectReport::DTypeTotal& d : r.dtypes)
    t.number(std::string(dtype_name(d.dtype)).c_str(), d.num_bytes,
             fmt::format("bytes in {}", plural(d.num_tensors, "tensor", "tensors")));
}

void memory_section(const InspectReport& r, InspectText& t) {
  t.section("Memory");
  if (r.has_weights) t.line("weights", fmt::format("{} in the checkpoint's own precision", bytes_text(r.num_bytes)));
  if (!r.config) return;
  t.line("KV cache", fmt::format("{} bytes a token in f32 (CPU), {} in bf16{}", thousands(r.kv_bytes_f32),
                                 thousands(r.kv_bytes_bf16), r.config->num_mtp_layers > 0 ? "; MTP included" : ""));
  t.line("at full context",
         fmt::format("{} a sequence in f32, {} in bf16", bytes_text(r.kv_bytes_f32 * r.config->max_position_embeddings),
                     bytes_text(r.kv_bytes_bf16 * r.config->max_position_embeddings)));
}

void add_names(const char* label, const InspectReport::NameList& list, InspectText& t) {
  if (list.count == 0) return;
  t.line(label, thousands(list.count));
  for (const std::string& name : list.names) t.line("", escaped_ascii(name));
  if (list.count > int64_t(list.names.size()))
    t.line("", fmt::format("... and {} more", thousands(list.count - int64_t(list.names.size()))));
}

void check_section(const InspectReport& r, InspectText& t) {
  t.section("Check against config.json");
  if (r.missing.count == 0 && r.wrong.count == 0)
    t.line("tensors", "all that it implies are here, with the shapes and dtypes it implies");
  add_names("missing", r.missing, t);
  add_names("wrong", r.wrong, t);
  if (r.mtp_left_out > 0)
    t.line("MTP", fmt::format("config.json promises {}, but there are no tensors of them: loads without",
                              plural(r.mtp_left_out, "module", "modules")));
  add_names("not used", r.unexpected, t);
}

json names_json(const InspectReport::NameList& list) {
  return {{"count", list.count}, {"names", list.names}};
}

// Fields of the other kind of attention are not there.
void add_attention(const Config& c, json& j) {
  if (c.attention() == AttentionKind::kMla) {
    j["attention"] = "mla";
    j["attention_bias"] = c.mla.bias;
    j["q_lora_rank"] = c.mla.q_lora_rank;
    j["kv_lora_rank"] = c.mla.kv_lora_rank;
    j["qk_nope_head_dim"] = c.mla.qk_nope_head_dim;
    j["qk_rope_head_dim"] = c.mla.qk_rope_head_dim;
    j["v_head_dim"] = c.mla.v_head_dim;
    return;
  }
  j["attention"] = "gqa";
  j["num_key_value_heads"] = c.gqa.num_kv_heads;
  j["head_dim"] = c.gqa.head_dim;
  j["qkv_bias"] = c.gqa.qkv_bias;
  j["o_bias"] = c.gqa.o_bias;
  j["qk_norm"] = qk_norm_name(c.gqa.qk_norm);
  j["sinks"] = c.gqa.sinks;
}

json config_json(const Config& c) {
  json quant = nullptr;
  if (c.quant.form != QuantForm::kNone) {
    quant = {{"scheme", c.quant.scheme}, {"dtype", quant_dtype(c)}};
    if (c.quant.block_n > 1 && c.quant.block_k > 0)
      quant["weight_block_size"] = {c.quant.block_n, c.quant.block_k};
    else if (c.quant.block_k > 0)
      quant["group_size"] = c.quant.block_k;
  }
  const MoeConfig& m = c.moe;
  json j = {{"dtype", dtype_name(c.dtype)},
            {"hidden_size", c.hidden_size},
            {"num_layers", c.num_layers},
            {"num_dense_layers", count_layers(c, FeedForwardKind::kDense)},
            {"num_moe_layers", count_layers(c, FeedForwardKind::kMoe)},
            {"num_mtp_layers", c.num_mtp_layers},
            {"num_heads", c.num_heads},
            {"num_experts", m.num_experts},
            {"num_experts_per_tok", m.num_experts_per_tok},
            {"moe_intermediate_size", m.moe_intermediate_size},
            {"num_shared_experts", m.num_shared_experts},
            {"shared_expert_gate", m.has_shared_gate},
            {"num_groups", m.num_groups},
            {"num_topk_groups", m.num_topk_groups},
            {"gate_scoring", scoring_name(m.scoring)},
            {"gate_select", select_name(m.select)},
            {"correction_bias", m.has_correction_bias},
            {"router_bias", m.has_router_bias},
            {"expert_bias", m.has_expert_bias},
            {"normalize_topk", m.normalize_topk},
            {"routed_scaling_factor", m.routed_scaling_factor},
            {"weights_scale_input", m.scale_input},
            {"activation", m.activation.kind == Activation::Kind::kClampedSwiGlu ? "clamped_swiglu" : "swiglu"},
            {"tie_word_embeddings", c.tie_word_embeddings},
            {"rms_norm_eps", c.rms_norm_eps},
            {"vocab_size", c.vocab_size},
            {"max_position_embeddings", c.max_position_embeddings},
            {"rope",
             {{"type", rope_kind_name(c.rope.scaling)},
              {"theta", c.rope.theta},
              {"factor", c.rope.factor},
              {"rotary_dim", c.rope.dim},
              {"interleaved", c.rope.interleaved}}},
            {"quantization", std::move(quant)}};
  add_attention(c, j);
  return j;
}

}  // namespace

std::string to_text(const InspectReport& r) {
  InspectText t;
  t.section("Checkpoint");
  t.line("path", escaped_ascii(r.path));
  t.line("architecture", r.architecture.empty()
                             ? escaped_ascii(r.model_type.empty() ? "unknown" : r.model_type)
                             : fmt::format("{} ({})", escaped_ascii(r.architecture), escaped_ascii(r.model_type)));
  t.line("supported", r.supported ? "yes" : "no: " + escaped_ascii(r.unsupported));
  if (r.config) model_section(*r.config, t);
  if (r.config || r.has_weights) parameters_section(r, t);
  if (r.has_weights) weights_section(r, t);
  if (r.config || r.has_weights) memory_section(r, t);
  if (r.rank) add_ranks(*r.rank, t);
  if (r.config && r.has_weights) check_section(r, t);
  return t.take();
}

json to_json(const InspectReport& r) {
  json out = {{"path", r.path},           {"model_type", r.model_type}, {"architecture", r.architecture},
              {"supported", r.supported}, {"usable", r.usable()},       {"has_weights", r.has_weights}};
  if (!r.supported) out["unsupported"] = r.unsupported;
  if (r.config) out["config"] = config_json(*r.config);
  out["parameters"] = {{"total", r.parameters.total}};
  if (r.config) {
    const InspectReport::Parameters& p = r.parameters;
    out["parameters"] = {{"total", p.total},
                         {"main_model", p.main},
                         {"mtp", p.mtp},
                         {"active_per_token", p.active},
                         {"embedding", p.embedding},
                         {"output_head", p.output_head},
                         {"routed_experts", p.routed_experts},
                         {"mtp_copies_not_counted", p.shared_copies}};
    out["kv_bytes_per_token"] = {{"f32", r.kv_bytes_f32}, {"bf16", r.kv_bytes_bf16}};
    out["layers"] = json::array();
    for (const InspectReport::Layer& l : r.layers)
      out["layers"].push_back({{"index", l.index},
                               {"mtp", l.mtp},
                               {"feed_forward", l.moe ? "moe" : "dense"},
                               {"window", r.config->layers[size_t(l.index)].window},
                               {"chunk", r.config->layers[size_t(l.index)].chunk},
                               {"rope", r.config->layers[size_t(l.index)].rope},
                               {"parameters", l.parameters},
                               {"active", l.active},
                               {"bytes", l.num_bytes}});
  }
  if (r.rank) out["rank"] = to_json(*r.rank);
  if (r.has_weights) {
    json dtypes = json::object(), files = json::array();
    for (const InspectReport::DTypeTotal& d : r.dtypes)
      dtypes[std::string(dtype_name(d.dtype))] = {
          {"tensors", d.num_tensors}, {"elements", d.num_elements}, {"bytes", d.num_bytes}};
    for (const InspectReport::File& f : r.files)
      files.push_back({{"name", f.name}, {"tensors", f.num_tensors}, {"bytes", f.num_bytes}});
    out["weights"] = {{"tensors", r.num_tensors}, {"bytes", r.num_bytes}, {"dtypes", dtypes}, {"files", files}};
    if (r.config)
      out["check"] = {{"missing", names_json(r.missing)},
                      {"wrong", names_json(r.wrong)},
                      {"unexpected", names_json(r.unexpected)},
                      {"mtp_modules_left_out", r.mtp_left_out}};
  }
  return out;
}

}  // namespace moectl
