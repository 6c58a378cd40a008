// What every service answers: errors with their headers, keys, paths under the EAS prefix.
#include "core/service/service.h"

#include <gtest/gtest.h>

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
  void start(const std::vector<std::string>* keys = nullptr) {
    std::vector<Route> routes = {{"GET", "/one", says("one")},
                                 {"POST", "/one", says("posted")},
                                 {"GET", "/all/*", says("all")},
                                 {"POST", "/throws", [](http::Exchange&) -> Task<void> {
                                    throw std::runtime_error("a path on this machine");
                                    co_return;
                                  }}};
    add_eas_prefix(routes);
    server = make_server({}, std::move(routes), keys);
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

}  // namespace
}  // namespace moectl
