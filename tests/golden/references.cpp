#include "tests/golden/references.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

namespace moectl::test {

std::vector<ReferenceCase> reference_cases(const std::string& dir) {
  std::ifstream in(dir + "/golden.json");
  const nlohmann::json golden = nlohmann::json::parse(in);
  std::vector<ReferenceCase> cases;
  for (const nlohmann::json& test : golden["cases"]) {
    ReferenceCase& c = cases.emplace_back();
    c.ids = test["prompt_ids"].get<std::vector<int32_t>>();
    c.prompt_size = int(c.ids.size());
    const std::vector<int32_t> output = test["output_ids"];
    c.ids.insert(c.ids.end(), output.begin(), output.end());
    c.logprobs = test["logprobs"].get<std::vector<double>>();
    if (test.contains("mtp_draft")) c.drafts = test["mtp_draft"].get<std::vector<int32_t>>();
  }
  return cases;
}

std::vector<std::string> golden_dirs() {
  std::vector<std::string> dirs = {"models/demo"};
  const char* other = std::getenv("MOECTL_GOLDEN_DIR");
  if (other) dirs.clear();
  std::error_code none;  // a folder that is not there has no checkpoints: EveryFamily says so
  for (const auto& entry : std::filesystem::directory_iterator(other ? other : "tests/golden", none))
    if (std::filesystem::exists(entry.path() / "golden.json")) dirs.push_back(entry.path().string());
  std::sort(dirs.begin(), dirs.end());
  return dirs;
}

int arg_max(const std::vector<float>& row) {
  return int(std::max_element(row.begin(), row.end()) - row.begin());
}

double log_softmax(const std::vector<float>& row, int id) {
  const double max = row[size_t(arg_max(row))];
  double sum = 0;
  for (float x : row) sum += std::exp(double(x) - max);
  return double(row[size_t(id)]) - max - std::log(sum);
}

}  // namespace moectl::test
