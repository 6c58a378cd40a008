// Damaged config.json files: whatever is in one, it is read or refused with Error{kBadData} that names a field, and
// what is read implies a list of tensors that can be gone through. Fixed seeds.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>

#include "core/base/error.h"
#include "core/model/config.h"
#include "core/model/tensor_names.h"
#include "tests/model/checkpoint_files.h"

namespace moectl {
namespace {

using nlohmann::json;

class Damage {
 public:
  explicit Damage(uint64_t seed) : rng_(seed) {}

  // One to four fields of the object, or of one inside it, are removed, invented, or have another value.
  void apply(json& j) {
    for (int n = 1 + pick(4); n > 0; --n) {
      json* target = &j;
      for (const char* inner : {"rope_scaling", "rope_parameters"})
        if (j.contains(inner) && j[inner].is_object() && pick(3) == 0) target = &j[inner];
      if (pick(8) == 0 || target->empty()) {
        (*target)[invented_name()] = value(nullptr);
        continue;
      }
      auto it = target->begin();
      std::advance(it, pick(int(target->size())));
      if (pick(6) == 0)
        target->erase(it);
      else
        *it = value(*it);
    }
  }

 private:
  int pick(int n) { return int(rng_() % uint64_t(n)); }

  std::string invented_name() {
    const char* names[] = {"num_experts",
                           "head_dim",
                           "layer_types",
                           "rope_parameters",
                           "sliding_window",
                           "n_group",
                           "num_local_experts",
                           "partial_rotary_factor",
                           "attention_bias",
                           "surprise",
                           "",
                           "\xff\x01"};
    return names[pick(12)];
  }

  json value(const json& old) {
    switch (pick(12)) {
      case 0:
        return nullptr;
      case 1:
        return pick(2) == 0;
      case 2:
        return "text";
      case 3:
        return json::array({1, "a", nullptr});
      case 4:
        return {{"rope_type", "yarn"}, {"factor", pick(100)}};
      case 5:
        return -pick(1000);
      case 6:
        return int64_t{1} << pick(63);
      case 7:
        return 1e300;
      case 8:
        return std::vector<int>(size_t(pick(2000)), pick(9));
      case 9:
        return std::vector<std::string>(size_t(pick(9)), "sliding_attention");
      default:  // near the old one, so that much of what is left is still read
        if (old.is_number_integer()) return old.get<int64_t>() + pick(7) - 3;
        if (old.is_number()) return old.get<double>() * (pick(5) + 0.5);
        return pick(2) == 0 ? json(pick(64)) : json(0.25 * pick(8));
    }
  }

  std::mt19937_64 rng_;
};

TEST(ConfigFuzz, IsReadOrRefused) {
  const json published = json::parse(test::read_file(test::source_dir() / "tests/model/published_configs.json"));
  int num_read = 0, num_refused = 0;
  for (const auto& [name, entry] : published.items())
    for (uint64_t seed = 0; seed < 300; ++seed) {
      json j = entry["config"];
      j["num_hidden_layers"] = 2;  // few tensors to go through
      Damage(seed).apply(j);
      SCOPED_TRACE(name + " " + j.dump(-1, ' ', true, json::error_handler_t::replace));
      try {
        const Config config = parse_config(j, "config.json");
        int64_t num_tensors = 0;
        if (config.layers.size() <= 8)
          for_each_tensor(config, [&](const TensorSpec& spec) {
            for (int64_t d : spec.shape) ASSERT_GT(d, 0) << spec.name;
            ++num_tensors;
          });
        ASSERT_EQ(int(config.layers.size()), config.num_layers + config.num_mtp_layers);
        ++num_read;
      } catch (const Error& e) {
        ASSERT_EQ(e.code(), Code::kBadData);
        ASSERT_NE(std::string(e.what()).find("config.json"), std::string::npos);
        ++num_refused;
      }
    }
  EXPECT_GT(num_read, 500);
  EXPECT_GT(num_refused, 2000);
}

}  // namespace
}  // namespace moectl
