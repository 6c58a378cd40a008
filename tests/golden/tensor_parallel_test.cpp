// The decoder over TP groups. At a given TP size logits are bit-identical for every chunking, company, DP and EP size;
// between TP sizes they differ by no more than the order of summation explains.
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <random>

#include "core/base/error.h"
#include "core/model/shard.h"
#include "kernels/matrix_spec.h"
#include "tests/golden/references.h"
#include "tests/harness/compare.h"
#include "tests/harness/generate.h"
#include "tests/harness/model_runner.h"
#include "tests/harness/wrapped_ops.h"

namespace moectl::test {
namespace {

using Rows = std::vector<std::vector<float>>;

std::vector<int32_t> random_ids(int n, int vocab, uint64_t seed) {
  std::mt19937_64 rng(seed);
  std::vector<int32_t> ids;
  for (int i = 0; i < n; ++i) ids.push_back(int32_t(rng() % uint64_t(vocab)));
  return ids;
}

// Every rank computes the batch of its data-parallel rank; the logits by rank.
std::vector<Rows> forward(ModelRunner& runner, const std::function<Batch(int dp_rank)>& batch_of, int tp_size) {
  std::vector<Rows> of_ranks(size_t(runner.num_ranks()));
  runner.on_all([&](RankModel& rank) {
    const Batch batch = batch_of(rank.index / tp_size);
    of_ranks[size_t(rank.index)] = host_rows(*rank.ops, rank.model->forward(batch));
  });
  return of_ranks;
}

Rows forward(ModelRunner& runner, const Batch& batch) {
  return forward(
      runner, [&](int) { return batch; }, runner.num_ranks())[0];
}

void expect_same_bits(const Rows& expected, const Rows& got, const std::string& where) {
  ASSERT_EQ(expected.size(), got.size()) << where;
  for (size_t i = 0; i < got.size(); ++i)
    ASSERT_EQ(0, std::memcmp(expected[i].data(), got[i].data(), got[i].size() * sizeof(float)))
        << where << ": row " << i << " differs";
}

std::string name_of(const std::string& dir) {
  return dir.substr(dir.rfind('/') + 1);
}

// ------------------------------------------------------------------------------------------------ identity

struct Layout {
  std::string dir;
  bool splits_experts = false;
  Parallelism parallelism(int dp_size = 1) const {
    return {.tp_size = 2, .dp_size = dp_size, .ep_size = splits_experts ? 1 : 2 * dp_size};
  }
};

void PrintTo(const Layout& l, std::ostream* out) {
  *out << l.dir << (l.splits_experts ? ", experts split" : "");
}

class TensorParallelIdentity : public testing::TestWithParam<Layout> {};

TEST_P(TensorParallelIdentity, ChunkingAndCompany) {
  const Parallelism p = GetParam().parallelism();
  ModelRunner runner(GetParam().dir, {.parallelism = p});
  const int vocab = runner.config().vocab_size;
  const auto ids = random_ids(150, vocab, 1);
  const Rows whole = forward(runner, rows_of(ids, 0, int(ids.size())));
  for (int chunk : {1, 7, 64, 101}) {
    Rows rows;
    for (int begin = 0; begin < int(ids.size()); begin += chunk)
      for (auto& row : forward(runner, rows_of(ids, begin, std::min(begin + chunk, int(ids.size())), 10)))
        rows.push_back(std::move(row));
    expect_same_bits(whole, rows, fmt::format("chunks of {}", chunk));
  }
  // Nine sequences of random lengths, their rows interleaved: which rank sends a row to the experts changes.
  std::mt19937_64 rng(3);
  std::vector<std::vector<int32_t>> prompts;
  std::vector<Rows> alone;
  Batch batch;
  batch.max_pages = 2;
  std::vector<std::pair<size_t, int>> order;
  for (int s = 0; s < 9; ++s) {
    prompts.push_back(random_ids(1 + int(rng() % 70), vocab, 100 + uint64_t(s)));
    alone.push_back(forward(runner, rows_of(prompts.back(), 0, int(prompts.back().size()))));
    batch.page_table.insert(batch.page_table.end(), {2 * s, 2 * s + 1});
    order.insert(order.end(), prompts.back().size(), {size_t(s), 0});
  }
  std::shuffle(order.begin(), order.end(), rng);
  std::vector<int> next(prompts.size());
  for (auto& [s, position] : order) {
    position = next[s]++;
    batch.logits_rows.push_back(batch.num_tokens());
    batch.token_ids.push_back(prompts[s][size_t(position)]);
    batch.positions.push_back(position);
    batch.seq_idx.push_back(int32_t(s));
  }
  const Rows together = forward(runner, batch);
  for (size_t i = 0; i < order.size(); ++i)
    expect_same_bits({alone[order[i].first][size_t(order[i].second)]}, {together[i]}, "company");
}

// Two groups, each with a sequence and chunks of its own, then with nothing to do; with and without redundant experts,
// on several threads.
TEST_P(TensorParallelIdentity, GroupsThreadsAndRedundantExperts) {
  ModelRunner one(GetParam().dir, {.parallelism = GetParam().parallelism()});
  const int vocab = one.config().vocab_size, num_experts = one.config().moe.num_experts;
  const std::vector<std::vector<int32_t>> ids = {random_ids(90, vocab, 4), random_ids(61, vocab, 5)};
  std::vector<Rows> expected;
  for (const auto& sequence : ids) expected.push_back(forward(one, rows_of(sequence, 0, int(sequence.size()))));
  for (const int num_redundant : {0, 4}) {
    if (num_redundant > 0 && num_experts % 4 != 0) continue;
    const Parallelism p = GetParam().parallelism(2);
    ModelRunner::Options options = {.threads = 2, .parallelism = p};
    if (num_redundant > 0) options.num_redundant_experts = num_redundant;
    ModelRunner groups(GetParam().dir, options);
    std::vector<Rows> got(size_t(p.world_size()));
    for (int step = 0; step < 4; ++step) {
      auto rows = forward(
          groups,
          [&](int group) {
            const auto& sequence = ids[size_t(group)];
            const int chunk = 23 + 17 * group, size = int(sequence.size());
            const int begin = std::min(step * chunk, size), end = std::min(begin + chunk, size);
            return begin < end ? rows_of(sequence, begin, end) : Batch();
          },
          p.tp_size);
      for (size_t r = 0; r < got.size(); ++r)
        for (auto& row : rows[r]) got[r].push_back(std::move(row));
    }
    for (size_t r = 0; r < got.size(); ++r)
      expect_same_bits(expected[r / 2], got[r], fmt::format("{} redundant experts, rank {}", num_redundant, r));
  }
}

// A prefill worker computes the MTP module's keys and values without its answer: they are the same bits, and with MLA
// those of every TP rank.
TEST(TensorParallelMtp, CacheAlone) {
  const auto ids = random_ids(100, 256, 4);
  const int n = int(ids.size());
  const Batch next = rows_of(std::vector<int32_t>(ids.begin() + 1, ids.end()), 0, n - 1);
  for (const bool splits_experts : {false, true}) {
    std::vector<Rows> caches;
    for (const bool alone : {false, true}) {
      const Layout layout = {"models/demo", splits_experts};
      ModelRunner runner(layout.dir, {.parallelism = layout.parallelism(), .num_pages = 2});
      Rows cache(2);
      runner.on_all([&](RankModel& rank) {
        rank.model->forward(rows_of(ids, 0, n - 1));
        if (alone)
          rank.model->cache_mtp(next, rank.model->hidden());
        else
          rank.model->forward_mtp(next, rank.model->hidden());
        const KvView layer = rank.cache->layer(runner.config().num_layers);
        const float* data = static_cast<const float*>(layer.data);
        cache[size_t(rank.index)].assign(data, data + layer.dim(0) * layer.page_values());
      });
      expect_same_bits({cache[0]}, {cache[1]}, "ranks");
      caches.push_back(std::move(cache));
    }
    expect_same_bits(caches[0], caches[1], "cache");
  }
}

std::vector<Layout> layouts() {
  std::vector<Layout> all;
  for (const char* name : {"deepseek_v2_a", "deepseek_v3_fp8_a", "qwen2_moe_a", "gpt_oss_a", "llama4_text_a",
                           "minimax_m2_a", "mixtral_a", "glm4_moe_a", "qwen3_moe_int4_zp"})
    for (const bool splits_experts : {false, true})
      all.push_back({std::string("tests/golden/") + name, splits_experts});
  all.push_back({"models/demo"});
  return all;
}

INSTANTIATE_TEST_SUITE_P(Layouts, TensorParallelIdentity, testing::ValuesIn(layouts()), [](const auto& info) {
  return name_of(info.param.dir) + (info.param.splits_experts ? "_split_experts" : "");
});

// ------------------------------------------------------------------------------------------------ tolerance

// The decoder of one rank, each of whose sums that a TP group splits is off by as much as another order of summation
// may make it: random signs, the size that compare.h derives for both orders. What becomes of that in the logits bounds
// what becomes of the order of a TP group, whose own errors are smaller and as random.
//
// The sums: attention's output projection, the down projections of dense and shared experts (of routed ones where the
// ranks split them), and the sum of squares of norms over all heads. A product passes through at most k additions of
// its own sum and those of top_k experts, the shared one and the ranks.
class OtherOrder final : public WrappedOps {
 public:
  OtherOrder(std::unique_ptr<Ops> real, const Config& config, const Parallelism& p, uint64_t seed)
      : WrappedOps(std::move(real)),
        head_dim_(config.gqa.head_dim),
        splits_experts_(p.ep_size == 1),
        num_more_terms_(config.moe.num_experts_per_tok + 1 + p.tp_size),
        rng_(seed) {}

  Weight pack(std::span<const MatrixSpec> batch) override {
    Weight w = real().pack(batch);
    const std::string& name = batch[0].name;
    const bool routed = name.find("experts.") != name.npos && name.find("shared_expert") == name.npos;
    const bool is_output = name.find("o_proj") != name.npos;
    if (is_output || name.find("down_proj") != name.npos || name.find(".w2.") != name.npos)
      sums_[w.impl.get()] = {magnitudes_of(batch), is_output || !routed || splits_experts_};
    return w;
  }

  void linear(const LinearArgs& a, Stream s) override {
    real().linear(a, s);
    const auto sum = sums_.find(a.weight.impl.get());
    if (sum == sums_.end()) return;
    for (int64_t row = 0; row < a.out.dim(0); ++row)
      disturb({a.out.row(row), size_t(a.weight.n)}, a.x.f32().row(row), sum->second.magnitudes[0], a.weight.k);
  }

  void moe_experts(const MoeExpertsArgs& a, Stream s) override {
    real().moe_experts(a, s);
    const Sum& sum = sums_.at(a.w_down.impl.get());
    if (!sum.is_split) return;
    for (int64_t e = 0; e + 1 < a.expert_offsets.dim(0); ++e)
      for (int64_t row = a.expert_offsets(e); row < a.expert_offsets(e + 1); ++row)
        disturb({a.out.f32().row(row), size_t(a.w_down.n)}, a.hidden.f32.f32().row(row),
                sum.magnitudes[size_t(a.weight_idx ? a.weight_idx(e) : e)], a.w_down.k);
  }

  // Of all heads, in place. The factor is 1 / sqrt of the sum of squares: half of its relative error.
  void rms_norm(const RmsNormArgs& a, Stream s) override {
    real().rms_norm(a, s);
    const View<float> out = a.out.get(DType::kF32).f32();
    if (out.data != a.x.data || out.row_size() == head_dim_) return;
    const double error = dot_tolerance(out.row_size() + num_more_terms_, 1.0);
    for (int64_t row = 0; row < out.dim(0); ++row) {
      const double factor = 1.0 + sign() * error;
      for (int64_t i = 0; i < out.row_size(); ++i) out(row, i) = float(out(row, i) * factor);
    }
  }

 private:
  struct Sum {
    std::vector<std::vector<float>> magnitudes;  // [batch][n, k] of the weight
    bool is_split = false;
  };

  static std::vector<std::vector<float>> magnitudes_of(std::span<const MatrixSpec> batch) {
    std::vector<std::vector<float>> magnitudes;
    for (const MatrixSpec& m : batch) {
      std::vector<float>& of_matrix = magnitudes.emplace_back();
      for (int64_t i = 0; i < spec::num_outputs(m); ++i)
        for (int64_t j = 0; j < spec::num_inputs(m); ++j) {
          const spec::Place p = spec::place(m, i, j);
          of_matrix.push_back(std::abs(m.scales ? spec::scale_at(m, p) * spec::number_at(m, p)
                                                : float(element_value(m, p.row, p.col))));
        }
    }
    return magnitudes;
  }

  double sign() { return rng_() % 2 ? 1.0 : -1.0; }

  // out[i], a sum of k products x[j] w[i, j].
  void disturb(std::span<float> out, const float* x, const std::vector<float>& w, int64_t k) {
    for (size_t i = 0; i < out.size(); ++i) {
      float magnitude = 0;
      for (int64_t j = 0; j < k; ++j) magnitude += std::abs(x[j]) * w[i * size_t(k) + size_t(j)];
      out[i] = float(out[i] + sign() * 2 * dot_tolerance(k + num_more_terms_, magnitude));
    }
  }

  const int64_t head_dim_;
  const bool splits_experts_;
  const int64_t num_more_terms_;
  std::mt19937_64 rng_;
  std::map<const void*, Sum> sums_;  // by weight
};

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(double(a[i]) - b[i]));
  return largest;
}

class TensorParallelTolerance : public testing::TestWithParam<std::string> {};

TEST_P(TensorParallelTolerance, IsWhatTheOrderOfSummationExplains) {
  const Config config = read_config(GetParam());
  std::vector<int32_t> ids = reference_cases(GetParam())[0].ids;
  ids.resize(std::min<size_t>(ids.size(), 150));
  const Batch batch = rows_of(ids, 0, int(ids.size()));
  ModelRunner plain(GetParam(), {});
  const Rows expected = forward(plain, batch);
  double largest = 0;  // of all layouts: a split between two groups of a quantized matrix changes no order
  for (const Parallelism& p : {Parallelism{.tp_size = 2, .ep_size = 2}, Parallelism{.tp_size = 4, .ep_size = 4},
                               Parallelism{.tp_size = 2}, Parallelism{.tp_size = 4}}) {
    if (!tp_fault(p, model_dims(config)).empty()) continue;
    std::vector<double> bounds(expected.size());
    for (uint64_t seed = 1; seed <= 3; ++seed) {
      ModelRunner other(GetParam(), {.wrap = [&](std::unique_ptr<Ops> real) {
                          return std::make_unique<OtherOrder>(std::move(real), config, p, seed);
                        }});
      const Rows rows = forward(other, batch);
      for (size_t i = 0; i < rows.size(); ++i)
        bounds[i] = std::max(bounds[i], largest_difference(rows[i], expected[i]));
    }
    ModelRunner split(GetParam(), {.parallelism = p});
    const Rows got = forward(split, batch);
    double share = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      const double difference = largest_difference(got[i], expected[i]);
      EXPECT_LE(difference, bounds[i]) << "TP " << p.tp_size << " EP " << p.ep_size << ", row " << i;
      largest = std::max(largest, difference);
      share = std::max(share, difference / bounds[i]);
    }
    std::printf("%s, TP %d EP %d: logits differ by up to %.2g, up to %.2g of the bound\n", GetParam().c_str(),
                p.tp_size, p.ep_size, largest, share);
  }
  EXPECT_GT(largest, 0.0) << "nothing was split";
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, TensorParallelTolerance, testing::ValuesIn(golden_dirs()),
                         [](const auto& info) { return name_of(info.param); });

}  // namespace
}  // namespace moectl::test
