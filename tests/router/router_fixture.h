// A router over loopback for tests: started on free ports, asked over HTTP, its workers fakes (fake_worker.h).
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <future>
#include <map>

#include "core/api/errors.h"
#include "core/http/client.h"
#include "core/http/spawn.h"
#include "router/router_service.h"
#include "tests/router/fake_worker.h"

namespace moectl::router {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

inline constexpr const char* kSecret = "0123456789abcdef0123456789abcdef";
inline constexpr const char* kChat = R"({"model":"demo","messages":[{"role":"user","content":"hi"}]})";
// What a worker sends before the first text.
inline constexpr const char* kRole =
    R"(data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]})"
    "\n\n";
inline const std::string kText = "data: {\"text\":1}\n\n";
inline constexpr const char* kStreamed =
    R"({"model":"demo","stream":true,"messages":[{"role":"user","content":"hi"}]})";

struct Answer {
  int status = 0;
  http::Headers headers;
  std::string body, broken;  // broken: why the body did not end in order
  std::string header(std::string_view name) const {
    for (const auto& [n, v] : headers)
      if (n == name) return v;
    return "";
  }
  std::string error(const char* field) const {
    const api::ApiError error = api::parse_error(body, status);
    const std::map<std::string, std::string> fields = {
        {"message", error.message}, {"type", error.type}, {"param", error.param}, {"code", error.code}};
    return fields.at(field);
  }
};

inline Task<void> call(http::Client& client, http::ClientRequest request, Answer& answer) {
  std::unique_ptr<http::ClientResponse> response = co_await client.send(std::move(request));
  answer.status = response->status();
  answer.headers = response->headers();
  try {
    for (;;) {
      std::optional<std::string> piece = co_await response->read();
      if (!piece) break;
      answer.body += *piece;
    }
  } catch (const Error& e) {
    answer.broken = e.what();
  }
}

class RouterTest : public testing::Test {
 protected:
  RouterOptions options;
  std::unique_ptr<RouterService> router;
  std::unique_ptr<http::Client> client = http::Client::create();

  void SetUp() override {
    options.api.port = 0;
    options.api.ops_port = 0;
    options.cluster_secret = kSecret;
    options.api.version = "test";
    options.probe_interval = milliseconds(20);
    options.read_workers_file = [](const std::string& path) {
      std::ifstream file(path);
      std::vector<WorkerAddress> workers;
      for (std::string url; file >> url;) {
        if (url == "bad") throw Error(Code::kBadData, "bad content");
        workers.push_back({Role::kDecode, url});
      }
      return workers;
    };
  }
  // Starts and waits until that many workers are ready.
  void start(int num_decode, int num_prefill = 0) {
    router = std::make_unique<RouterService>(options);
    wait_for_workers(num_decode, num_prefill);
  }
  void wait_for_workers(int num_decode, int num_prefill = 0) {
    const std::string wanted = fmt::format(R"("decode_workers":{},"prefill_workers":{}}})", num_decode, num_prefill);
    while (get("/readiness").body.find(wanted) == std::string::npos) std::this_thread::yield();
  }
  Answer get(std::string_view path) { return send("GET", router->url() + std::string(path), ""); }
  Answer ops(std::string_view path) { return send("GET", *router->ops_url() + std::string(path), ""); }
  Answer post(std::string_view body, http::Headers headers = {}) {
    headers.emplace_back("content-type", "application/json");
    return send("POST", router->url() + "/v1/chat/completions", std::string(body), std::move(headers));
  }
  Answer send(std::string method, std::string url, std::string body, http::Headers headers = {}) {
    Answer answer;
    http::run_blocking(
        call(*client, request(std::move(method), std::move(url), std::move(body), std::move(headers)), answer));
    return answer;
  }
  static http::ClientRequest request(std::string method, std::string url, std::string body, http::Headers headers) {
    http::ClientRequest result;
    result.method = std::move(method);
    result.url = std::move(url);
    result.body = std::move(body);
    result.headers = std::move(headers);
    return result;
  }
  // A request is counted when its handler ends, which is after its client has the answer.
  void wait_for_metric(const std::string& line, const std::string& value) {
    while (metric(line) != value) std::this_thread::yield();
  }
  std::string metric(const std::string& line) {
    const std::string text = "\n" + ops("/metrics").body;
    const size_t at = text.find("\n" + line + " ");
    if (at == std::string::npos) return "none";
    const size_t value = at + line.size() + 2;
    return text.substr(value, text.find('\n', value) - value);
  }
};

inline void answer_ok(RawConnection& c, const std::string&, int) {
  c.answer(R"({"choices":[]})");
}
inline void die(RawConnection&, const std::string&, int) {}

}  // namespace moectl::router
