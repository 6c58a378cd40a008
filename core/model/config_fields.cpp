// What may stand in a config.json beside the fields that its reader asks for: names that no arithmetic depends on, and
// features that are off. Everything else stops the load: a value that is not understood may change every answer. Names
// are those of the published files and of transformers' config classes.
#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "core/model/config_readers.h"

namespace moectl {

namespace {

// Bookkeeping, training, defaults of generation, heads for other tasks, drafts, and how other software runs the model.
constexpr std::array kUnused = {
    // transformers
    "name_or_path", "transformers_version", "auto_map", "use_cache", "return_dict", "torchscript", "pruned_heads",
    "attn_implementation", "experts_implementation", "output_attentions", "output_hidden_states", "output_scores",
    "use_bfloat16", "tf_legacy_loss", "tokenizer_class", "chunk_size_feed_forward", "gradient_checkpointing",
    "is_decoder", "tie_encoder_decoder", "cross_attention_hidden_size", "keys_to_ignore_at_inference",
    "model_max_length", "seq_length", "use_flash_attn", "pad_id", "prefix",
    // training
    "attention_dropout", "hidden_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob", "dropout",
    "embd_pdrop", "resid_pdrop", "attn_pdrop", "embedding_dropout", "initializer_range", "initializer_factor",
    "init_method", "pretraining_tp", "ep_size", "tp_size", "aux_loss_alpha", "seq_aux", "router_aux_loss_coef",
    "router_z_loss_coef", "router_jitter_noise", "output_router_logits", "moe_capacity", "moe_aux_loss_lambda",
    "moe_z_loss_lambda", "moe_orthogonal_loss_lambda", "moe_dropout_prob", "moe_all_to_all_dropout", "moe_group",
    // other tasks
    "id2label", "label2id", "num_labels", "problem_type", "task_specific_params", "finetuning_task",
    "classifier_dropout",
    // generation
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty",
    "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "return_dict_in_generate",
    "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
    // drafts: the main model's answers do not depend on them
    "num_nextn_predict_layers", "num_mtp_layers", "num_mtp_modules", "use_mtp", "mtp_transformer_layers",
    // what only counts with windows, where the reader does not ask
    "max_window_layers"};

constexpr std::array kUnusedBeginnings = {"_", "unsloth_"};
constexpr std::array kUnusedEndings = {"_token_id", "_token_index"};

// A field with the value that a reader takes for granted. A list stands for this value in each entry.
struct Expected {
  const char* model_type;  // "": every architecture
  const char* name;
  const char* value;  // JSON; "": any
};
constexpr std::array kExpected = {
    Expected{"", "is_encoder_decoder", "false"},
    Expected{"", "add_cross_attention", "false"},
    Expected{"", "attention_bias", "false"},
    Expected{"", "qkv_bias", "false"},
    Expected{"", "mlp_bias", "false"},
    Expected{"", "use_bias", "false"},
    Expected{"", "use_sliding_window", "false"},
    Expected{"", "layer_types", R"("full_attention")"},
    Expected{"", "alibi", "false"},
    Expected{"", "use_rotary_pos_emb", "true"},
    Expected{"", "norm_type", R"("rms")"},
    Expected{"", "embedding_multiplier", "1"},
    Expected{"", "residual_multiplier", "1"},
    Expected{"", "logits_scaling", "1"},
    Expected{"", "logit_scale", "1"},
    Expected{"", "routed_scaling_factor", "1"},
    Expected{"", "n_group", "1"},
    Expected{"", "topk_group", "1"},
    Expected{"", "moe_layer_freq", "1"},
    Expected{"", "decoder_sparse_step", "1"},
    Expected{"", "first_k_dense_replace", "0"},
    Expected{"", "n_shared_experts", "0"},
    Expected{"", "num_shared_experts", "0"},
    Expected{"", "shared_expert_intermediate_size", "0"},
    Expected{"", "shared_intermediate_size", "0"},
    Expected{"deepseek_v2", "rope_interleave", "true"},
    Expected{"dots1", "scoring_func", R"("noaux_tc")"},
    Expected{"dots1", "scoring_func", R"("sigmoid")"},
    Expected{"dots1", "topk_method", R"("noaux_tc")"},
    Expected{"dots1", "use_qk_norm", "true"},
    Expected{"ernie4_5_moe", "moe_use_aux_free", "true"},
    Expected{"ernie4_5_moe", "moe_gate", R"("topk")"},
    Expected{"ernie4_5_moe", "moe_gate_act", R"("softmax")"},
    Expected{"ernie4_5_moe", "use_rmsnorm", "true"},
    Expected{"ernie4_5_moe", "compression_ratio", "1"},
    Expected{"ernie4_5_moe", "norm_topk_prob", "true"},
    Expected{"glm4_moe", "scoring_func", R"("sigmoid")"},
    Expected{"glm4_moe", "topk_method", R"("noaux_tc")"},
    Expected{"gpt_oss", "initial_context_length", ""},
    Expected{"gpt_oss", "norm_topk_prob", "true"},
    Expected{"hunyuan_v1_moe", "use_qk_norm", "true"},
    Expected{"hunyuan_v1_moe", "norm_topk_prob", "true"},
    Expected{"hunyuan_v1_moe", "use_mixed_mlp_moe", "true"},
    Expected{"hunyuan_v1_moe", "moe_layer_num_skipped", "0"},
    Expected{"hunyuan_v1_moe", "moe_drop_tokens", "false"},
    Expected{"hunyuan_v1_moe", "moe_random_routing_dropped_token", "false"},
    Expected{"hunyuan_v1_moe", "capacity_factor", ""},
    Expected{"hunyuan_v1_moe", "group_limited_greedy", "false"},
    Expected{"hunyuan_v1_moe", "routed_scaling_factor", "false"},
    Expected{"hunyuan_v1_moe", "n_group", "false"},
    Expected{"hunyuan_v1_moe", "topk_group", "false"},
    Expected{"hunyuan_v1_moe", "use_cla", "false"},
    Expected{"hunyuan_v1_moe", "cla_share_factor", ""},
    Expected{"hunyuan_v1_moe", "use_mla", "false"},
    Expected{"hunyuan_v1_moe", "position_embedding_xdrope", "false"},
    Expected{"hunyuan_v1_moe", "xdrope_section", ""},
    Expected{"hunyuan_v1_moe", "add_classification_head", ""},
    Expected{"hunyuan_v1_moe", "class_num", ""},
    Expected{"hunyuan_v1_moe", "dense_list", ""},
    Expected{"hunyuan_v1_moe", "pool_type", ""},
    Expected{"hunyuan_v1_moe", "org_vocab_size", ""},
    Expected{"hunyuan_v1_moe", "num_media_embeds", ""},
    Expected{"hunyuan_v1_moe", "mask_init_id", ""},
    Expected{"hunyuan_v1_moe", "skip_cls_token", ""},
    Expected{"hunyuan_v1_moe", "max_image_size", ""},
    Expected{"hunyuan_v1_moe", "max_video_frames", ""},
    Expected{"hunyuan_v1_moe", "min_image_size", ""},
    Expected{"hunyuan_v1_moe", "img_max_size", ""},
    Expected{"hunyuan_v1_moe", "anyres_*", ""},
    Expected{"hunyuan_v1_moe", "vit_*", ""},
    Expected{"hunyuan_v1_moe", "im_*", ""},
    Expected{"hunyuan_v1_moe", "text_*", ""},
    Expected{"hunyuan_v1_moe", "video_*", ""},
    Expected{"llama4", "vision_config", ""},
    Expected{"llama4_text", "for_llm_compressor", ""},
    Expected{"minimax_m2", "attn_type_list", "1"},
    Expected{"minimax_m2", "layernorm_*", "1"},
    Expected{"minimax_m2", "postnorm", "false"},
    Expected{"minimax_m2", "qk_norm_type", R"("per_layer")"},
    Expected{"minimax_m2", "use_qk_norm", "true"},
    Expected{"minimax_m2", "use_routing_bias", "true"},
    Expected{"minimax_m2", "scoring_func", R"("sigmoid")"},
    Expected{"minimax_m2", "norm_topk_prob", "true"},
    Expected{"minimax_m2", "shared_moe_mode", ""},
    Expected{"minimax_m2", "mlp_intermediate_size", ""},
    Expected{"mixtral", "norm_topk_prob", "true"},
    Expected{"qwen3_moe", "use_qk_norm", "true"},
};

bool is_unused(std::string_view name) {
  return std::any_of(kUnused.begin(), kUnused.end(), [&](std::string_view s) { return name == s; }) ||
         std::any_of(kUnusedBeginnings.begin(), kUnusedBeginnings.end(),
                     [&](std::string_view s) { return name.starts_with(s); }) ||
         std::any_of(kUnusedEndings.begin(), kUnusedEndings.end(),
                     [&](std::string_view s) { return name.ends_with(s); });
}

bool is_about(const Expected& e, std::string_view model_type, std::string_view name) {
  const std::string_view pattern = e.name;
  return (*e.model_type == '\0' || e.model_type == model_type) &&
         (pattern.ends_with('*') ? name.starts_with(pattern.substr(0, pattern.size() - 1)) : name == pattern);
}

bool has_value(const nlohmann::json& value, const char* expected) {
  if (*expected == '\0') return true;
  const nlohmann::json want = nlohmann::json::parse(expected);
  if (!value.is_array()) return value == want;
  return std::all_of(value.begin(), value.end(), [&](const nlohmann::json& item) { return item == want; });
}

}  // namespace

void require_understood(const Fields& f, const std::string& model_type) {
  constexpr const char* kRemedy =
      "no field whose meaning is not known for this architecture (docs/models.md): it may change every answer. If you "
      "know that it changes none, remove it from the file";
  for (const std::string& name : f.unread()) {
    if (is_unused(name)) continue;
    std::string supported;
    bool fits = false;
    for (const Expected& e : kExpected) {
      if (!is_about(e, model_type, name)) continue;
      fits = fits || has_value(*f.find(name), e.value);
      supported += fmt::format("{}{}", supported.empty() ? "" : " or ", e.value);
    }
    if (fits) continue;
    f.fail(name, supported.empty() ? kRemedy
                                   : fmt::format("{}: other values are not supported for {}", supported, model_type));
  }
  if (const std::optional<Fields> rope = rope_object(f))
    for (const std::string& name : rope->unread())
      if (name != "finetuned" && !(name == "factor" && has_value(*rope->find(name), "1"))) rope->fail(name, kRemedy);
}

}  // namespace moectl
