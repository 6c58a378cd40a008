// Config: everything a checkpoint's config.json says about the arithmetic, as data. One reader an architecture fills
// it; the decoder (model.h) never asks which architecture it runs. A field whose value changes the arithmetic and is
// not understood stops the load with its name.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "core/base/dtype.h"
#include "kernels/ops.h"

namespace moectl {

enum class AttentionKind { kMla, kGqa };
enum class FeedForwardKind { kDense, kMoe };
enum class GateScoring { kSigmoid, kSoftmax };
// kGreedy: top-k over all experts. kGroupMax: groups ranked by their best expert (V2 group_limited_greedy).
// kGroupTop2: groups ranked by the sum of their two best biased scores (V3 noaux_tc).
enum class GateSelect { kGreedy, kGroupMax, kGroupTop2 };

// Norms of queries and keys: each head by itself before or after the rotation, or all heads of a token as one vector
// before it. kHeadL2AfterRope has no weights.
enum class QkNorm { kNone, kHeadBeforeRope, kHeadAfterRope, kHeadL2AfterRope, kAllBeforeRope };
// kLinear: frequencies / factor. kYarn: arXiv 2309.00071. kLlama3: Llama 3.1's smooth step between low and high
// frequencies.
enum class RopeScaling { kNone, kLinear, kYarn, kLlama3 };

struct RopeConfig {
  int dim = 0;  // rotated components a head (qk_rope_head_dim, or head_dim * partial_rotary_factor): the first ones
  float theta = 10000.0f;
  bool interleaved = false;  // pairs (2i, 2i+1), DeepSeek; else halves (i, i + dim/2)
  RopeScaling scaling = RopeScaling::kNone;
  float factor = 1.0f;
  int original_max_position = 0;
  float low_freq_factor = 1.0f, high_freq_factor = 4.0f;  // Llama 3
  float beta_fast = 32.0f, beta_slow = 1.0f;              // YaRN, as all below
  float mscale = 0.0f, mscale_all_dim = 0.0f;
  std::optional<float> attention_factor;  // multiplies cos and sin; the reader sets it whenever YaRN is on
  bool truncate = true;
};

struct MlaConfig {
  int q_lora_rank = 0;  // 0: q_proj is one full matrix
  int kv_lora_rank = 0, qk_nope_head_dim = 0, qk_rope_head_dim = 0, v_head_dim = 0;
  float latent_norm_eps = 1e-6f;  // of q_a_layernorm and kv_a_layernorm: fixed there, whatever rms_norm_eps says
  bool bias = false;              // of q_a_proj, kv_a_proj_with_mqa and o_proj (attention_bias)
};

struct GqaConfig {
  int num_kv_heads = 0, head_dim = 0;
  bool qkv_bias = false, o_bias = false;
  QkNorm qk_norm = QkNorm::kNone;
  bool sinks = false;  // one learned logit a head that takes part in the softmax and has no value
  // In layers with `temperature`: queries at position p are multiplied by 1 + scale * ln(1 + floor((p + 1) / floor)).
  float temperature_floor = 0.0f, temperature_scale = 0.0f;
};

struct MoeConfig {
  int num_experts = 0, num_experts_per_tok = 0, moe_intermediate_size = 0;
  int num_shared_experts = 0;        // how many a shared MLP stands for; 0: none
  int shared_intermediate_size = 0;  // of the shared MLP
  bool has_shared_gate = false;      // the shared MLP's output is multiplied by sigmoid(gate(x)) (shared_expert_gate)
  GateScoring scoring = GateScoring::kSoftmax;
  GateSelect select = GateSelect::kGreedy;
  int num_groups = 1, num_topk_groups = 1;
  bool has_correction_bias = false;  // e_score_correction_bias
  bool normalize_topk = false;       // norm_topk_prob
  float norm_min = 0.0f;             // the weights are divided by their sum, or by this if it is larger (moe_norm_min)
  bool scale_input = false;          // a routing weight multiplies its expert's input, not the output (Llama 4)
  float routed_scaling_factor = 1.0f;
  bool has_router_bias = false;  // added to the router's logits
  bool has_expert_bias = false;  // of gate, up and down projections of the routed experts
  Activation activation;         // of the routed experts
};

struct LayerConfig {
  AttentionKind attention = AttentionKind::kMla;
  FeedForwardKind feed_forward = FeedForwardKind::kDense;
  int window = 0;  // positions a token sees, its own included (sliding_window); 0: all
  int chunk = 0;   // a token sees its own chunk of so many positions only (attention_chunk_size); 0: all
  bool rope = true;
  bool temperature = false;  // GqaConfig::temperature_*
};

// How the architecture's checkpoints name their tensors, where that differs. Prefixes end in a dot and follow
// "model.layers.N.".
struct TensorNames {
  std::string root;  // before all names, where the text model is a part ("language_model.")
  std::string q_norm = "q_norm", k_norm = "k_norm";  // behind "self_attn."
  std::string mlp = "mlp.", moe = "mlp.";            // a dense feed-forward; a MoE block
  // Inside the MoE block:
  std::string router = "gate", correction_bias = "gate.e_score_correction_bias";
  bool correction_bias_is_matrix = false;  // [1, num_experts] (Ernie)
  std::string shared = "shared_experts.", shared_gate = "shared_expert_gate";
  std::string expert_gate = "gate_proj", expert_up = "up_proj", expert_down = "down_proj";
  // kEach: experts.E.gate_proj.weight [intermediate, hidden], ... kFusedInterleaved (gpt-oss): experts.gate_up_proj
  // [num_experts, hidden, 2 * intermediate] with gate and up in turns, experts.down_proj [num_experts, intermediate,
  // hidden], and their biases as experts.gate_up_proj_bias, ... kFusedHalves (Llama 4): the same with all of gate, then
  // all of up.
  enum class Experts { kEach, kFusedInterleaved, kFusedHalves } experts = Experts::kEach;
};

// In which tensors a quantised matrix is stored (quant_tensors.h): kScaled: NAME.weight and its scale. kPacked:
// NAME.weight_packed, .weight_scale, .. (compressed-tensors). kAwq: NAME.qweight, .scales, .qzeros. kBlocks:
// NAME_blocks and NAME_scales of fused experts (gpt-oss).
enum class QuantForm { kNone, kScaled, kPacked, kAwq, kBlocks };

struct QuantConfig {
  std::string scheme;  // as config.json names it ("fp8", "compressed-tensors pack-quantized"); empty: none
  QuantForm form = QuantForm::kNone;
  DType dtype = DType::kF32;  // of the stored numbers, as in MatrixSpec
  // A scale is shared by block_n outputs and block_k inputs; 0: by all of them. kScaled without blocks: by all outputs
  // or by none, as the scale tensor's shape says.
  int block_n = 0, block_k = 0;
  NibbleOrder nibble_order = NibbleOrder::kRows;
  bool operator==(const QuantConfig&) const = default;
};

struct Config {
  std::string model_type;      // "deepseek_v3"
  std::string architecture;    // "DeepseekV3ForCausalLM"
  DType dtype = DType::kBF16;  // of unquantised tensors (torch_dtype / dtype)
  int32_t vocab_size = 0;
  int hidden_size = 0, intermediate_size = 0, num_layers = 0, num_heads = 0;
  int max_position_embeddings = 0;
  float rms_norm_eps = 1e-6f;
  bool tie_word_embeddings = false;
  int num_mtp_layers = 0;  // num_nextn_predict_layers; their weights are layers num_layers ...
  int32_t bos_token_id = -1;
  std::vector<int32_t> eos_token_ids;
  MlaConfig mla;  // where layers have it
  GqaConfig gqa;
  RopeConfig rope;
  MoeConfig moe;
  QuantConfig quant;
  std::vector<LayerConfig> layers;  // num_layers + num_mtp_layers entries, all of one AttentionKind
  TensorNames names;

  float softmax_scale = 0.0f;  // of attention scores, YaRN's mscale^2 included

  AttentionKind attention() const { return layers.front().attention; }
  // Floats of one token in one layer's cache: the latent and the rotary key, or keys and values of all heads.
  int kv_values_per_token() const {
    return attention() == AttentionKind::kMla ? mla.kv_lora_rank + mla.qk_rope_head_dim
                                              : 2 * gqa.num_kv_heads * gqa.head_dim;
  }
};

// Parses and checks config.json. Throws Error{kBadData} that names the file, the field, what was expected and what to
// do.
Config read_config(const std::filesystem::path& checkpoint_dir);
Config parse_config(const nlohmann::json& json, const std::string& origin);

// generation_config.json: sampling defaults; absent fields keep their values. eos_token_id may be a number or a list.
struct GenerationDefaults {
  std::optional<float> temperature, top_p, min_p, repetition_penalty;
  std::optional<int> top_k;
  std::vector<int32_t> eos_token_ids;  // empty: config.json's
};
GenerationDefaults read_generation_defaults(const std::filesystem::path& checkpoint_dir);

}  // namespace moectl
