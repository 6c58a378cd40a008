// The parser alone: fault matrix rows 1-8 byte by byte, chunked bodies cut at every place, and seeded mutations.
#include "core/http/request_validator.h"

#include <gtest/gtest.h>

#include <random>

#include "core/http/chunked_decoder.h"

namespace moectl::http {
namespace {

// 200 when accepted, -1 when the scanner still waits for more.
int judge(const std::string& bytes, RequestHead* out = nullptr, size_t max_head = 32 << 10) {
  HeadLimits limits;
  limits.max_head_bytes = max_head;
  HeadScanner scanner(max_head);
  size_t n = scanner.scan(bytes);
  if (scanner.refusal()) return scanner.refusal()->status;
  if (n == 0) return -1;
  RequestHead head;
  auto refusal = parse_head(std::string_view(bytes).substr(0, n), limits, head);
  if (refusal) return refusal->status;
  if (out) *out = head;
  return 200;
}
std::string get(const std::string& fields) {
  return "GET / HTTP/1.1\r\nHost: x\r\n" + fields + "\r\n";
}

TEST(RequestValidator, ReadsAnOrdinaryHead) {
  RequestHead head;
  ASSERT_EQ(judge("POST /v1/a%20b?q=1 HTTP/1.1\r\nHost: [::1]:80\r\nX-A:  b \t\r\nContent-Length: 12\r\nExpect: "
                  "100-Continue\r\n\r\n",
                  &head),
            200);
  EXPECT_EQ(head.method, "POST");
  EXPECT_EQ(head.path, "/v1/a b");
  EXPECT_EQ(head.query, "q=1");
  EXPECT_EQ(head.headers[1], (std::pair<std::string, std::string>("x-a", "b")));
  EXPECT_EQ(head.content_length, 12u);
  EXPECT_TRUE(head.expect_continue && head.keep_alive && !head.chunked);
  ASSERT_EQ(judge("GET http://h:1?z HTTP/1.1\r\nHost: h:1\r\nConnection: Foo, Close\r\n\r\n", &head), 200);
  EXPECT_EQ(head.path, "/");
  EXPECT_EQ(head.query, "z");
  EXPECT_FALSE(head.keep_alive);
  ASSERT_EQ(judge("GET / HTTP/1.0\r\n\r\n", &head), 200);
  EXPECT_FALSE(head.keep_alive);
}

// RFC 9112, section 2.2.
TEST(RequestValidator, SkipsOneEmptyLineBeforeTheRequestLine) {
  RequestHead head;
  ASSERT_EQ(judge("\r\nGET /a HTTP/1.1\r\nHost: x\r\nA: b\r\n\r\n", &head), 200);
  EXPECT_EQ(head.path, "/a");
  EXPECT_EQ(head.headers.size(), 2u);
  EXPECT_EQ(judge("\r\n"), -1);
  EXPECT_EQ(judge("\r\n\r\n"), 400);
  EXPECT_EQ(judge("\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n"), 400);
  EXPECT_EQ(judge("\nGET / HTTP/1.1\r\nHost: x\r\n\r\n"), 400);
  EXPECT_EQ(judge(" \r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n"), 400);
}

TEST(RequestValidator, RefusesContentCodingsByName) {
  EXPECT_EQ(judge(get("Content-Encoding: identity\r\nContent-Length: 1\r\n")), 200);
  for (std::string coding : {"gzip", "Br", "identity, gzip", "x"}) {
    RequestHead head;
    const auto refusal = parse_head(get("Content-Encoding: " + coding + "\r\nContent-Length: 1\r\n"), {}, head);
    ASSERT_TRUE(refusal) << coding;
    EXPECT_EQ(refusal->status, 415);
    EXPECT_NE(refusal->message.find("Content-Encoding `" + coding + "`"), std::string::npos) << refusal->message;
  }
}

TEST(RequestValidator, RefusesWhatIsAmbiguous) {
  struct Case {
    std::string bytes;
    int status;
  };
  const std::string nul(1, '\0');
  for (const Case& c : std::vector<Case>{{get("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), 400},
                                         {get("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"), 400},
                                         {get("Transfer-Encoding: gzip\r\n"), 501},
                                         {get("Transfer-Encoding: chunked, identity\r\n"), 400},
                                         {get("Transfer-Encoding: identity, chunked\r\n"), 400},
                                         {get("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), 400},
                                         {get("Transfer-Encoding:\r\n"), 400},
                                         {"POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
                                         {"GET / HTTP/1.1\r\n\r\n", 400},
                                         {get("Host: x\r\n"), 400},
                                         {"GET / HTTP/1.0\r\nHost: x\r\nHost: x\r\n\r\n", 400},
                                         {"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400},
                                         {"GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", 400},
                                         {"GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n", 400},
                                         {get("A: b\r\n c\r\n"), 400},
                                         {"GET / HTTP/1.1\r\n Host: x\r\n\r\n", 400},
                                         {"GET / HTTP/1.1\nHost: x\n\n", 400},
                                         {get("A: b\nC: d\r\n"), 400},
                                         {get("A: b\rC: d\r\n"), 400},
                                         {get("A: b" + nul + "\r\n"), 400},
                                         {get("A : b\r\n"), 400},
                                         {get(": b\r\n"), 400},
                                         {get("Ab\r\n"), 400},
                                         {get("A\x80: b\r\n"), 400},
                                         {get("Content-Length: +5\r\n"), 400},
                                         {get("Content-Length: -1\r\n"), 400},
                                         {get("Content-Length: 5, 5\r\n"), 400},
                                         {get("Content-Length: 0x5\r\n"), 400},
                                         {get("Content-Length: \r\n"), 400},
                                         {get("Content-Length: 99999999999999999999\r\n"), 400},
                                         {get("Content-Length: 5\r\nContent-Length: 5\r\n"), 400},
                                         {get("Expect: cake\r\n"), 417},
                                         {"GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400},
                                         {"GET / HTTP/1.1 \r\nHost: x\r\n\r\n", 400},
                                         {"GET /\r\nHost: x\r\n\r\n", 400},
                                         {"G(T / HTTP/1.1\r\nHost: x\r\n\r\n", 400},
                                         {"GET x HTTP/1.1\r\nHost: x\r\n\r\n", 400},
                                         {"GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n", 400},
                                         {"GET /%0 HTTP/1.1\r\nHost: x\r\n\r\n", 400},
                                         {"GET /%00 HTTP/1.1\r\nHost: x\r\n\r\n", 400},
                                         {"GET /%ff HTTP/1.1\r\nHost: x\r\n\r\n", 400},
                                         {"GET /%ed%a0%80 HTTP/1.1\r\nHost: x\r\n\r\n", 400},
                                         {"GET /\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n", 400},
                                         {"GET /#f HTTP/1.1\r\nHost: x\r\n\r\n", 400},
                                         {"GET / http/1.1\r\nHost: x\r\n\r\n", 400},
                                         {"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505},
                                         {"GET / HTTP/1.2\r\nHost: x\r\n\r\n", 505},
                                         {"\r\n\r\n", 400},
                                         {std::string("\x16\x03\x01\x02", 4), 400}})
    EXPECT_EQ(judge(c.bytes), c.status) << c.bytes;
}

TEST(RequestValidator, LimitsAreExact) {
  HeadLimits limits;
  auto target = [](size_t n) { return "GET /" + std::string(n - 1, 'a') + " HTTP/1.1\r\nHost: x\r\n\r\n"; };
  EXPECT_EQ(judge(target(limits.max_target_bytes)), 200);
  EXPECT_EQ(judge(target(limits.max_target_bytes + 1)), 414);
  auto padded = [](size_t n) { return get("A: " + std::string(n - get("A: \r\n").size(), 'a') + "\r\n"); };
  EXPECT_EQ(judge(padded(4096), nullptr, 4096), 200);
  EXPECT_EQ(judge(padded(4097), nullptr, 4096), 431);
  std::string fields;
  for (size_t i = 1; i < limits.max_fields; ++i) fields += "A: b\r\n";
  EXPECT_EQ(judge(get(fields)), 200);
  EXPECT_EQ(judge(get(fields + "A: b\r\n")), 431);
}

// Everything in pieces of `step` bytes; status 200, or the refusal's, or -1 when it did not end.
int decode(std::string_view in, std::string& body, size_t step, size_t limit = 1 << 20) {
  ChunkedDecoder decoder(limit);
  while (!in.empty() && !decoder.done() && !decoder.refusal()) {
    size_t n = decoder.feed(in.substr(0, step), body);
    if (n == 0 && !decoder.refusal()) return -2;
    in.remove_prefix(n);
  }
  return decoder.refusal() ? decoder.refusal()->status : decoder.done() ? 200 : -1;
}

TEST(ChunkedDecoder, AnyCutGivesTheSameBody) {
  const std::string in = "3\r\nabc\r\n0A;x=\"y\"\r\n0123456789\r\n1\r\n\n\r\n0\r\nTrailer: t\r\n\r\n";
  for (size_t step = 1; step <= in.size(); ++step) {
    std::string body;
    EXPECT_EQ(decode(in, body, step), 200) << step;
    EXPECT_EQ(body, "abc0123456789\n");
  }
  for (size_t n = 0; n < in.size(); ++n) {
    std::string body;
    EXPECT_EQ(decode(in.substr(0, n), body, 7), -1) << n;
  }
  ChunkedDecoder decoder(100);
  std::string body;
  EXPECT_EQ(decoder.feed("1\r\na\r\n0\r\n\r\nGET /", body), 11u) << "what follows belongs to the next request";
}

TEST(ChunkedDecoder, RefusesWhatIsMalformedOrTooLarge) {
  auto status = [](const std::string& in, size_t limit = 1 << 20) {
    std::string body;
    return decode(in, body, 13, limit);
  };
  for (std::string in :
       {"\r\n", "x\r\n", "-1\r\n", "+1\r\na\r\n", "0x1\r\n", " 1\r\n", "1 \r\n", "1\na", "1\r\nab", "1\r\na\n",
        "1;a\x01\r\n", "0\r\nbad\r\n", "0\r\n folded: x\r\n", "0\r\nA : b\r\n", "00000000000000001\r\na"})
    EXPECT_EQ(status(in), 400) << in;
  EXPECT_EQ(status("1;" + std::string(200 << 10, 'e')), 400);
  EXPECT_EQ(status("0\r\nA: " + std::string(200 << 10, 't')), 431);
  std::string many_trailers = "0\r\n", many_extensions;
  for (int i = 0; i < 1000; ++i)
    many_trailers += "A: bbbbbbbbbbbb\r\n", many_extensions += "1;" + std::string(100, 'e') + "\r\na\r\n";
  EXPECT_EQ(status(many_trailers), 431);
  EXPECT_EQ(status(many_extensions), 400);
  EXPECT_EQ(status("8\r\n12345678\r\n0\r\n\r\n", 8), 200);
  EXPECT_EQ(status("8\r\n12345678\r\n1\r\n", 8), 413);
  EXPECT_EQ(status("ffffffffffffffff\r\n"), 413);
  EXPECT_EQ(status("7fffffffffffffff\r\n"), 413);
}

// What is accepted must be unambiguous, however it came about.
TEST(RequestValidator, MutatedHeadsKeepTheInvariants) {
  const std::vector<std::string> seeds = {
      "POST /v1/chat/completions?a=b HTTP/1.1\r\nHost: localhost:8000\r\nContent-Type: "
      "application/json\r\nContent-Length: 10\r\n\r\n",
      "POST http://h/x%41 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n",
      "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"};
  const std::vector<std::string> words = {"\r\n",
                                          "\n",
                                          "\r",
                                          " ",
                                          ":",
                                          "\t",
                                          std::string(1, '\0'),
                                          "Host: y\r\n",
                                          "Content-Length: 3\r\n",
                                          "Transfer-Encoding: chunked\r\n",
                                          "chunked",
                                          "1.0",
                                          "%",
                                          "%00",
                                          "\xff",
                                          "\r\n\r\n",
                                          ",",
                                          "+"};
  std::mt19937 random(7);
  int accepted = 0;
  for (int round = 0; round < 60'000; ++round) {
    std::string s = seeds[random() % seeds.size()];
    for (unsigned k = 1 + random() % 3; k-- && !s.empty();) {
      size_t at = random() % s.size();
      switch (random() % 4) {
        case 0:
          s[at] = char(random());
          break;
        case 1:
          s.erase(at, 1 + random() % 8);
          break;
        case 2:
          s.insert(at, words[random() % words.size()]);
          break;
        case 3:
          s.insert(at, s.substr(random() % s.size(), random() % 40));
          break;
      }
    }
    RequestHead head;
    int status = judge(s, &head);
    ASSERT_TRUE(status == 200 || status == -1 || (status >= 400 && status <= 505)) << s;
    if (status != 200) continue;
    ++accepted;
    int hosts = 0, framings = 0;
    for (const auto& [name, value] : head.headers) {
      ASSERT_TRUE(is_token(name)) << s;
      ASSERT_EQ(value.find_first_of(std::string("\r\n\0", 3)), std::string::npos) << s;
      hosts += name == "host";
      framings += name == "content-length" || name == "transfer-encoding";
    }
    ASSERT_TRUE(hosts == 1 || (hosts == 0 && head.minor_version == 0)) << s;
    ASSERT_LE(framings, 1) << s;
    ASSERT_FALSE(head.chunked && head.minor_version == 0) << s;
    ASSERT_TRUE(head.path == "*" || head.path.starts_with('/')) << s;
  }
  EXPECT_GT(accepted, 1000) << "the mutations are so wild that the invariants are hardly tested";
}

TEST(ChunkedDecoder, MutatedBodiesNeverExceedTheLimit) {
  const std::string seed = "5\r\nhello\r\n1a;ext=1\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\nT: v\r\n\r\n";
  std::mt19937 random(11);
  for (int round = 0; round < 40'000; ++round) {
    std::string s = seed;
    for (unsigned k = 1 + random() % 3; k--;) {
      size_t at = random() % s.size();
      if (random() % 2)
        s[at] = "0123456789afF\r\n;: \0x"[random() % 20];
      else
        s.insert(at, s.substr(random() % s.size(), random() % 20));
    }
    std::string body;
    int status = decode(s, body, 1 + random() % 20, 40);
    ASSERT_NE(status, -2) << "no progress on " << s;
    ASSERT_LE(body.size(), 40u);
  }
}

}  // namespace
}  // namespace moectl::http
