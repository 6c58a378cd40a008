// What the families with grouped-query attention share.
#include <fmt/format.h>

#include <cmath>

#include "core/model/config_readers.h"

namespace moectl {

void read_gqa(const Fields& f, Config& c) {
  GqaConfig& gqa = c.gqa;
  gqa.num_kv_heads = int(f.integer_or("num_key_value_heads", c.num_heads, 1, limits::kHeads));
  if (c.num_heads % gqa.num_kv_heads != 0)
    f.fail("num_key_value_heads", fmt::format("a divisor of num_attention_heads ({})", c.num_heads));
  if (!f.has("head_dim") && c.hidden_size % c.num_heads != 0)
    f.fail("head_dim", fmt::format("a number: hidden_size ({}) is no multiple of num_attention_heads ({})",
                                   c.hidden_size, c.num_heads));
  gqa.head_dim = int(f.integer_or("head_dim", c.hidden_size / c.num_heads, 1, limits::kHeadDim));
  c.softmax_scale = float(1.0 / std::sqrt(double(gqa.head_dim)));
}

}  // namespace moectl
