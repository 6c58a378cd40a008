// How attention over paged caches is dealt out to thread blocks, on the device, because positions are known there
// alone: the pages of all rows, and kItemCost pages for the beginning and end of each row, are one line, which is cut
// into equal shares, one a block (or cluster of blocks). A row that is cut leaves partial results; the block that
// finishes last adds them in the order of the pages, so that the result does not depend on who was last. With
// `whole_rows` a row goes where most of it lies and is never cut: then its result depends on nothing but itself.
#pragma once

#include <cstdint>

namespace moectl::cuda::kernel {

constexpr int kMaxShares = 512;

struct ScheduleShared {
  int warp_sum[32], load[kMaxShares], largest;
  int first, first_unit;  // where this share begins
  int last_block;
};

// A piece of a row: pages [begin, end) of the n that the row sees. begin == end == n == 0: a row that sees none.
struct AttentionItem {
  int row, begin, end, n, unit;
  __device__ bool whole() const { return begin == 0 && end == n; }
};

// Pages: int operator()(int row) const, how many pages the row sees; the same for the `per_token` rows of a token. Cuts
// fall on multiples of kStep pages (a power of two); pieces have at least kMinPiece pages, shares at least kMinShare,
// but there are no fewer shares than rows. A cut costs about kCutCost pages: where whole rows balance as well, none is
// made.
template <int kItemCost, int kCutCost, int kMinShare, int kMinPiece, int kStep, class Pages>
struct Schedule {
  Pages num_pages;
  int num_tokens, per_token;
  bool whole_rows;
  int rows, shares, base, extra;  // the first `extra` shares have base + 1 pages, the others `base`
  int share, row, unit;

  // All threads of the block together; `kThreads` of them.
  template <int kThreads>
  __device__ void make(ScheduleShared& shared, int this_share, int max_shares) {
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
    for (int i = tid; i < kMaxShares; i += kThreads) shared.load[i] = 0;
    __syncthreads();
    int total = 0, before = inclusive - sum;
    for (int w = 0; w < kThreads / 32; ++w) {
      if (w < tid / 32) before += shared.warp_sum[w];
      total += shared.warp_sum[w];
    }
    rows = num_tokens * per_token;
    shares = min(min(max_shares, kMaxShares), max(max(1, rows), total / kMinShare));
    base = total / shares;
    extra = total % shares;
    share = this_share;
    if (!whole_rows && rows <= 8 * shares) {  // what would whole rows give the busiest share?
      int at = before;
      for (int t = begin; t < end; ++t) {
        const int n = num_pages(t * per_token);
        for (int i = 0; i < per_token; ++i, at += kItemCost + n)
          atomicAdd(&shared.load[min((at + kItemCost + n / 2) / base, shares - 1)], kItemCost + n);
      }
      __syncthreads();
      int largest = 0;
      for (int i = tid; i < shares; i += kThreads) largest = max(largest, shared.load[i]);
      atomicMax(&shared.largest, largest);
      __syncthreads();
      whole_rows = shared.largest <= base + kCutCost;
    }
    const int start = bound(share);
    if (share < shares && before <= start && start < before + sum) {
      int t = begin, at = before, cost;
      for (; at + per_token * (cost = kItemCost + num_pages(t * per_token)) <= start; ++t) at += per_token * cost;
      const int skip = (start - at) / cost;
      shared.first = t * per_token + skip;
      shared.first_unit = at + skip * cost;
    }
    __syncthreads();
    row = share < shares ? shared.first : rows;
    unit = shared.first_unit;
  }

  __device__ int bound(int s) const { return s * base + min(s, extra); }
  // Where a bound cuts a row of n pages that begins at unit `at`.
  __device__ int cut(int bound, int at, int n) const {
    const int page = bound - at - kItemCost;
    if (page >= n) return n;
    if (whole_rows) return page * 2 < n ? 0 : n;
    return page < kMinPiece ? 0 : page > n - kMinPiece ? n : page & ~(kStep - 1);
  }
  __device__ AttentionItem piece(const AttentionItem& of, int s) const {
    return {of.row, cut(bound(s), of.unit, of.n), cut(bound(s + 1), of.unit, of.n), of.n, of.unit};
  }

  // Calls take(item) for each piece of this share.
  template <class Take>
  __device__ __forceinline__ void for_each(Take&& take) const {
    const int from = bound(share), to = bound(share + 1);
    int at = unit, n = 0;
    for (int r = row; r < rows && at < to; ++r) {
      if (r == row || r % per_token == 0) n = num_pages(r);
      const AttentionItem item = {r, cut(from, at, n), cut(to, at, n), n, at};
      if (item.begin < item.end || (n == 0 && at >= from)) take(item);
      at += kItemCost + n;
    }
  }
  // Calls take(piece, slot) for the pieces of the item's row, in order; a share leaves at most two pieces of rows that
  // are cut: the end of one, and the beginning of another.
  template <class Take>
  __device__ __forceinline__ void for_each_piece(const AttentionItem& item, Take&& take) const {
    int s = share;
    while (cut(bound(s), item.unit, item.n) > 0) --s;
    for (AttentionItem p = piece(item, s);; p = piece(item, ++s)) {
      if (p.begin < p.end) take(slot(p, s));
      if (p.end == p.n) break;
    }
  }
  __device__ static int slot(const AttentionItem& piece, int s) { return s * 2 + (piece.begin == 0); }
  __device__ int slot(const AttentionItem& item) const { return slot(item, share); }
};

}  // namespace moectl::cuda::kernel
