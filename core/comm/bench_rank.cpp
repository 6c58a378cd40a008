#include "core/comm/bench_rank.h"

#include <algorithm>
#include <cstring>
#include <random>

#include "core/base/check.h"

namespace moectl {
namespace {

constexpr int kPatternSize = 65521;  // a prime: no two rows are equal

// f32, then bf16.
struct Pattern {
  float f32[kPatternSize];
  uint16_t bf16[kPatternSize];
};

const char* form_name(bool deterministic) {
  return deterministic ? "deterministic" : "fast";
}

ScratchShape scratch_shape(const CommBenchSetup& setup) {
  return {.max_tokens = setup.max_tokens(), .num_experts = setup.options.num_experts};
}

}  // namespace

BenchRank::BenchRank(std::shared_ptr<const CommBenchSetup> setup, Ops& ops, const std::vector<CommBenchGroup>& groups,
                     int rank)
    : setup_(std::move(setup)),
      ops_(ops),
      groups_(groups),
      rank_(rank),
      link_(make_link_bench(ops.device())),
      timer_(ops.device(), comm(groups.front()), *link_,
             {.iterations = setup_->options.iterations, .seconds = kMeasureSeconds, .pause = setup_->options.pause}) {
  Device& device = ops_.device();
  const CommBenchOptions& o = setup_->options;
  const int64_t n = setup_->max_tokens(), values = n * o.hidden_size, choices = n * o.top_k;
  x_ = device.alloc(values * int64_t(sizeof(float)));
  out_ = device.alloc(values * int64_t(sizeof(float)));
  if (setup_->dtype != DType::kF32) operand_ = device.alloc(Operand::num_bytes(setup_->dtype, n, o.hidden_size));
  expert_idx_ = device.alloc(choices * int64_t(sizeof(int32_t)));
  expert_weight_ = device.alloc(choices * int64_t(sizeof(float)));
  gathered_ = device.alloc(o.ep_size * n * setup_->token_bytes());
  if (groups.front().collectives != Collectives::kNccl)
    link_measurement_.emplace(device, comm(groups.front()), *link_, timer_, setup_->ordinals, setup_->on_gpu);
  pattern_ = device.alloc_host(sizeof(Pattern));
  host_out_ = device.alloc_host(values * int64_t(sizeof(float)));
  const ScratchShape scratch = scratch_shape(*setup_);
  ops_.set_scratch(device.alloc(ops_.scratch_bytes(scratch)), scratch);
  make_tokens();
}

int64_t BenchRank::num_bytes(const CommBenchSetup& setup, const Ops& ops) {
  const CommBenchOptions& o = setup.options;
  const int64_t n = setup.max_tokens();
  int64_t dispatch = 0, slots = 0;
  for (const Collectives c : setup.collectives)
    for (const bool deterministic : {true, false})
      dispatch = std::max(dispatch, ExpertDispatch::num_bytes(setup.placement, setup.dispatch_config(c, deterministic),
                                                              ops.capabilities()));
  if (setup.measures(Collectives::kP2p))
    for (const DType wire : {DType::kF32, DType::kBF16})
      slots += p2p_slots_bytes(o.ep_size, {.one_shot_bytes = kOneShotBytes, .wire = wire});
  return 2 * n * o.hidden_size * int64_t(sizeof(float)) + Operand::num_bytes(setup.dtype, n, o.hidden_size) +
         2 * n * o.top_k * int64_t(sizeof(float)) + o.ep_size * n * setup.token_bytes() +
         LinkMeasurement::device_bytes(setup.on_gpu) + StreamTimer::num_bytes() +
         ops.scratch_bytes(scratch_shape(setup)) + slots + dispatch;
}

// Values, choices and weights differ from rank to rank, and are the same in every run. Choices are uniform: top_k
// different experts per token.
void BenchRank::make_tokens() {
  const CommBenchOptions& o = setup_->options;
  std::mt19937_64 rng(uint64_t(rank_) + 1);
  const auto uniform = [&] { return float(rng() >> 40) * 0x1p-24f; };
  auto& pattern = *reinterpret_cast<Pattern*>(pattern_.get());
  for (int i = 0; i < kPatternSize; ++i) {
    pattern.f32[i] = 2 * uniform() - 1;
    uint32_t bits = 0;
    std::memcpy(&bits, &pattern.f32[i], sizeof bits);
    pattern.bf16[i] = uint16_t(bits >> 16);
  }
  std::vector<int32_t> experts(static_cast<size_t>(o.num_experts));
  for (int32_t e = 0; e < o.num_experts; ++e) experts[size_t(e)] = e;
  std::vector<float> weights;
  for (int64_t t = 0; t < setup_->max_tokens(); ++t) {
    float sum = 0;
    for (int j = 0; j < o.top_k; ++j) {
      std::swap(experts[size_t(j)], experts[size_t(j) + rng() % (experts.size() - size_t(j))]);
      choices_.push_back(experts[size_t(j)]);
      weights.push_back(uniform() + 0.01f);
      sum += weights.back();
    }
    for (size_t i = weights.size() - size_t(o.top_k); i < weights.size(); ++i) weights[i] /= sum;
  }
  Device& device = ops_.device();
  device.upload(expert_idx_.get(), choices_.data(), int64_t(choices_.size() * sizeof(int32_t)));
  device.upload(expert_weight_.get(), weights.data(), int64_t(weights.size() * sizeof(float)));
  fill(x_.get(), DType::kF32, setup_->max_tokens() * o.hidden_size * int64_t(sizeof(float)));
  if (link_measurement_) fill(link_measurement_->data(), DType::kF32, link_measurement_->num_bytes());
  device.synchronize(stream());
}

// In doubling steps from the host's copy.
void BenchRank::fill(void* to, DType dtype, int64_t num_bytes) {
  const auto& pattern = *reinterpret_cast<const Pattern*>(pattern_.get());
  const bool narrow = dtype == DType::kBF16;
  auto* begin = static_cast<std::byte*>(to);
  int64_t done = std::min<int64_t>(num_bytes, narrow ? sizeof pattern.bf16 : sizeof pattern.f32);
  const void* host = narrow ? static_cast<const void*>(pattern.bf16) : pattern.f32;
  ops_.device().copy(begin, host, done, stream());
  while (done < num_bytes) {
    const int64_t next = std::min(done, num_bytes - done);
    ops_.device().copy(begin + done, begin, next, stream());
    done += next;
  }
}

void BenchRank::run() {
  for (const CommBenchGroup& group : groups_) {
    comm(group).register_buffer(gathered_.get(),
                                setup_->options.ep_size * setup_->max_tokens() * setup_->token_bytes());
    comm(group).register_buffer(out_.get(),
                                setup_->max_tokens() * setup_->options.hidden_size * int64_t(sizeof(float)));
  }
  if (link_measurement_) {
    link_measurement_->run();
    report_progress();
  }
  add({.operation = "stamps"}, timer_.measure(1, 1, [&] { timer_.timed([] {}); }).front());
  for (const CommBenchGroup& group : groups_) {
    if (group.wire == DType::kF32) {
      measure_barrier(group);
      for (const int n : setup_->options.tokens) measure_all_gather(group, n);
      for (const bool deterministic : {true, false}) measure_experts(group, deterministic);
    }
    for (const int n : setup_->options.tokens)
      if (has_all_reduce(group, n)) measure_all_reduce(group, n);
  }
}

void BenchRank::abort(const std::string& reason) {
  for (const CommBenchGroup& group : groups_) comm(group).abort(reason);
}

void BenchRank::drain() {
  try {
    ops_.device().synchronize(stream());
  } catch (const Error&) {
    // run() has thrown the cause.
  }
}

// ------------------------------------------------------------------------------------------------ operations

// Untimed, without the timer's barrier: setup in a first call must not run while the stream waits for a peer.
void BenchRank::run_once(Communicator& comm, const std::function<void()>& operation) {
  operation();
  timer_.wait_for_all();
  comm.check();
}

// One timed operation per repetition; `before` runs ahead of it, untimed.
RankTimes BenchRank::measure(Communicator& comm, const std::function<void()>& operation,
                             const std::function<void()>& before) {
  const RankTimes times = timer_
                              .measure(1, 1,
                                       [&] {
                                         if (before) before();
                                         timer_.timed(operation);
                                       })
                              .front();
  comm.check();
  return times;
}

void BenchRank::measure_barrier(const CommBenchGroup& group) {
  const auto barrier = [&] { comm(group).barrier(stream()); };
  run_once(comm(group), barrier);
  add({.operation = "barrier", .collectives = group.collectives}, measure(comm(group), barrier));
}

void BenchRank::measure_all_gather(const CommBenchGroup& group, int64_t num_tokens) {
  const int64_t bytes = num_tokens * setup_->token_bytes();
  const std::byte* mine = gathered_.get() + rank_ * bytes;
  const auto gather = [&] { comm(group).all_gather(mine, gathered_.get(), bytes, stream()); };
  run_once(comm(group), gather);
  add({.operation = "all_gather", .collectives = group.collectives, .tokens = num_tokens},
      measure(comm(group), gather));
}

bool BenchRank::has_all_reduce(const CommBenchGroup& group, int64_t num_tokens) const {
  const LocalGroupOptions options = {.one_shot_bytes = kOneShotBytes};
  return group.wire == DType::kF32 || options.is_one_shot(num_tokens * setup_->options.hidden_size);
}

// In place, of values that were written just before, as in a layer.
void BenchRank::measure_all_reduce(const CommBenchGroup& group, int64_t num_tokens) {
  const View<float> data = rows<float>(out_, num_tokens, setup_->options.hidden_size);
  const auto write = [&] { ops_.device().copy(out_.get(), x_.get(), data.size() * int64_t(sizeof(float)), stream()); };
  const auto reduce = [&] { comm(group).all_reduce(data, stream()); };
  write();
  run_once(comm(group), reduce);
  const uint64_t hash = output_hash(num_tokens);
  CommResult what = {.operation = "all_reduce",
                     .form = group.wire == DType::kF32 ? "f32 wire" : "bf16 wire",
                     .collectives = group.collectives,
                     .tokens = num_tokens,
                     .output_hash = hash};
  const RankTimes times = measure(comm(group), reduce, write);
  check_output(what);
  add(what, times);
}

void BenchRank::measure_experts(const CommBenchGroup& group, bool deterministic) {
  const std::unique_ptr<ExpertDispatch> dispatch = make_expert_dispatch(
      comm(group), ops_, setup_->placement, setup_->dispatch_config(group.collectives, deterministic));
  for (const int n : setup_->options.tokens) measure_experts(group, *dispatch, deterministic, n);
  timer_.wait_for_all();  // no peer reaches what is freed now
}

// The experts' results are not computed: they are random numbers that stand there from the first repetition on.
void BenchRank::measure_experts(const CommBenchGroup& group, ExpertDispatch& dispatch, bool deterministic,
                                int64_t num_tokens) {
  const CommBenchOptions& o = setup_->options;
  dispatch.begin_step(num_tokens);
  const View<float> weight = rows<float>(expert_weight_, num_tokens, o.top_k);
  const ExpertDispatch::Tokens tokens = {.x = token_rows(num_tokens),
                                         .expert_idx = rows<const int32_t>(expert_idx_, num_tokens, o.top_k),
                                         .expert_weight = weight,
                                         .results = setup_->results_dtype,
                                         .layer = 0};
  const MoeCombineArgs combine = {.expert_weight = weight, .out = rows<float>(out_, num_tokens, o.hidden_size)};
  using Operation = std::function<void()>;
  const auto repeat = [&](const std::function<void(const Operation&)>& run, bool fill_results) {
    for (int round = 0; round < dispatch.num_rounds(); ++round) {
      ExpertDispatch::Received received;
      run([&] {
        if (round == 0 && operand_)
          ops_.quantize({.x = rows<const float>(x_, num_tokens, o.hidden_size), .out = tokens.x}, stream());
        received = dispatch.dispatch(tokens, round);
      });
      if (fill_results) fill(received.out.data, received.out.dtype, received.out.num_bytes());
      run([&] { dispatch.combine(combine, round); });
    }
  };
  run_once(comm(group), [&] { repeat([](const Operation& operation) { operation(); }, true); });
  CommResult what = {.form = form_name(deterministic),
                     .collectives = group.collectives,
                     .tokens = num_tokens,
                     .rounds = dispatch.num_rounds()};
  const uint64_t hash = output_hash(num_tokens);
  fill(out_.get(), DType::kF32, combine.out.size() * int64_t(sizeof(float)));  // what is measured writes it anew
  timer_.wait_for_all();
  const std::vector<RankTimes> times = timer_.measure(2, 2 * dispatch.num_rounds(), [&] {
    repeat([&](const Operation& operation) { timer_.timed(operation); }, false);
  });
  comm(group).check();
  what.operation = "dispatch";
  add(what, times[0]);
  what.operation = "combine";
  what.output_hash = hash;
  check_output(what);
  add(what, times[1]);
}

// The last iteration must leave the bits of the first one, except where NCCL chooses the order of summation.
void BenchRank::check_output(const CommResult& what) {
  if (what.collectives == Collectives::kNccl && what.form != form_name(true)) return;
  if (output_hash(what.tokens) != what.output_hash)
    throw Error(Code::kInternal, fmt::format("rank {}: {} {} of {} tokens gave other bits when it was repeated", rank_,
                                             what.form, what.operation, what.tokens));
}

Operand BenchRank::token_rows(int64_t num_tokens) const {
  return {operand_ ? operand_.get() : x_.get(), setup_->dtype, {num_tokens, setup_->options.hidden_size}};
}

// FNV-1a over 64-bit words: 32-bit values in pairs, the last one alone.
uint64_t BenchRank::output_hash(int64_t num_tokens) {
  const int64_t num_bytes = num_tokens * setup_->options.hidden_size * int64_t(sizeof(float));
  Device& device = ops_.device();
  device.copy(host_out_.get(), out_.get(), num_bytes, stream());
  device.synchronize(stream());
  uint64_t hash = 0xcbf29ce484222325ull;
  for (int64_t i = 0; i < num_bytes; i += int64_t(sizeof(uint64_t))) {
    uint64_t word = 0;
    std::memcpy(&word, host_out_.get() + i, size_t(std::min<int64_t>(sizeof word, num_bytes - i)));
    hash = (hash ^ word) * 0x100000001b3ull;
  }
  return hash;
}

// CommResult::num_bytes of this rank.
int64_t BenchRank::num_bytes(const CommResult& what) const {
  const CommBenchOptions& o = setup_->options;
  if (what.operation == "all_reduce") return what.tokens * o.hidden_size * int64_t(sizeof(float));
  if (what.operation == "all_gather") return (o.ep_size - 1) * what.tokens * setup_->token_bytes();
  const ExpertPlacement& p = setup_->placement;
  int64_t num_choices = 0, num_ranks = 0;  // elsewhere; pairs of a token and another rank
  for (int64_t t = 0; t < what.tokens; ++t) {
    std::vector<bool> is_sent(static_cast<size_t>(o.ep_size));
    for (int j = 0; j < o.top_k; ++j) {
      const auto expert = size_t(choices_[size_t(t * o.top_k + j)]);
      const int first = p.replica_begin[expert], num_replicas = p.replica_begin[expert + 1] - first;
      const int holder = p.rank[size_t(first + (rank_ + int(t)) % num_replicas)];  // PlacementView
      if (holder == rank_) continue;
      ++num_choices;
      if (!is_sent[size_t(holder)]) ++num_ranks;
      is_sent[size_t(holder)] = true;
    }
  }
  if (what.operation == "dispatch") return num_ranks * setup_->token_bytes();
  return (what.form == form_name(true) ? num_choices : num_ranks) * setup_->result_bytes();
}

void BenchRank::add(CommResult what, RankTimes times) {
  if (what.tokens > 0) what.num_bytes = num_bytes(what);
  results_.push_back({std::move(what), std::move(times)});
  if (results_.back().what.operation != "dispatch") report_progress();  // its combine follows
}

int BenchRank::num_measurements() const {
  const auto num_tokens = int(setup_->options.tokens.size());
  int num = (link_measurement_ ? 1 : 0) + 1;  // and stamps
  for (const CommBenchGroup& group : groups_) {
    if (group.wire == DType::kF32) num += 1 + 3 * num_tokens;  // barrier; all-gather, both forms of the experts
    for (const int n : setup_->options.tokens) num += has_all_reduce(group, n) ? 1 : 0;
  }
  return num;
}

void BenchRank::report_progress() {
  if (setup_->options.progress && rank_ == 0) setup_->options.progress(++num_done_, num_measurements());
}

}  // namespace moectl
