// The expert all-to-all between ranks on GPUs: what ranks store into each other's memory is what they would have read
// there (naive), bit for bit, in every dtype; and a protocol test with random delays in which every consumed slot is
// overwritten, so that a slot read too early or too late gives a wrong result.
#include <cstdlib>
#include <latch>

#include "core/comm/expert_dispatch.h"
#include "core/parallel/expert_placement.h"
#include "kernels/expert_all_to_all.h"
#include "tests/kernels_cuda/gpu_ranks.h"

namespace moectl::test {
namespace {

using ExpertAllToAllTest = RanksOnGpus;

constexpr int kMaxTokens = 40;

struct Case {
  int num_ranks, num_experts, top_k;
  int64_t hidden;
  DType dtype, results;
  All2AllBackend backend;
  bool deterministic, scaled;
  int64_t bound = 0;  // ExpertDispatchConfig::max_received_rows
};

// Host memory of any of the two dtypes of results.
std::vector<std::byte> as_results(const std::vector<float>& x, DType dtype) {
  std::vector<std::byte> bytes(x.size() * size_t(dtype_bytes(dtype)));
  for (size_t i = 0; i < x.size(); ++i) {
    const uint32_t word = std::bit_cast<uint32_t>(x[i]);
    const uint16_t half = uint16_t(word >> 16);
    if (dtype == DType::kBF16)
      std::memcpy(&bytes[2 * i], &half, 2);
    else
      std::memcpy(&bytes[4 * i], &word, 4);
  }
  return bytes;
}

// One step of one layer through a form of dispatch: what the experts were given, and what came out.
struct Outcome {
  std::vector<std::vector<std::byte>> x;      // per round
  std::vector<std::vector<int32_t>> offsets;  // likewise
  std::vector<float> out, magnitude;          // [tokens, hidden]; sums of absolute values
};

class OneRank {
 public:
  OneRank(Ops& ops, Communicator& comm, const Case& c)
      : ops_(ops), comm_(comm), c_(c), random_(uint64_t(comm.rank()) + 1) {
    Device& d = ops_.device();
    const int64_t choices = int64_t{kMaxTokens} * c.top_k;
    scratch_ = d.alloc(ops.scratch_bytes({.num_experts = c.num_experts}));
    ops.set_scratch(scratch_, {.num_experts = c.num_experts});
    x_ = d.alloc(Operand::num_bytes(c.dtype, kMaxTokens, c.hidden));
    idx_ = d.alloc(choices * 4);
    weight_ = d.alloc(choices * 4);
    shared_ = d.alloc(kMaxTokens * c.hidden * 4);
    out_ = d.alloc(kMaxTokens * c.hidden * 4);
    host_ = d.alloc_host(kHostBytes);  // before any peer waits on its device: allocation waits for that device
  }

  void fill(int64_t n) {
    Device& d = ops_.device();
    num_tokens_ = n;
    const Operand x(x_.get(), c_.dtype, {n, c_.hidden});
    std::vector<uint8_t> bytes(size_t(x.num_bytes()));
    for (uint8_t& b : bytes) b = uint8_t(random_.below(256));
    std::vector<int32_t> idx, experts(size_t(c_.num_experts));
    for (int32_t e = 0; e < c_.num_experts; ++e) experts[size_t(e)] = e;
    for (int64_t t = 0; t < n; ++t) {
      random_.shuffle(experts);
      idx.insert(idx.end(), experts.begin(), experts.begin() + c_.top_k);
      if (t % 7 == 6) idx.back() = -1;
    }
    weight_host_ = random_.floats(n * c_.top_k);
    shared_host_ = random_.floats(n * c_.hidden);
    if (n == 0) return;
    d.upload(x_.get(), bytes.data(), int64_t(bytes.size()));
    d.upload(idx_.get(), idx.data(), int64_t(idx.size()) * 4);
    d.upload(weight_.get(), weight_host_.data(), int64_t(weight_host_.size()) * 4);
    d.upload(shared_.get(), shared_host_.data(), int64_t(shared_host_.size()) * 4);
  }

  Outcome run(ExpertDispatch& dispatch) {
    Device& d = ops_.device();
    const int64_t n = num_tokens_;
    const auto f32 = [&](const Buffer& b, int64_t cols) {
      return View<float>(reinterpret_cast<float*>(b.get()), {n, cols});
    };
    Outcome outcome;
    dispatch.begin_step(n);
    const ExpertDispatch::Tokens tokens = {
        .x = Operand(x_.get(), c_.dtype, {n, c_.hidden}),
        .expert_idx = View<const int32_t>(reinterpret_cast<const int32_t*>(idx_.get()), {n, c_.top_k}),
        .expert_weight = f32(weight_, c_.top_k),
        .scale_rows = c_.scaled,
        .results = c_.results,
        .layer = 3};
    MoeCombineArgs combine = {.shared = f32(shared_, c_.hidden), .out = f32(out_, c_.hidden)};
    if (!c_.scaled) combine.expert_weight = f32(weight_, c_.top_k);
    for (int round = 0; round < dispatch.num_rounds(); ++round) {
      const ExpertDispatch::Received rows = dispatch.dispatch(tokens, round);
      compute(rows, outcome);
      dispatch.combine(combine, round);
    }
    outcome.out = download<float>(out_.get(), n * c_.hidden);
    comm_.check();
    comm_.all_gather_host(0);
    d.synchronize(d.stream());
    return outcome;
  }
  // An upper bound of the sum of the absolute values that make up an element of the result.
  float magnitude(int64_t token) const {
    float sum = 1.0f;
    for (int j = 0; j < c_.top_k; ++j) sum += std::abs(weight_host_[size_t(token * c_.top_k + j)]);
    return 2 * sum;
  }

 private:
  static constexpr int64_t kHostBytes = 16 << 20;

  template <class T>
  std::vector<T> download(const void* from, int64_t n) {
    Device& d = ops_.device();
    CHECK(n * int64_t(sizeof(T)) <= kHostBytes, "{} elements in {} bytes", n, kHostBytes);
    d.copy(host_.get(), from, n * int64_t(sizeof(T)), d.stream());
    d.synchronize(d.stream());
    const T* p = reinterpret_cast<const T*>(host_.get());
    return {p, p + n};
  }

  // The experts of this test: numbers that depend on the row's bytes, its scale and its place among the rows.
  void compute(const ExpertDispatch::Received& rows, Outcome& outcome) {
    const auto offsets = download<int32_t>(rows.expert_offsets.data, rows.expert_offsets.dim(0));
    const int64_t max_rows = rows.x.dim(0), num_rows = offsets.back();
    auto x = download<std::byte>(rows.x.data, rows.x.num_bytes());
    const auto scale = rows.scale ? download<float>(rows.scale.data, num_rows) : std::vector<float>();
    std::vector<float> out;
    std::vector<std::byte> given;
    for (int64_t row = 0; row < num_rows; ++row) {
      uint64_t hash = 1469598103934665603ull;
      const auto add = [&](const std::byte* p, int64_t n) {
        for (int64_t i = 0; i < n; ++i) hash = (hash ^ uint64_t(p[i])) * 1099511628211ull;
        given.insert(given.end(), p, p + n);
      };
      if (c_.dtype == DType::kF8E4M3) {
        const Operand o(x.data(), c_.dtype, {max_rows, c_.hidden});
        for (int64_t kb = 0; kb < c_.hidden / kFp8Block; ++kb) {
          add(x.data() + (kb * max_rows + row) * kFp8Block, kFp8Block);
          add(reinterpret_cast<const std::byte*>(o.scales + kb * Operand::scale_stride(max_rows) + row), 4);
        }
      } else {
        add(x.data() + row * c_.hidden * dtype_bytes(c_.dtype), c_.hidden * dtype_bytes(c_.dtype));
      }
      Random values(hash);
      for (float v : values.floats(c_.hidden)) out.push_back(scale.empty() ? v : v * scale[size_t(row)]);
    }
    outcome.offsets.push_back(offsets);
    outcome.x.push_back(std::move(given));
    const auto bytes = as_results(out, c_.results);
    if (!bytes.empty()) ops_.device().upload(rows.out.data, bytes.data(), int64_t(bytes.size()));
  }

  Ops& ops_;
  Communicator& comm_;
  const Case c_;
  Random random_;
  Buffer x_, idx_, weight_, shared_, out_, scratch_, host_;
  std::vector<float> weight_host_, shared_host_;
  int64_t num_tokens_ = 0;
};

void expect_as_naive(const Case& c, std::vector<RanksOnGpus::Rank>& group) {
  SCOPED_TRACE(
      fmt::format("{} ranks, {} experts, top-{}, rows of {} {}, results {}, backend {}, deterministic {}, "
                  "scaled {}, bound {}",
                  c.num_ranks, c.num_experts, c.top_k, c.hidden, dtype_name(c.dtype), dtype_name(c.results),
                  int(c.backend), c.deterministic, c.scaled, c.bound));
  const ExpertPlacement placement = make_placement(c.num_experts, c.num_ranks);
  ExpertDispatchConfig config = {.top_k = c.top_k,
                                 .hidden_size = int(c.hidden),
                                 .backend = c.backend,
                                 .deterministic = c.deterministic,
                                 .max_tokens = kMaxTokens,
                                 .max_received_rows = c.bound};
  RanksOnGpus::on_all(group, [&](RanksOnGpus::Rank& rank) {
    OneRank one(*rank.ops, *rank.comm, c);
    const auto stores = make_expert_dispatch(*rank.comm, *rank.ops, placement, config);
    ExpertDispatchConfig oracle = config;
    oracle.backend = All2AllBackend::kNaive;
    const auto naive = make_expert_dispatch(*rank.comm, *rank.ops, placement, oracle);
    for (int step = 0; step < 4; ++step) {
      const int64_t n = std::vector<int64_t>{kMaxTokens, 0, 3, 17}[size_t(rank.comm->rank() + step) % 4];
      one.fill(n);
      const Outcome a = one.run(*stores), b = one.run(*naive);
      ASSERT_EQ(a.offsets, b.offsets) << "step " << step;
      ASSERT_EQ(a.x, b.x) << "step " << step;
      if (c.deterministic) {
        ASSERT_TRUE(same_bits(a.out, b.out)) << "step " << step;
        continue;
      }
      // Each rank's sum is rounded once to the dtype of the results.
      const float u = c.results == DType::kBF16 ? 0x1p-9f : 0x1p-24f;
      for (int64_t i = 0; i < int64_t(a.out.size()); ++i)
        ASSERT_LE(std::abs(a.out[size_t(i)] - b.out[size_t(i)]),
                  (u + 0x1p-22f * float(c.top_k)) * one.magnitude(i / c.hidden))
            << "step " << step << ", element " << i;
    }
  });
}

TEST_F(ExpertAllToAllTest, GivesWhatReadingInPlaceGives) {
  for (const int num_ranks : {2, 3, 4}) {
    std::vector<Rank> group = ranks(num_ranks);
    for (const All2AllBackend backend : {All2AllBackend::kLowLatency, All2AllBackend::kHighThroughput})
      for (const bool deterministic : {true, false}) {
        expect_as_naive({num_ranks, 16, 5, 256, DType::kF8E4M3, DType::kBF16, backend, deterministic, false}, group);
        expect_as_naive({num_ranks, 16, 5, 7168, DType::kF8E4M3, DType::kBF16, backend, deterministic, false, 90},
                        group);
        expect_as_naive({num_ranks, 7, 3, 2048, DType::kBF16, DType::kBF16, backend, deterministic, false}, group);
        expect_as_naive({num_ranks, 8, 1, 100, DType::kF32, DType::kF32, backend, deterministic, true}, group);
        expect_as_naive({num_ranks, 3, 3, 11, DType::kF32, DType::kF32, backend, deterministic, false, 20}, group);
        expect_as_naive({num_ranks, 64, 8, 37, DType::kBF16, DType::kBF16, backend, deterministic, false}, group);
      }
  }
}

// ------------------------------------------------------------------------------------------------ protocol

// All-to-alls without the host in the loop. The experts copy their rows, and weights are -1/2 and -1/2: each all-to-all
// turns the sign of every token, and what comes out goes in again. A slot of another all-to-all has another sign or, as
// it is overwritten when it is consumed, is NaN; choices alternate between two routings. All of it stays to the end.
class ProtocolRank {
 public:
  static constexpr int64_t kTokens = 12, kHidden = 256, kTopK = 2, kExperts = 8;

  ProtocolRank(Ops& ops, Communicator& comm, bool reduced, bool low_latency, uint32_t seed)
      : ops_(ops),
        comm_(comm),
        reduced_(reduced),
        low_latency_(low_latency),
        seed_(seed),
        placement_(make_placement(int(kExperts), comm.size())),
        tables_(upload_placement(placement_, comm.rank(), ops.device())) {
    Device& d = ops.device();
    const int64_t n = comm.size();
    const auto shared = [&](int64_t num_bytes) {
      buffers_.push_back(d.alloc(num_bytes));
      return comm.register_buffer(buffers_.back().get(), num_bytes);
    };
    const auto own = [&](int64_t num_bytes) {
      buffers_.push_back(d.alloc(num_bytes));
      return buffers_.back().get();
    };
    scratch_ = d.alloc(ops.scratch_bytes({.num_experts = kExperts}));
    ops.set_scratch(scratch_, {.num_experts = kExperts});
    x_in_ = shared(n * kRowsBytes);
    idx_in_ = shared(n * kTokens * kTopK * 4);
    weight_in_ = shared(n * kTokens * kTopK * 4);
    slots_ = shared(n * kTopK * kRowsBytes);
    for (std::byte* p : shared(AllToAllSignals::kNumKinds * n * 4)) flags_.push_back(reinterpret_cast<uint32_t*>(p));
    state_ = own(8);
    x_ = own(kRowsBytes);
    received_ = own(n * kTopK * kRowsBytes);
    results_ = own(n * kTopK * kRowsBytes);
    offsets_ = own((kExperts + 1) * 4);
    row_of_ = own(n * kTokens * kTopK * 4);
    rows_ = own(kTokens * std::max<int64_t>(kTopK, n) * 8);
    poison_ = own(n * kTopK * kRowsBytes);
    const std::vector<uint8_t> ff(size_t(n * kTopK * kRowsBytes), 0xff);
    d.upload(poison_, ff.data(), int64_t(ff.size()));
    Random random(uint64_t(comm.rank()) + 77);
    for (int routing = 0; routing < 2; ++routing) {
      std::vector<int32_t> idx;
      for (int64_t t = 0; t < kTokens; ++t) {
        const int64_t first = random.below(kExperts);
        idx.push_back(int32_t(first));
        idx.push_back(int32_t((first + 1 + random.below(kExperts - 1)) % kExperts));
      }
      idx_[routing] = own(kTokens * kTopK * 4);
      d.upload(idx_[routing], idx.data(), int64_t(idx.size()) * 4);
    }
    const std::vector<float> halves(size_t(kTokens * kTopK), -0.5f);
    weight_ = own(kTokens * kTopK * 4);
    d.upload(weight_, halves.data(), int64_t(halves.size()) * 4);
    initial_ = random.floats(kTokens * kHidden);
    d.upload(x_, initial_.data(), kRowsBytes);
    d.synchronize(d.stream());
  }

  void all_to_all(int index) {
    Device& d = ops_.device();
    const int n = comm_.size(), me = comm_.rank();
    const int64_t choices = kTokens * kTopK;
    const AllToAllSignals signals = {.flags = flags_,
                                     .state = reinterpret_cast<uint32_t*>(state_),
                                     .wait = comm_.peer_wait(),
                                     .layer = index,
                                     .delay_seed = seed_};
    std::vector<MoeSource> sources;
    std::vector<DispatchInbox> inboxes;
    std::vector<CombineSource> results;
    std::vector<const void*> slots;
    for (int r = 0; r < n; ++r) {
      const auto i32 = [&](std::byte* p, int64_t at) { return reinterpret_cast<int32_t*>(p) + at * choices; };
      const auto f32 = [&](std::byte* p, int64_t at) { return reinterpret_cast<float*>(p) + at * choices; };
      MoeSource s = {.row_of = View<int32_t>(i32(row_of_, r), {choices})};
      s.packed = r != me;
      s.x = Operand(r == me ? x_ : x_in_[size_t(me)] + r * kRowsBytes, DType::kF32, {kTokens, kHidden});
      s.expert_idx = {r == me ? i32(idx_[index % 2], 0) : i32(idx_in_[size_t(me)], r), {kTokens, kTopK}};
      s.expert_weight = {r == me ? f32(weight_, 0) : f32(weight_in_[size_t(me)], r), {kTokens, kTopK}};
      inboxes.push_back(r == me ? DispatchInbox{}
                                : DispatchInbox{x_in_[size_t(r)] + me * kRowsBytes, i32(idx_in_[size_t(r)], me),
                                                f32(weight_in_[size_t(r)], me)});
      results.push_back({.row_of = {s.row_of.data, {kTokens, kTopK}},
                         .expert_weight = s.expert_weight,
                         .slots = slots_[size_t(r)] + (reduced_ ? me * kRowsBytes : 0)});
      slots.push_back(slots_[size_t(me)] + (reduced_ ? r * kRowsBytes : 0));
      sources.push_back(s);
    }
    const int64_t max_rows = n * kTokens * kTopK;
    const Operand received(received_, DType::kF32, {max_rows, kHidden}),
        out(results_, DType::kF32, {max_rows, kHidden});
    ops_.expert_all_to_all()->dispatch(
        {.signals = signals,
         .inboxes = inboxes,
         .permute = {.sources = sources,
                     .placement = tables_.view,
                     .rank = me,
                     .expert_offsets =
                         View<int32_t>(reinterpret_cast<int32_t*>(offsets_), {placement_.num_local() + 1}),
                     .x = received},
         .low_latency = low_latency_},
        d.stream());
    d.copy(x_in_[size_t(me)], poison_, n * kRowsBytes, d.stream());
    d.copy(results_, received_, n * kTopK * kRowsBytes, d.stream());
    const View<const void*> rows(reinterpret_cast<const void**>(rows_), {kTokens, reduced_ ? n : kTopK});
    ops_.expert_all_to_all()->combine({.signals = signals,
                                       .placement = tables_.view,
                                       .rank = me,
                                       .expert_idx = sources[size_t(me)].expert_idx,
                                       .rows = out,
                                       .results = results,
                                       .reduced = reduced_,
                                       .slots = slots,
                                       .expert_rows = rows},
                                      d.stream());
    MoeCombineArgs combine = {.expert_rows = {rows.data, {rows.dim(0), rows.dim(1)}},
                              .out = View<float>(reinterpret_cast<float*>(x_), {kTokens, kHidden})};
    if (!reduced_) combine.expert_weight = {reinterpret_cast<float*>(weight_), {kTokens, kTopK}};
    ops_.moe_combine(combine, d.stream());
    d.copy(slots_[size_t(me)], poison_, n * (reduced_ ? 1 : kTopK) * kRowsBytes, d.stream());
  }

  std::vector<float> tokens() {
    Device& d = ops_.device();
    const Buffer host = d.alloc_host(kRowsBytes);
    d.copy(host.get(), x_, kRowsBytes, d.stream());
    d.synchronize(d.stream());
    comm_.check();
    const float* p = reinterpret_cast<const float*>(host.get());
    return {p, p + kTokens * kHidden};
  }
  const std::vector<float>& initial() const { return initial_; }

 private:
  static constexpr int64_t kRowsBytes = kTokens * kHidden * 4;

  Ops& ops_;
  Communicator& comm_;
  const bool reduced_, low_latency_;
  const uint32_t seed_;
  const ExpertPlacement placement_;
  const PlacementTables tables_;
  std::vector<Buffer> buffers_;
  Buffer scratch_;
  std::vector<std::byte*> x_in_, idx_in_, weight_in_, slots_;  // by rank
  std::vector<uint32_t*> flags_;
  std::byte *state_, *x_, *received_, *results_, *offsets_, *row_of_, *rows_, *poison_, *idx_[2], *weight_;
  std::vector<float> initial_;
};

TEST_F(ExpertAllToAllTest, NoSlotIsReadOrWrittenOutOfTurn) {
  constexpr int kPerGraph = 50;
  const char* given = std::getenv("MOECTL_ALL_TO_ALL_ROUNDS");
  const int num_rounds = given ? std::atoi(given) : 20'000;
  for (const int size : {2, 3})
    for (const bool reduced : {false, true})
      for (const bool low_latency : {true, false}) {
        SCOPED_TRACE(fmt::format("{} ranks, reduced {}, low latency {}", size, reduced, low_latency));
        std::vector<Rank> group = ranks(size);
        const int replays = std::max(1, num_rounds / kPerGraph / (size == 2 ? 1 : 4));
        on_all(group, [&](Rank& rank) {
          ProtocolRank one(*rank.ops, *rank.comm, reduced, low_latency, 12345);
          rank.comm->all_gather_host(0);
          const Graph graph = rank.device().graphs()->capture([&] {
            for (int i = 0; i < kPerGraph; ++i) one.all_to_all(i);
          });
          rank.comm->all_gather_host(0);
          for (int i = 0; i < replays; ++i) rank.device().graphs()->replay(graph, rank.stream());
          EXPECT_TRUE(same_bits(one.tokens(), one.initial()));
          rank.comm->all_gather_host(0);
        });
      }
}

TEST_F(ExpertAllToAllTest, APeerThatStopsInsideDispatchIsNamed) {
  std::vector<Rank> group = ranks(2);
  std::latch waited(1);
  on_all(group, [&](Rank& rank) {
    ProtocolRank one(*rank.ops, *rank.comm, true, true, 0);
    one.all_to_all(7);
    rank.device().synchronize(rank.stream());
    rank.comm->check();
    rank.comm->all_gather_host(0);
    if (rank.comm->rank() == 0) {
      one.all_to_all(8);
      rank.device().synchronize(rank.stream());
      try {
        rank.comm->check();
        FAIL() << "a dispatch without a peer";
      } catch (const Error& e) {
        EXPECT_NE(std::string(e.what()).find("rank 0 waited 15 s for rank 1 in dispatch of layer 8"), std::string::npos)
            << e.what();
      }
      waited.count_down();
    } else {
      waited.wait();
    }
  });
}

}  // namespace
}  // namespace moectl::test
