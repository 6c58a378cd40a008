// A prefill engine and a decode engine in one process, joined by a PrefillSource that copies bytes between their pools.
// What the wire does is tested elsewhere; here the two engines are.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "tests/engine/engine_client.h"

namespace moectl::test {

class CopySource final : public PrefillSource {
 public:
  // Set before the first request.
  Engine* prefill = nullptr;
  std::function<void(int)> at_report;  // prefill engine's thread: its n-th report comes in, from 1; no lock is held
  int fail_at_tokens = -1;             // give up when so many tokens have been copied; 0: refuse at once
  bool throw_at_start = false;

  void attach(KvLayout layout, std::vector<KvPool> pools) override;
  void start(RemotePrefill request, std::function<void(RemotePrefillResult)> done) override;
  void cancel(uint64_t handle) override;

  std::vector<RemotePrefill> started() const;
  int num_cancelled() const;
  const KvLayout& layout() const { return layout_; }
  const KvPool& pool(int rank) const { return pools_[size_t(rank)]; }

 private:
  struct Transfer {
    RemotePrefill request;
    std::function<void(RemotePrefillResult)> done;
    uint64_t job = 0;
    KvPages from;
    int num_copied = 0;  // tokens
  };
  void on_report(uint64_t handle, const PrefillProgress& progress);
  void copy(Transfer& transfer, int num_tokens);
  void copy_pages(Transfer& transfer, int num_tokens);
  void end(uint64_t handle, RemotePrefillResult result);

  mutable std::mutex mutex_;
  KvLayout layout_;
  std::vector<KvPool> pools_;
  std::map<uint64_t, Transfer> transfers_;
  std::vector<RemotePrefill> started_;
  int num_reports_ = 0, num_cancelled_ = 0;
};

EngineConfig prefill_config();  // steps of 128 tokens, so that long prompts take several
EngineConfig decode_config();   // everything that is not cached is computed elsewhere

struct PdPair {
  explicit PdPair(EngineConfig prefill_side = prefill_config(), EngineConfig decode_side = decode_config());
  std::shared_ptr<CopySource> source = std::make_shared<CopySource>();
  std::unique_ptr<Engine> prefill, decode;  // the decode engine goes first

  // Waits until nothing runs on either side; no page may be held then.
  void expect_baseline();
};

// The bytes of tokens [0, num_tokens) in one layer, gathered from a request's pages.
std::vector<std::byte> token_bytes(const KvPool& pool, const std::vector<int32_t>& pages, int lane, int num_tokens);

}  // namespace moectl::test
