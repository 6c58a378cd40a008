#include "core/comm/bench_rank.h"

#include <algorithm>
#include <cstring>
#include <random>

#include "core/base/check.h"
#include "kernels/expert_all_to_all.h"

namespace moectl {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
// Far beyond caches; by one block of a GPU a sixteenth.
constexpr int64_t kLinkBytes = 256 * kMiB, kLinkBytesOnCpu = 32 * kMiB;
constexpr int kLinkRepetitions = 6;
constexpr int kRoundTrips = 1000, kRoundTripsOnCpu = 100;
constexpr int kOtherMeasurements = 3;  // link, stamps, barrier
constexpr int kPatternSize = 65521;    // a prime: no two rows are equal

int64_t link_bytes(const CommBenchSetup& setup) {
  return setup.on_gpu ? kLinkBytes : kLinkBytesOnCpu;
}

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

int64_t CommBenchSetup::max_tokens() const {
  return std::ranges::max(options.tokens);
}

int64_t CommBenchSetup::token_bytes() const {
  return packed_row_bytes(dtype, options.hidden_size);
}

int64_t CommBenchSetup::result_bytes() const {
  return int64_t{options.hidden_size} * dtype_bytes(results_dtype);
}

ExpertDispatchConfig CommBenchSetup::dispatch_config(bool deterministic) const {
  return {.top_k = options.top_k,
          .hidden_size = options.hidden_size,
          .backend = options.backend,
          .deterministic = deterministic,
          .max_tokens = int(max_tokens())};
}

BenchRank::BenchRank(std::shared_ptr<const CommBenchSetup> setup, std::unique_ptr<Ops> ops,
                     std::unique_ptr<Communicator> comm)
    : setup_(std::move(setup)),
      ops_(std::move(ops)),
      comm_(std::move(comm)),
      link_(make_link_bench(ops_->device())),
      timer_(ops_->device(), *comm_, *link_,
             {.iterations = setup_->options.iterations, .seconds = kMeasureSeconds, .pause = setup_->options.pause}) {
  Device& device = ops_->device();
  const CommBenchOptions& o = setup_->options;
  const int64_t n = setup_->max_tokens(), values = n * o.hidden_size, choices = n * o.top_k;
  x_ = device.alloc(values * int64_t(sizeof(float)));
  out_ = device.alloc(values * int64_t(sizeof(float)));
  if (setup_->dtype != DType::kF32) operand_ = device.alloc(Operand::num_bytes(setup_->dtype, n, o.hidden_size));
  expert_idx_ = device.alloc(choices * int64_t(sizeof(int32_t)));
  expert_weight_ = device.alloc(choices * int64_t(sizeof(float)));
  gathered_ = device.alloc(o.ep_size * n * setup_->token_bytes());
  link_send_ = device.alloc(link_bytes(*setup_));
  link_receive_ = device.alloc(link_bytes(*setup_));
  flag_ = device.alloc(sizeof(uint32_t));
  pattern_ = device.alloc_host(sizeof(Pattern));
  host_out_ = device.alloc_host(values * int64_t(sizeof(float)));
  const ScratchShape scratch = scratch_shape(*setup_);
  ops_->set_scratch(device.alloc(ops_->scratch_bytes(scratch)), scratch);
  make_tokens();
}

int64_t BenchRank::num_bytes(const CommBenchSetup& setup, const Ops& ops) {
  const CommBenchOptions& o = setup.options;
  const int64_t n = setup.max_tokens();
  int64_t dispatch = 0;
  for (const bool deterministic : {true, false})
    dispatch = std::max(
        dispatch, ExpertDispatch::num_bytes(setup.placement, setup.dispatch_config(deterministic), ops.capabilities()));
  return 2 * n * o.hidden_size * int64_t(sizeof(float)) + Operand::num_bytes(setup.dtype, n, o.hidden_size) +
         2 * n * o.top_k * int64_t(sizeof(float)) + o.ep_size * n * setup.token_bytes() + 2 * link_bytes(setup) +
         StreamTimer::num_bytes() + ops.scratch_bytes(scratch_shape(setup)) + dispatch;
}

// Values, choices and weights differ from rank to rank, and are the same in every run. Choices are uniform: top_k
// different experts per token.
void BenchRank::make_tokens() {
  const CommBenchOptions& o = setup_->options;
  std::mt19937_64 rng(uint64_t(comm_->rank()) + 1);
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
  Device& device = ops_->device();
  device.upload(expert_idx_.get(), choices_.data(), int64_t(choices_.size() * sizeof(int32_t)));
  device.upload(expert_weight_.get(), weights.data(), int64_t(weights.size() * sizeof(float)));
  fill(x_.get(), DType::kF32, setup_->max_tokens() * o.hidden_size * int64_t(sizeof(float)));
  fill(link_send_.get(), DType::kF32, link_bytes(*setup_));
  device.synchronize(stream());
}

// In doubling steps from the host's copy.
void BenchRank::fill(void* to, DType dtype, int64_t num_bytes) {
  const auto& pattern = *reinterpret_cast<const Pattern*>(pattern_.get());
  const bool narrow = dtype == DType::kBF16;
  auto* begin = static_cast<std::byte*>(to);
  int64_t done = std::min<int64_t>(num_bytes, narrow ? sizeof pattern.bf16 : sizeof pattern.f32);
  const void* host = narrow ? static_cast<const void*>(pattern.bf16) : pattern.f32;
  ops_->device().copy(begin, host, done, stream());
  while (done < num_bytes) {
    const int64_t next = std::min(done, num_bytes - done);
    ops_->device().copy(begin + done, begin, next, stream());
    done += next;
  }
}

void BenchRank::run() {
  comm_->register_buffer(gathered_.get(), setup_->options.ep_size * setup_->max_tokens() * setup_->token_bytes());
  measure_link();
  add({.operation = "stamps"}, timer_.measure(1, 1, [&] { timer_.timed([] {}); }).front());
  add({.operation = "barrier"}, timer_.measure(1, 1, [&] { timer_.timed([&] { comm_->barrier(stream()); }); }).front());
  for (const int n : setup_->options.tokens) measure_all_gather(n);
  for (const bool deterministic : {true, false}) measure_experts(deterministic);
}

void BenchRank::drain() {
  try {
    ops_->device().synchronize(stream());
  } catch (const Error&) {
    // run() has thrown the cause.
  }
}

// ------------------------------------------------------------------------------------------------ the link

void BenchRank::measure_link() {
  const std::vector<std::byte*> send = comm_->register_buffer(link_send_.get(), link_bytes(*setup_)),
                                receive = comm_->register_buffer(link_receive_.get(), link_bytes(*setup_)),
                                flags = comm_->register_buffer(flag_.get(), sizeof(uint32_t));
  measure_copies(send, receive);
  measure_flag(flags);
  if (setup_->options.progress && comm_->rank() == 0)
    setup_->options.progress(++num_done_, kOtherMeasurements + 3 * int(setup_->options.tokens.size()));
}

// Every rank to or from the next one, all at once.
void BenchRank::measure_copies(const std::vector<std::byte*>& send, const std::vector<std::byte*>& receive) {
  const int rank = comm_->rank();
  const auto next = size_t((rank + 1) % comm_->size());
  const std::vector<int>& ordinals = setup_->ordinals;
  const LinkCopyArgs store = {.to = receive[next],
                              .from = link_send_.get(),
                              .to_ordinal = ordinals[next],
                              .from_ordinal = ordinals[size_t(rank)]};
  const LinkCopyArgs load = {.to = link_receive_.get(),
                             .from = send[next],
                             .to_ordinal = ordinals[size_t(rank)],
                             .from_ordinal = ordinals[next]};
  const auto measure = [&](const char* transfer, LinkCopyArgs args, int num_blocks) {
    args.num_blocks = num_blocks;
    args.num_bytes = link_bytes(*setup_) / (setup_->on_gpu && num_blocks == 1 ? 16 : 1);
    link_->copy(args, stream());  // what a first copy sets up must not wait for a peer in a barrier
    timer_.wait_for_all();
    for (int i = 0; i < kLinkRepetitions; ++i) timer_.timed([&] { link_->copy(args, stream()); });
    link_times_.push_back({.what = {.transfer = transfer, .num_blocks = num_blocks},
                           .num_bytes = args.num_bytes,
                           .seconds = timer_.take(1, 1, kLinkRepetitions).front()});
    timer_.wait_for_all();
  };
  for (const int num_blocks : link_->num_blocks()) measure("stores", store, num_blocks);
  for (const int num_blocks : link_->num_blocks()) measure("loads", load, num_blocks);
  if (link_->has_copy_engine()) measure("copy engine", store, 0);
}

// Between ranks 0 and 1; the others only take part in the barriers.
void BenchRank::measure_flag(const std::vector<std::byte*>& flags) {
  const int rank = comm_->rank(), peer = 1 - rank;
  const int round_trips = setup_->on_gpu ? kRoundTrips : kRoundTripsOnCpu;
  for (int i = 0; i < kLinkRepetitions; ++i)
    timer_.timed([&] {
      if (rank > 1) return;
      link_->ping_pong({.mine = reinterpret_cast<uint32_t*>(flag_.get()),
                        .theirs = reinterpret_cast<uint32_t*>(flags[size_t(peer)]),
                        .before = uint32_t(i * round_trips),
                        .round_trips = round_trips,
                        .begins = rank == 0,
                        .peer = peer,
                        .wait = comm_->peer_wait()},
                       stream());
    });
  const Seconds seconds = timer_.take(1, 1, kLinkRepetitions).front();
  if (rank == 0)
    for (const double s : seconds) flag_seconds_.push_back(s / (2 * round_trips));
  timer_.wait_for_all();
}

// ------------------------------------------------------------------------------------------------ operations

void BenchRank::measure_all_gather(int64_t num_tokens) {
  const int64_t bytes = num_tokens * setup_->token_bytes();
  const std::byte* mine = gathered_.get() + comm_->rank() * bytes;
  const auto repetition = [&] { timer_.timed([&] { comm_->all_gather(mine, gathered_.get(), bytes, stream()); }); };
  add({.operation = "all_gather", .tokens = num_tokens}, timer_.measure(1, 1, repetition).front());
}

void BenchRank::measure_experts(bool deterministic) {
  const std::unique_ptr<ExpertDispatch> dispatch =
      make_expert_dispatch(*comm_, *ops_, setup_->placement, setup_->dispatch_config(deterministic));
  for (const int n : setup_->options.tokens) measure_experts(*dispatch, deterministic, n);
  timer_.wait_for_all();  // no peer reaches what is freed now
}

// The experts' results are not computed: they are random numbers that stand there from the first repetition on.
void BenchRank::measure_experts(ExpertDispatch& dispatch, bool deterministic, int64_t num_tokens) {
  const CommBenchOptions& o = setup_->options;
  dispatch.begin_step(num_tokens);
  const View<float> weight = rows<float>(expert_weight_, num_tokens, o.top_k);
  const ExpertDispatch::Tokens tokens = {.x = token_rows(num_tokens),
                                         .expert_idx = rows<const int32_t>(expert_idx_, num_tokens, o.top_k),
                                         .expert_weight = weight,
                                         .results = setup_->results_dtype,
                                         .layer = 0};
  const MoeCombineArgs combine = {.expert_weight = weight, .out = rows<float>(out_, num_tokens, o.hidden_size)};
  const auto repeat = [&](bool first_time) {
    for (int round = 0; round < dispatch.num_rounds(); ++round) {
      ExpertDispatch::Received received;
      timer_.timed([&] {
        if (round == 0 && operand_)
          ops_->quantize({.x = rows<const float>(x_, num_tokens, o.hidden_size), .out = tokens.x}, stream());
        received = dispatch.dispatch(tokens, round);
      });
      if (first_time) fill(received.out.data, received.out.dtype, received.out.num_bytes());
      timer_.timed([&] { dispatch.combine(combine, round); });
    }
  };
  const int num_timed = 2 * dispatch.num_rounds();
  repeat(true);
  timer_.take(2, num_timed, 1);
  const uint64_t hash = output_hash(num_tokens);
  fill(out_.get(), DType::kF32, combine.out.size() * int64_t(sizeof(float)));  // what is measured writes it anew
  timer_.wait_for_all();
  const std::vector<RankTimes> times = timer_.measure(2, num_timed, [&] { repeat(false); });
  if (output_hash(num_tokens) != hash)
    throw Error(Code::kInternal, fmt::format("rank {}: {} combine of {} tokens gave other bits when it was repeated",
                                             comm_->rank(), form_name(deterministic), num_tokens));
  CommResult what = {.form = form_name(deterministic), .tokens = num_tokens, .rounds = dispatch.num_rounds()};
  what.operation = "dispatch";
  add(what, times[0]);
  what.operation = "combine";
  what.output_hash = hash;
  add(what, times[1]);
}

Operand BenchRank::token_rows(int64_t num_tokens) const {
  return {operand_ ? operand_.get() : x_.get(), setup_->dtype, {num_tokens, setup_->options.hidden_size}};
}

// FNV-1a over 64-bit words: 32-bit values in pairs, the last one alone.
uint64_t BenchRank::output_hash(int64_t num_tokens) {
  const int64_t num_bytes = num_tokens * setup_->options.hidden_size * int64_t(sizeof(float));
  Device& device = ops_->device();
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
  if (what.operation == "all_gather") return (o.ep_size - 1) * what.tokens * setup_->token_bytes();
  const ExpertPlacement& p = setup_->placement;
  int64_t num_choices = 0, num_ranks = 0;  // elsewhere; pairs of a token and another rank
  for (int64_t t = 0; t < what.tokens; ++t) {
    std::vector<bool> is_sent(static_cast<size_t>(o.ep_size));
    for (int j = 0; j < o.top_k; ++j) {
      const auto expert = size_t(choices_[size_t(t * o.top_k + j)]);
      const int first = p.replica_begin[expert], num_replicas = p.replica_begin[expert + 1] - first;
      const int holder = p.rank[size_t(first + (comm_->rank() + int(t)) % num_replicas)];  // PlacementView
      if (holder == comm_->rank()) continue;
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
  const bool ends_measurement = results_.back().what.operation != "dispatch";  // its combine follows
  if (setup_->options.progress && comm_->rank() == 0 && ends_measurement)
    setup_->options.progress(++num_done_, kOtherMeasurements + 3 * int(setup_->options.tokens.size()));
}

}  // namespace moectl
