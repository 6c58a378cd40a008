// Expanded MLA of a prefill chunk on Hopper: against mla_query, mla_attention and mla_output of the CPU backend,
// within what rounding to bf16 may do; at full size against the GPU's own absorbed path; and a whole model served by
// both.
#include "kernels/cuda/mla/mla_prefill_sm90.h"

#include <numeric>

#include "core/model/model.h"
#include "core/model/shapes.h"
#include "core/model/synthetic.h"
#include "tests/harness/model_runner.h"
#include "tests/kernels_cuda/attention_data.h"

namespace moectl::test {
namespace {

constexpr int64_t kPage = 64, kNope = 128, kRope = 64, kRank = 512, kValue = 128, kWidth = kRank + kRope,
                  kQuery = kNope + kRope, kMargin = 2;  // rows around the result

// The last n rows of a sequence in scattered pages. Positions after its end, and all other pages, are NaN.
struct Prompt {
  int64_t n, first, heads, num_pages, own_pages;
  bool interleaved;
  float scale = 0.07f;
  Matrix kv_b;
  std::vector<MatrixSpec> uk, uv;
  std::vector<int32_t> pages;
  std::vector<float> q, cos_sin, cache;

  Prompt(DType dtype, int64_t heads, int64_t first, int64_t n, bool interleaved)
      : n(n),
        first(first),
        heads(heads),
        own_pages((first + n + kPage - 1) / kPage),
        interleaved(interleaved),
        kv_b(random_matrix(dtype, heads * (kNope + kValue), kRank, 1)) {
    for (int64_t h = 0; h < heads; ++h) {
      uk.push_back(kv_b.rectangle(h * (kNope + kValue), kNope, 0, kRank, true));
      uv.push_back(kv_b.rectangle(h * (kNope + kValue) + kNope, kValue, 0, kRank));
    }
    Random random(uint64_t(first * 1000 + n));
    num_pages = own_pages + 3;
    pages.resize(size_t(num_pages));
    std::iota(pages.begin(), pages.end(), 0);
    random.shuffle(pages);
    pages.resize(size_t(own_pages));
    q = random.floats(n * heads * kQuery, 1.5f);
    cos_sin = random.floats(n * kRope);
    cache.assign(size_t(num_pages * kPage * kWidth), NAN);
    for (int64_t p = 0; p < first + n; ++p)
      for (int64_t i = 0; i < kWidth; ++i) key(p)[i] = bf16_to_f32(f32_to_bf16(random.uniform(-0.3f, 0.3f)));
  }
  float* key(int64_t p) { return cache.data() + (pages[size_t(p / kPage)] * kPage + p % kPage) * kWidth; }

  // [n, heads, 128], by the definition's three operations.
  std::vector<float> on_cpu() {
    auto ops = make_ops({.device = "cpu", .num_threads = 4, .spin = false});
    std::vector<float> q_latent(size_t(n * heads * kWidth)), latent(size_t(n * heads * kRank)),
        out(size_t(n * heads * kValue));
    std::vector<int32_t> seq(size_t(n), 0), positions;
    for (int64_t i = 0; i < n; ++i) positions.push_back(int32_t(first + i));
    const View<float> in_latents(q_latent.data(), {n, heads, kWidth}), sums(latent.data(), {n, heads, kRank});
    ops->mla_query({View<const float>(q.data(), {n, heads, kQuery}), ops->pack(uk),
                    View<const float>(cos_sin.data(), {n, kRope}), in_latents, interleaved},
                   {});
    ops->mla_attention({in_latents, KvView(cache.data(), DType::kF32, {num_pages, kPage, kWidth, 0}),
                        View<const int32_t>(pages.data(), {1, own_pages}), View<const int32_t>(seq.data(), {n}),
                        View<const int32_t>(positions.data(), {n}), int(kRank), scale, sums},
                       {});
    ops->mla_output({sums, ops->pack(uv), View<float>(out.data(), {n, heads, kValue})}, {});
    return out;
  }

  // On the GPU, expanded; with kMargin unused rows before and after.
  std::vector<float> expanded(Ops& ops) {
    Device d(*this, ops);
    DeviceArray<uint8_t> scratch(cuda::mla_prefill_sm90_scratch_bytes(n, heads));
    cuda::mla_prefill_sm90(d.args, scratch.data(), {});
    return d.out.host();
  }
  // The same through CudaOps, which may decline; `absorbed`: by the three operations there.
  bool through(Ops& ops, std::vector<float>& out, bool absorbed = false) {
    Device d(*this, ops);
    const ScratchShape shape = {.max_tokens = n, .num_heads = heads, .q_head_size = kWidth, .out_head_size = kRank};
    ops.set_scratch(ops.device().alloc(ops.scratch_bytes(shape)), shape);
    bool done = true;
    if (absorbed) {
      DeviceArray<int32_t> seq(std::vector<int32_t>(size_t(n), 0)), positions(n);
      std::vector<int32_t> at;
      for (int64_t i = 0; i < n; ++i) at.push_back(int32_t(first + i));
      ops.device().upload(positions.data(), at.data(), n * 4);
      DeviceArray<float> q_latent(n * heads * kWidth), latent(n * heads * kRank);
      const DType dtype = ops.mla_form(d.args.w_uk, d.args.w_uv, d.args.cache).latent;
      const Operand in_latents(q_latent.data(), dtype, {n, heads, kWidth}),
          sums(latent.data(), dtype, {n, heads, kRank});
      ops.mla_query({d.args.q, d.args.w_uk, d.args.cos_sin, in_latents, interleaved}, {});
      ops.mla_attention(
          {in_latents, d.args.cache, View<const int32_t>(d.pages.data(), {1, own_pages}),
           View<const int32_t>(seq.data(), {n}), View<const int32_t>(positions.data(), {n}), int(kRank), scale, sums},
          {});
      ops.mla_output({sums, d.args.w_uv, d.args.out}, {});
      ops.device().synchronize({});
    } else {
      done = ops.expanded_mla() && ops.expanded_mla()->takes(d.args);
      if (done) ops.expanded_mla()->mla_prefill(d.args, {});
      ops.device().synchronize({});
    }
    out = d.out.host();
    return done;
  }

  // How far bf16 may take each result: the roundings of queries (u q), of keys and values (u k, u v) and of the weights
  // that they are made by (u W, each product of its own), and of the softmax's weights. Random errors: roots of sums of
  // squares, six standard deviations.
  std::vector<Bounded> reference() {
    const auto values = on_cpu();
    const double u = unit_roundoff(DType::kBF16);
    const int64_t length = first + n;
    std::vector<Bounded> out(values.size());
    std::vector<double> k(size_t(length * kNope)), k_parts(k.size()), v(k.size()), v_parts(k.size());
    for (int64_t h = 0; h < heads; ++h) {
      std::vector<double> w_k, w_v;
      for (int64_t i = 0; i < kNope; ++i)
        for (int64_t r = 0; r < kRank; ++r) {
          w_k.push_back(weight_value(uk[size_t(h)], r, i));
          w_v.push_back(weight_value(uv[size_t(h)], i, r));
        }
      auto project = [&](const std::vector<double>& w, const float* c, int64_t i, double& sum, double& squares) {
        sum = squares = 0;
        for (int64_t r = 0; r < kRank; ++r) {
          const double term = w[size_t(i * kRank + r)] * double(c[r]);
          sum += term;
          squares += term * term;
        }
      };
      for (int64_t p = 0; p < length; ++p)
        for (int64_t i = 0; i < kNope; ++i) {
          const size_t at = size_t(p * kNope + i);
          project(w_k, key(p), i, k[at], k_parts[at]);
          project(w_v, key(p), i, v[at], v_parts[at]);
        }
      std::vector<double> weight, spread;
      for (int64_t t = 0; t < n; ++t) {
        const float* x = q.data() + (t * heads + h) * kQuery;
        const float* table = cos_sin.data() + t * kRope;
        double rotated[kRope], max = -INFINITY, sum = 0;
        for (int64_t i = 0; i < kRope / 2; ++i) {
          const int64_t a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : i + kRope / 2;
          const double xa = x[kNope + a], xb = x[kNope + b], cos = table[i], sin = table[kRope / 2 + i];
          rotated[a] = xa * cos - xb * sin;
          rotated[b] = xb * cos + xa * sin;
        }
        weight.clear();
        spread.clear();
        for (int64_t p = 0; p <= first + t; ++p) {
          double dot = 0, squares = 0;
          for (int64_t i = 0; i < kNope; ++i) {
            const double kk = k[size_t(p * kNope + i)];
            dot += double(x[i]) * kk;
            squares += double(x[i]) * double(x[i]) * (2 * kk * kk + k_parts[size_t(p * kNope + i)]);
          }
          for (int64_t i = 0; i < kRope; ++i) {
            const double term = rotated[i] * double(key(p)[kRank + i]);
            dot += term;
            squares += term * term;
          }
          weight.push_back(dot * double(scale));
          spread.push_back(squares * double(scale) * double(scale));
          max = std::max(max, weight.back());
        }
        for (double& w : weight) sum += w = std::exp(w - max);
        for (int64_t i = 0; i < kValue; ++i) {
          const size_t at = size_t((t * heads + h) * kValue + i);
          double rounding = 0, largest = 0;
          for (size_t p = 0; p < weight.size(); ++p) {
            const double w = weight[p] / sum, value = v[p * kValue + size_t(i)];
            rounding += w * w *
                        ((spread[p] + 1) * std::pow(std::abs(value) + std::abs(double(values[at])), 2) + value * value +
                         v_parts[p * kValue + size_t(i)]);
            largest = std::max(largest, std::abs(value));
          }
          out[at] = rounded(double(values[at]), 6 * u * std::sqrt(rounding) + 1e-5 * largest);
        }
      }
    }
    return out;
  }

 private:
  struct Device {
    Device(Prompt& p, Ops& ops)
        : q(p.q),
          cos_sin(p.cos_sin),
          out((p.n + 2 * kMargin) * p.heads * kValue),
          pages(p.pages),
          cache(p.cache, DType::kBF16) {
      args.q = {q.data(), {p.n, p.heads, kQuery}};
      args.w_uk = pack_and_wait(ops, p.uk);
      args.w_uv = pack_and_wait(ops, p.uv);
      args.cos_sin = {cos_sin.data(), {p.n, kRope}};
      args.cache = cache.view({p.num_pages, kPage, kWidth, 0});
      args.pages = {pages.data(), {p.own_pages}};
      args.first_position = p.first;
      args.scale = p.scale;
      args.interleaved = p.interleaved;
      args.out = {out.data() + kMargin * p.heads * kValue, {p.n, p.heads, kValue}};
    }
    DeviceArray<float> q, cos_sin, out;
    DeviceArray<int32_t> pages;
    DeviceCache cache;
    MlaPrefillArgs args;
  };
};

// The rows that are the chunk's; those around it must be as they were.
std::vector<float> inner(const std::vector<float>& rows, int64_t row_size) {
  for (int64_t i = 0; i < kMargin * row_size; ++i) {
    EXPECT_TRUE(std::isnan(rows[size_t(i)])) << "a row before the chunk was written, number " << i;
    EXPECT_TRUE(std::isnan(rows[rows.size() - 1 - size_t(i)])) << "a row behind the chunk was written, number " << i;
  }
  return {rows.begin() + kMargin * row_size, rows.end() - kMargin * row_size};
}

// Relative error of each row of a head: the largest of all.
double worst_row(const std::vector<float>& a, const std::vector<float>& b) {
  double worst = 0;
  for (size_t i = 0; i < a.size(); i += kValue) {
    double difference = 0, norm = 0;
    for (size_t j = i; j < i + kValue; ++j) {
      difference += std::pow(double(a[j]) - double(b[j]), 2);
      norm += double(b[j]) * double(b[j]);
    }
    worst = std::max(worst, std::isfinite(difference) ? std::sqrt(difference / norm) : INFINITY);
  }
  return worst;
}

class MlaPrefillTest : public HopperTest {
 protected:
  void SetUp() override {
    HopperTest::SetUp();
    if (!IsSkipped()) ops_ = make_ops({.device = "cuda"});
  }
  Ops& ops() { return *ops_; }

 private:
  std::unique_ptr<Ops> ops_;
};

TEST_F(MlaPrefillTest, AgainstTheCpu) {
  struct Case {
    DType dtype;
    int64_t heads, first, n;
    bool interleaved;
  };
  for (const Case& c : std::vector<Case>{{DType::kF8E4M3, 16, 0, 130, true},
                                         {DType::kBF16, 16, 61, 67, false},
                                         {DType::kF8E4M3, 4, 0, 1, true},
                                         {DType::kBF16, 12, 0, 64, true},
                                         {DType::kF8E4M3, 3, 0, 128, false},
                                         {DType::kBF16, 2, 127, 129, true},
                                         {DType::kF8E4M3, 2, 128, 256, true},
                                         {DType::kF8E4M3, 2, 1, 300, false},
                                         {DType::kBF16, 2, 1000, 65, true}}) {
    SCOPED_TRACE(fmt::format("{}, {} heads, {} rows from position {}, interleaved {}", dtype_name(c.dtype), c.heads,
                             c.n, c.first, c.interleaved));
    Prompt prompt(c.dtype, c.heads, c.first, c.n, c.interleaved);
    const auto out = prompt.expanded(ops());
    ASSERT_TRUE(close(inner(out, c.heads * kValue), prompt.reference(), {c.n, c.heads, kValue}));
    ASSERT_TRUE(same_bits(inner(prompt.expanded(ops()), c.heads * kValue), inner(out, c.heads * kValue))) << "again";
  }
}

// All heads of DeepSeek-R1, a context of several parts: two computations in bf16, the error of a row's 128 values
// together.
TEST_F(MlaPrefillTest, FullSizeAgainstAbsorbed) {
  for (auto [first, n] : {std::pair<int64_t, int64_t>{4700, 300}, {0, 700}}) {
    SCOPED_TRACE(fmt::format("{} rows from position {}", n, first));
    Prompt prompt(DType::kF8E4M3, 128, first, n, true);
    std::vector<float> expanded, absorbed;
    ASSERT_TRUE(prompt.through(ops(), expanded));
    ASSERT_TRUE(prompt.through(ops(), absorbed, true));
    EXPECT_LT(worst_row(inner(expanded, 128 * kValue), inner(absorbed, 128 * kValue)), 0.03);
  }
}

TEST_F(MlaPrefillTest, IsDeclined) {
  std::vector<float> out;
  Prompt longer(DType::kF8E4M3, 16, 0, 300, true), shorter(DType::kF8E4M3, 16, 4000, 100, true);
  EXPECT_TRUE(longer.through(ops(), out));
  EXPECT_FALSE(shorter.through(ops(), out)) << "too few rows";
  EXPECT_FALSE(longer.through(*make_ops({.device = "cuda", .deterministic = true}), out));
  for (float v : out) ASSERT_TRUE(std::isnan(v)) << "nothing was to be done";
  EXPECT_FALSE(longer.through(*make_ops({.device = "cuda", .precise = true}), out));
  EXPECT_FALSE(longer.through(*make_ops({.device = "cuda", .portable = true}), out));
  EXPECT_EQ(make_ops({.device = "cpu"})->expanded_mla(), nullptr);
}

// ------------------------------------------------------------------------------------------------ in a model

// Sequences of a step: seq takes tokens [begin, end) of its text.
struct Part {
  int seq, begin, end;
};

// Two dense layers. One prompt is served in two long chunks, and again in chunks that are too short for the expanded
// form; two others decode in the same steps. The fast mode's logits are off by a share of a row's spread,
// about 0.01 with bf16 weights and up to 0.06 with FP8 ones (tests/golden/cuda_test.cpp): two ways may differ by 1.5
// times that.
void expect_model_agrees(Ops& ops, const std::string& shape, double most) {
  constexpr int kLong = 900, kPages = 16;
  Config config = shape_config(shape);
  for (LayerConfig& layer : config.layers) layer.feed_forward = FeedForwardKind::kDense;  // no choice of experts
  const Checkpoint checkpoint = synthetic_checkpoint(config, shape);
  auto comm = std::move(make_local_communicators(1)[0]);
  const auto weights = load_weights(config, checkpoint, ops);
  std::vector<std::vector<int32_t>> text(3);
  Random random(5);
  for (auto& t : text)
    for (int i = 0; i < kLong; ++i) t.push_back(int32_t(random.below(config.vocab_size)));
  using Steps = std::vector<std::vector<Part>>;
  // Logits of the last row of each part.
  auto serve = [&](const Steps& steps) {
    KvCache cache(config, weights->dims, ops, 3 * kPages, DType::kBF16);
    Model model(config, weights, ops, *comm, {}, cache, {1024, 4, 8, kLong});
    std::vector<std::vector<float>> rows;
    for (const auto& step : steps) {
      Batch batch;
      batch.max_pages = kPages;
      for (const Part& part : step) {
        for (int p = 0; p < kPages; ++p) batch.page_table.push_back((p * 7 % kPages) * 3 + part.seq);
        for (int i = part.begin; i < part.end; ++i) {
          batch.token_ids.push_back(text[size_t(part.seq)][size_t(i)]);
          batch.positions.push_back(i);
          batch.seq_idx.push_back(int32_t(&part - step.data()));
        }
        batch.logits_rows.push_back(batch.num_tokens() - 1);
      }
      for (auto& row : host_rows(ops, model.forward(batch))) rows.push_back(std::move(row));
    }
    return rows;
  };
  const Steps begin = {{{0, 0, 70}, {1, 0, 40}}};
  Steps expanded = begin, absorbed = begin;
  expanded.push_back({{0, 70, 71}, {2, 0, 600}, {1, 40, 41}});
  expanded.push_back({{2, 600, 899}, {0, 71, 72}, {1, 41, 42}});
  expanded.push_back({{0, 72, 73}, {1, 42, 43}, {2, 899, 900}});
  for (int i = 0; i < 899; i += 100) absorbed.push_back({{2, i, std::min(i + 100, 899)}});
  absorbed.push_back({{0, 70, 71}, {1, 40, 41}});
  absorbed.push_back({{0, 71, 72}, {1, 41, 42}});
  absorbed.push_back({{0, 72, 73}, {1, 42, 43}, {2, 899, 900}});
  const auto got = serve(expanded), expected = serve(absorbed);
  // Rows of `got` and of `expected` that are of the same token.
  const std::vector<std::pair<int, int>> pairs = {{2, 11}, {3, 7},  {4, 12}, {5, 10}, {6, 13},
                                                  {7, 14}, {8, 15}, {9, 16}, {10, 17}};
  double sum = 0;
  for (auto [a, b] : pairs) {
    const auto &x = got[size_t(a)], &y = expected[size_t(b)];
    const double mean = std::accumulate(y.begin(), y.end(), 0.0) / double(y.size());
    double difference = 0, spread = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      difference += std::pow(double(x[i]) - double(y[i]), 2);
      spread += std::pow(double(y[i]) - mean, 2);
    }
    const double share = std::sqrt(difference / spread);
    EXPECT_LE(share, 2 * most) << "row " << a;
    sum += share;
    std::printf("%s, row %d: %.4f of its spread\n", shape.c_str(), a, share);
  }
  EXPECT_LE(sum / double(pairs.size()), most);
}

TEST_F(MlaPrefillTest, AModelAgreesWithItself) {
  expect_model_agrees(ops(), "ds-v2-lite:layers=2", 1.5 * 0.01);
  expect_model_agrees(ops(), "deepseek-r1:layers=2", 1.5 * 0.06);
}

}  // namespace
}  // namespace moectl::test
