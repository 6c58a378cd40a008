#include "kernels/cpu/expert_all_to_all.h"

#include <algorithm>
#include <atomic>
#include <bitset>
#include <chrono>
#include <cstring>
#include <thread>

#include "kernels/cpu/moe_permute.h"

#include "kernels/cpu/path_begin.h"

namespace {

using std::chrono::microseconds, std::chrono::milliseconds, std::chrono::nanoseconds;

// A peer's signal is usually microseconds away: polls without a pause, then with the core given to other threads, then
// with sleeps.
constexpr int kSpins = 100;
constexpr milliseconds kYieldTime{1};
constexpr microseconds kSleep{50};

// Pauses between polls, and how long they took.
class Backoff {
 public:
  // `slice`: what one pause counts at most, so that the time during which the whole process was stopped does not use up
  // a timeout.
  explicit Backoff(nanoseconds slice) : slice_(slice) {}
  nanoseconds waited() const { return waited_; }
  void pause() {
    if (++polls_ <= kSpins) return;
    const auto now = std::chrono::steady_clock::now();
    if (polls_ > kSpins + 1) waited_ += std::min<nanoseconds>(now - last_, slice_);
    last_ = now;
    if (waited_ < kYieldTime)
      std::this_thread::yield();
    else
      std::this_thread::sleep_for(kSleep);
  }

 private:
  const nanoseconds slice_;
  int64_t polls_ = 0;
  nanoseconds waited_{0};
  std::chrono::steady_clock::time_point last_;
};

// Random pauses of tests (AllToAllSignals::delay_seed): most are none, some spins or a yield, few a sleep.
class Delays {
 public:
  Delays(uint32_t seed, uint32_t number, int64_t rank, int32_t operation)
      : enabled_(seed != 0), state_(hash(seed + hash(number + hash(uint32_t(rank) << 16 | uint32_t(operation))))) {}
  void operator()() {
    if (!enabled_) return;
    state_ = state_ * 1664525 + 1013904223;
    const uint32_t draw = hash(state_);
    if (draw % 1024 == 0) {
      std::this_thread::sleep_for(nanoseconds(draw >> 18));
    } else if (draw % 16 == 1) {
      std::this_thread::yield();
    } else if (draw % 4 == 2) {
      for (uint32_t i = draw >> 23; i > 0; --i) std::atomic_signal_fence(std::memory_order_seq_cst);
    }
  }

 private:
  static uint32_t hash(uint32_t x) {
    x = (x ^ x >> 16) * 0x7feb352d;
    x = (x ^ x >> 15) * 0x846ca68b;
    return x ^ x >> 16;
  }
  const bool enabled_;
  uint32_t state_;
};

// One operation of a rank with its peers: what it signals and waits for.
class Peers {
 public:
  Peers(const AllToAllSignals& signals, int64_t rank, PeerOperation::Kind kind)
      : signals_(signals),
        rank_(size_t(rank)),
        operation_(PeerOperation{kind, signals.layer}.code()),
        number_(signals.state[0] + 1),
        delays_(signals.delay_seed, number_, rank, operation_) {
    CHECK(rank >= 0 && rank_ < signals.flags.size() && signals.flags.size() <= size_t{kMaxPeers},
          "rank {} of an all-to-all of {} ranks, at most {}", rank, signals.flags.size(), kMaxPeers);
    status(signals.wait.status->at).store(operation_);
  }

  uint32_t number() const { return number_; }
  void delay() { delays_(); }

  // False after an abort or a timeout. The rank then stores and signals no more: peers that are only late still use
  // what it stored before, and must not take what it computes now for a result.
  bool is_alive() const {
    return status(signals_.wait.status->aborted).load() == 0 && status(signals_.wait.status->missing).load() == 0;
  }

  // What the rank has stored into its peers' memory is complete.
  void signal(AllToAllSignals::Kind kind) {
    for (size_t peer = 0; peer < signals_.flags.size(); ++peer) {
      if (peer == rank_) continue;
      delay();
      flag(peer, kind, rank_).store(number_, std::memory_order_release);
    }
  }

  // Until every peer has signaled; they then find what the peers stored. False: the wait ended without them.
  bool wait(AllToAllSignals::Kind kind) {
    const nanoseconds timeout(signals_.wait.timeout_ns);
    Backoff backoff(timeout / 20);
    for (size_t peer = 0; peer < signals_.flags.size(); ++peer) {
      if (peer == rank_) continue;
      delay();
      const auto signal = flag(rank_, kind, peer);
      // The numbers wrap around.
      while (int32_t(signal.load(std::memory_order_acquire) - number_) < 0) {
        if (!is_alive()) return false;
        if (backoff.waited() > timeout) {
          status(signals_.wait.status->operation).store(operation_);
          status(signals_.wait.status->missing).store(1 + int32_t(peer));
          return false;
        }
        backoff.pause();
      }
    }
    return is_alive();
  }

 private:
  static std::atomic_ref<int32_t> status(int32_t& field) { return std::atomic_ref(field); }
  std::atomic_ref<uint32_t> flag(size_t of_rank, AllToAllSignals::Kind kind, size_t from) const {
    return std::atomic_ref(signals_.flags[of_rank][size_t(kind) * signals_.flags.size() + from]);
  }

  const AllToAllSignals& signals_;
  const size_t rank_;
  const int32_t operation_;
  const uint32_t number_;  // of this all-to-all
  Delays delays_;
};

void store_choices(const DispatchArgs& a, Peers& peers) {
  const MoeSource& own = a.permute.sources[size_t(a.permute.rank)];
  const size_t num_bytes = size_t(own.expert_idx.size()) * sizeof(int32_t);
  for (const DispatchInbox& inbox : a.inboxes) {
    if (!inbox.x || num_bytes == 0) continue;
    peers.delay();
    std::memcpy(inbox.expert_idx, own.expert_idx.data, num_bytes);
    if (inbox.expert_weight) std::memcpy(inbox.expert_weight, own.expert_weight.data, num_bytes);
  }
}

// Each token once to every other rank that holds an expert of it.
void store_tokens(const DispatchArgs& a, Peers& peers) {
  const MoeSource& own = a.permute.sources[size_t(a.permute.rank)];
  const View<float> x = own.x.f32();
  const int64_t packed_bytes = packed_row_bytes(DType::kF32, a.permute.x.row_size());
  for (int64_t t = 0; t < own.expert_idx.dim(0); ++t) {
    const int64_t token = own.token_begin + t;
    std::bitset<kMaxPeers> sent;
    for (int64_t j = 0; j < own.expert_idx.dim(1); ++j) {
      const int64_t rank = place_of(a.permute.placement, own.expert_idx(t, j), a.permute.rank, token).rank;
      if (rank < 0 || rank == a.permute.rank || sent[size_t(rank)]) continue;
      sent[size_t(rank)] = true;
      peers.delay();
      std::memcpy(a.inboxes[size_t(rank)].x + t * packed_bytes, x.row(token), size_t(x.row_size()) * sizeof(float));
    }
  }
}

// The caller's result for choice j of token t of a source; null: another rank's.
const float* result_of(const CombineArgs& a, size_t source, int64_t t, int64_t j) {
  const int32_t row = a.results[source].row_of(t, j);
  return row < 0 ? nullptr : a.rows.f32().row(row);
}

// One row per token: the weighted sum of the caller's results.
void store_sums(const CombineArgs& a, size_t source, Peers& peers) {
  const CombineSource& s = a.results[source];
  const int64_t size = a.rows.row_size();
  for (int64_t t = 0; t < s.row_of.dim(0); ++t) {
    float* sum = static_cast<float*>(s.slots) + t * size;
    bool is_first = true;
    for (int64_t j = 0; j < s.row_of.dim(1); ++j) {
      const float* row = result_of(a, source, t, j);
      if (!row) continue;
      if (is_first) {
        peers.delay();
        std::fill(sum, sum + size, 0.0f);
      }
      is_first = false;
      const float weight = s.expert_weight ? s.expert_weight(t, j) : 1.0f;
      for (int64_t i = 0; i < size; ++i) sum[i] = sum[i] + weight * row[i];
    }
  }
}

// One row per choice.
void store_each(const CombineArgs& a, size_t source, Peers& peers) {
  const CombineSource& s = a.results[source];
  const int64_t size = a.rows.row_size(), top_k = s.row_of.dim(1);
  for (int64_t t = 0; t < s.row_of.dim(0); ++t)
    for (int64_t j = 0; j < top_k; ++j) {
      const float* row = result_of(a, source, t, j);
      if (!row) continue;
      peers.delay();
      std::memcpy(static_cast<float*>(s.slots) + (t * top_k + j) * size, row, size_t(size) * sizeof(float));
    }
}

// Writes CombineArgs::expert_rows, nulls so far.
void locate(const CombineArgs& a) {
  const int64_t top_k = a.expert_idx.dim(1), row_bytes = a.rows.row_size() * int64_t(sizeof(float));
  const auto slot = [&](int64_t rank, int64_t row) {
    return static_cast<const std::byte*>(a.slots[size_t(rank)]) + row * row_bytes;
  };
  for (int64_t t = 0; t < a.expert_idx.dim(0); ++t)
    for (int64_t j = 0; j < top_k; ++j) {
      const int64_t rank = place_of(a.placement, a.expert_idx(t, j), a.rank, a.token_begin + t).rank;
      if (rank < 0) continue;
      if (a.reduced)
        a.expert_rows(t, rank) = slot(rank, t);
      else if (rank == a.rank)
        a.expert_rows(t, j) = result_of(a, size_t(a.rank), t, j);
      else
        a.expert_rows(t, j) = slot(rank, t * top_k + j);
    }
}

// Sends the caller's tokens and numbers the rows that it gets; its peers' tokens are there. False: the waits ended
// without them.
bool exchange_tokens(const DispatchArgs& a, Peers& peers) {
  if (!peers.is_alive()) return false;
  store_choices(a, peers);
  peers.signal(AllToAllSignals::kChoices);
  store_tokens(a, peers);
  peers.signal(AllToAllSignals::kTokens);
  if (!peers.wait(AllToAllSignals::kChoices)) return false;
  number_rows(a.permute);
  return peers.wait(AllToAllSignals::kTokens);
}

// Sends the caller's results; its peers' are there. False: likewise.
bool exchange_results(const CombineArgs& a, Peers& peers) {
  if (!peers.is_alive()) return false;
  for (size_t source = 0; source < a.results.size(); ++source) {
    if (a.reduced)
      store_sums(a, source, peers);
    else if (source != size_t(a.rank))
      store_each(a, source, peers);
  }
  peers.signal(AllToAllSignals::kResults);
  return peers.wait(AllToAllSignals::kResults);
}

}  // namespace

void CpuExpertAllToAll::dispatch(const DispatchArgs& a, Stream) {
  CHECK(a.inboxes.size() == a.signals.flags.size() && a.permute.sources.size() == a.inboxes.size(),
        "dispatch to {} inboxes from {} sources over {} ranks", a.inboxes.size(), a.permute.sources.size(),
        a.signals.flags.size());
  Peers peers(a.signals, a.permute.rank, PeerOperation::kDispatch);
  const View<int32_t> offsets = a.permute.expert_offsets;
  if (exchange_tokens(a, peers))
    gather_rows(a.permute);
  else
    std::fill(offsets.data, offsets.data + offsets.size(), 0);
}

void CpuExpertAllToAll::combine(const CombineArgs& a, Stream) {
  CHECK(a.results.size() == a.signals.flags.size() && a.slots.size() == a.results.size(),
        "combine of {} sources and {} slots over {} ranks", a.results.size(), a.slots.size(), a.signals.flags.size());
  Peers peers(a.signals, a.rank, PeerOperation::kCombine);
  std::fill(a.expert_rows.data, a.expert_rows.data + a.expert_rows.size(), nullptr);
  if (!exchange_results(a, peers)) return;
  locate(a);
  a.signals.state[0] = peers.number();
}

#include "kernels/cpu/path_end.h"
