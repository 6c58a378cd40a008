// quantization_config: which numbers a checkpoint's matrices are stored as. Weights only: activations are never
// quantised here, so the activation side (activation_scheme, input_activations, input_scale tensors, scale_fmt) and
// quantised KV caches (kv_cache_scheme) are not needed. Which of the matrices are quantised is seen from the tensors
// that the checkpoint has, so lists of exceptions (modules_to_not_convert, ignored_layers, ignore) and of targets need
// no reading either.
//
// Sources: transformers 5.17 utils/quantization_config.py (fp8, awq, mxfp4), compressed-tensors 0.20
// quantization/quant_config.py and quant_args.py, AutoAWQ 0.2.9 awq/models/_config.py.
#include <array>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/base/error.h"
#include "core/model/config_readers.h"

namespace moectl {

namespace {

constexpr int64_t kMaxBlock = 1 << 20;

constexpr const char* kSupported =
    "\"fp8\" (e4m3), \"mxfp4\", \"awq\" or \"compressed-tensors\" (pack-quantized, float-quantized, int-quantized, "
    "naive-quantized, mxfp4-pack-quantized): other schemes are not supported";

std::array<int, 2> read_block(const Fields& f, std::string_view name) {
  const std::vector<int32_t> block = f.integers(name, 1, kMaxBlock);
  if (block.size() != 2 || !f.find(name)->is_array()) f.fail(name, "[rows, columns] of the blocks that share a scale");
  return {block[0], block[1]};
}

QuantConfig read_fp8(const Fields& q) {
  const std::string format = q.text_or("fmt", "e4m3");  // MiniMax writes the dtype's name
  if (format != "e4m3" && format != "float8_e4m3fn") q.fail("fmt", "\"e4m3\": other FP8 formats are not supported");
  const std::string scheme = q.text_or("activation_scheme", "dynamic");
  if (scheme != "dynamic" && scheme != "static") q.fail("activation_scheme", "\"dynamic\" or \"static\"");
  const std::string scales = q.text_or("scale_fmt", "ue8m0");
  if (scales != "ue8m0" && scales != "float") q.fail("scale_fmt", "\"ue8m0\" or \"float\"");
  QuantConfig quant = {.scheme = "fp8", .form = QuantForm::kScaled, .dtype = DType::kF8E4M3};
  if (q.has("weight_block_size")) {
    const auto [n, k] = read_block(q, "weight_block_size");
    quant.block_n = n;
    quant.block_k = k;
  }
  return quant;
}

QuantConfig read_awq(const Fields& q) {
  const std::string version = q.text_or(q.either({"version", "format"}), "gemm");
  if (version != "gemm" && version != "GEMM")
    q.fail(q.either({"version", "format"}), "\"gemm\": other AWQ layouts are not supported");
  q.integer(q.either({"bits", "w_bit"}), 4, 4);
  if (!q.boolean_or("zero_point", true)) q.fail("zero_point", "true: AWQ without zero points is not supported");
  QuantConfig quant = {
      .scheme = "awq", .form = QuantForm::kAwq, .dtype = DType::kU4, .block_n = 1, .nibble_order = NibbleOrder::kAwq};
  const int64_t group = q.integer_or(q.either({"group_size", "q_group_size"}), 128, -1, kMaxBlock);
  if (group == 0) q.fail(q.either({"group_size", "q_group_size"}), "the weights that share a scale, or -1 for a row");
  quant.block_k = group > 0 ? int(group) : 0;
  return quant;
}

// What of a config group says how weights are stored.
QuantConfig read_group(const Fields& group, const std::string& format) {
  const std::optional<Fields> w = group.object("weights");
  const int bits = int(w->integer_or("num_bits", 8, 1, 64));
  const std::string type = w->text_or("type", "int");
  if (type != "int" && type != "float") w->fail("type", "\"int\" or \"float\"");
  const bool is_float = type == "float", symmetric = w->boolean_or("symmetric", true);
  QuantConfig quant = {.scheme = "compressed-tensors " + format};
  if (format == "pack-quantized" && !is_float && (bits == 4 || (bits == 8 && symmetric))) {
    quant.form = QuantForm::kPacked;
    quant.dtype = bits == 8 ? DType::kU8 : symmetric ? DType::kI4 : DType::kU4;
  } else if (format == "mxfp4-pack-quantized" && is_float && bits == 4 && symmetric) {
    quant.form = QuantForm::kPacked;
    quant.dtype = DType::kF4E2M1;
  } else if ((format == "float-quantized" || format == "naive-quantized") && is_float && bits == 8 && symmetric) {
    quant.form = QuantForm::kScaled;
    quant.dtype = DType::kF8E4M3;
  } else if ((format == "int-quantized" || format == "naive-quantized") && !is_float && bits == 8 && symmetric) {
    quant.form = QuantForm::kScaled;
    quant.dtype = DType::kI8;
  } else {
    w->fail("num_bits", fmt::format("what is supported of compressed-tensors: pack-quantized with 4-bit integers, or "
                                    "8-bit symmetric ones; float-quantized or int-quantized with 8 bits, symmetric; "
                                    "mxfp4-pack-quantized. This is {} with {} {}-bit {}",
                                    format, symmetric ? "symmetric" : "asymmetric", bits, type));
  }

  const int64_t size = w->integer_or("group_size", 0, -1, kMaxBlock);
  const std::string strategy = w->text_or("strategy", size > 0 ? "group" : size < 0 ? "channel" : "tensor");
  if (strategy == "group") {
    quant.block_n = 1;
    quant.block_k = int(w->integer("group_size", 1, kMaxBlock));
  } else if (strategy == "channel") {
    quant.block_n = 1;
  } else if (strategy == "block") {
    const auto [n, k] = read_block(*w, "block_structure");
    quant.block_n = n;
    quant.block_k = k;
  } else if (strategy != "tensor") {
    w->fail("strategy", "\"group\", \"channel\", \"tensor\" or \"block\"");
  }
  if (quant.dtype == DType::kU4 && quant.block_n != 1)
    w->fail("strategy", "\"group\" or \"channel\" where there are zero points");
  // "group" keeps the columns in another order (weight_g_idx); "weight" and "static" change nothing that is stored.
  const nlohmann::json* order = w->find("actorder");
  if (order && *order != false && *order != "weight" && *order != "static")
    w->fail("actorder", "null, \"weight\" or \"static\": columns in another order (weight_g_idx) are not supported");
  return quant;
}

QuantConfig read_compressed_tensors(const Fields& q) {
  if (std::optional<Fields> sparsity = q.object("sparsity_config"); sparsity && !sparsity->empty())
    if (sparsity->text_or("format", "dense") != "dense")
      sparsity->fail("format", "\"dense\": sparse checkpoints are not supported");
  if (std::optional<Fields> transform = q.object("transform_config"); transform && !transform->empty())
    q.fail("transform_config", "null: rotated weights and activations are not supported");
  const std::string status = q.text_or("quantization_status", "compressed");
  if (status != "compressed" && status != "frozen")
    q.fail("quantization_status",
           "\"compressed\" or \"frozen\": weights that are still to be quantised are not supported");
  const std::string format = q.text("format");
  const nlohmann::json* groups = q.find("config_groups");
  if (!groups || !groups->is_object() || groups->empty())
    q.fail("config_groups", "an object of groups, each with `weights` and `targets`");
  std::optional<QuantConfig> quant;
  for (const auto& [name, value] : groups->items()) {
    const Fields group(value, q.origin(), fmt::format("quantization_config.config_groups.{}.", brief_json(name)));
    if (!group.has("weights")) continue;  // of activations or the KV cache
    const QuantConfig one = read_group(group, group.text_or("format", format));
    if (quant && *quant != one)
      q.fail("config_groups",
             "groups that store their weights alike: several formats in one checkpoint are not supported");
    quant = one;
  }
  if (!quant) q.fail("config_groups", "a group with `weights`: quantised activations alone are not supported");
  return *quant;
}

}  // namespace

QuantConfig read_quant(const Fields& f) {
  std::optional<Fields> q = f.object("quantization_config");
  if (!q) {
    require_absent(f, "compression_config", "old forms of quantization_config");
    std::filesystem::path modelopt = f.origin();
    modelopt.replace_filename("hf_quant_config.json");
    std::error_code ec;
    if (std::filesystem::exists(modelopt, ec))
      throw Error(Code::kBadData,
                  fmt::format("{}: the checkpoint is quantised by ModelOpt; expected quantization_config "
                              "in config.json with quant_method {}",
                              modelopt.string(), kSupported));
    return {};
  }
  const std::string method = q->text("quant_method");
  if (method == "fp8") return read_fp8(*q);
  if (method == "awq") return read_awq(*q);
  if (method == "compressed-tensors") return read_compressed_tensors(*q);
  if (method == "mxfp4")
    return {.scheme = "mxfp4", .form = QuantForm::kBlocks, .dtype = DType::kF4E2M1, .block_n = 1, .block_k = 32};
  q->fail("quant_method", kSupported);
}

}  // namespace moectl
