// What `moectl inspect` says about a checkpoint: a plain report, and its text and JSON forms. Reads headers and
// config.json only, never the weights' bytes. Any thread.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "core/base/dtype.h"
#include "core/model/config.h"
#include "core/model/rank_memory.h"

namespace moectl {

struct InspectReport {
  std::string path;
  // From config.json. Not supported: `unsupported` says what is not understood, and `config` is empty.
  std::string model_type, architecture;
  bool supported = false;
  std::string unsupported;
  std::optional<Config> config;

  // From the safetensors headers. Without weights (a folder with config.json alone) shapes are those config.json
  // implies.
  bool has_weights = false;
  struct File {
    std::string name;
    int64_t num_tensors = 0, num_bytes = 0;
  };
  std::vector<File> files;
  struct DTypeTotal {
    DType dtype = DType::kF32;
    int64_t num_tensors = 0, num_elements = 0, num_bytes = 0;
  };
  std::vector<DTypeTotal> dtypes;
  int64_t num_tensors = 0, num_bytes = 0;

  // Elements of all tensors but block scales, which belong to the number format. An MTP module's own copies of the
  // embedding and the output head are counted apart: they are the main model's parameters, stored once more.
  struct Parameters {
    int64_t total = 0;  // main + mtp (+ everything there is, when not supported)
    int64_t main = 0, mtp = 0;
    int64_t embedding = 0, output_head = 0, routed_experts = 0;  // parts of `main`
    int64_t shared_copies = 0;                                   // not in `total`
    // One token through the main model: top_k of the routed experts, the output head; the embedding table is only
    // looked up and not counted.
    int64_t active = 0;
  } parameters;

  struct Layer {
    int index = 0;
    bool mtp = false, moe = false;
    int64_t parameters = 0, active = 0, num_bytes = 0;  // active: top_k of the routed experts
  };
  std::vector<Layer> layers;

  // Of one token, all layers and MTP modules.
  int64_t kv_bytes_f32 = 0, kv_bytes_bf16 = 0;

  // config.json against the headers. Names are listed up to kMaxListed; counts are complete.
  struct NameList {
    int64_t count = 0;
    std::vector<std::string> names;
    void add(std::string name);
  };
  static constexpr int kMaxListed = 20;
  NameList missing, wrong, unexpected;  // wrong: "NAME has ...; expected ..."
  int mtp_left_out = 0;  // modules that config.json promises and the checkpoint does not have: it loads without them

  std::optional<RankMemory> rank;  // where it was asked for and `config` is known

  // Loads and answers: supported, with weights, nothing missing or wrong. (Unexpected tensors are ignored by the
  // loader.)
  bool usable() const { return supported && has_weights && missing.count == 0 && wrong.count == 0; }
};

// Throws Error{kNotFound} when there is no such folder or no config.json, Error{kBadData} when a file is damaged, and
// what rank_memory() throws.
InspectReport inspect_checkpoint(const std::filesystem::path& dir, const std::optional<RankMemoryQuery>& query = {});

// What a config implies, without a checkpoint: parameters, layers, memory per rank. `name` stands for the folder.
InspectReport inspect_config(const Config& config, const std::string& name = "",
                             const std::optional<RankMemoryQuery>& query = {});

std::string to_text(const InspectReport& report);     // for people; lines end in \n
nlohmann::json to_json(const InspectReport& report);  // one object

}  // namespace moectl
