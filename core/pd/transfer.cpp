#include "core/pd/transfer.h"

#include <algorithm>
#include <cstring>

#include "core/base/error.h"

namespace moectl::transfer {
namespace {

[[noreturn]] void bad(std::string message) {
  throw Error(Code::kBadData, std::move(message));
}
[[noreturn]] void invalid(std::string message) {
  throw Error(Code::kInvalidArgument, std::move(message));
}

}  // namespace

int64_t TransferPlan::tokens_of(int64_t page) const {
  return std::min<int64_t>(page_size, num_tokens - (first_page + page) * page_size);
}

int64_t TransferPlan::num_bytes() const {
  if (!token_rows) return num_pages() * page_bytes * num_lanes;
  return (num_tokens - first_page * page_size) * (page_bytes / page_size) * num_lanes;
}

void check_plan(const TransferPlan& p, int64_t prompt_tokens) {
  if (p.num_lanes < 1 || p.page_size < 1 || p.page_bytes < 1 || p.page_bytes % p.page_size != 0 ||
      p.page_bytes > UINT32_MAX)
    invalid(fmt::format("KV transfer: {} lanes, pages of {} tokens and {} bytes cannot be transferred", p.num_lanes,
                        p.page_size, p.page_bytes));
  if (p.num_tokens < 1 || p.num_tokens > prompt_tokens)
    invalid(fmt::format("KV transfer: {} tokens wanted of a prompt of {}", p.num_tokens, prompt_tokens));
  if (p.first_page < 0 || p.first_page > p.num_tokens / p.page_size || p.first_page * p.page_size >= p.num_tokens)
    invalid(fmt::format("KV transfer: page {} is the first wanted, but {} tokens end before it", p.first_page,
                        p.num_tokens));
}

void check_pages(const TransferPlan& plan, const KvPool& pool, const std::vector<int32_t>& pages, int64_t first) {
  if (pool.num_lanes != plan.num_lanes || pool.page_size != plan.page_size || pool.page_bytes != plan.page_bytes ||
      pool.lanes.size() != size_t(plan.num_lanes))
    invalid(fmt::format("KV transfer: the pool has {} lanes of {}-token pages of {} bytes, the plan {}, {}, {}",
                        pool.num_lanes, pool.page_size, pool.page_bytes, plan.num_lanes, plan.page_size,
                        plan.page_bytes));
  if (int64_t(pages.size()) < first + plan.num_pages())
    invalid(fmt::format("KV transfer: {} pages are held, {} are needed", pages.size(), first + plan.num_pages()));
  for (int32_t page : pages)
    if (page < 0 || page >= pool.num_pages)
      invalid(fmt::format("KV transfer: page {} of a pool of {}", page, pool.num_pages));
}

// ------------------------------------------------------------------------------------------------ decode's side
IncomingTransfer::IncomingTransfer(const TransferPlan& plan, KvPool pool, std::vector<int32_t> pages)
    : plan_(plan), pool_(std::move(pool)), pages_(std::move(pages)) {
  check_pages(plan_, pool_, pages_, 0);
  arrived_.resize(size_t(plan_.num_blocks()));
}

void IncomingTransfer::receive(const Block& b, ByteSpan payload, bool write) {
  if (b.id != plan_.id || b.epoch != plan_.epoch)
    bad(fmt::format("KV block of epoch {} for a transfer of epoch {}", b.epoch, plan_.epoch));
  if (b.lane >= uint32_t(plan_.num_lanes) || b.page >= plan_.num_pages())
    bad(fmt::format("KV block for lane {} page {}; the request has {} lanes and {} pages", b.lane, b.page,
                    plan_.num_lanes, plan_.num_pages()));
  const int64_t expected = plan_.bytes_of(b.page);
  if (b.num_bytes != expected || int64_t(payload.size()) != expected)
    bad(fmt::format("KV block for lane {} page {} states {} bytes and carries {}; expected {}", b.lane, b.page,
                    b.num_bytes, payload.size(), expected));
  const size_t idx = size_t(b.lane) * size_t(plan_.num_pages()) + b.page;
  if (arrived_[idx]) bad(fmt::format("KV block for lane {} page {} came twice", b.lane, b.page));
  if (checksum(payload) != b.checksum)
    bad(fmt::format("KV block for lane {} page {} arrived damaged: its checksum does not match", b.lane, b.page));
  if (write) pool_.write(int(b.lane), pages_[b.page], reinterpret_cast<const std::byte*>(payload.data()), expected);
  arrived_[idx] = true;
  digest_.add(b);
  ++num_blocks_;
  num_bytes_ += expected;
}

void IncomingTransfer::finish(const Done& done) const {
  if (done.id != plan_.id || done.epoch != plan_.epoch)
    bad(fmt::format("KV message Done of epoch {} for a transfer of epoch {}", done.epoch, plan_.epoch));
  if (num_blocks_ != plan_.num_blocks())
    bad(fmt::format("the worker calls the transfer done, but {} of {} KV blocks arrived", num_blocks_,
                    plan_.num_blocks()));
  if (done.num_blocks != uint64_t(num_blocks_) || done.num_bytes != uint64_t(num_bytes_))
    bad(fmt::format("the worker counts {} KV blocks of {} bytes, {} of {} arrived", done.num_blocks, done.num_bytes,
                    num_blocks_, num_bytes_));
  if (done.digest != digest_.value()) bad("the digest over the KV blocks is not the worker's");
}

// ------------------------------------------------------------------------------------------------ prefill's side
OutgoingTransfer::OutgoingTransfer(const TransferPlan& plan, KvPool pool, std::vector<int32_t> pages)
    : plan_(plan), pool_(std::move(pool)), pages_(std::move(pages)) {
  check_pages(plan_, pool_, pages_, plan_.first_page);
}

int64_t OutgoingTransfer::ready_pages(int64_t num_tokens_ready) const {
  if (num_tokens_ready >= plan_.num_tokens) return plan_.num_pages();
  return std::max<int64_t>(0, num_tokens_ready / plan_.page_size - plan_.first_page);
}

bool OutgoingTransfer::has_next(int64_t num_tokens_ready) const {
  return page_ < window_end_ || ready_pages(num_tokens_ready) > window_end_;
}

std::optional<OutgoingTransfer::Piece> OutgoingTransfer::next(int64_t num_tokens_ready) {
  if (page_ == window_end_) {
    const int64_t ready = ready_pages(num_tokens_ready);
    if (ready == window_end_) return std::nullopt;
    window_begin_ = page_ = window_end_;
    window_end_ = ready;
    lane_ = 0;
  }
  Piece piece;
  piece.payload = {pool_.page(lane_, pages_[size_t(plan_.first_page + page_)]), size_t(plan_.bytes_of(page_))};
  piece.block = {.id = plan_.id,
                 .epoch = plan_.epoch,
                 .lane = uint32_t(lane_),
                 .page = uint32_t(page_),
                 .num_bytes = uint32_t(piece.payload.size()),
                 .checksum = checksum(piece.payload)};
  digest_.add(piece.block);
  ++num_blocks_;
  num_bytes_ += piece.block.num_bytes;
  if (++page_ == window_end_ && ++lane_ < plan_.num_lanes) page_ = window_begin_;
  return piece;
}

Done OutgoingTransfer::done() const {
  return {.id = plan_.id,
          .epoch = plan_.epoch,
          .num_blocks = uint64_t(num_blocks_),
          .num_bytes = uint64_t(num_bytes_),
          .digest = digest_.value()};
}

}  // namespace moectl::transfer
