// The expert all-to-all: GPUs store tokens and results straight into each other's memory and signal that they are
// there. One kernel per dispatch and per combine. Block 0 sends what is small, does the local bookkeeping while rows
// travel, and waits for the peers: the only block that ever waits, so that ranks which share a GPU cannot starve each
// other. All other blocks store rows; the last block of the kernel to finish signals.
//
// Signals carry the number of the all-to-all, which lies in device memory: a captured graph counts on by itself.
#include "kernels/cuda/comm/expert_all_to_all.h"

#include <algorithm>

#include "core/base/check.h"
#include "kernels/cuda/comm/signal.cuh"
#include "kernels/cuda/moe/moe_rows.cuh"
#include "kernels/cuda/runtime/device.cuh"
#include "kernels/cuda/runtime/device.h"

namespace moectl::cuda {
namespace kernel {
namespace {

constexpr int kThreads = kTile, kWarps = kThreads / kWarp;

struct Signals {
  uint32_t* flags[kMaxPeers];
  uint32_t* state;
  PeerWait wait;
  int32_t operation;
  uint32_t delay_seed;
  int rank, num_ranks;

  __device__ uint32_t* flag(int of_rank, AllToAllSignals::Kind kind, int from) const {
    return flags[of_rank] + kind * num_ranks + from;
  }
};

struct Dispatch {
  Signals signals;
  DispatchInbox inboxes[kMaxPeers];
  Sources sources;
  Placement placement;
  int num_experts, max_rows, size;
  int64_t packed_bytes;
  int32_t* offsets;
  bool send_weights, number_rows;
};

struct ResultsOf {
  const int32_t* row_of;
  const float* expert_weight;
  std::byte* slots;  // of the source
  int num_tokens;
};

struct Own {
  const int32_t *expert_idx, *row_of;
  int num_tokens, token_begin;
};

struct Combine {
  Signals signals;
  ResultsOf sources[kMaxPeers];
  Own own;
  const std::byte* slots[kMaxPeers];  // the caller's, by the rank that stores them
  Placement placement;
  int top_k, size, max_rows, num_tokens;  // of all sources
  const std::byte* rows;
  const void** expert_rows;
};

// Of tests: up to 4 us in one call out of four.
__device__ __forceinline__ void delay(const Signals& s, uint32_t number, uint32_t salt) {
  if (s.delay_seed == 0) return;
  uint32_t x = s.delay_seed ^ (number * 0x9e3779b9u) ^ (salt * 0x85ebca6bu) ^ (uint32_t(s.rank) << 24) ^ blockIdx.x;
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  x ^= x >> 16;
  if (x % 4 == 0) __nanosleep((x >> 2) % 4096);
}

// What a kernel reads first.
struct Turn {
  uint32_t number;  // of this all-to-all
  // Until a wait of this rank ends without its signal. The rank then stores and signals no more: peers that are only
  // late still use what it stored before.
  bool is_alive;
};
__device__ __forceinline__ Turn begin(const Signals& s) {
  return {*static_cast<const volatile uint32_t*>(s.state) + 1, !has_ended(s.wait)};
}

// Thread r signals rank r. The release orders all stores before it that the block's last barrier did.
__device__ __forceinline__ void signal_peers(const Signals& s, AllToAllSignals::Kind kind, const Turn& turn) {
  const int peer = int(threadIdx.x);
  if (peer >= s.num_ranks || peer == s.rank || !turn.is_alive) return;
  delay(s, turn.number, 16 + kind);
  store_release(s.flag(peer, kind, s.rank), turn.number);
}

// The block is done with its stores. The last one of the kernel signals; `completes`: the all-to-all counts as done.
__device__ __forceinline__ void finish_stores(const Signals& s, AllToAllSignals::Kind kind, const Turn& turn,
                                              bool completes) {
  __shared__ bool is_last;
  __syncthreads();
  if (threadIdx.x == 0) {
    is_last = arrive(s.state + 1) == gridDim.x - 1;
    if (is_last) {
      s.state[1] = 0;
      if (completes) s.state[0] = turn.number;
    }
  }
  __syncthreads();
  if (is_last) signal_peers(s, kind, turn);
}

// Thread r waits for rank r, then the block goes on.
__device__ __forceinline__ void wait_for_peers(const Signals& s, AllToAllSignals::Kind kind, const Turn& turn) {
  const int peer = int(threadIdx.x);
  const uint32_t number = turn.number;
  // For the host. Not by a thread that signals: its release would wait for this store across the bus.
  if (threadIdx.x == kThreads - 1) *static_cast<volatile int32_t*>(&s.wait.status->at) = s.operation;
  if (peer < s.num_ranks && peer != s.rank) {
    delay(s, number, 32 + kind);
    wait_for_signal(s.flag(s.rank, kind, peer), number, s.wait, peer, s.operation);
  }
  __syncthreads();
}

// The 16 bytes from element i * (16 / sizeof(T)) of a row of `size`, zeros past its end.
template <class T>
__device__ __forceinline__ uint4 load_unit(const std::byte* row, int i, int size) {
  constexpr int kUnit = sizeof(uint4) / sizeof(T);
  if (size % kUnit == 0) return reinterpret_cast<const uint4*>(row)[i];
  union {
    uint4 unit;
    uint32_t words[4];
    uint16_t halves[8];
  } x;
  x.unit = {};
  for (int j = 0; j < kUnit; ++j) {
    if (i * kUnit + j >= size) break;
    if constexpr (sizeof(T) == 4) x.words[j] = reinterpret_cast<const uint32_t*>(row)[i * kUnit + j];
    if constexpr (sizeof(T) == 2) x.halves[j] = reinterpret_cast<const uint16_t*>(row)[i * kUnit + j];
  }
  return x.unit;
}

// 16 bytes of a packed row (packed_row_bytes).
template <class T>
__device__ __forceinline__ uint4 load_packed(const Source& s, int64_t row, int i, int size) {
  if constexpr (sizeof(T) > 1) return load_unit<T>(s.x + row * size * int64_t(sizeof(T)), i, size);
  const int64_t rows = s.num_rows;
  const int num_units = size / int(sizeof(uint4));
  constexpr int kUnits = kFp8Block / sizeof(uint4);
  if (i < num_units) return reinterpret_cast<const uint4*>(s.x)[(i / kUnits * rows + row) * kUnits + i % kUnits];
  const auto* scales = reinterpret_cast<const uint32_t*>(s.x + (rows * size + 255) / 256 * 256);
  const int64_t stride = (rows + 3) / 4 * 4;
  uint32_t four[4] = {};
  for (int j = 0; j < 4; ++j) {
    const int block = (i - num_units) * 4 + j;
    if (block < size / kFp8Block) four[j] = scales[block * stride + row];
  }
  return {four[0], four[1], four[2], four[3]};
}

// Bit r: rank r holds an expert of the token. A warp together.
__device__ __forceinline__ uint32_t ranks_of_token(const Placement& p, const int32_t* expert_idx, int top_k, int source,
                                                   int token) {
  uint32_t mask = 0;
  for (int j = int(threadIdx.x) % kWarp; j < top_k; j += kWarp) {
    const int physical = physical_expert(p, expert_idx[j], source, token);
    if (physical >= 0) mask |= 1u << p.rank[physical];
  }
  return __reduce_or_sync(kAll, mask);
}

template <class T>
__device__ void store_tokens(const Dispatch& d, uint32_t number) {
  const Source& mine = d.sources.of[d.signals.rank];
  const int top_k = d.sources.top_k, num_tokens = mine.num_choices / top_k;
  const int num_units = int(d.packed_bytes / int64_t(sizeof(uint4)));
  for (int t = int(blockIdx.x) - 1; t < num_tokens; t += int(gridDim.x) - 1) {
    const int token = mine.token_begin + t;
    int i = int(threadIdx.x);
    uint4 unit = i < num_units ? load_packed<T>(mine, token, i, d.size) : uint4{};
    uint32_t to = ranks_of_token(d.placement, mine.expert_idx + int64_t{t} * top_k, top_k, d.signals.rank, token);
    to &= ~(1u << d.signals.rank);
    delay(d.signals, number, 48);
    for (; i < num_units;) {
      for (uint32_t left = to; left; left &= left - 1)
        reinterpret_cast<uint4*>(d.inboxes[__ffs(int(left)) - 1].x + t * d.packed_bytes)[i] = unit;
      i += kThreads;
      if (i < num_units) unit = load_packed<T>(mine, token, i, d.size);
    }
  }
}

__device__ void store_choices(const Dispatch& d, uint32_t number) {
  const Source& mine = d.sources.of[d.signals.rank];
  delay(d.signals, number, 49);
  for (int r = 0; r < d.signals.num_ranks; ++r) {
    if (r == d.signals.rank) continue;
    for (int i = threadIdx.x; i < mine.num_choices; i += kThreads) {
      d.inboxes[r].expert_idx[i] = mine.expert_idx[i];
      if (d.send_weights) d.inboxes[r].expert_weight[i] = mine.expert_weight[i];
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) all_to_all_dispatch(const __grid_constant__ Dispatch d) {
  extern __shared__ uint32_t shared[];
  wait_for_earlier_only();
  const Turn turn = begin(d.signals);
  if (blockIdx.x > 0) {
    if (turn.is_alive) store_tokens<T>(d, turn.number);
    finish_stores(d.signals, AllToAllSignals::kTokens, turn, false);
    return;
  }
  if (turn.is_alive) store_choices(d, turn.number);
  __syncthreads();
  if (d.number_rows) signal_peers(d.signals, AllToAllSignals::kChoices, turn);
  finish_stores(d.signals, AllToAllSignals::kTokens, turn, false);
  if (d.number_rows) {
    wait_for_peers(d.signals, AllToAllSignals::kChoices, turn);
    number_few(d.sources, d.placement, d.num_experts, d.max_rows, shared, d.offsets);
  }
  wait_for_peers(d.signals, AllToAllSignals::kTokens, turn);
  let_next_launch();
}

// ------------------------------------------------------------------------------------------------ combine

// 16 bytes of a row, as f32.
template <class T>
struct Unit {
  static constexpr int kSize = sizeof(uint4) / sizeof(T);
  float x[kSize];
};
__device__ __forceinline__ Unit<float> widen(uint4 u, const float*) {
  return {__uint_as_float(u.x), __uint_as_float(u.y), __uint_as_float(u.z), __uint_as_float(u.w)};
}
__device__ __forceinline__ Unit<__nv_bfloat16> widen(uint4 u, const __nv_bfloat16*) {
  const uint32_t words[4] = {u.x, u.y, u.z, u.w};
  Unit<__nv_bfloat16> out;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out.x[2 * i] = __uint_as_float(words[i] << 16);
    out.x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
  return out;
}
__device__ __forceinline__ uint4 narrow(const Unit<float>& u) {
  return {__float_as_uint(u.x[0]), __float_as_uint(u.x[1]), __float_as_uint(u.x[2]), __float_as_uint(u.x[3])};
}
__device__ __forceinline__ uint4 narrow(const Unit<__nv_bfloat16>& u) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const __nv_bfloat162 two = __floats2bfloat162_rn(u.x[2 * i], u.x[2 * i + 1]);
    words[i] = reinterpret_cast<const uint32_t&>(two);
  }
  return {words[0], words[1], words[2], words[3]};
}

template <class T>
__device__ __forceinline__ void store_unit(std::byte* row, int i, int size, uint4 unit) {
  constexpr int kUnit = sizeof(uint4) / sizeof(T);
  if (size % kUnit == 0) {
    reinterpret_cast<uint4*>(row)[i] = unit;
    return;
  }
  const T* x = reinterpret_cast<const T*>(&unit);
  for (int j = 0; j < kUnit && i * kUnit + j < size; ++j) reinterpret_cast<T*>(row)[i * kUnit + j] = x[j];
}

// A token's choices that the caller computes; lane j holds choice j (top_k <= 32). The same in every warp.
struct LocalChoices {
  uint32_t mask;  // of lanes
  int row;        // of CombineArgs::rows
  float weight;
};
__device__ __forceinline__ LocalChoices local_choices(const Combine& c, int source, int t) {
  const ResultsOf& s = c.sources[source];
  const int lane = int(threadIdx.x) % kWarp, choice = t * c.top_k + lane;
  LocalChoices mine = {0, -1, 1.0f};
  if (lane < c.top_k) {
    mine.row = s.row_of[choice];
    if (s.expert_weight) mine.weight = s.expert_weight[choice];
  }
  mine.mask = __ballot_sync(kAll, unsigned(mine.row) < unsigned(c.max_rows));
  return mine;
}

// One row: the weighted sum of the caller's results of a token, in the order of its choices.
template <class T>
__device__ void store_sum(const Combine& c, const LocalChoices& mine, std::byte* to) {
  const int num_units = (c.size + Unit<T>::kSize - 1) / Unit<T>::kSize;
  const int64_t row_bytes = c.size * int64_t(sizeof(T));
  for (int begin = 0; begin < num_units; begin += kThreads) {
    const int i = begin + int(threadIdx.x);
    Unit<T> sum = {};
    for (uint32_t left = mine.mask; left; left &= left - 1) {
      const int lane = __ffs(int(left)) - 1;
      const int row = __shfl_sync(kAll, mine.row, lane);
      const float weight = __shfl_sync(kAll, mine.weight, lane);
      if (i >= num_units) continue;
      const auto x = widen(load_unit<T>(c.rows + row * row_bytes, i, c.size), static_cast<const T*>(nullptr));
#pragma unroll
      for (int j = 0; j < Unit<T>::kSize; ++j) sum.x[j] = __fadd_rn(sum.x[j], __fmul_rn(weight, x.x[j]));
    }
    if (i < num_units) store_unit<T>(to, i, c.size, narrow(sum));
  }
}

// A row per choice. `to`: of the token's choice 0.
template <class T>
__device__ void store_each(const Combine& c, const LocalChoices& mine, std::byte* to) {
  const int num_units = (c.size + Unit<T>::kSize - 1) / Unit<T>::kSize;
  const int64_t row_bytes = c.size * int64_t(sizeof(T));
  for (uint32_t left = mine.mask; left; left &= left - 1) {
    const int lane = __ffs(int(left)) - 1;
    const int row = __shfl_sync(kAll, mine.row, lane);
    for (int i = threadIdx.x; i < num_units; i += kThreads)
      store_unit<T>(to + lane * row_bytes, i, c.size, load_unit<T>(c.rows + row * row_bytes, i, c.size));
  }
}

template <class T, bool kReduced>
__device__ void store_results(const Combine& c, uint32_t number) {
  const int64_t row_bytes = c.size * int64_t(sizeof(T));
  int source = 0, before = 0;  // tokens of the sources before
  for (int item = int(blockIdx.x) - 1; item < c.num_tokens; item += int(gridDim.x) - 1) {
    while (item - before >= c.sources[source].num_tokens) before += c.sources[source++].num_tokens;
    const int t = item - before;
    if (!kReduced && source == c.signals.rank) continue;  // its combine reads them where they are
    const LocalChoices mine = local_choices(c, source, t);
    if (!mine.mask) continue;
    delay(c.signals, number, 50);
    if constexpr (kReduced)
      store_sum<T>(c, mine, c.sources[source].slots + t * row_bytes);
    else
      store_each<T>(c, mine, c.sources[source].slots + int64_t{t} * c.top_k * row_bytes);
  }
}

// Where the results of the caller's tokens will be.
template <bool kReduced>
__device__ void locate(const Combine& c, int64_t row_bytes) {
  const Own& own = c.own;
  const int me = c.signals.rank, num_ranks = c.signals.num_ranks;
  const int num = kReduced ? own.num_tokens : own.num_tokens * c.top_k;
  for (int i = threadIdx.x; i < num; i += kThreads) {
    if constexpr (kReduced) {
      uint32_t ranks = 0;
      for (int j = 0; j < c.top_k; ++j) {
        const int p = physical_expert(c.placement, own.expert_idx[i * c.top_k + j], me, own.token_begin + i);
        if (p >= 0) ranks |= 1u << c.placement.rank[p];
      }
      for (int r = 0; r < num_ranks; ++r)
        c.expert_rows[i * num_ranks + r] = ranks >> r & 1 ? c.slots[r] + i * row_bytes : nullptr;
    } else {
      const int p = physical_expert(c.placement, own.expert_idx[i], me, own.token_begin + i / c.top_k);
      const int rank = p < 0 ? -1 : c.placement.rank[p];
      c.expert_rows[i] = rank < 0     ? nullptr
                         : rank == me ? c.rows + own.row_of[i] * row_bytes
                                      : c.slots[rank] + i * row_bytes;
    }
  }
}

template <class T, bool kReduced>
__global__ void __launch_bounds__(kThreads) all_to_all_combine(const __grid_constant__ Combine c) {
  wait_for_earlier_only();
  const Turn turn = begin(c.signals);
  if (blockIdx.x > 0) {
    if (turn.is_alive) store_results<T, kReduced>(c, turn.number);
    finish_stores(c.signals, AllToAllSignals::kResults, turn, true);
    return;
  }
  finish_stores(c.signals, AllToAllSignals::kResults, turn, true);
  locate<kReduced>(c, c.size * int64_t(sizeof(T)));
  wait_for_peers(c.signals, AllToAllSignals::kResults, turn);
  let_next_launch();
}

}  // namespace
}  // namespace kernel

namespace {

kernel::Signals signals_of(const AllToAllSignals& a, PeerOperation::Kind kind, int64_t rank) {
  CHECK(a.flags.size() <= size_t{kMaxPeers} && size_t(rank) < a.flags.size(),
        "rank {} of an all-to-all of {}, at most {}", rank, a.flags.size(), kMaxPeers);
  kernel::Signals s = {.state = a.state,
                       .wait = a.wait,
                       .operation = PeerOperation{kind, a.layer}.code(),
                       .delay_seed = a.delay_seed,
                       .rank = int(rank),
                       .num_ranks = int(a.flags.size())};
  std::ranges::copy(a.flags, s.flags);
  return s;
}

// Block 0, and one block per item as far as they can run at once.
unsigned grid_for(int64_t items) {
  return 1 + unsigned(std::clamp<int64_t>(items, 0, 2 * current_device_info().num_multiprocessors));
}

}  // namespace

bool can_number_rows(const DispatchArgs& a) {
  return kernel::number_few_shared_bytes(a.permute.expert_offsets.dim(0) - 1) <= kernel::kMaxNumberShared;
}

void all_to_all_dispatch(const DispatchArgs& a, bool number_rows, Stream stream) {
  const MoePermuteArgs& p = a.permute;
  CHECK(a.inboxes.size() == p.sources.size() && p.placement.rank, "dispatch to {} inboxes from {} sources",
        a.inboxes.size(), p.sources.size());
  kernel::Dispatch d = {.signals = signals_of(a.signals, PeerOperation::kDispatch, p.rank),
                        .sources = sources_of(p),
                        .placement = kernel::placement_of(p.placement, p.rank),
                        .num_experts = int(p.expert_offsets.dim(0)) - 1,
                        .max_rows = int(p.x.dim(0)),
                        .size = int(p.x.row_size()),
                        .packed_bytes = packed_row_bytes(p.x.dtype, p.x.row_size()),
                        .offsets = p.expert_offsets.data,
                        .number_rows = number_rows};
  std::ranges::copy(a.inboxes, d.inboxes);
  for (const DispatchInbox& inbox : a.inboxes) d.send_weights |= inbox.expert_weight != nullptr;
  const int64_t num_tokens = p.sources[size_t(p.rank)].expert_idx.dim(0);
  const int64_t shared = number_rows ? kernel::number_few_shared_bytes(d.num_experts) : 0;
  const auto launch = [&](auto kernel) {
    launch_early(kernel, grid_for(num_tokens), kernel::kThreads, size_t(shared), handle(stream), d);
  };
  switch (p.x.dtype) {
    case DType::kF32:
      return launch(kernel::all_to_all_dispatch<float>);
    case DType::kBF16:
      return launch(kernel::all_to_all_dispatch<__nv_bfloat16>);
    case DType::kF8E4M3:
      return launch(kernel::all_to_all_dispatch<__nv_fp8_e4m3>);
    default:
      CHECK(false, "dispatch: no operand of {}", dtype_name(p.x.dtype));
  }
}

void all_to_all_combine(const CombineArgs& a, Stream stream) {
  CHECK(a.results.size() == a.signals.flags.size() && a.slots.size() == a.results.size() && a.placement.rank,
        "combine of {} sources and {} slots over {} ranks", a.results.size(), a.slots.size(), a.signals.flags.size());
  kernel::Combine c = {.signals = signals_of(a.signals, PeerOperation::kCombine, a.rank),
                       .own = {.expert_idx = a.expert_idx.data,
                               .row_of = a.results[size_t(a.rank)].row_of.data,
                               .num_tokens = int(a.expert_idx.dim(0)),
                               .token_begin = int(a.token_begin)},
                       .placement = kernel::placement_of(a.placement, a.rank),
                       .top_k = int(a.expert_idx.dim(1)),
                       .size = int(a.rows.row_size()),
                       .max_rows = int(a.rows.dim(0)),
                       .rows = static_cast<const std::byte*>(a.rows.data),
                       .expert_rows = a.expert_rows.data};
  CHECK(c.top_k <= kernel::kWarp, "combine of {} experts per token; at most {}", c.top_k, kernel::kWarp);
  for (size_t r = 0; r < a.results.size(); ++r) {
    const CombineSource& s = a.results[r];
    c.sources[r] = {.row_of = s.row_of.data,
                    .expert_weight = s.expert_weight.data,
                    .slots = static_cast<std::byte*>(s.slots),
                    .num_tokens = int(s.row_of.dim(0))};
    c.slots[r] = static_cast<const std::byte*>(a.slots[r]);
    c.num_tokens += c.sources[r].num_tokens;
  }
  const auto launch = [&](auto kernel) {
    launch_early(kernel, grid_for(c.num_tokens), kernel::kThreads, 0, handle(stream), c);
  };
  const bool bf16 = a.rows.dtype == DType::kBF16;
  CHECK(bf16 || a.rows.dtype == DType::kF32, "combine: rows of {}", dtype_name(a.rows.dtype));
  if (bf16)
    launch(a.reduced ? kernel::all_to_all_combine<__nv_bfloat16, true>
                     : kernel::all_to_all_combine<__nv_bfloat16, false>);
  else
    launch(a.reduced ? kernel::all_to_all_combine<float, true> : kernel::all_to_all_combine<float, false>);
}

}  // namespace moectl::cuda
