#include "tests/engine/pd_pair.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace moectl::test {

void CopySource::attach(KvLayout layout, std::vector<KvPool> pools) {
  layout_ = std::move(layout);
  pools_ = std::move(pools);
}

void CopySource::start(RemotePrefill request, std::function<void(RemotePrefillResult)> done) {
  std::lock_guard lock(mutex_);
  EXPECT_TRUE(layout_ == prefill->kv_layout());
  started_.push_back(request);
  const std::vector<std::byte> unwritten(size_t(layout_.page_bytes), std::byte{0xff});
  for (int32_t page : request.into.pages)  // NaN: what is not copied cannot go unnoticed
    for (int lane = 0; lane < layout_.num_lanes; ++lane)
      pool(request.into.rank).write(lane, page, unwritten.data(), layout_.page_bytes);
  if (throw_at_start) throw std::runtime_error("no route");
  if (fail_at_tokens == 0) return done({.worker = request.workers[0], .error = "refused"});
  const uint64_t handle = request.handle;
  PrefillJob job{.request_id = request.request_id,
                 .prompt_ids = request.prompt_ids,
                 .num_tokens = request.num_tokens,
                 .cache_salt = request.cache_salt};
  const uint64_t id =
      prefill->prefill(std::move(job), [this, handle](const PrefillProgress& p) { on_report(handle, p); });
  const int first_token = request.into.first_page * layout_.page_size;
  transfers_[handle] = {.request = std::move(request), .done = std::move(done), .job = id, .num_copied = first_token};
}

void CopySource::cancel(uint64_t handle) {
  std::lock_guard lock(mutex_);
  ++num_cancelled_;
  const auto it = transfers_.find(handle);
  if (it == transfers_.end()) return;
  prefill->cancel(it->second.job);
  prefill->release_prefill(it->second.job);
  transfers_.erase(it);
}

void CopySource::on_report(uint64_t handle, const PrefillProgress& progress) {
  int n = 0;
  {
    std::lock_guard lock(mutex_);
    n = ++num_reports_;
  }
  if (at_report) at_report(n);
  std::lock_guard lock(mutex_);
  const auto it = transfers_.find(handle);
  if (it == transfers_.end()) return;
  Transfer& transfer = it->second;
  if (!progress.pages.pages.empty()) transfer.from = progress.pages;
  if (!progress.error.empty()) return end(handle, {.worker = "p", .error = progress.error});
  copy(transfer, progress.num_tokens_ready);
  if (fail_at_tokens > 0 && transfer.num_copied >= fail_at_tokens) return end(handle, {.worker = "p", .error = "lost"});
  if (!progress.finished) return;
  EXPECT_EQ(transfer.num_copied, transfer.request.num_tokens);
  const int num_tokens = transfer.request.num_tokens - transfer.request.into.first_page * layout_.page_size;
  end(handle, {.ok = true,
               .worker = transfer.request.workers[0],
               .num_bytes = layout_.page_bytes / layout_.page_size * num_tokens * layout_.num_lanes,
               .num_cached_tokens = progress.num_cached_tokens,
               .queue_seconds = progress.queue_seconds,
               .compute_seconds = progress.compute_seconds});
}

void CopySource::copy(Transfer& transfer, int num_tokens) {
  const KvPages& into = transfer.request.into;
  const KvPool from_pool = prefill->kv_pools()[size_t(transfer.from.rank)];
  if (!layout_.token_rows) return copy_pages(transfer, num_tokens);
  const int64_t token_size = layout_.page_bytes / layout_.page_size;
  for (; transfer.num_copied < num_tokens; ++transfer.num_copied) {
    const int page = transfer.num_copied / layout_.page_size, offset = transfer.num_copied % layout_.page_size;
    for (int lane = 0; lane < layout_.num_lanes; ++lane)
      for (std::byte* place : pool(into.rank).lanes[size_t(lane)])
        std::memcpy(
            place + into.pages[size_t(page - into.first_page)] * pool(into.rank).page_stride + offset * token_size,
            from_pool.page(lane, transfer.from.pages[size_t(page)]) + offset * token_size, size_t(token_size));
  }
}

// Pages whose tokens do not lie together: full ones as they become ready, the last one with the last token.
void CopySource::copy_pages(Transfer& transfer, int num_tokens) {
  const KvPages& into = transfer.request.into;
  const KvPool from_pool = prefill->kv_pools()[size_t(transfer.from.rank)];
  const int ready = num_tokens == transfer.request.num_tokens ? (num_tokens + layout_.page_size - 1) / layout_.page_size
                                                              : num_tokens / layout_.page_size;
  for (int page = transfer.num_copied / layout_.page_size; page < ready; ++page)
    for (int lane = 0; lane < layout_.num_lanes; ++lane)
      pool(into.rank).write(lane, into.pages[size_t(page - into.first_page)],
                            from_pool.page(lane, transfer.from.pages[size_t(page)]), layout_.page_bytes);
  transfer.num_copied = std::max(transfer.num_copied, std::min(ready * layout_.page_size, num_tokens));
}

void CopySource::end(uint64_t handle, RemotePrefillResult result) {
  auto node = transfers_.extract(handle);
  if (!result.ok) prefill->cancel(node.mapped().job);
  prefill->release_prefill(node.mapped().job);
  node.mapped().done(std::move(result));
}

std::vector<RemotePrefill> CopySource::started() const {
  std::lock_guard lock(mutex_);
  return started_;
}

int CopySource::num_cancelled() const {
  std::lock_guard lock(mutex_);
  return num_cancelled_;
}

EngineConfig prefill_config() {
  EngineConfig config = demo_config();
  config.prefill_role = true;
  config.max_num_batched_tokens = 128;
  return config;
}

EngineConfig decode_config() {
  EngineConfig config = demo_config();
  config.local_prefill_tokens = 0;
  return config;
}

PdPair::PdPair(EngineConfig prefill_side, EngineConfig decode_side) : prefill(Engine::create(std::move(prefill_side))) {
  source->prefill = prefill.get();
  decode_side.prefill_source = source;
  decode = Engine::create(std::move(decode_side));
}

void PdPair::expect_baseline() {
  EXPECT_EQ(idle_stats(*decode).kv_pages_used, 0);
  EXPECT_EQ(idle_stats(*prefill).kv_pages_used, 0);
}

std::vector<std::byte> token_bytes(const KvPool& pool, const std::vector<int32_t>& pages, int lane, int num_tokens) {
  const int64_t token_size = pool.page_bytes / pool.page_size;
  std::vector<std::byte> bytes;
  for (int i = 0; i < num_tokens; ++i) {
    const std::byte* token = pool.page(lane, pages[size_t(i / pool.page_size)]) + i % pool.page_size * token_size;
    bytes.insert(bytes.end(), token, token + token_size);
  }
  return bytes;
}

}  // namespace moectl::test
