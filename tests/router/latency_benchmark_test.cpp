// What the router adds to a request: the same requests to a worker that answers at once, directly and through the
// router, in turns. Not part of the tests; run with --gtest_also_run_disabled_tests --gtest_filter='*Latency*'.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>

#include "core/http/client.h"
#include "core/http/sse.h"
#include "router/router_service.h"
#include "tests/router/fake_worker.h"

namespace moectl::router {
namespace {

constexpr int kRequests = 2000, kWarmUp = 200;

http::Response plain_error(const http::Request&, int status, std::string_view message, std::exception_ptr) {
  http::Response response;
  response.status = status;
  response.body = message;
  return response;
}

std::unique_ptr<http::Server> instant_worker() {
  auto server = http::Server::create({}, plain_error);
  server->route("GET", "/load", [](http::Exchange& exchange) -> Task<void> {
    http::Response response;
    response.body = load_report("decode");
    co_await exchange.respond(std::move(response));
  });
  server->route("POST", "/v1/chat/completions", [](http::Exchange& exchange) -> Task<void> {
    co_await exchange.start_stream();
    std::string events = ": moectl {}\n\ndata: {\"text\":1}\n\ndata: {\"text\":2}\n\ndata: [DONE]\n\n";
    co_await exchange.write(std::move(events));
    co_await exchange.finish();
  });
  server->start();
  return server;
}

struct Times {
  std::vector<double> first, whole;  // microseconds
};

Task<void> one(http::Client& client, std::string url, const std::string& body, Times& times) {
  http::ClientRequest request;
  request.method = "POST";
  request.url = std::move(url);
  request.body = body;
  request.headers.emplace_back("content-type", "application/json");
  const auto start = Clock::now();
  std::unique_ptr<http::ClientResponse> response = co_await client.send(std::move(request));
  co_await response->read();
  times.first.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
  co_await response->read_all();
  times.whole.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
}

Task<void> all(http::Client& client, std::string direct, std::string routed, std::string body, Times& d, Times& r) {
  for (int i = 0; i < kRequests + kWarmUp; ++i) {
    if (i == kWarmUp) d = r = {};
    co_await one(client, direct, body, d);
    co_await one(client, routed, body, r);
  }
}

double percentile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return values[size_t(share * double(values.size() - 1))];
}

TEST(RouterLatency, DISABLED_AddedByTheRouter) {
  const auto worker = instant_worker();
  RouterOptions options;
  options.api.port = 0;
  options.cluster_secret = "0123456789abcdef0123456789abcdef";
  options.decode_urls = {fmt::format("http://127.0.0.1:{}", worker->port())};
  RouterService router(options);
  while (!router.not_ready_reason().empty()) std::this_thread::yield();
  const auto client = http::Client::create();
  for (const size_t prompt : {100, 10'000, 100'000}) {
    const std::string body = fmt::format(
        R"({{"model":"demo","stream":true,"messages":[{{"role":"user","content":"{}"}}]}})", std::string(prompt, 'x'));
    Times direct, routed;
    const std::string path = "/v1/chat/completions";
    http::run_blocking(all(*client, options.decode_urls[0] + path, router.url() + path, body, direct, routed));
    for (const double share : {0.5, 0.99})
      std::printf("prompt %6zu bytes, p%02.0f: first event direct %6.0f us, routed %6.0f us; added %5.0f us\n", prompt,
                  share * 100, percentile(direct.first, share), percentile(routed.first, share),
                  percentile(routed.first, share) - percentile(direct.first, share));
  }
}

}  // namespace
}  // namespace moectl::router
