// An outside client: curl, over plain HTTP and over TLS with a certificate that openssl makes here.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "tests/http/test_client.h"

namespace moectl::http {
namespace {

std::string output_of(const std::string& command) {
  std::string out;
  FILE* pipe = ::popen((command + " 2>&1").c_str(), "r");
  if (!pipe) return out;
  char buffer[4096];
  while (size_t n = std::fread(buffer, 1, sizeof buffer, pipe)) out.append(buffer, n);
  ::pclose(pipe);
  return out;
}
bool have(const std::string& tool) {
  return std::system((tool + " version >/dev/null 2>&1 || " + tool + " --version >/dev/null 2>&1").c_str()) == 0;
}

class CurlTest : public ServerTest {
 protected:
  void SetUp() override {
    if (!have("curl")) GTEST_SKIP() << "curl is not installed";
    std::string pattern = (std::filesystem::temp_directory_path() / "moectl-http-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder = pattern;
  }
  void TearDown() override {
    ServerTest::TearDown();
    if (!folder.empty()) std::filesystem::remove_all(folder);
  }
  void talk(const std::string& url, const std::string& flags) {
    const std::string curl = "curl -sS --max-time 60 " + flags + " ";
    EXPECT_EQ(output_of(curl + url + "/hello " + url + "/hello"), "hellohello");
    std::string big(3 << 20, 'z');
    std::ofstream(folder / "big") << big;
    EXPECT_TRUE(output_of(curl + "--data-binary @" + (folder / "big").string() + " " + url + "/echo") == big);
    EXPECT_TRUE(output_of(curl + "-H 'Transfer-Encoding: chunked' --data-binary @" + (folder / "big").string() + " " +
                          url + "/echo") == big);
    EXPECT_EQ(output_of(curl + "-N " + url + "/stream"), "data: one\n\ndata: [DONE]\n\n");
    EXPECT_EQ(output_of(curl + "-0 -N " + url + "/stream"), "data: one\n\ndata: [DONE]\n\n");
  }
  void add_stream() {
    server->route("GET", "/stream", [](Exchange& x) -> Task<void> {
      co_await x.start_stream();
      std::string one = sse_event("one"), done(kSseDone);
      co_await x.write(std::move(one));
      co_await x.write(std::move(done));
      co_await x.finish();
    });
  }
  std::filesystem::path folder;
};

TEST_F(CurlTest, Plain) {
  make();
  add_stream();
  server->start(1);
  talk(fmt::format("http://127.0.0.1:{}", server->port()), "");
}

TEST_F(CurlTest, Tls) {
  if (!have("openssl")) GTEST_SKIP() << "openssl is not installed";
  ServerOptions options;
  options.ssl_certfile = folder / "cert.pem";
  options.ssl_keyfile = folder / "key.pem";
  output_of(
      "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost -addext "
      "subjectAltName=IP:127.0.0.1 -keyout " +
      options.ssl_keyfile + " -out " + options.ssl_certfile);
  make(options);
  add_stream();
  server->start(2);
  talk(fmt::format("https://127.0.0.1:{}", server->port()), "--cacert " + options.ssl_certfile);
  RawClient plain(server->port());
  EXPECT_NE(plain.status_then_close(kHello), 200) << "plain HTTP on the TLS port";
  ServerOptions half = options;
  half.ssl_keyfile.clear();
  EXPECT_THROW(Server::create(half, plain_error), Error);
  ServerOptions swapped = options;
  std::swap(swapped.ssl_keyfile, swapped.ssl_certfile);
  EXPECT_THROW(Server::create(swapped, plain_error), Error);
}

}  // namespace
}  // namespace moectl::http
