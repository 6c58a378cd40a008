// What every service answers: errors with their headers, keys, paths under the EAS prefix.
#include "core/service/service.h"

#include <gtest/gtest.h>

#include <map>

#include "tests/http/test_client.h"

namespace moectl {
namespace {

http::Handler says(std::string text) {
  return [text](http::Exchange& exchange) -> Task<void> {
    http::Response response = json_response(text + " " + exchange.request().path);
    co_await exchange.respond(std::move(response));
  };
}

class ServiceTest : public testing::Test {
 protected:
  void start(const std::vector<std::string>* keys = nullptr, bool metrics_without_key = false) {
    std::vector<Route> routes = {{"GET", "/one", says("one")},
                                 {"POST", "/one", says("posted")},
                                 {"GET", "/all/*", says("all")},
                                 {"GET", "/health", says("health")},
                                 {"GET", "/metrics", says("metrics")},
                                 {"POST", "/change", for_administrators(administration, says("changed"))},
                                 {"POST", "/throws", [](http::Exchange&) -> Task<void> {
                                    throw std::runtime_error("a path on this machine");
                                    co_return;
                                  }}};
    add_eas_prefix(routes);
    server = make_server({}, std::move(routes), keys, metrics_without_key);
    server->start();
  }
  void TearDown() override {
    if (server) server->stop(std::chrono::milliseconds(0));
  }
  http::RawClient::Answer ask(const std::string& line, const std::string& headers = "") {
    http::RawClient client(server->port());
    client.send(line + " HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n" + headers + "\r\n");
    return client.answer();
  }
  int change(const std::string& headers = "") { return ask("POST /change", headers).status; }
  Administration administration;
  std::unique_ptr<http::Server> server;
};

TEST(Service, ErrorsCarryTheHeadersOfTheirStatus) {
  const auto headers_of = [](int status) { return error_response(api::from_status(status, "no")).headers; };
  using Headers = http::Headers;
  EXPECT_EQ(headers_of(400), Headers{});
  EXPECT_EQ(headers_of(503), (Headers{{"Retry-After", "1"}}));
  EXPECT_EQ(headers_of(429), (Headers{{"Retry-After", "1"}}));
  EXPECT_EQ(headers_of(401), (Headers{{"WWW-Authenticate", "Bearer"}}));
  EXPECT_EQ(headers_of(504), (Headers{{"x-should-retry", "false"}}));
}

TEST(Service, Urls) {
  EXPECT_EQ(service_url(false, "0.0.0.0", 80), "http://127.0.0.1:80");
  EXPECT_EQ(service_url(true, "::", 443), "https://[::1]:443");
  EXPECT_EQ(service_url(false, "fe80::1", 1), "http://[fe80::1]:1");
  EXPECT_EQ(service_url(false, "example", 1), "http://example:1");
}

TEST_F(ServiceTest, PathsUnderTheEasPrefix) {
  start();
  EXPECT_EQ(ask("GET /one").body, "one /one");
  EXPECT_EQ(ask("GET /api/predict/my-service/one").body, "one /api/predict/my-service/one");
  EXPECT_EQ(ask("POST /api/predict/my-service/one").body, "posted /api/predict/my-service/one");
  EXPECT_EQ(ask("GET /api/predict/my-service/all/that/is").body, "all /api/predict/my-service/all/that/is");
  for (const char* path : {"/api/predict/my-service", "/api/predict/my-service/", "/api/predict/my-service/other",
                           "/api/predict/a/api/predict/b/one"})
    EXPECT_EQ(ask(std::string("GET ") + path).status, 404) << path;
  const auto wrong = ask("POST /api/predict/my-service/all/x");
  EXPECT_EQ(wrong.status, 405);
  EXPECT_NE(wrong.head.find("Allow: GET\r\n"), std::string::npos) << wrong.head;
}

TEST_F(ServiceTest, ErrorsAreObjectsAndTellNothingOfTheInside) {
  start();
  const auto failed = ask("POST /throws");
  EXPECT_EQ(failed.status, 500);
  EXPECT_NE(failed.body.find("\"error\""), std::string::npos) << failed.body;
  EXPECT_EQ(failed.body.find("machine"), std::string::npos) << failed.body;
}

TEST_F(ServiceTest, EveryPathNeedsAKey) {
  const std::vector<std::string> keys = {"first-key", "second-key"};
  start(&keys);
  for (const char* path : {"GET /one", "GET /unknown", "GET /api/predict/my-service/one"})
    for (const char* header :
         {"", "Authorization: Bearer other\r\n", "Authorization: Bearer first-ke\r\n", "Authorization: Bearer \r\n"}) {
      const auto refused = ask(path, header);
      EXPECT_EQ(refused.status, 401) << path << header;
      EXPECT_NE(refused.head.find("WWW-Authenticate: Bearer\r\n"), std::string::npos);
    }
  for (const char* header : {"Authorization: Bearer first-key\r\n", "authorization: second-key\r\n"})
    EXPECT_EQ(ask("GET /one", header).status, 200) << header;
}

TEST_F(ServiceTest, ProbesNeedNoKey) {
  const std::vector<std::string> keys = {"key"};
  start(&keys);
  for (const char* path : {"GET /health", "GET /api/predict/my-service/health"})
    EXPECT_EQ(ask(path).status, 200) << path;
  for (const char* path : {"GET /metrics", "GET /api/predict/my-service/metrics", "GET /health/", "GET /healthy",
                           "GET /one/health", "GET /api/predict/health", "GET /api/predict/x/y/health"})
    EXPECT_EQ(ask(path).status, 401) << path;
}

TEST_F(ServiceTest, MetricsNeedNoKeyByFlag) {
  const std::vector<std::string> keys = {"key"};
  start(&keys, true);
  for (const char* path : {"GET /metrics", "GET /api/predict/my-service/metrics", "GET /health"})
    EXPECT_EQ(ask(path).status, 200) << path;
  EXPECT_EQ(ask("GET /one").status, 401);
}

TEST_F(ServiceTest, AdministratorsKnowAKeyOrTheSecret) {
  administration = {{"key", "other-key"}, "secret", {}};
  start();
  for (const char* header :
       {"", "Authorization: Bearer \r\n", "Authorization: Bearer ke\r\n", "Authorization: Bearer keys\r\n"})
    EXPECT_EQ(change(header), 401) << header;
  for (const char* known : {"key", "other-key", "secret"})
    EXPECT_EQ(change(std::string("Authorization: Bearer ") + known + "\r\n"), 200) << known;
  administration.api_keys.clear();
  EXPECT_EQ(change(), 401) << "a secret alone is enough to ask for it";
  EXPECT_EQ(change("Authorization: Bearer key\r\n"), 401);
  administration = {{"key"}, "", {}};
  EXPECT_EQ(change("Authorization: Bearer \r\n"), 401) << "no secret is not an empty one";
}

TEST_F(ServiceTest, WithoutKeyAndSecretOnlyThisMachineAdministrates) {
  start();
  EXPECT_EQ(change(), 200);
  http::Request request;
  for (const auto& [peer, may] : std::map<std::string, bool>{{"127.0.0.1:5", true},
                                                             {"127.8.0.1:5", true},
                                                             {"[::1]:5", true},
                                                             {"[::ffff:127.0.0.1]:5", true},
                                                             {"10.0.0.1:5", false},
                                                             {"[fe80::1]:5", false},
                                                             {"", false}}) {
    request.peer = peer;
    EXPECT_EQ(!refuse_administration(administration, request), may) << peer;
  }
}

TEST_F(ServiceTest, PagesFromElsewhereChangeNothing) {
  administration = {{}, "secret", origins_of("0.0.0.0", 9080)};
  start();
  const std::string credential = "Authorization: Bearer secret\r\n";
  EXPECT_EQ(change(credential + "Origin: http://127.0.0.1:9080\r\n"), 200);
  EXPECT_EQ(change(credential + "Origin: http://localhost:9080\r\n"), 200);
  for (const char* origin : {"http://evil.example", "http://127.0.0.1:9081", "https://127.0.0.1:9080", "null", "",
                             "http://127.0.0.1:9080.evil.example"})
    EXPECT_EQ(change(credential + "Origin: " + origin + "\r\n"), 403) << origin;
  EXPECT_EQ(change("Origin: http://evil.example\r\n"), 403);
  administration = {{}, "", origins_of("127.0.0.1", 9080)};
  EXPECT_EQ(change("Origin: http://evil.example\r\n"), 403) << "this machine's browser is not its administrator";
}

TEST(Service, LoopbackAddresses) {
  for (const char* host : {"127.0.0.1", "127.8.9.255", "localhost", "::1", "[::1]", "::ffff:127.0.0.1"})
    EXPECT_TRUE(is_loopback(host)) << host;
  for (const char* host : {"0.0.0.0", "::", "::2", "10.0.0.1", "128.0.0.1", "::ffff:10.0.0.1", "127.0.0.1.example",
                           "localhost.example", "127.0.0", "127.0.0.256", "127.0.0.-1", "127.0.0.1 ", "example", ""})
    EXPECT_FALSE(is_loopback(host)) << host;
}

}  // namespace
}  // namespace moectl
