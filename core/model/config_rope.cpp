#include <fmt/core.h>

#include <cmath>

#include "core/model/config_readers.h"

namespace moectl {

double yarn_mscale(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

namespace {

void read_yarn(const Fields& yarn, int max_position_embeddings, RopeConfig& rope) {
  rope.scaling = RopeScaling::kYarn;
  double factor = double(max_position_embeddings) / rope.original_max_position;  // a factor of null stands for it
  if (yarn.has("factor") || !yarn.contains("factor") || factor < 1.0) factor = yarn.number("factor", 1.0, 1e6);
  rope.factor = float(factor);
  // 0 stands for the default, as in transformers (`get("beta_fast") or 32`).
  auto beta = [&](const char* name, double fallback) {
    double x = yarn.number_or(name, 0.0, 0.0, 1e6);
    return float(x == 0.0 ? fallback : x);
  };
  rope.beta_fast = beta("beta_fast", 32.0);
  rope.beta_slow = beta("beta_slow", 1.0);
  if (rope.beta_fast < rope.beta_slow) yarn.fail("beta_fast", fmt::format("at least beta_slow, {}", rope.beta_slow));
  rope.truncate = yarn.boolean_or("truncate", true);
  const double mscale = yarn.number_or("mscale", 0.0, 0.0, 100.0);
  const double all_dim = yarn.number_or("mscale_all_dim", 0.0, 0.0, 100.0);
  rope.mscale = float(mscale);
  rope.mscale_all_dim = float(all_dim);
  // cos and sin are multiplied by the ratio of the two, or by the paper's value when one is missing.
  if (yarn.has("attention_factor"))
    rope.attention_factor = float(yarn.number("attention_factor", 1e-6, 1e6));
  else if (mscale != 0.0 && all_dim != 0.0)
    rope.attention_factor = float(yarn_mscale(factor, mscale) / yarn_mscale(factor, all_dim));
  else
    rope.attention_factor = float(yarn_mscale(factor, 1.0));
}

void read_llama3(const Fields& f, RopeConfig& rope) {
  rope.scaling = RopeScaling::kLlama3;
  rope.factor = float(f.number("factor", 1.0, 1e6));
  rope.low_freq_factor = float(f.number("low_freq_factor", 1e-3, 1e6));
  rope.high_freq_factor = float(f.number("high_freq_factor", 1e-3, 1e6));
  if (rope.high_freq_factor < rope.low_freq_factor)
    f.fail("high_freq_factor", fmt::format("at least low_freq_factor, {}", rope.low_freq_factor));
}

// In the object, or (as Phi-3's code writes it) outside; absent: the model was not extended.
int read_original_positions(const Fields& fields, const Fields& scaling, int max_position_embeddings) {
  constexpr const char* kName = "original_max_position_embeddings";
  const int64_t outside = fields.integer_or(kName, max_position_embeddings, 1, limits::kPositions);
  const int64_t inside = scaling.integer_or(kName, outside, 1, limits::kPositions);
  if (fields.has(kName) && inside != outside)
    scaling.fail(kName, fmt::format("the same as `{}` outside, which is {}", kName, outside));
  return int(inside);
}

}  // namespace

std::optional<Fields> rope_object(const Fields& f) {
  std::optional<Fields> scaling = f.object("rope_scaling");
  if (!scaling || scaling->empty()) return f.object("rope_parameters");
  f.either({"rope_parameters", "rope_scaling"});  // both: they must be equal
  return scaling;
}

int read_rotary_dim(const Fields& fields, int head_dim) {
  double factor = fields.number_or("partial_rotary_factor", 1.0, 0.0, 1.0);
  if (auto inner = rope_object(fields); inner && inner->has("partial_rotary_factor")) {
    const double outer = factor;
    factor = inner->number("partial_rotary_factor", 0.0, 1.0);
    if (fields.contains("partial_rotary_factor") && factor != outer)
      inner->fail("partial_rotary_factor", "the same as `partial_rotary_factor` outside");
  }
  const int dim = int(head_dim * factor);
  if (dim < 2 || dim % 2 != 0)
    fields.fail("partial_rotary_factor", fmt::format("a part of head_dim ({}) that is an even number of components: "
                                                     "RoPE rotates pairs",
                                                     head_dim));
  return dim;
}

int read_whole_rotary_dim(const Fields& fields, int head_dim) {
  if (head_dim % 2 != 0) fields.fail("head_dim", "an even number: RoPE rotates pairs");
  if (read_rotary_dim(fields, head_dim) != head_dim)
    fields.fail("partial_rotary_factor", "1: this architecture rotates all components of a head");
  return head_dim;
}

RopeConfig read_rope(const Fields& fields, int dim, int max_position_embeddings) {
  constexpr double kMaxTheta = 1e12;
  RopeConfig rope;
  rope.dim = dim;
  double theta = fields.number_or("rope_theta", 10000.0, 1.001, kMaxTheta);
  const std::optional<Fields> scaling = rope_object(fields);
  if (scaling && !scaling->empty()) {
    const double inner = scaling->number_or("rope_theta", theta, 1.001, kMaxTheta);
    if (fields.contains("rope_theta") && fields.has("rope_theta") && inner != theta)
      scaling->fail("rope_theta", "the same as `rope_theta` outside");
    theta = inner;
    const std::string_view type_field = scaling->either({"rope_type", "type"});
    const std::string type = scaling->text_or(type_field, "default");
    rope.original_max_position = read_original_positions(fields, *scaling, max_position_embeddings);
    if (type == "yarn" || type == "deepseek_yarn") {
      read_yarn(*scaling, max_position_embeddings, rope);
    } else if (type == "linear") {
      rope.scaling = RopeScaling::kLinear;
      rope.factor = float(scaling->number("factor", 1.0, 1e6));
    } else if (type == "llama3") {
      read_llama3(*scaling, rope);
    } else if (type != "default") {
      scaling->fail(type_field,
                    "\"default\", \"linear\", \"yarn\" or \"llama3\": other kinds of RoPE scaling are not supported");
    }
  }
  rope.theta = float(theta);
  return rope;
}

}  // namespace moectl
