#include "core/model/config.h"

#include <array>
#include <nlohmann/json.hpp>

#include "core/base/error.h"
#include "core/base/sampling_ranges.h"
#include "core/model/config_readers.h"

namespace moectl {

namespace {

constexpr int64_t kMaxConfigBytes = 16 << 20;
constexpr int64_t kMaxTokenId = limits::kVocab - 1;

// A new architecture is one more line here and its reader.
struct Architecture {
  std::string_view model_type;
  void (*read)(const Fields&, Config&);
};
constexpr std::array kArchitectures = {
    Architecture{"deepseek_v2", read_deepseek_v2},
    Architecture{"deepseek_v3", read_deepseek_v3},
    Architecture{"dots1", read_dots1},
    Architecture{"ernie4_5_moe", read_ernie4_5_moe},
    Architecture{"glm4_moe", read_glm4_moe},
    Architecture{"gpt_oss", read_gpt_oss},
    Architecture{"hunyuan_v1_moe", read_hunyuan_v1_moe},
    Architecture{"kimi_k2", read_deepseek_v3},
    Architecture{"llama4_text", read_llama4_text},
    Architecture{"minimax_m2", read_minimax_m2},
    Architecture{"mixtral", read_mixtral},
    Architecture{"olmoe", read_olmoe},
    Architecture{"qwen2_moe", read_qwen2_moe},
    Architecture{"qwen3_moe", read_qwen3_moe},
};

const Architecture& find_architecture(const Fields& f, const std::string& model_type) {
  std::string supported;
  for (const Architecture& a : kArchitectures) {
    if (a.model_type == model_type) return a;
    supported += fmt::format("{}{}", supported.empty() ? "" : ", ", a.model_type);
  }
  f.fail("model_type", "one of the supported architectures: " + supported);
}

std::string read_architecture_name(const Fields& f, std::string_view ending) {
  const nlohmann::json* names = f.find("architectures");
  if (!names) return {};
  if (!names->is_array() || names->size() != 1 || !names->front().is_string() ||
      !names->front().get_ref<const std::string&>().ends_with(ending))
    f.fail("architectures", fmt::format("a list of one name that ends in {} (a text generation model)", ending));
  return names->front().get<std::string>();
}

DType read_dtype(const Fields& f) {
  const std::string_view field = f.either({"dtype", "torch_dtype"});
  const std::string name = f.text_or(field, "bfloat16");
  if (name == "bfloat16") return DType::kBF16;
  if (name == "float16") return DType::kF16;
  if (name == "float32") return DType::kF32;
  f.fail(field, "\"bfloat16\", \"float16\" or \"float32\"");
}

void read_common(const Fields& f, Config& c) {
  c.dtype = read_dtype(f);
  c.vocab_size = int32_t(f.integer("vocab_size", 1, limits::kVocab));
  c.hidden_size = int(f.integer("hidden_size", 1, limits::kHidden));
  c.intermediate_size = int(f.integer("intermediate_size", 1, limits::kIntermediate));
  c.num_layers = int(f.integer("num_hidden_layers", 1, limits::kLayers));
  c.num_heads = int(f.integer("num_attention_heads", 1, limits::kHeads));
  c.max_position_embeddings = int(f.integer("max_position_embeddings", 1, limits::kPositions));
  c.rms_norm_eps = float(f.number_or("rms_norm_eps", 1e-6, 1e-20, 1.0));
  c.tie_word_embeddings = f.boolean_or("tie_word_embeddings", false);
  if (f.text_or("hidden_act", "silu") != "silu") f.fail("hidden_act", "\"silu\": other activations are not supported");
  c.quant = read_quant(f);
  c.bos_token_id = int32_t(f.integer_or("bos_token_id", -1, -1, kMaxTokenId));
  c.eos_token_ids = f.integers("eos_token_id", 0, kMaxTokenId);
}

}  // namespace

void require_false(const Fields& f, std::string_view name, std::string_view meaning) {
  if (f.boolean_or(name, false))
    f.fail(name, fmt::format("false: {} are not supported for this architecture", meaning));
}

void require_text(const Fields& f, std::string_view name, std::string_view value, std::string_view meaning) {
  if (f.text_or(name, value) != value)
    f.fail(name, fmt::format("\"{}\": other values for {} are not supported", value, meaning));
}

void require_integer(const Fields& f, std::string_view name, int64_t value, std::string_view meaning) {
  if (f.has(name) && f.integer(name, 0, limits::kVocab) != value)
    f.fail(name, fmt::format("{}, which is {}", value, meaning));
}

void require_absent(const Fields& f, std::string_view name, std::string_view meaning) {
  if (f.has(name)) f.fail(name, fmt::format("null: {} are not supported for this architecture", meaning));
}

namespace {

Config parse_text_model(Fields fields) {
  Config config;
  config.model_type = fields.text("model_type");
  const Architecture& architecture = find_architecture(fields, config.model_type);
  fields.set_defaults(config_defaults(config.model_type));
  config.architecture = read_architecture_name(fields, "ForCausalLM");
  read_common(fields, config);
  architecture.read(fields, config);
  if (int64_t(config.layers.size()) * config.moe.num_experts > limits::kExpertsOfAllLayers)
    fields.fail("num_hidden_layers",
                fmt::format("at most {} experts in all layers together, not {} layers of {}",
                            limits::kExpertsOfAllLayers, config.layers.size(), config.moe.num_experts));
  require_understood(fields, config.model_type);
  return config;
}

// Llama 4 as it is published: text_config is the text model's config, whose tensors stand behind language_model; the
// images' part is left alone.
Config parse_llama4(const Fields& fields) {
  const std::optional<Fields> text = fields.object("text_config");
  if (!text) fields.fail("text_config", "an object: the text model's config");
  require_text(*text, "model_type", "llama4_text", "the text model");
  Config config = parse_text_model(*text);
  config.model_type = "llama4";
  config.architecture = read_architecture_name(fields, "ForConditionalGeneration");
  config.names.root = "language_model.";
  if (fields.has("quantization_config")) config.quant = read_quant(fields);
  if (fields.boolean_or("tie_word_embeddings", config.tie_word_embeddings) != config.tie_word_embeddings)
    fields.fail("tie_word_embeddings", "the same as in text_config");
  fields.ignore({"dtype", "torch_dtype"});
  require_understood(fields, config.model_type);
  return config;
}

}  // namespace

Config parse_config(const nlohmann::json& json, const std::string& origin) {
  const Fields fields(json, origin);
  return fields.text("model_type") == "llama4" ? parse_llama4(fields) : parse_text_model(fields);
}

Config read_config(const std::filesystem::path& checkpoint_dir) {
  require_checkpoint_dir(checkpoint_dir);
  const std::filesystem::path file = checkpoint_dir / "config.json";
  return parse_config(read_untrusted_json(file, kMaxConfigBytes), file.string());
}

// do_sample is not read: as in other servers, a request's own fields decide, and these are its defaults.
GenerationDefaults read_generation_defaults(const std::filesystem::path& checkpoint_dir) {
  GenerationDefaults out;
  const std::filesystem::path file = checkpoint_dir / "generation_config.json";
  std::error_code ec;
  if (!std::filesystem::exists(file, ec)) return out;
  const nlohmann::json json = read_untrusted_json(file, kMaxConfigBytes);
  const Fields f(json, file.string());
  auto number = [&](std::string_view name, const NumberRange& range) -> std::optional<float> {
    const nlohmann::json* value = f.find(name);
    if (!value) return std::nullopt;
    if (!value->is_number() || !range.holds(value->get<double>())) f.fail(name, range.text());
    return float(value->get<double>());
  };
  out.temperature = number("temperature", kTemperatureRange);
  out.top_p = number("top_p", kTopPRange);
  out.min_p = number("min_p", kMinPRange);
  out.repetition_penalty = number("repetition_penalty", kRepetitionPenaltyRange);
  if (f.has("top_k")) out.top_k = int(f.integer("top_k", -1, limits::kVocab));  // 0 and -1: off
  out.eos_token_ids = f.integers("eos_token_id", 0, kMaxTokenId);
  return out;
}

}  // namespace moectl
