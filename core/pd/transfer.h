// One transfer of KV pages, as either side keeps it. Pure state: no sockets, no clocks, no threads; the owner
// serialises calls.
//   IncomingTransfer (decode): what may be written where. It writes to the request's own pages and nowhere else, each
//   block once, and calls the transfer complete only when every block arrived. OutgoingTransfer (prefill): which block
//   comes next, given how many tokens are ready.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/kv/kv_pool.h"
#include "core/pd/transfer_codec.h"

namespace moectl::transfer {

// Which blocks a transfer consists of. KV of tokens [first_page * page_size, num_tokens): the last page may be partial,
// then only the bytes of its wanted tokens travel, or the whole page where they do not lie together.
struct TransferPlan {
  TransferId id{};
  uint64_t epoch = 0;
  int num_lanes = 0, page_size = 0;
  int64_t page_bytes = 0;
  int64_t first_page = 0, num_tokens = 0;
  bool token_rows = true;  // KvLayout

  int64_t num_pages() const { return (num_tokens + page_size - 1) / page_size - first_page; }
  int64_t num_blocks() const { return num_pages() * num_lanes; }
  int64_t num_bytes() const;
  int64_t tokens_of(int64_t page) const;  // of the request's page `page`
  int64_t bytes_of(int64_t page) const { return token_rows ? tokens_of(page) * (page_bytes / page_size) : page_bytes; }
};
// Throws Error{kInvalidArgument}: no token is wanted, more are wanted than the prompt has, or sizes that fit nothing.
void check_plan(const TransferPlan& plan, int64_t prompt_tokens);

// Throws Error{kInvalidArgument} unless pool and pages can hold the plan: layout, number of pages, every page id.
void check_pages(const TransferPlan& plan, const KvPool& pool, const std::vector<int32_t>& pages, int64_t first);

class IncomingTransfer {
 public:
  // `into.pages[i]` takes the request's page i. Throws as check_pages.
  IncomingTransfer(const TransferPlan& plan, KvPool pool, std::vector<int32_t> pages);

  const TransferPlan& plan() const { return plan_; }
  // Throws Error{kBadData} when the block is not one that this transfer still lacks, or its payload is not what was
  // sent; then nothing is written. `write` false: checked and counted only (a cancelled transfer whose blocks are still
  // on the way).
  void receive(const Block& block, ByteSpan payload, bool write);
  // Throws Error{kBadData} when blocks are missing or the digest differs.
  void finish(const Done& done) const;

  int64_t num_blocks() const { return num_blocks_; }
  int64_t num_bytes() const { return num_bytes_; }

 private:
  TransferPlan plan_;
  KvPool pool_;
  std::vector<int32_t> pages_;
  std::vector<bool> arrived_;  // [num_lanes * num_pages]
  BlockDigest digest_;
  int64_t num_blocks_ = 0, num_bytes_ = 0;
};

class OutgoingTransfer {
 public:
  // `pages[i]` holds page i of the prompt (from 0, whatever first_page is).
  OutgoingTransfer(const TransferPlan& plan, KvPool pool, std::vector<int32_t> pages);

  struct Piece {
    Block block;
    ByteSpan payload;  // of the pool
  };
  // The next block when the KV of tokens [0, num_tokens_ready) is final; lane by lane over the pages that became
  // ready together.
  std::optional<Piece> next(int64_t num_tokens_ready);
  bool has_next(int64_t num_tokens_ready) const;
  bool all_sent() const { return num_blocks_ == plan_.num_blocks(); }
  Done done() const;  // counts and digest; the caller adds timings
  const TransferPlan& plan() const { return plan_; }

 private:
  int64_t ready_pages(int64_t num_tokens_ready) const;

  TransferPlan plan_;
  KvPool pool_;
  std::vector<int32_t> pages_;
  int64_t window_begin_ = 0, window_end_ = 0;  // pages that travel now
  int64_t page_ = 0;
  int lane_ = 0;
  BlockDigest digest_;
  int64_t num_blocks_ = 0, num_bytes_ = 0;
};

}  // namespace moectl::transfer
