#include "core/model/inspect.h"

#include <fmt/core.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <unordered_set>

#include "core/base/error.h"
#include "core/model/implied_tensors.h"
#include "core/model/json_fields.h"
#include "core/model/model.h"
#include "core/model/quant_tensors.h"
#include "core/model/safetensors.h"
#include "core/model/tensor_names.h"

namespace moectl {

namespace {

constexpr int64_t kMaxConfigBytes = 16 << 20;

int64_t count_elements(const std::vector<int64_t>& shape) {
  int64_t n = 1;
  for (int64_t d : shape) n *= d;
  return n;
}

void read_config_part(const std::filesystem::path& dir, InspectReport& r) {
  const std::filesystem::path file = dir / "config.json";
  const nlohmann::json json = read_untrusted_json(file, kMaxConfigBytes);
  const Fields fields(json, file.string());
  r.model_type = fields.text_or("model_type", "");
  try {
    r.config = parse_config(json, file.string());
    r.architecture = r.config->architecture;
    r.supported = true;
  } catch (const Error& e) {
    r.unsupported = e.what();
  }
}

void add_files(const Checkpoint& checkpoint, InspectReport& r) {
  std::map<std::string, InspectReport::File> files;
  for (const auto& [name, t] : checkpoint.tensors()) {
    InspectReport::File& f = files[t.file];
    f.name = std::filesystem::path(t.file).filename().string();
    f.num_tensors += 1;
    f.num_bytes += t.num_bytes;
  }
  for (auto& [name, f] : files) r.files.push_back(std::move(f));
  r.has_weights = true;
  r.num_tensors = int64_t(checkpoint.tensors().size());
  r.num_bytes = checkpoint.total_bytes();
}

// `packed`: what the tensors hold that hold it in words or bytes.
using PackedNumbers = std::unordered_map<const TensorInfo*, DType>;

void add_dtypes(const Checkpoint& checkpoint, const PackedNumbers& packed, InspectReport& r) {
  std::map<DType, InspectReport::DTypeTotal> dtypes;
  for (const auto& [name, t] : checkpoint.tensors()) {
    const auto it = packed.find(&t);
    const DType dtype = it == packed.end() ? t.dtype : it->second;
    InspectReport::DTypeTotal& d = dtypes[dtype];
    d.dtype = dtype;
    d.num_tensors += 1;
    d.num_elements += t.num_bytes * 8 / dtype_bits(dtype);
    d.num_bytes += t.num_bytes;
  }
  for (auto& [dtype, d] : dtypes) r.dtypes.push_back(d);
  std::stable_sort(r.dtypes.begin(), r.dtypes.end(), [](auto& a, auto& b) { return a.num_bytes > b.num_bytes; });
}

// Goes through the tensors that the config implies, beside those that the checkpoint has.
class Account {
 public:
  Account(const Config& config, const Checkpoint* checkpoint, InspectReport& report)
      : config_(config), checkpoint_(checkpoint), r_(report) {}

  void run() {
    for (int i = 0; i < int(config_.layers.size()); ++i)
      r_.layers.push_back(
          {.index = i, .mtp = i >= config_.num_layers, .moe = config_.layers[i].feed_forward == FeedForwardKind::kMoe});
    for_each_tensor(config_, [this](const TensorSpec& spec) { add(spec); });
    r_.parameters.total = r_.parameters.main + r_.parameters.mtp;
    const int64_t looked_up = config_.tie_word_embeddings ? 0 : r_.parameters.embedding;
    r_.parameters.active =
        r_.parameters.main - looked_up - r_.parameters.routed_experts + active(r_.parameters.routed_experts);
    for (InspectReport::Layer& layer : r_.layers)
      layer.active = layer.parameters - routed_[layer.index] + active(routed_[layer.index]);
    if (checkpoint_)
      for (const auto& [name, t] : checkpoint_->tensors())
        if (!seen_.contains(&t)) r_.unexpected.add(name);
  }
  const PackedNumbers& packed() const { return packed_; }

 private:
  int64_t active(int64_t routed) const {
    return config_.moe.num_experts > 0 ? routed / config_.moe.num_experts * config_.moe.num_experts_per_tok : 0;
  }

  void add(const TensorSpec& spec) {
    int64_t bytes = 0;
    if (checkpoint_) {
      const StoredMatrix stored = find_matrix(config_.quant, *checkpoint_, spec);
      if (stored.tensors.empty() && spec.shared_copy) return;
      for (const std::string& name : stored.missing) r_.missing.add(name);
      for (const std::string& what : stored.wrong) r_.wrong.add(what);
      if (stored.tensors.empty()) return;
      for (const TensorInfo* t : stored.tensors) {
        seen_.insert(t);
        bytes += t->num_bytes;
      }
      const DType dtype = stored.matrix.dtype == DType::kU8 ? DType::kI8 : stored.matrix.dtype;
      if (stored.wrong.empty() && dtype != stored.tensors.front()->dtype) packed_[stored.tensors.front()] = dtype;
    }
    count(spec, count_elements(spec.shape), bytes);
  }

  void count(const TensorSpec& spec, int64_t n, int64_t bytes) {
    InspectReport::Parameters& p = r_.parameters;
    if (spec.layer >= 0) r_.layers[spec.layer].num_bytes += bytes;
    if (spec.shared_copy) {
      p.shared_copies += n;
      return;
    }
    if (spec.layer >= 0) r_.layers[spec.layer].parameters += n;
    if (spec.role == TensorRole::kRoutedExpert) routed_[spec.layer] += n;
    if (spec.layer >= config_.num_layers) {
      p.mtp += n;
      return;
    }
    p.main += n;
    if (spec.role == TensorRole::kEmbedding) p.embedding += n;
    if (spec.role == TensorRole::kOutputHead) p.output_head += n;
    if (spec.role == TensorRole::kRoutedExpert) p.routed_experts += n;
  }

  const Config& config_;
  const Checkpoint* checkpoint_;
  InspectReport& r_;
  std::unordered_set<const TensorInfo*> seen_;
  PackedNumbers packed_;
  std::map<int, int64_t> routed_;  // by layer
};

}  // namespace

void InspectReport::NameList::add(std::string name) {
  if (++count <= kMaxListed) names.push_back(std::move(name));
}

namespace {

// What follows from the report's config, with or without a checkpoint.
void add_memory(const Checkpoint* checkpoint, const std::optional<RankMemoryQuery>& query, InspectReport& r) {
  const int64_t values = int64_t(r.config->layers.size()) * r.config->kv_values_per_token();
  r.kv_bytes_f32 = values * dtype_bytes(DType::kF32);
  r.kv_bytes_bf16 = values * dtype_bytes(DType::kBF16);
  if (!query) return;
  r.rank = checkpoint ? rank_memory(*r.config, *checkpoint, *query)
                      : rank_memory(*r.config, implied_checkpoint(*r.config, r.path), *query);
}

}  // namespace

InspectReport inspect_config(const Config& config, const std::string& name,
                             const std::optional<RankMemoryQuery>& query) {
  InspectReport r{
      .path = name, .model_type = config.model_type, .architecture = config.architecture, .supported = true};
  r.config = config;
  Account(*r.config, nullptr, r).run();
  add_memory(nullptr, query, r);
  return r;
}

InspectReport inspect_checkpoint(const std::filesystem::path& dir, const std::optional<RankMemoryQuery>& query) {
  InspectReport r;
  r.path = dir.string();
  require_checkpoint_dir(dir);
  read_config_part(dir, r);

  std::optional<Checkpoint> checkpoint;
  try {
    checkpoint = Checkpoint::open(dir);
    add_files(*checkpoint, r);
  } catch (const Error& e) {
    if (e.code() != Code::kNotFound) throw;  // damaged; no weights at all is told by has_weights
  }
  if (r.config) {
    if (checkpoint) r.mtp_left_out = leave_out_absent_mtp(*r.config, *checkpoint);
    Account account(*r.config, checkpoint ? &*checkpoint : nullptr, r);
    account.run();
    if (checkpoint) add_dtypes(*checkpoint, account.packed(), r);
    add_memory(checkpoint ? &*checkpoint : nullptr, query, r);
  } else if (checkpoint) {
    add_dtypes(*checkpoint, {}, r);
    for (const auto& [name, t] : checkpoint->tensors())
      if (!is_scale_name(name)) r.parameters.total += count_elements(t.shape);
  }
  return r;
}

}  // namespace moectl
