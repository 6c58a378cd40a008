// Both ends of a KV transfer without an engine: pools whose bytes follow from (prompt, token, layer), a producer that
// computes on its own thread and keeps books, and peers that speak the protocol by hand.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <future>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "core/base/error.h"
#include "core/pd/kv_client.h"
#include "core/pd/kv_server.h"
#include "core/pd/transfer.h"

namespace moectl::test {

inline constexpr std::byte kCanary{0xCD};
inline const std::string kSecret = "a secret of the cluster";

struct PoolMemory {
  explicit PoolMemory(const KvLayout& layout, int64_t num_pages)
      : bytes(size_t(layout.num_lanes), std::vector<std::byte>(size_t(num_pages * layout.page_bytes), kCanary)) {
    pool = {.num_lanes = layout.num_lanes,
            .num_pages = num_pages,
            .page_size = layout.page_size,
            .page_bytes = layout.page_bytes,
            .page_stride = layout.page_bytes};
    for (auto& lane : bytes) pool.lanes.push_back({lane.data()});
  }
  std::vector<std::vector<std::byte>> bytes;  // [lane]
  KvPool pool;
};

inline uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// What the KV of each token depends on: all tokens up to it.
inline std::vector<uint64_t> token_states(const std::vector<int32_t>& prompt, const std::string& salt) {
  std::vector<uint64_t> states;
  uint64_t h = 1;
  for (char c : salt) h = mix(h ^ uint8_t(c));
  for (int32_t id : prompt) states.push_back(h = mix(h ^ uint32_t(id)));
  return states;
}

inline void fill_token(std::byte* out, size_t num_bytes, uint64_t state, int layer) {
  uint64_t h = mix(state ^ mix(uint64_t(layer)));
  for (size_t i = 0; i < num_bytes; ++i, h = i % 8 ? h >> 8 : mix(state + h + i)) out[i] = std::byte(h);
}

inline KvLayout make_layout(int num_lanes = 3, int page_size = 64, int64_t token_bytes = 40) {
  return {.model_hash = "model-a",
          .kv_format = "f32-1",
          .num_lanes = num_lanes,
          .page_size = page_size,
          .page_bytes = page_size * token_bytes};
}

inline std::vector<int32_t> make_prompt(int num_tokens, int seed = 0) {
  std::vector<int32_t> ids;
  for (int i = 0; i < num_tokens; ++i) ids.push_back(int32_t(mix(uint64_t(seed) << 32 | unsigned(i)) % 30000));
  return ids;
}

// A worker's engine as the server sees it. Pages are taken from a free list in an order that is not the identity; a
// job's pages are overwritten when it is released, so a byte that is read later shows.
class FakeProducer {
 public:
  FakeProducer(KvLayout layout, int64_t num_pages, int chunk_tokens = 100)
      : layout_(layout), memory_(layout, num_pages), chunk_tokens_(chunk_tokens) {
    for (int64_t i = 0; i < num_pages; ++i) free_.push_back(int32_t((i * 7 + 3) % num_pages));
    if (num_pages % 7 == 0) throw std::logic_error("num_pages must not be a multiple of 7");
    thread_ = std::thread([this] { run(); });
  }
  ~FakeProducer() {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  KvProducer producer() {
    return {.prefill = [this](PrefillJob job, PrefillSink sink) { return begin(std::move(job), std::move(sink)); },
            .cancel = [this](uint64_t handle) { cancel(handle); },
            .release = [this](uint64_t handle) { release(handle); },
            .layout = [this] { return layout_; },
            .pools = [this] { return std::vector<KvPool>{memory_.pool}; }};
  }

  // No progress beyond so many tokens of a job until it is raised.
  void hold_at(int num_tokens) {
    {
      std::lock_guard lock(mutex_);
      hold_at_ = num_tokens;
    }
    changed_.notify_all();
  }
  void fail_with(std::string error) {
    std::lock_guard lock(mutex_);
    error_ = std::move(error);
  }
  void refuse_with(std::string error) {
    std::lock_guard lock(mutex_);
    refusal_ = std::move(error);
  }

  void wait_until(const std::function<bool(const FakeProducer&)>& condition) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return condition(*this); });
  }
  // Read inside wait_until(), or when nothing runs.
  int num_begun = 0, num_released = 0, num_released_twice = 0, num_cancelled = 0;
  int num_open() const { return num_begun - num_released; }
  int64_t num_free() const { return int64_t(free_.size()); }

 private:
  struct Job {
    PrefillJob want;
    PrefillSink sink;
    std::vector<int32_t> pages;
    std::vector<uint64_t> states;
    int ready = 0;
    bool reported = false, ended = false, cancelled = false, released = false;
  };

  uint64_t begin(PrefillJob job, PrefillSink sink) {
    std::lock_guard lock(mutex_);
    if (!refusal_.empty()) throw Error(Code::kUnavailable, refusal_);
    const int64_t need = (job.num_tokens + layout_.page_size - 1) / layout_.page_size;
    if (need > int64_t(free_.size())) throw Error(Code::kResourceExhausted, "the pool is full");
    auto& j = jobs_[next_handle_];
    j.states = token_states(job.prompt_ids, job.cache_salt);
    for (int64_t i = 0; i < need; ++i) {
      j.pages.push_back(free_.front());
      free_.pop_front();
    }
    j.want = std::move(job);
    j.sink = std::move(sink);
    ++num_begun;
    changed_.notify_all();
    return next_handle_++;
  }
  void cancel(uint64_t handle) {
    std::lock_guard lock(mutex_);
    ++num_cancelled;
    jobs_.at(handle).cancelled = true;
    changed_.notify_all();
  }
  void release(uint64_t handle) {
    std::lock_guard lock(mutex_);
    Job& j = jobs_.at(handle);
    if (j.released) {
      ++num_released_twice;
      return;
    }
    j.released = true;
    for (int32_t page : j.pages) {
      for (int l = 0; l < layout_.num_lanes; ++l)
        std::memset(memory_.pool.page(l, page), 0xEE, size_t(layout_.page_bytes));
      free_.push_back(page);
    }
    ++num_released;
    changed_.notify_all();
  }

  Job* runnable() {
    for (auto& [handle, j] : jobs_)
      if (!j.ended && (j.cancelled || j.released || !error_.empty() || j.ready < std::min(hold_at_, j.want.num_tokens)))
        return &j;
    return nullptr;
  }
  void run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      Job* job = nullptr;
      changed_.wait(lock, [&] { return stop_ || (job = runnable()) != nullptr; });
      if (stop_) return;
      PrefillProgress progress;
      if (job->cancelled || job->released) {
        job->ended = progress.finished = true;
        progress.error = "cancelled";
      } else if (!error_.empty()) {
        job->ended = progress.finished = true;
        progress.error = error_;
      } else {
        const int end = std::min({job->ready + chunk_tokens_, job->want.num_tokens, hold_at_});
        const size_t token_bytes = size_t(layout_.page_bytes / layout_.page_size);
        for (int l = 0; l < layout_.num_lanes; ++l)
          for (int t = job->ready; t < end; ++t)
            fill_token(memory_.pool.page(l, job->pages[size_t(t / layout_.page_size)]) +
                           size_t(t % layout_.page_size) * token_bytes,
                       token_bytes, job->states[size_t(t)], l);
        if (!job->reported) progress.pages.pages = job->pages;
        job->reported = true;
        progress.num_tokens_ready = job->ready = end;
        progress.num_cached_tokens = 5;
        progress.queue_seconds = 0.25;
        progress.compute_seconds = 0.5;
        job->ended = progress.finished = end == job->want.num_tokens;
      }
      PrefillSink sink = job->sink;
      lock.unlock();
      sink(progress);
      lock.lock();
      changed_.notify_all();
    }
  }

  const KvLayout layout_;
  PoolMemory memory_;
  const int chunk_tokens_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool stop_ = false;
  int hold_at_ = INT32_MAX;
  std::string error_, refusal_;
  std::deque<int32_t> free_;
  std::map<uint64_t, Job> jobs_;
  uint64_t next_handle_ = 1;
  std::thread thread_;
};

// Where a timeout is meant to strike.
inline KvTimeouts short_timeouts() {
  using Millis = KvTimeouts::Millis;
  return {.connect = Millis(2000), .handshake = Millis(2000), .heartbeat = Millis(100), .dead_after = Millis(2000)};
}

// A machine under load may not run a thread for a second: where no timeout is meant to strike, it is far away.
inline KvTimeouts patient_timeouts() {
  using Millis = KvTimeouts::Millis;
  return {.connect = Millis(30000), .handshake = Millis(30000), .heartbeat = Millis(200), .dead_after = Millis(30000)};
}

inline KvServerOptions server_options(KvTimeouts timeouts = patient_timeouts()) {
  return {.secret = kSecret, .max_prompt_tokens = 4096, .timeouts = timeouts};
}
inline KvClientOptions client_options(KvTimeouts timeouts = patient_timeouts()) {
  return {.secret = kSecret, .timeouts = timeouts};
}
inline std::string endpoint(uint16_t port) {
  return "127.0.0.1:" + std::to_string(port);
}

// Decode's side: a pool, a source, and requests over pages of the test's choice.
class Decode {
 public:
  Decode(const KvLayout& layout, int64_t num_pages, KvClientOptions options = client_options())
      : layout(layout), memory(layout, num_pages), source(std::move(options)) {
    source.attach(layout, {memory.pool});
  }

  RemotePrefill request(uint64_t handle, std::vector<std::string> workers, std::vector<int32_t> prompt, int first_page,
                        std::vector<int32_t> pages, std::string salt = "") const {
    RemotePrefill r{.handle = handle, .request_id = "req-" + std::to_string(handle), .workers = std::move(workers)};
    r.num_tokens = int(prompt.size()) - 1;
    r.prompt_ids = std::move(prompt);
    r.cache_salt = std::move(salt);
    r.into = {.rank = 0, .first_page = first_page, .pages = std::move(pages), .epochs = {}};
    return r;
  }
  std::future<RemotePrefillResult> start(RemotePrefill r) {
    auto promise = std::make_shared<std::promise<RemotePrefillResult>>();
    source.start(std::move(r), [promise](RemotePrefillResult result) { promise->set_value(std::move(result)); });
    return promise->get_future();
  }
  RemotePrefillResult run(RemotePrefill r) { return start(std::move(r)).get(); }

  // Every wanted byte is what the prompt says, every other byte of these pages is untouched.
  void expect_filled(const RemotePrefill& r) const {
    const auto states = token_states(r.prompt_ids, r.cache_salt);
    const size_t token_bytes = size_t(layout.page_bytes / layout.page_size);
    std::vector<std::byte> expected(token_bytes);
    for (int l = 0; l < layout.num_lanes; ++l)
      for (size_t p = 0; p < r.into.pages.size(); ++p)
        for (int i = 0; i < layout.page_size; ++i) {
          const int token = (r.into.first_page + int(p)) * layout.page_size + i;
          if (token < r.num_tokens)
            fill_token(expected.data(), token_bytes, states[size_t(token)], l);
          else
            std::fill(expected.begin(), expected.end(), kCanary);
          const std::byte* is = memory.pool.page(l, r.into.pages[p]) + size_t(i) * token_bytes;
          ASSERT_EQ(std::memcmp(is, expected.data(), token_bytes), 0) << "layer " << l << " token " << token;
        }
  }
  void expect_untouched_but(const std::set<int32_t>& pages) const {
    for (int l = 0; l < layout.num_lanes; ++l)
      for (int32_t p = 0; p < memory.pool.num_pages; ++p) {
        if (pages.contains(p)) continue;
        const std::byte* page = memory.pool.page(l, p);
        ASSERT_TRUE(std::all_of(page, page + layout.page_bytes, [](std::byte b) { return b == kCanary; }))
            << "layer " << l << " page " << p;
      }
  }

  const KvLayout layout;
  PoolMemory memory;
  RemotePrefillSource source;
};

// A prefill worker whose every byte the test decides: it accepts one connection after the other and hands each to
// `serve`.
class FakeWorker {
 public:
  using Serve = std::function<void(TcpChannel&)>;
  explicit FakeWorker(Serve serve) : listener_("127.0.0.1", 0), serve_(std::move(serve)) {
    thread_ = std::thread([this] {
      while (!stop_) {
        auto channel = listener_.accept(wake_);
        if (!channel) continue;
        {
          std::lock_guard lock(mutex_);
          if (stop_) return;
          current_ = channel.get();
        }
        try {
          serve_(*channel);
        } catch (const Error&) {  // the other side hung up: that is what most tests want
        }
        std::lock_guard lock(mutex_);
        current_ = nullptr;
      }
    });
  }
  ~FakeWorker() {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
      if (current_) current_->shutdown();
    }
    wake_.wake();
    thread_.join();
  }
  uint16_t port() const { return listener_.port(); }

 private:
  Waker wake_;
  TcpListener listener_;
  Serve serve_;
  std::mutex mutex_;
  std::atomic<bool> stop_{false};
  TcpChannel* current_ = nullptr;
  std::thread thread_;
};

// What a worker sends for a request, message by message.
struct GoodStream {
  GoodStream(const transfer::Prefill& request, const KvLayout& layout) : memory(layout, 64) {
    const auto states = token_states(request.prompt_ids, request.cache_salt);
    const size_t token_bytes = size_t(layout.page_bytes / layout.page_size);
    std::vector<int32_t> pages;
    for (int64_t t = 0; t < request.num_tokens; ++t) {
      if (t % layout.page_size == 0) pages.push_back(int32_t(t / layout.page_size));
      for (int l = 0; l < layout.num_lanes; ++l)
        fill_token(memory.pool.page(l, pages.back()) + size_t(t % layout.page_size) * token_bytes, token_bytes,
                   states[size_t(t)], l);
    }
    transfer::OutgoingTransfer out({.id = request.id,
                                    .epoch = request.epoch,
                                    .num_lanes = layout.num_lanes,
                                    .page_size = layout.page_size,
                                    .page_bytes = layout.page_bytes,
                                    .first_page = request.first_page,
                                    .num_tokens = request.num_tokens},
                                   memory.pool, pages);
    while (const auto piece = out.next(request.num_tokens))
      blocks.push_back({piece->block, {piece->payload.begin(), piece->payload.end()}});
    done = out.done();
  }
  struct Piece {
    transfer::Block block;
    transfer::Bytes payload;
    transfer::Bytes frame() const {
      const transfer::BlockFrame header = encode(block);
      transfer::Bytes bytes(header.size() + payload.size());
      std::copy(header.begin(), header.end(), bytes.begin());
      std::copy(payload.begin(), payload.end(), bytes.begin() + long(header.size()));
      return bytes;
    }
  };
  transfer::Bytes all() const {
    transfer::Bytes bytes;
    for (const Piece& p : blocks) {
      const transfer::Bytes frame = p.frame();
      bytes.insert(bytes.end(), frame.begin(), frame.end());
    }
    const transfer::Bytes last = encode(done);
    bytes.insert(bytes.end(), last.begin(), last.end());
    return bytes;
  }

  PoolMemory memory;
  std::vector<Piece> blocks;
  transfer::Done done;
};

// The protocol by hand, from either side.
struct HandPeer {
  HandPeer(TcpChannel& channel, transfer::Hello hello, const std::string& secret = kSecret)
      : channel(channel), reader(channel) {
    theirs = shake_hands(channel, reader, hello, secret, patient_timeouts());
    using From = transfer::FrameLimits::From;
    reader.set_limits({.from = hello.role == transfer::Role::kDecode ? From::kPrefill : From::kDecode,
                       .max_prompt_tokens = 1 << 20,
                       .max_payload_bytes = hello.layout.page_bytes});
  }
  // The next message that is no heartbeat.
  FrameReader::Frame next() {
    for (;;) {
      const auto frame = reader.next(std::chrono::milliseconds(60000));
      if (frame.type != transfer::FrameType::kHeartbeat) return frame;
    }
  }
  void say(transfer::ByteSpan bytes) { send(channel, bytes, std::chrono::milliseconds(60000)); }
  transfer::Prefill next_prefill() {
    const auto frame = next();
    if (frame.type != transfer::FrameType::kPrefill) throw Error(Code::kBadData, "no Prefill");
    return transfer::decode_prefill(frame.fields, 1 << 20);
  }
  // Until the other side hangs up.
  void drain() {
    for (;;) next();
  }

  TcpChannel& channel;
  FrameReader reader;
  transfer::Hello theirs;
};

inline transfer::Hello prefill_hello(const KvLayout& layout) {
  return {.role = transfer::Role::kPrefill, .layout = layout, .max_prompt_tokens = 1 << 20};
}
inline transfer::Hello decode_hello(const KvLayout& layout) {
  return {.role = transfer::Role::kDecode, .layout = layout};
}

}  // namespace moectl::test
