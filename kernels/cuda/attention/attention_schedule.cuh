// How attention over paged caches is distributed over thread blocks (split-KV). The device computes it, because the
// positions are known there only: the pages of all rows, and kItemCost pages per row for its beginning and end, form
// one line, which is cut into equal parts, one per block (or cluster of blocks). A row that spans several parts is
// split: each leaves a partial result, and the block that finishes last combines them in the order of the pages, so the
// result does not depend on which one is last. With `whole_rows` a row belongs to the part that holds most of it and is
// never split: its result then depends on nothing but the row itself (batch invariance).
#pragma once

#include <cstdint>

namespace moectl::cuda::kernel {

constexpr int kMaxParts = 512;

struct ScheduleShared {
  int warp_sum[32], load[kMaxParts], largest;
  int first, first_unit;  // where this part begins
  int last_block;
};

// A work item: pages [begin, end) of the n that a row sees. begin == end == n == 0: a row that sees none.
struct AttentionItem {
  int row, begin, end, n, unit;
  __device__ bool whole() const { return begin == 0 && end == n; }
};

// Pages: int operator()(int row) const, how many pages the row sees; the same for the `per_token` rows of a token. Rows
// are split at multiples of kStep pages (a power of two); a split has at least kMinSplit pages, a part at least
// kMinPart, but there are no fewer parts than rows. A split costs about kSplitCost pages: where whole rows balance as
// well, no row is split.
template <int kItemCost, int kSplitCost, int kMinPart, int kMinSplit, int kStep, class Pages>
struct Schedule {
  Pages num_pages;
  int num_tokens, per_token;
  bool whole_rows;
  int rows, parts, base, extra;  // the first `extra` parts have base + 1 pages, the others `base`
  int part, row, unit;

  // All threads of the block together; `kThreads` of them.
  template <int kThreads>
  __device__ void make(ScheduleShared& shared, int this_part, int max_parts) {
    const int tid = threadIdx.x, per_thread = (num_tokens + kThreads - 1) / kThreads;
    const int begin = min(num_tokens, tid * per_thread), end = min(num_tokens, begin + per_thread);
    int sum = 0;
    for (int t = begin; t < end; ++t) sum += per_token * (kItemCost + num_pages(t * per_token));
    int inclusive = sum;
    for (int d = 1; d < 32; d *= 2) {
      const int v = __shfl_up_sync(0xffffffffu, inclusive, d);
      if (tid % 32 >= d) inclusive += v;
    }
    if (tid % 32 == 31) shared.warp_sum[tid / 32] = inclusive;
    if (tid == 0) shared.largest = 0;
    for (int i = tid; i < kMaxParts; i += kThreads) shared.load[i] = 0;
    __syncthreads();
    int total = 0, before = inclusive - sum;
    for (int w = 0; w < kThreads / 32; ++w) {
      if (w < tid / 32) before += shared.warp_sum[w];
      total += shared.warp_sum[w];
    }
    rows = num_tokens * per_token;
    parts = min(min(max_parts, kMaxParts), max(max(1, rows), total / kMinPart));
    base = total / parts;
    extra = total % parts;
    part = this_part;
    if (!whole_rows && rows <= 8 * parts) {  // how many pages would whole rows give the busiest part?
      int at = before;
      for (int t = begin; t < end; ++t) {
        const int n = num_pages(t * per_token);
        for (int i = 0; i < per_token; ++i, at += kItemCost + n)
          atomicAdd(&shared.load[min((at + kItemCost + n / 2) / base, parts - 1)], kItemCost + n);
      }
      __syncthreads();
      int largest = 0;
      for (int i = tid; i < parts; i += kThreads) largest = max(largest, shared.load[i]);
      atomicMax(&shared.largest, largest);
      __syncthreads();
      whole_rows = shared.largest <= base + kSplitCost;
    }
    const int start = bound(part);
    if (part < parts && before <= start && start < before + sum) {
      int t = begin, at = before, cost;
      for (; at + per_token * (cost = kItemCost + num_pages(t * per_token)) <= start; ++t) at += per_token * cost;
      const int skip = (start - at) / cost;
      shared.first = t * per_token + skip;
      shared.first_unit = at + skip * cost;
    }
    __syncthreads();
    row = part < parts ? shared.first : rows;
    unit = shared.first_unit;
  }

  __device__ int bound(int s) const { return s * base + min(s, extra); }
  // The page at which a bound splits a row of n pages that begins at unit `at`.
  __device__ int cut(int bound, int at, int n) const {
    const int page = bound - at - kItemCost;
    if (page >= n) return n;
    if (whole_rows) return page * 2 < n ? 0 : n;
    return page < kMinSplit ? 0 : page > n - kMinSplit ? n : page & ~(kStep - 1);
  }
  // What part s has of a row.
  __device__ AttentionItem split(const AttentionItem& of, int s) const {
    return {of.row, cut(bound(s), of.unit, of.n), cut(bound(s + 1), of.unit, of.n), of.n, of.unit};
  }

  // Calls take(item) for each work item of this part.
  template <class Take>
  __device__ __forceinline__ void for_each(Take&& take) const {
    const int from = bound(part), to = bound(part + 1);
    int at = unit, n = 0;
    for (int r = row; r < rows && at < to; ++r) {
      if (r == row || r % per_token == 0) n = num_pages(r);
      const AttentionItem item = {r, cut(from, at, n), cut(to, at, n), n, at};
      if (item.begin < item.end || (n == 0 && at >= from)) take(item);
      at += kItemCost + n;
    }
  }
  // Calls take(slot) for the splits of the item's row, in order. A part leaves at most two partial results: of the end
  // of one row, and of the beginning of another.
  template <class Take>
  __device__ __forceinline__ void for_each_split(const AttentionItem& item, Take&& take) const {
    int s = part;
    while (cut(bound(s), item.unit, item.n) > 0) --s;
    for (AttentionItem p = split(item, s);; p = split(item, ++s)) {
      if (p.begin < p.end) take(slot(p, s));
      if (p.end == p.n) break;
    }
  }
  __device__ static int slot(const AttentionItem& item, int s) { return s * 2 + (item.begin == 0); }
  __device__ int slot(const AttentionItem& item) const { return slot(item, part); }
};

}  // namespace moectl::cuda::kernel
