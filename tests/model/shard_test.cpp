// Shards: the slices of all ranks tile every tensor, the loader reads exactly them, and boundaries inside scale blocks
// are refused.
#include "core/model/shard.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "core/model/model.h"
#include "core/model/quant_tensors.h"
#include "core/model/shapes.h"
#include "core/model/synthetic.h"
#include "core/model/tensor_names.h"
#include "core/model/weights.h"
#include "kernels/matrix_spec.h"
#include "tests/harness/wrapped_ops.h"
#include "tests/model/checkpoint_files.h"

namespace moectl {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

std::vector<std::pair<std::string, Config>> published_configs() {
  std::vector<std::pair<std::string, Config>> all;
  const json published = json::parse(test::read_file(test::source_dir() / "tests/model/published_configs.json"));
  for (const auto& [name, entry] : published.items()) all.emplace_back(name, parse_config(entry["config"], name));
  return all;
}

std::vector<std::filesystem::path> golden_checkpoints() {
  std::vector<std::filesystem::path> all;
  for (const auto& entry : std::filesystem::directory_iterator(test::source_dir() / "tests/golden"))
    if (std::filesystem::exists(entry.path() / "model.safetensors")) all.push_back(entry.path());
  std::sort(all.begin(), all.end());
  return all;
}

// tp_size 1, 2, 4, 8 as far as they can split the model; experts placed (EP) or split (--ep-size 1).
std::vector<Parallelism> ways_to_split(const Config& config) {
  std::vector<Parallelism> all;
  for (const int tp : {1, 2, 4, 8})
    for (const int ep : std::set{tp, 1}) {
      const Parallelism p = {.tp_size = tp, .ep_size = ep};
      if (tp_fault(p, model_dims(config)).empty()) all.push_back(p);
    }
  return all;
}

std::string name_of(const Parallelism& p) {
  return fmt::format("TP {} EP {}", p.tp_size, p.ep_size);
}

// ------------------------------------------------------------------------------------------------ the list

class Parts final : public TensorVisitor {
 public:
  static std::vector<std::vector<TensorPart>> of(const Config& config, const Shard& shard) {
    Parts parts;
    ModelWeights none;
    visit_weights(config, shard, none, parts);
    return std::move(parts.uses_);
  }

 private:
  void vector(View<const float>&, std::span<const TensorPart> parts) override { matrices(none_, parts); }
  void table(Weight&, const TensorPart& part) override { matrices(none_, {&part, 1}); }
  void matrices(Weight&, std::span<const TensorPart> batch) override { uses_.emplace_back(batch.begin(), batch.end()); }
  Weight none_;
  std::vector<std::vector<TensorPart>> uses_;
};

struct Rectangle {
  int64_t row_begin, row_end, col_begin, col_end;  // columns counted in steps from the whole part's first
  int64_t area() const { return (row_end - row_begin) * (col_end - col_begin); }
  bool overlaps(const Rectangle& o) const {
    return row_begin < o.row_end && o.row_begin < row_end && col_begin < o.col_end && o.col_begin < col_end;
  }
  auto operator<=>(const Rectangle&) const = default;
};

// `part` inside `whole`, or nothing when it is of another matrix.
std::optional<Rectangle> inside(const TensorPart& whole, const TensorPart& part) {
  if (part.tensor.name != whole.tensor.name || part.slice != whole.slice || part.transpose != whole.transpose ||
      part.col_step != whole.col_step || (part.col_begin - whole.col_begin) % whole.col_step != 0)
    return std::nullopt;
  const int64_t col = (part.col_begin - whole.col_begin) / whole.col_step;
  const Rectangle r = {part.row_begin - whole.row_begin, part.row_begin - whole.row_begin + part.num_rows, col,
                       col + part.num_cols};
  if (r.row_begin < 0 || r.row_end > whole.num_rows || r.col_begin < 0 || r.col_end > whole.num_cols)
    return std::nullopt;
  return r;
}

bool ends_with_any(const std::string& name, std::initializer_list<std::string_view> endings) {
  return std::any_of(endings.begin(), endings.end(), [&](std::string_view e) { return name.ends_with(e); });
}

// By name, so that no tensor is held whole, or split, by accident.
bool is_split(const Config& config, const Parallelism& p, const TensorSpec& t) {
  if (p.tp_size == 1) return false;
  if (t.role == TensorRole::kRoutedExpert) return p.ep_size == 1 && !ends_with_any(t.name, {"down_proj_bias"});
  if (t.role == TensorRole::kNorm)
    return config.gqa.qk_norm == QkNorm::kAllBeforeRope &&
           ends_with_any(t.name, {"q_norm.weight", "k_norm.weight", "query_layernorm.weight", "key_layernorm.weight"});
  return ends_with_any(t.name, {"embed_tokens.weight", "lm_head.weight", "shared_head.head.weight", "q_b_proj.weight",
                                "q_proj.weight", "k_proj.weight", "v_proj.weight", "kv_b_proj.weight", "o_proj.weight",
                                "q_proj.bias", "k_proj.bias", "v_proj.bias", "sinks"}) ||
         (ends_with_any(t.name, {"gate_proj.weight", "up_proj.weight", "down_proj.weight"}));
}

// All ranks' parts of one use against the whole model's. Of KV heads that several ranks hold, `copies` equal parts.
void expect_tiles(const std::vector<TensorPart>& whole, const std::vector<std::vector<TensorPart>>& ranks, int copies) {
  size_t num_parts = 0, num_placed = 0;
  for (const auto& parts : ranks) num_parts += parts.size();
  for (const TensorPart& w : whole) {
    std::map<Rectangle, int> count;
    for (const auto& parts : ranks)
      for (const TensorPart& part : parts)
        if (const auto r = inside(w, part)) ++count[*r], ++num_placed;
    int64_t area = 0;
    for (auto a = count.begin(); a != count.end(); ++a) {
      EXPECT_EQ(a->second, copies);
      area += a->first.area();
      for (auto b = std::next(a); b != count.end(); ++b) EXPECT_FALSE(a->first.overlaps(b->first));
    }
    EXPECT_EQ(area, w.num_rows * w.num_cols);
  }
  EXPECT_EQ(num_placed, num_parts) << "a part is of no matrix of the whole model";
}

void expect_ranks_tile(const Config& config, const Parallelism& p) {
  std::vector<int32_t> some_experts;
  if (const int n = config.moe.num_experts) some_experts = {0, n / 2, n - 1};
  const auto parts_of = [&](const Parallelism& q, int rank) {
    return Parts::of(config, rank_shard(config, q, rank, some_experts));
  };
  const auto whole = parts_of({}, 0);
  std::vector<std::vector<std::vector<TensorPart>>> ranks;
  for (int r = 0; r < p.tp_size; ++r) ranks.push_back(parts_of(p, r));
  int num_split = 0;
  for (size_t use = 0; use < whole.size(); ++use) {
    const TensorSpec& t = whole[use].front().tensor;
    SCOPED_TRACE(t.name);
    std::vector<std::vector<TensorPart>> of_ranks;
    for (const auto& uses : ranks) {
      ASSERT_EQ(uses.size(), whole.size());
      of_ranks.push_back(uses[use]);
      for (const TensorPart& part : uses[use]) ASSERT_EQ(part.tensor.shape, t.shape);
    }
    if (!is_split(config, p, t)) {
      expect_tiles(whole[use], of_ranks, p.tp_size);
      continue;
    }
    ++num_split;
    const bool kv = config.attention() == AttentionKind::kGqa && t.name.find("self_attn.k") != t.name.npos;
    const bool v = config.attention() == AttentionKind::kGqa && t.name.find("self_attn.v") != t.name.npos;
    const int copies = kv || v ? std::max(1, p.tp_size / config.gqa.num_kv_heads) : 1;
    expect_tiles(whole[use], of_ranks, copies);
    if (t.shape[0] == config.vocab_size && config.vocab_size % p.tp_size != 0) continue;  // the last has fewer rows
    for (const auto& parts : of_ranks)                                                    // equal slices
      EXPECT_EQ(parts.size() * size_t(parts.front().num_rows * parts.front().num_cols) * size_t(p.tp_size / copies),
                whole[use].size() * size_t(whole[use].front().num_rows * whole[use].front().num_cols));
  }
  EXPECT_EQ(num_split > 0, p.tp_size > 1);
}

TEST(Shards, TpRanksTileEveryTensor) {
  int num_split_in_eight = 0;
  for (const auto& [name, config] : published_configs()) {
    for (const Parallelism& p : ways_to_split(config)) {
      SCOPED_TRACE(fmt::format("{}, {}", name, name_of(p)));
      expect_ranks_tile(config, p);
      if (HasFatalFailure()) return;
      num_split_in_eight += p.tp_size == 8;
    }
  }
  EXPECT_GT(num_split_in_eight, 20);
  for (const auto& dir : golden_checkpoints()) {
    const Config config = read_config(dir);
    for (const Parallelism& p : ways_to_split(config)) {
      SCOPED_TRACE(fmt::format("{}, {}", dir.filename().string(), name_of(p)));
      expect_ranks_tile(config, p);
    }
  }
}

// With one TP rank, and with expert parallelism, nothing but the experts differs from the whole.
TEST(Shards, ExpertsAreThoseOfTheRank) {
  for (const auto& [name, config] : published_configs()) {
    SCOPED_TRACE(name);
    const std::vector<int32_t> experts = {5, 0, 5, config.moe.num_experts - 1};
    const auto whole = Parts::of(config, whole_model(config)),
               part = Parts::of(config, rank_shard(config, expert_parallel(16), 3, experts));
    ASSERT_EQ(whole.size(), part.size());
    for (size_t use = 0; use < whole.size(); ++use) {
      const bool routed = whole[use].front().tensor.role == TensorRole::kRoutedExpert;
      SCOPED_TRACE(whole[use].front().tensor.name);
      ASSERT_EQ(part[use].size(), routed ? experts.size() : whole[use].size());
      for (size_t i = 0; i < part[use].size(); ++i) {
        const TensorPart &got = part[use][i], &want = whole[use][routed ? size_t(experts[i]) : i];
        EXPECT_EQ(got.tensor.name, want.tensor.name);
        EXPECT_EQ(got.slice, want.slice);
        EXPECT_EQ(inside(want, got), (Rectangle{0, want.num_rows, 0, want.num_cols}));
      }
    }
  }
}

// ------------------------------------------------------------------------------------------------ the loader

// Packs to plain numbers, which a test can read.
struct Numbers {
  std::vector<float> values;  // [batch, n, k]
};

class NumberOps final : public test::WrappedOps {
 public:
  NumberOps() : WrappedOps(make_ops({})) {}

  Weight pack(std::span<const MatrixSpec> batch) override {
    if (before_pack) before_pack();
    auto numbers = std::make_shared<Numbers>();
    const int64_t n = spec::num_outputs(batch[0]), k = spec::num_inputs(batch[0]);
    for (const MatrixSpec& m : batch) {
      EXPECT_EQ(spec::num_outputs(m), n);
      EXPECT_EQ(spec::num_inputs(m), k);
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < k; ++j) numbers->values.push_back(number(m, spec::place(m, i, j)));
    }
    return {.batch = int64_t(batch.size()),
            .n = n,
            .k = k,
            .num_bytes = int64_t(numbers->values.size()),
            .impl = std::move(numbers)};
  }
  Weight pack_rows(const MatrixSpec& table) override {
    MatrixSpec m = table;
    m.num_rows = m.rows;
    m.num_cols = m.cols;
    return pack({&m, 1});
  }
  std::function<void()> before_pack;

 private:
  static float number(const MatrixSpec& m, spec::Place p) {
    if (m.scales) return spec::scale_at(m, p) * spec::number_at(m, p);
    const std::byte* at = m.data + (p.row * m.cols + p.col) * dtype_bytes(m.dtype);
    uint16_t half = 0;
    float single = 0;
    std::memcpy(&half, at, sizeof half);
    if (m.dtype == DType::kF32) std::memcpy(&single, at, sizeof single);
    return m.dtype == DType::kF32 ? single : m.dtype == DType::kBF16 ? bf16_to_f32(half) : f16_to_f32(half);
  }
};

struct Matrix {
  std::string name;
  int64_t batch = 0, n = 0, k = 0;
  std::vector<float> values;
};

// What a loader filled in, in the order of the list.
class Loaded final : public TensorVisitor {
 public:
  static std::vector<Matrix> of(const Config& config, const Shard& shard, const ModelWeights& weights) {
    Loaded loaded;
    ModelWeights copy = weights;
    visit_weights(config, shard, copy, loaded);
    return std::move(loaded.all_);
  }

 private:
  void vector(View<const float>& to, std::span<const TensorPart> parts) override {
    const int64_t batch = int64_t(parts.size());
    all_.push_back({parts[0].tensor.name, batch, to.size() / batch, 1, {to.data, to.data + to.size()}});
  }
  void table(Weight& to, const TensorPart& part) override { matrices(to, {&part, 1}); }
  void matrices(Weight& to, std::span<const TensorPart> batch) override {
    Matrix m = {batch[0].tensor.name, to.batch, to.n, to.k, {}};
    if (to) m.values = static_cast<const Numbers*>(to.impl.get())->values;
    all_.push_back(std::move(m));
  }
  std::vector<Matrix> all_;
};

// The whole from its slices along the dimension (0 batch, 1 n, 2 k) that they are shorter in.
Matrix joined(const Matrix& whole, std::vector<Matrix> parts) {
  const auto dim = [](const Matrix& m, int i) { return i == 0 ? m.batch : i == 1 ? m.n : m.k; };
  int axis = 0;
  while (axis < 2 && dim(parts[0], axis) == dim(whole, axis)) ++axis;
  // Ranks that hold the same heads are equal.
  for (size_t i = 1; i < parts.size();)
    if (parts[i].values == parts[i - 1].values && dim(parts[0], axis) * int64_t(parts.size()) > dim(whole, axis))
      parts.erase(parts.begin() + long(i));
    else
      ++i;
  Matrix all = {whole.name, whole.batch, whole.n, whole.k, {}};
  int64_t outer = 1;
  for (int i = 0; i < axis; ++i) outer *= dim(whole, i);
  for (int64_t o = 0; o < outer; ++o)
    for (const Matrix& part : parts) {
      const long inner = long(part.values.size()) / long(outer);
      all.values.insert(all.values.end(), part.values.begin() + o * inner, part.values.begin() + (o + 1) * inner);
    }
  return all;
}

std::vector<std::shared_ptr<const ModelWeights>> load(const Config& config, const Checkpoint& checkpoint,
                                                      const std::vector<Shard>& shards,
                                                      const LoadProgress& progress = {}) {
  std::vector<std::unique_ptr<NumberOps>> ops;
  std::vector<ShardTarget> targets;
  for (const Shard& shard : shards) targets.push_back({*ops.emplace_back(std::make_unique<NumberOps>()), shard});
  return load_shards(config, checkpoint, targets, progress);
}

TEST(Shards, SlicesOfAllRanksMakeTheWholeModel) {
  int num_split = 0;
  for (const auto& dir : golden_checkpoints()) {
    Config config = read_config(dir);
    const Checkpoint checkpoint = Checkpoint::open(dir);
    leave_out_absent_mtp(config, checkpoint);
    const Shard whole_shard = whole_model(config);
    const auto whole = Loaded::of(config, whole_shard, *load(config, checkpoint, {whole_shard})[0]);
    for (const Parallelism& p : ways_to_split(config)) {
      SCOPED_TRACE(fmt::format("{}, {}", dir.filename().string(), name_of(p)));
      std::vector<Shard> shards;
      for (int r = 0; r < p.tp_size; ++r) shards.push_back(rank_shard(config, p, r, whole_shard.experts));
      const auto weights = load(config, checkpoint, shards);
      std::vector<std::vector<Matrix>> ranks;
      for (int r = 0; r < p.tp_size; ++r) {
        EXPECT_EQ(weights[size_t(r)]->experts, whole_shard.experts);
        ranks.push_back(Loaded::of(config, shards[size_t(r)], *weights[size_t(r)]));
      }
      for (size_t use = 0; use < whole.size(); ++use) {
        const Matrix& want = whole[use];
        std::vector<Matrix> parts;
        for (const auto& rank : ranks) parts.push_back(rank[use]);
        if (parts[0].values.size() == want.values.size()) {
          for (const Matrix& part : parts) EXPECT_EQ(part.values, want.values) << want.name;
          continue;
        }
        ++num_split;
        EXPECT_EQ(joined(want, parts).values, want.values) << want.name;
      }
    }
  }
  EXPECT_GT(num_split, 500);
}

TEST(Shards, ARankLoadsItsExpertsOnly) {
  for (const char* name : {"qwen3_moe_fp8_channel", "gpt_oss_mxfp4", "gpt_oss_a", "llama4_text_a", "deepseek_v3_awq"}) {
    SCOPED_TRACE(name);
    const auto dir = test::source_dir() / "tests/golden" / name;
    const Config config = read_config(dir);
    const Checkpoint checkpoint = Checkpoint::open(dir);
    const Shard all = whole_model(config), some = rank_shard(config, expert_parallel(2), 1, {3, 1, 3});
    const auto weights = load(config, checkpoint, {all, some});
    EXPECT_EQ(weights[1]->experts, (std::vector<int32_t>{3, 1, 3}));
    const auto whole = Loaded::of(config, all, *weights[0]), part = Loaded::of(config, some, *weights[1]);
    int num_routed = 0;
    for (size_t use = 0; use < whole.size(); ++use) {
      if (whole[use].name.find(".experts.") == std::string::npos) {
        EXPECT_EQ(part[use].values, whole[use].values) << whole[use].name;
        continue;
      }
      ++num_routed;
      const long size = long(whole[use].n * whole[use].k);
      std::vector<float> want;
      for (const int e : {3, 1, 3})
        want.insert(want.end(), whole[use].values.begin() + e * size, whole[use].values.begin() + (e + 1) * size);
      EXPECT_EQ(part[use].values, want) << whole[use].name;
    }
    EXPECT_GE(num_routed, 3);
    // Stored bytes grow by the same amount with each expert.
    const auto bytes = [&](std::vector<int32_t> experts) {
      return shard_bytes(config, checkpoint, rank_shard(config, expert_parallel(2), 0, std::move(experts)));
    };
    EXPECT_NEAR(double(bytes({0, 1, 2}) - bytes({0})), 2.0 * double(bytes({2, 3}) - bytes({3})), 64.0);
    EXPECT_LT(bytes({0}), shard_bytes(config, checkpoint, all));
    EXPECT_LE(shard_bytes(config, checkpoint, all), checkpoint.total_bytes());
  }
}

// ------------------------------------------------------------------------------------------------ in parallel

TEST(LoadShards, ProgressOfAllLoadersRisesToTheSum) {
  const Config config = shape_config("tiny");
  const Checkpoint checkpoint = synthetic_checkpoint(config, "tiny");
  const Parallelism p = expert_parallel(4);
  std::vector<Shard> shards;
  int64_t sum = 0;
  for (int r = 0; r < 4; ++r) {
    std::vector<int32_t> experts(4);
    std::iota(experts.begin(), experts.end(), 4 * r);
    shards.push_back(rank_shard(config, p, r, experts));
    sum += shard_bytes(config, checkpoint, shards.back());
  }
  std::vector<std::unique_ptr<Ops>> ops;
  std::vector<ShardTarget> targets;
  for (const Shard& shard : shards) targets.push_back({*ops.emplace_back(make_ops({})), shard});
  int64_t last = 0;  // progress is called on several threads, one at a time
  const auto weights = load_shards(config, checkpoint, targets, [&](int64_t done, int64_t total) {
    EXPECT_GE(done, last);
    EXPECT_EQ(total, sum);
    last = done;
  });
  EXPECT_EQ(last, sum);
  const int64_t whole = load_weights(config, checkpoint, *make_ops({}))->num_bytes;
  for (const auto& w : weights) {
    EXPECT_LT(w->num_bytes, whole / 2);
    EXPECT_EQ(w->num_bytes, weights[0]->num_bytes);
    EXPECT_EQ(w->layers.back().experts.gate.batch, 4);
  }
}

TEST(LoadShards, TheFirstFailureEndsAllLoaders) {
  const Config config = shape_config("tiny");
  const Checkpoint checkpoint = synthetic_checkpoint(config, "tiny");
  const Shard whole = whole_model(config);
  NumberOps good, bad;
  bad.before_pack = [n = 0]() mutable {
    if (++n == 10) throw Error(Code::kUnavailable, "the device is gone");
  };
  const std::vector<ShardTarget> targets = {{good, whole}, {bad, whole}};
  const test::Failure f = test::failure_of([&] { load_shards(config, checkpoint, targets); });
  EXPECT_EQ(f.code, Code::kUnavailable);
  EXPECT_EQ(f.message, "the device is gone");
}

// ------------------------------------------------------------------------------------------------ scale blocks

TEST(CheckShards, BoundariesInsideScaleBlocksAreRefused) {
  const auto message = [](const Config& config, const Checkpoint& checkpoint, const Parallelism& p) {
    try {
      check_parallelism(p, model_dims(config));
      check_shards(config, checkpoint, p);
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Code::kBadConfig);
      return std::string(e.what());
    }
    return std::string("accepted");
  };
  const auto synthetic = [&](int intermediate_size, const Parallelism& p) {
    Config config = shape_config("tiny");  // FP8, blocks of 128 x 128; 4 heads
    config.intermediate_size = intermediate_size;
    return message(config, synthetic_checkpoint(config, "tiny"), p);
  };
  EXPECT_EQ(synthetic(384, {}), "accepted");
  EXPECT_EQ(synthetic(512, {.tp_size = 2, .ep_size = 2}), "accepted");
  EXPECT_THAT(
      synthetic(384, {.tp_size = 2, .ep_size = 2}),
      AllOf(HasSubstr("--tensor-parallel-size 2: model.layers.0.mlp.gate_proj.weight would be split at row 192"),
            HasSubstr("inside a scale block of 128; use 1")));
  EXPECT_THAT(synthetic(256, {.tp_size = 4, .ep_size = 4}), HasSubstr("row 64, inside a scale block of 128; use 2"));

  const auto golden = [&](const char* name, const Parallelism& p) {
    const auto dir = test::source_dir() / "tests/golden" / name;
    return message(read_config(dir), Checkpoint::open(dir), p);
  };
  // Scales of whole rows or of the tensor divide nothing; plain numbers have none.
  for (const char* name : {"qwen3_moe_fp8_channel", "qwen3_moe_fp8_tensor", "qwen3_moe_int8", "gpt_oss_a"})
    for (const int ep : {1, 2}) EXPECT_EQ(golden(name, {.tp_size = 2, .ep_size = ep}), "accepted") << name;
  // MXFP4 of fused experts: 64 columns of `down` in groups of 32 that share a scale.
  EXPECT_EQ(golden("gpt_oss_mxfp4", {.tp_size = 2, .ep_size = 1}), "accepted");
  EXPECT_EQ(golden("gpt_oss_mxfp4", {.tp_size = 4, .ep_size = 4}), "accepted");
  EXPECT_THAT(golden("gpt_oss_mxfp4", {.tp_size = 4, .ep_size = 1}),
              AllOf(HasSubstr("down_proj would be split at row 16, inside a scale block of 32"), HasSubstr("use 2")));
}

TEST(ScaleBlock, IsInTheOrientationOfTheModel) {
  StoredMatrix stored;
  const auto block = [&] {
    const ScaleBlock b = scale_block(stored);
    return std::pair(b.rows, b.cols);
  };
  const std::byte scales[1] = {};
  stored.matrix = {.dtype = DType::kBF16, .rows = 256, .cols = 512};
  EXPECT_EQ(block(), std::pair(int64_t{1}, int64_t{1}));
  stored.matrix = {.dtype = DType::kF8E4M3, .rows = 256, .cols = 512, .scales = scales, .block_n = 128, .block_k = 64};
  EXPECT_EQ(block(), std::pair(int64_t{128}, int64_t{64}));
  stored.flipped = true;
  EXPECT_EQ(block(), std::pair(int64_t{64}, int64_t{128}));
  stored.flipped = false;
  stored.matrix.block_n = 256;  // one scale for all rows
  EXPECT_EQ(block(), std::pair(int64_t{1}, int64_t{64}));
  stored.matrix = {.dtype = DType::kI4, .rows = 256, .cols = 512, .scales = scales, .block_n = 1, .block_k = 512};
  EXPECT_EQ(block(), std::pair(int64_t{1}, int64_t{8}));  // eight numbers per word
  stored.matrix.nibble_order = NibbleOrder::kAwq;
  stored.matrix.block_k = 128;
  EXPECT_EQ(block(), std::pair(int64_t{8}, int64_t{128}));
}

}  // namespace
}  // namespace moectl
