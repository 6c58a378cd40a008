// What the families with grouped-query attention share.
#include <fmt/core.h>

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

std::vector<int> read_windows(const Fields& f, int window, int num_layers, bool (*is_windowed)(int layer)) {
  const std::vector<std::string> types = f.texts("layer_types");
  if (!types.empty() && int(types.size()) != num_layers)
    f.fail("layer_types", fmt::format("one entry for each of {} layers", num_layers));
  std::vector<int> windows;
  for (int i = 0; i < num_layers; ++i) {
    const bool windowed = types.empty() ? is_windowed(i) : types[size_t(i)] == "sliding_attention";
    if (!types.empty() && !windowed && types[size_t(i)] != "full_attention")
      f.fail("layer_types", "\"sliding_attention\" or \"full_attention\" in each entry");
    if (windowed && window == 0)
      f.fail("sliding_window", fmt::format("a number of tokens: layer {} has sliding attention", i));
    windows.push_back(windowed ? window : 0);
  }
  return windows;
}

std::vector<int> read_one_window(const Fields& f, int window, int num_layers) {
  const std::vector<int> windows = window > 0 ? read_windows(f, window, num_layers, [](int) { return true; })
                                              : read_windows(f, window, num_layers, [](int) { return false; });
  for (int w : windows)
    if (w != window)
      f.fail("layer_types", fmt::format("{} in each entry: this architecture has one kind of attention in all layers, "
                                        "and its window is {}",
                                        window > 0 ? "\"sliding_attention\"" : "\"full_attention\"",
                                        window > 0 ? fmt::format("{}", window) : "off"));
  return windows;
}

}  // namespace moectl
