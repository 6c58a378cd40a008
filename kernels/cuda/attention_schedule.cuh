// How attention over paged caches is dealt out to thread blocks, on the device, because positions are known there
// alone: the pages of all rows, and kItemCost pages for the beginning and end of each row, are one line, which is cut
// into equal shares, one a block (or cluster of blocks). A row that is cut leaves partial results; the block that
// finishes last adds them in the order of the pages, so that the result does not depend on who was last. With
// `whole_rows` a row goes where most of it lies and is never cut: then its result depends on nothing but itself.
#pragma once

#include <cstdint>

namespace moectl::cuda::kernel {

struct ScheduleShared {
  int warp_sum[32];
  int first, first_unit;  // where this share begins
  int last_block;
};

// A piece of a row: pages [begin, end) of the n that the row sees. begin == end == n == 0: a row that sees none.
struct AttentionItem {
  int row, begin, end, n, unit;
  __device__ bool whole() const { return begin == 0 && end == n; }
};

// Pages: int operator()(int row) const, how many pages the row sees. Cuts fall on multiples of kStep pages (a power of
// two); pieces have at least kMinPiece pages, shares at least kMinShare.
template <int kItemCost, int kMinShare, int kMinPiece, int kStep, class Pages>
struct Schedule {
  Pages num_pages;
  int rows;
  bool whole_rows;
  int64_t total;
  int shares, share, row, unit;

  // All threads of the block together; `kThreads` of them.
  template <int kThreads>
  __device__ void make(ScheduleShared& shared, int this_share, int max_shares) {
    const int tid = threadIdx.x, per_thread = (rows + kThreads - 1) / kThreads;
    const int begin = min(rows, tid * per_thread), end = min(rows, begin + per_thread);
    int sum = 0;
    for (int r = begin; r < end; ++r) sum += kItemCost + num_pages(r);
    int inclusive = sum;
    for (int d = 1; d < 32; d *= 2) {
      const int v = __shfl_up_sync(0xffffffffu, inclusive, d);
      if (tid % 32 >= d) inclusive += v;
    }
    if (tid % 32 == 31) shared.warp_sum[tid / 32] = inclusive;
    __syncthreads();
    total = 0;
    int before = inclusive - sum;
    for (int w = 0; w < kThreads / 32; ++w) {
      if (w < tid / 32) before += shared.warp_sum[w];
      total += shared.warp_sum[w];
    }
    shares = int(min(int64_t(max_shares), max(int64_t(1), total / kMinShare)));
    share = this_share;
    const int64_t start = bound(share);
    if (share < shares && before <= start && start < before + sum) {
      int r = begin, at = before;
      for (int cost; at + (cost = kItemCost + num_pages(r)) <= start; ++r) at += cost;
      shared.first = r;
      shared.first_unit = at;
    }
    __syncthreads();
    row = share < shares ? shared.first : rows;
    unit = shared.first_unit;
  }

  __device__ int64_t bound(int s) const { return s * total / shares; }
  // Where a bound cuts a row of n pages that begins at unit `at`.
  __device__ int cut(int64_t bound, int at, int n) const {
    const int64_t page = bound - at - kItemCost;
    if (page >= n) return n;
    if (whole_rows) return page * 2 < n ? 0 : n;
    return page < kMinPiece ? 0 : page > n - kMinPiece ? n : int(page) & ~(kStep - 1);
  }
  __device__ AttentionItem piece(const AttentionItem& of, int s) const {
    return {of.row, cut(bound(s), of.unit, of.n), cut(bound(s + 1), of.unit, of.n), of.n, of.unit};
  }

  // Calls take(item) for each piece of this share.
  template <class Take>
  __device__ __forceinline__ void for_each(Take&& take) const {
    const int64_t from = bound(share), to = bound(share + 1);
    int at = unit;
    for (int r = row; r < rows && at < to; ++r) {
      const int n = num_pages(r);
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
