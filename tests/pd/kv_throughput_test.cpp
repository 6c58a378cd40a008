// How fast KV travels over loopback, beside a plain send and recv of the same bytes in the same run. A measurement, not
// a test: it asserts only that everything arrived. Run it with --gtest_also_run_disabled_tests
// --gtest_filter='*KvThroughput*'.
#include <time.h>

#include <cstdio>

#include "tests/pd/kv_harness.h"

namespace moectl::test {
namespace {

using Clock = std::chrono::steady_clock;

struct Setting {
  const char* name;
  KvLayout layout;
  int num_tokens;
};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Of all threads of the process: what a noisy machine cannot take away.
double cpu_seconds() {
  timespec t{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return double(t.tv_sec) + double(t.tv_nsec) * 1e-9;
}

// An engine that has everything computed.
KvProducer ready_producer(const KvLayout& layout, const PoolMemory& memory, int num_pages) {
  std::vector<int32_t> pages;
  for (int32_t p = 0; p < num_pages; ++p) pages.push_back(p);
  return {.prefill =
              [pages](PrefillJob job, PrefillSink sink) {
                sink({.pages = {.pages = pages}, .num_tokens_ready = job.num_tokens, .finished = true});
                return uint64_t(1);
              },
          .cancel = [](uint64_t) {},
          .release = [](uint64_t) {},
          .layout = [layout] { return layout; },
          .pools = [&memory] { return std::vector<KvPool>{memory.pool}; }};
}

// Sends and receives every page of `from` without a protocol: one thread sends 1 MiB at a time, one receives into `to`.
double plain_copy(PoolMemory& from, PoolMemory& to) {
  TcpListener listener("127.0.0.1", 0);
  Waker never;
  constexpr std::chrono::milliseconds kLong{60000};
  const auto sender = TcpChannel::connect({"127.0.0.1", listener.port()}, kLong, never);
  const auto receiver = listener.accept(never);
  const auto start = Clock::now();
  std::thread thread([&] {
    for (auto& layer : from.bytes)
      for (size_t at = 0; at < layer.size(); at += 1 << 20) {
        iovec part{layer.data() + at, std::min<size_t>(1 << 20, layer.size() - at)};
        sender->send_all({&part, 1}, kLong);
      }
  });
  for (auto& layer : to.bytes)
    for (size_t at = 0; at < layer.size();) at += receiver->recv_some(std::span(layer).subspan(at), kLong);
  thread.join();
  return seconds_since(start);
}

TEST(KvThroughput, DISABLED_BesideAPlainCopy) {
  const Setting settings[] = {
      {"demo model: 2 layers of 40 KiB pages", make_layout(2, 64, 640), 16384},
      {"DeepSeek-V3 in bf16: 61 layers of 72 KiB pages", make_layout(61, 64, 1152), 2048},
  };
  for (const Setting& s : settings) {
    const int num_pages = s.num_tokens / s.layout.page_size;
    PoolMemory from(s.layout, num_pages);
    for (size_t l = 0; l < from.bytes.size(); ++l)
      for (size_t i = 0; i < from.bytes[l].size(); ++i) from.bytes[l][i] = std::byte(mix(l << 40 | i));
    Decode decode(s.layout, num_pages);
    KvServerOptions options = server_options();
    options.max_prompt_tokens = s.num_tokens + 1;
    KvServer server(ready_producer(s.layout, from, num_pages), options);
    std::vector<int32_t> pages;
    for (int32_t p = 0; p < num_pages; ++p) pages.push_back(p);
    const RemotePrefill want = decode.request(1, {endpoint(server.port())}, make_prompt(s.num_tokens + 1), 0, pages);

    constexpr int kRuns = 15;
    std::vector<double> transfer, plain;  // GB/s
    double transfer_cpu = 0, plain_cpu = 0;
    const double bytes = double(num_pages * s.layout.page_bytes * s.layout.num_lanes);
    for (int i = 0; i < kRuns; ++i) {
      for (auto& layer : decode.memory.bytes) std::fill(layer.begin(), layer.end(), kCanary);
      double cpu = cpu_seconds();
      const auto start = Clock::now();
      const RemotePrefillResult result = decode.run(want);
      transfer.push_back(bytes / seconds_since(start) / 1e9);
      transfer_cpu += cpu_seconds() - cpu;
      ASSERT_TRUE(result.ok) << result.error;
      ASSERT_EQ(decode.memory.bytes, from.bytes);
      cpu = cpu_seconds();
      plain.push_back(bytes / plain_copy(from, decode.memory) / 1e9);
      plain_cpu += cpu_seconds() - cpu;
    }
    std::sort(transfer.begin(), transfer.end());
    std::sort(plain.begin(), plain.end());
    const auto print = [&](const char* what, const std::vector<double>& speed, double cpu) {
      std::printf("  %-12s median %.2f GB/s, best %.2f, %.2f CPU seconds a GB\n", what, speed[kRuns / 2], speed.back(),
                  cpu / (bytes * kRuns / 1e9));
    };
    std::printf("%s, %d tokens, %.1f MB, %d runs each, in turns\n", s.name, s.num_tokens, bytes / 1e6, kRuns);
    print("KV transfer", transfer, transfer_cpu);
    print("plain copy", plain, plain_cpu);
    std::printf("  ratio        median %.2f, CPU %.2f\n", transfer[kRuns / 2] / plain[kRuns / 2],
                plain_cpu / transfer_cpu);
  }
}

}  // namespace
}  // namespace moectl::test
