// What a thread block does with a whole row of logits to sample a token: sums in order, sorting of the few best tokens,
// and the radix descent where they are too many for that.
#pragma once

#include "kernels/cuda/sample/sample.cuh"

namespace moectl::cuda::kernel {

constexpr int kMaxThreads = 1024;  // per block; any power of two from 64 on is correct
constexpr int kMaxSorted = 4096;
constexpr int kDigitBits = 11;
static_assert(1 << kDigitBits <= kBins);

struct ChooseShared {
  uint64 sorted[kMaxSorted];  // packed tokens, best first
  union {
    double cumulative[kMaxSorted];  // sums of weights, in order; of at most so many blocks
    uint32_t digits[2][kBins];      // low and high halves of sums
  };
  uint64 scan_u64[32];
  double scan_f64[32];
  RowState state;
  uint64 found, before;
  int count, index;
};

// A row with the results of the previous launches.
struct RowView {
  const float* x;            // [size]
  const uint64* chunk_best;  // [chunks] packed
  const double* sums;        // [blocks]
  const uint64* bins;        // [kBins]
  int size, chunks, blocks;
};

__device__ inline int num_threads() {
  return int(blockDim.x);
}

// ------------------------------------------------------------------------------------------------ sums

__device__ inline uint64* scan_space(ChooseShared& s, uint64) {
  return s.scan_u64;
}
__device__ inline double* scan_space(ChooseShared& s, double) {
  return s.scan_f64;
}

// The sum over the lanes before this one; `total`: over all.
template <class T>
__device__ T warp_scan(T v, T& total) {
  for (int offset = 1; offset < 32; offset *= 2) {
    const T o = __shfl_up_sync(0xffffffffu, v, offset);
    if (lane() >= offset) v += o;
  }
  total = __shfl_sync(0xffffffffu, v, 31);
  v = __shfl_up_sync(0xffffffffu, v, 1);
  return lane() == 0 ? T{0} : v;
}

// The sum over the threads before this one; `total`: over all.
template <class T>
__device__ T block_scan(ChooseShared& s, T v, T& total) {
  T* of_warps = scan_space(s, T{});
  const int warp = int(threadIdx.x / 32);
  const T before = warp_scan(v, total);
  if (lane() == 0) of_warps[warp] = total;
  __syncthreads();
  const T below = warp_scan(lane() < num_threads() / 32 ? of_warps[lane()] : T{0}, total);
  __syncthreads();
  return __shfl_sync(0xffffffffu, below, warp) + before;
}

// The lowest i in 0 .. n - 1 for which `holds`, else n.
template <class F>
__device__ int first_index(ChooseShared& s, int n, F holds) {
  if (threadIdx.x == 0) s.index = n;
  __syncthreads();
  for (int i = int(threadIdx.x); i < n; i += num_threads())
    if (holds(i)) {
      atomicMin(&s.index, i);
      break;
    }
  __syncthreads();
  const int found = s.index;
  __syncthreads();
  return found;
}

// s.cumulative[begin .. end - 1] from values to start + their prefix sums, each rounded, by one thread: its time is the
// latency of the chain of additions.
__device__ inline void sum_by_one(ChooseShared& s, int begin, int end, double start) {
  constexpr int kAhead = 8;  // loads in flight
  double* c = s.cumulative;
  int i = begin;
  for (; i + kAhead <= end; i += kAhead) {
    double v[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) v[j] = c[i + j];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) c[i + j] = start += v[j];
  }
  for (; i < end; ++i) c[i] = start += c[i];
}

// ------------------------------------------------------------------------------------------------ the best tokens

// Sorts s.sorted[0 .. n - 1]. All but the widest steps compare tokens within the 64 of one warp.
__device__ inline void sort(ChooseShared& s, int n) {
  int width = 64;  // a power of two
  while (width < n) width *= 2;
  for (int i = n + int(threadIdx.x); i < width; i += num_threads()) s.sorted[i] = 0;
  __syncthreads();
  for (int k = 2; k <= width; k *= 2)  // bitonic
    for (int j = k / 2; j > 0; j /= 2) {
      for (int i = int(threadIdx.x); i < width / 2; i += num_threads()) {
        const int a = 2 * i - (i & (j - 1)), b = a + j;
        const uint64 x = s.sorted[a], y = s.sorted[b];
        if ((x < y) == ((a & k) == 0)) s.sorted[a] = y, s.sorted[b] = x;
      }
      if (j > 32 || (j == 1 && k >= 64))
        __syncthreads();
      else
        __syncwarp();
    }
}

// Collects the tokens for which `wanted` holds into s.sorted, best first; returns their number, which may exceed
// kMaxSorted. `wanted` must hold for every token that is better than a wanted one.
template <class F>
__device__ int collect(ChooseShared& s, const RowView& row, F wanted) {
  if (threadIdx.x == 0) s.count = 0;
  __syncthreads();
  const bool vectors = has_vectors(row.x, row.size);
  const int warp = int(threadIdx.x / 32), warps = num_threads() / 32;
  bool full = false;
  for (int first = warp; first < row.chunks && !full; first += 32 * warps) {
    const int chunk = first + lane() * warps;
    const uint64 best = chunk < row.chunks ? row.chunk_best[chunk] : 0;
    uint32_t chunks = __ballot_sync(0xffffffffu, best != 0 && wanted(packed_id(best), packed_logit(best)));
    while (chunks && !full) {
      const int begin = (first + (__ffs(int(chunks)) - 1) * warps) * kChunk;
      chunks &= chunks - 1;
      float v[kPerLane];
      load_chunk(row.x, begin, row.size, vectors, v);
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        const int id = id_of(begin, i);
        if (id >= row.size || !wanted(id, v[i])) continue;
        const int slot = atomicAdd(&s.count, 1);
        if (slot < kMaxSorted)
          s.sorted[slot] = packed(v[i], id);
        else
          full = true;
      }
      full = __any_sync(0xffffffffu, full);
    }
  }
  __syncthreads();
  const int n = s.count;
  if (n <= kMaxSorted) sort(s, n);
  return n;
}

// The first bin at which the prefix sum of bins reaches `need`; the last bin where it never does.
__device__ inline int bin_with(ChooseShared& s, const uint64* bins, uint64 need) {
  const int each = (kBins + num_threads() - 1) / num_threads();
  const int begin = min(int(threadIdx.x) * each, kBins), end = min(begin + each, kBins);
  uint64 sum = 0, total;
  for (int b = begin; b < end; ++b) sum += bins[b];
  if (threadIdx.x == 0) s.index = kBins - 1;
  uint64 below = block_scan(s, sum, total);
  if (below < need && below + sum >= need)
    for (int b = begin; b < end; ++b) {
      below += bins[b];
      if (below < need) continue;
      s.index = b;
      break;
    }
  __syncthreads();
  const int bin = s.index;
  __syncthreads();
  return bin;
}

// ------------------------------------------------------------------------------------------------ radix descent

// Calls f(id, logit) for every id, in any order.
template <class F>
__device__ void for_each(const RowView& row, F f) {
  const bool vectors = has_vectors(row.x, row.size);
  for (int begin = int(threadIdx.x / 32) * kChunk; begin < row.size; begin += num_threads() / 32 * kChunk) {
    float v[kPerLane];
    load_chunk(row.x, begin, row.size, vectors, v);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i)
      if (id_of(begin, i) < row.size) f(id_of(begin, i), v[i]);
  }
}

struct Place {
  uint64 token = 0;  // packed; 0: there is none
  uint64 sum = 0;    // of `amount` up to and including the token
};

// The first token, best first, at which the prefix sum of amount(logit) exceeds `target`. Equal logits have equal
// amounts; a token of amount 0 is never found. First by bins, over which tokens are spread more evenly than over the
// leading bits of a float, then by the digits of the key inside one bin. `bins`: the sums per bin; null: not known.
template <class F>
__device__ __noinline__ Place descend(ChooseShared& s, const RowView& row, const Binning& binning, const uint64* bins,
                                      uint64 target, F amount) {
  int bin = 0;
  uint32_t key = 0, mask = 0;  // of the token that is sought: the bits known so far, and which they are
  uint64 before = 0;           // sum over all tokens that are better than the remaining candidates
  for (int pass = 0; pass < 4; ++pass) {
    const int shift = max(32 - kDigitBits * pass, 0), bits = pass == 3 ? 32 - 2 * kDigitBits : kDigitBits;
    const uint32_t digit_mask = (1u << bits) - 1;
    for (int i = int(threadIdx.x); i < kBins; i += num_threads()) {
      const uint64 known = pass == 0 && bins ? bins[i] : 0;
      s.digits[0][i] = uint32_t(known);
      s.digits[1][i] = uint32_t(known >> 32);
    }
    __syncthreads();
    if (pass > 0 || !bins)
      for_each(row, [&](int, float logit) {
        const int b = binning(logit);
        const uint32_t k = uint32_t(packed(logit, 0) >> 32);
        if (pass > 0 && (b != bin || (k & mask) != key)) return;
        const uint64 n = amount(logit);
        const int digit = pass == 0 ? b : int(~(k >> shift) & digit_mask);  // best first
        const uint32_t low = uint32_t(n), high = uint32_t(n >> 32);
        const uint32_t carry = low && atomicAdd(&s.digits[0][digit], low) > ~low;
        if (high + carry) atomicAdd(&s.digits[1][digit], high + carry);
      });
    __syncthreads();
    const auto sum_of = [&](int digit) { return uint64{s.digits[1][digit]} << 32 | s.digits[0][digit]; };
    const int each = (kBins + num_threads() - 1) / num_threads();
    const int begin = min(int(threadIdx.x) * each, kBins), end = min(begin + each, kBins);
    uint64 sum = 0, total;
    for (int i = begin; i < end; ++i) sum += sum_of(i);
    uint64 below = before + block_scan(s, sum, total);
    if (before + total <= target) return {};
    if (below <= target && below + sum > target)
      for (int i = begin; i < end; ++i) {
        if (below + sum_of(i) > target) {
          s.index = i;
          s.before = below;
          break;
        }
        below += sum_of(i);
      }
    __syncthreads();
    before = s.before;
    if (pass == 0) {
      bin = s.index;
    } else {
      key |= (~uint32_t(s.index) & digit_mask) << shift;
      mask |= digit_mask << shift;
    }
    __syncthreads();
  }

  // Among the tokens with this key, the one of rank (target - before) / each, by id: each warp counts in its part of
  // the row, and the warp that has the token searches it again.
  const uint64 each = amount(key_logit(key));
  const int rank = int((target - before) / each);
  const int part = (row.size + num_threads() - 1) / num_threads() * 32, begin = int(threadIdx.x / 32) * part;
  const auto is_tie = [&](int id) { return id < row.size && uint32_t(packed(row.x[id], 0) >> 32) == key; };
  int ties = 0;
  for (int i = 0; i < part; i += 32) ties += __popc(__ballot_sync(0xffffffffu, is_tie(begin + i + lane())));
  uint64 total;
  const uint64 before_warp = block_scan(s, uint64(lane() == 0 ? ties : 0), total);
  int left = rank - int(__shfl_sync(0xffffffffu, before_warp, 0));  // rank within this warp's part
  if (left >= 0 && left < ties)
    for (int i = 0; i < part; i += 32) {
      const int id = begin + i + lane();
      const uint32_t here = __ballot_sync(0xffffffffu, is_tie(id));
      if ((here >> lane() & 1) && __popc(here & ((1u << lane()) - 1)) == left)
        s.found = uint64{key} << 32 | uint32_t(~id);
      left -= __popc(here);
      if (left < 0) break;
    }
  __syncthreads();
  const Place place{s.found, before + each * uint64(rank + 1)};
  __syncthreads();
  return place;
}

}  // namespace moectl::cuda::kernel
