// What bench serve sends, the numbers it makes of answers, and its report.
#include "cmd/bench/serve.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "cmd/bench/html_chart.h"
#include "cmd/bench/html_report.h"
#include "core/base/error.h"

namespace moectl {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using Json = nlohmann::json;

class TempFile {
 public:
  explicit TempFile(const std::string& text)
      : path_(std::filesystem::temp_directory_path() /
              fmt::format("moectl-{}-{}", ::getpid(), static_cast<void*>(this))) {
    std::ofstream(path_, std::ios::binary) << text;
  }
  ~TempFile() { std::filesystem::remove(path_); }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

// ---------------------------------------------------------------------------------------------- requests
TEST(BenchRequests, RandomPromptsHaveExactLengthsAndRepeatWithTheSeed) {
  BenchServeOptions options;
  options.load.input_len = 100;
  options.load.output_len = 9;
  options.serve_load.shared_prefix_len = 30;
  options.serve_load.vocab_size = 64;
  const BenchRequests requests(options, "a \"name\"");
  const BenchRequest first = requests.make(1, 0);
  EXPECT_EQ(first.path, "/v1/completions");
  EXPECT_EQ(first.body, BenchRequests(options, "a \"name\"").make(1, 0).body);
  const Json body = Json::parse(first.body);
  EXPECT_EQ(body["model"], "a \"name\"");
  EXPECT_EQ(body["max_tokens"], 9);
  EXPECT_EQ(body["temperature"], 0);
  EXPECT_EQ(body["ignore_eos"], true);
  EXPECT_EQ(body["stream"], true);
  EXPECT_EQ(body["stream_options"]["include_usage"], true);

  const auto ids = [&](int phase, int64_t index) {
    return Json::parse(requests.make(phase, index).body)["prompt"].get<std::vector<int>>();
  };
  const auto a = ids(1, 0), b = ids(1, 1), next_phase = ids(2, 0);
  ASSERT_EQ(a.size(), 100u);
  EXPECT_TRUE(std::equal(a.begin(), a.begin() + 30, b.begin()));
  EXPECT_NE(a[30], b[30]);
  EXPECT_FALSE(std::equal(a.begin(), a.begin() + 30, next_phase.begin()))
      << "a measurement must not find another's prompts";
  std::set<int> seen;
  for (int64_t i = 0; i < 50; ++i)
    for (int id : ids(1, i)) seen.insert(id);
  EXPECT_EQ(*seen.begin(), 10);
  EXPECT_EQ(*seen.rbegin(), 63);
  EXPECT_EQ(seen.size(), 54u);
  options.load.seed = 1;
  EXPECT_NE(BenchRequests(options, "").make(1, 0).body, first.body);
}

TEST(BenchRequests, PromptsOfAFileAreTakenInTurn) {
  const TempFile file(
      "{\"prompt\": \"one\"}\n\n{\"messages\": [{\"role\": \"user\", \"content\": \"two\"}], \"id\": 7}\n");
  BenchServeOptions options;
  options.serve_load.prompts_file = file.path();
  const BenchRequests requests(options, "");
  EXPECT_EQ(requests.make(1, 0).path, "/v1/completions");
  EXPECT_EQ(requests.make(1, 1).path, "/v1/chat/completions");
  EXPECT_EQ(requests.make(3, 2).body, requests.make(1, 0).body);
  const Json chat = Json::parse(requests.make(1, 1).body);
  EXPECT_EQ(chat["messages"][0]["content"], "two");
  EXPECT_FALSE(chat.contains("model"));
  EXPECT_FALSE(chat.contains("id"));
}

TEST(BenchRequests, ABadFileIsNamedWithItsLine) {
  const auto message = [](const std::string& text) -> std::string {
    const TempFile file(text);
    BenchServeOptions options;
    options.serve_load.prompts_file = file.path();
    try {
      BenchRequests(options, "");
    } catch (const Error& error) {
      return std::string(error.what()).replace(0, file.path().size(), error.code() == Code::kBadData ? "FILE" : "?");
    }
    return "no error";
  };
  for (const char* bad : {"{\"prompt\": 1}\n{", "\n[]", "\n{\"text\": 1}", "\n{\"prompt\": 1, \"messages\": []}"})
    EXPECT_THAT(message(bad), HasSubstr("FILE:2: ")) << bad;
  EXPECT_THAT(message(std::string(100000, '[')), HasSubstr("FILE:1: "));
  EXPECT_THAT(message("\n \n"), HasSubstr("no prompts in it"));
}

// The gaps of a Poisson process of rate r: mean 1/r, and a share of exp(-1) is longer than that. Bounds are five
// standard deviations of 20,000 draws.
TEST(PoissonArrivals, GapsAreExponentialAndRepeat) {
  constexpr int kDraws = 20000;
  PoissonArrivals arrivals(4, 7), again(4, 7), other(4, 8);
  double sum = 0;
  int longer = 0;
  for (int i = 0; i < kDraws; ++i) {
    const double gap = arrivals.next_gap();
    ASSERT_GE(gap, 0);
    ASSERT_EQ(gap, again.next_gap());
    sum += gap;
    longer += gap > 0.25;
  }
  EXPECT_NE(PoissonArrivals(4, 7).next_gap(), other.next_gap());
  EXPECT_NEAR(sum / kDraws, 0.25, 5 * 0.25 / std::sqrt(kDraws));
  const double share = std::exp(-1);
  EXPECT_NEAR(double(longer) / kDraws, share, 5 * std::sqrt(share * (1 - share) / kDraws));
}

// ---------------------------------------------------------------------------------------------- numbers
// Expected values: statistics.quantiles(values, n=100, method="inclusive") and statistics.mean of Python 3.11.
TEST(Describe, PercentilesAsPythonsInclusiveMethod) {
  const Distribution d =
      describe({0.271762, 0.785765, 0.461964, 0.926139, 0.982752, 0.067775, 0.013255, 1.816887, 0.300233, 0.267005,
                5.436393, 0.635376, 1.810707, 0.646938, 1.019066, 0.163244, 1.007476, 2.025297, 0.740619, 1.3519,
                1.112949, 0.066173, 1.419769, 0.894284, 0.358488, 0.031503, 2.006394, 0.640079, 1.268774, 2.110419,
                1.252216, 2.539557, 0.502466, 1.613992, 0.588105, 2.742435, 2.110863});
  EXPECT_DOUBLE_EQ(d.p50, 0.926139);
  EXPECT_DOUBLE_EQ(d.p90, 2.1105966);
  EXPECT_DOUBLE_EQ(d.p95, 2.5801326);
  EXPECT_DOUBLE_EQ(d.p99, 4.46656812);
  EXPECT_NEAR(d.mean, 1.1348383513513514, 1e-15);
  EXPECT_EQ(d.max, 5.436393);
  EXPECT_EQ(describe({3}).p99, 3);
  EXPECT_EQ(describe({}).count, 0);
}

TEST(SamplesTest, StayBoundedAndFair) {
  Samples samples;
  const int64_t count = 2 * int64_t(Samples::kMax);
  for (int64_t i = 0; i < count; ++i) samples.add(double(i));
  EXPECT_EQ(samples.count(), count);
  EXPECT_EQ(samples.values().size(), Samples::kMax);
  // Each half of what was added is half of what was kept, within five standard deviations.
  const auto early = std::count_if(samples.values().begin(), samples.values().end(),
                                   [&](double value) { return value < double(count) / 2; });
  EXPECT_NEAR(double(early), double(Samples::kMax) / 2, 5 * std::sqrt(double(Samples::kMax) / 4));
}

BenchSample good(double ttft, double last, double e2e, int64_t output_tokens) {
  BenchSample sample;
  sample.ttft_seconds = ttft;
  sample.last_token_seconds = last;
  sample.e2e_seconds = e2e;
  sample.output_tokens = output_tokens;
  sample.prompt_tokens = 100;
  return sample;
}

BenchSample bad(const std::string& kind, const std::string& detail) {
  BenchSample sample;
  sample.error_kind = kind;
  sample.error_detail = detail;
  return sample;
}

BenchRun sample_run() {
  BenchRun run;
  run.url = "http://127.0.0.1:8080";
  run.model = "<demo> & \"friends\"";
  run.load = "100 random tokens in, 11 out, greedy";
  run.output_len = 11;
  for (int concurrency : {1, 4, 16}) {
    BenchLevel level;
    level.concurrency = concurrency;
    level.seconds = 2;
    for (int i = 0; i < 20; ++i) {
      level.add(good(0.1 * concurrency + 0.001 * i, 0.3 * concurrency, 0.31 * concurrency, 11));
      level.itl.add(0.02 * concurrency);
      level.add_tokens_at(0.1 * i, 11);
    }
    run.levels.push_back(level);
  }
  return run;
}

TEST(BenchLevelTest, CountsFailuresByKindAndKeepsThemOutOfTheLatencies) {
  BenchLevel level;
  level.seconds = 4;
  level.add(good(0.5, 2.5, 2.6, 5));
  level.add(good(0.1, 0.1, 0.2, 1));
  level.add(bad("HTTP 429", "queue full"));
  level.add(bad("HTTP 429", "another"));
  level.add(bad("timeout", "late"));
  EXPECT_EQ(level.num_ok, 2);
  EXPECT_EQ(level.num_failed, 3);
  EXPECT_EQ(level.failures.at("HTTP 429").count, 2);
  EXPECT_EQ(level.failures.at("HTTP 429").example, "queue full");
  EXPECT_EQ(level.ttft.count(), 2);
  EXPECT_THAT(level.tpot.values(), ElementsAre(0.5)) << "(2.5 - 0.5) / 4 gaps; one token has none";
  EXPECT_DOUBLE_EQ(level.per_second(level.output_tokens), 1.5);
  for (int i = 0; i < 1000; ++i) level.add(bad(fmt::format("kind {}", i), ""));
  EXPECT_LE(level.failures.size(), 33u);
  EXPECT_EQ(level.num_failed, 1003);
}

TEST(BenchRunTest, ExitCode) {
  BenchRun run = sample_run();
  EXPECT_EQ(bench_exit_code(run), 0);
  run.levels[1].add(bad("timeout", "late"));
  EXPECT_EQ(bench_exit_code(run), 1);
  EXPECT_THAT(bench_text(run), HasSubstr("REQUESTS FAILED"));
  run.interrupted = true;
  EXPECT_EQ(bench_exit_code(run), 130);
  EXPECT_EQ(bench_exit_code(BenchRun{}), 1) << "nothing measured";
}

TEST(BenchRunTest, TextAndJsonSayTheSame) {
  const BenchRun run = sample_run();
  const Json json = Json::parse(bench_json(run));
  ASSERT_EQ(json["levels"].size(), 3u);
  EXPECT_EQ(json["levels"][1]["concurrency"], 4);
  EXPECT_DOUBLE_EQ(json["levels"][1]["output_tokens_per_second"], 110.0);
  EXPECT_DOUBLE_EQ(json["levels"][1]["ttft_seconds"]["max"], 0.419);
  EXPECT_DOUBLE_EQ(json["levels"][1]["tpot_seconds"]["min"].get<double>(), 0.0781);
  const std::string text = bench_text(run);
  for (const char* part : {"concurrency 16", "TTFT", "TPOT", "ITL", "E2E", "419", "110"})
    EXPECT_THAT(text, HasSubstr(part));
  size_t begin = 0;
  for (size_t end; (end = text.find('\n', begin)) != text.npos; begin = end + 1) EXPECT_LE(end - begin, 100u);
}

// ---------------------------------------------------------------------------------------------- the report
// Tags that open and close in order, with quoted attributes: enough for our own writer.
std::string unbalanced_tag(const std::string& html) {
  std::vector<std::string> open;
  for (size_t at = html.find('<'); at != html.npos; at = html.find('<', at + 1)) {
    size_t end = at;
    for (bool quoted = false; end < html.size() && (quoted || html[end] != '>'); ++end) quoted ^= html[end] == '"';
    if (html[at + 1] == '!') continue;
    const bool closing = html[at + 1] == '/', alone = html[end - 1] == '/';
    const size_t name_at = at + (closing ? 2 : 1);
    const std::string name = html.substr(name_at, html.find_first_of(" />", name_at) - name_at);
    if (alone || name == "meta") continue;
    if (!closing) {
      open.push_back(name);
    } else if (open.empty() || open.back() != name) {
      return name;
    } else {
      open.pop_back();
    }
    at = end;
  }
  return open.empty() ? "" : open.back();
}

TEST(HtmlReport, IsOnePageWithoutScriptsOrNetwork) {
  BenchRun run = sample_run();
  run.levels[0].add(bad("error event", "<script>alert(1)</script>"));
  const std::string html = html_report(run);
  EXPECT_EQ(unbalanced_tag(html), "");
  for (const char* outside : {"<script", "src=", "href=", "@import", "url("})
    EXPECT_THAT(html, Not(HasSubstr(outside)));
  EXPECT_THAT(html, HasSubstr("&lt;demo&gt; &amp; &quot;friends&quot;"));
  EXPECT_THAT(html, HasSubstr("Time to first token over concurrency"));
  EXPECT_THAT(html, HasSubstr("prefers-color-scheme: dark"));
  for (const char* number : {"nan", "inf"})
    EXPECT_THAT(html.substr(html.find("<main>")), Not(HasSubstr(fmt::format("\"{}", number))));
}

TEST(HtmlReport, ASingleMeasurementHasHistograms) {
  BenchRun run = sample_run();
  run.levels.resize(1);
  const std::string html = html_report(run);
  EXPECT_EQ(unbalanced_tag(html), "");
  EXPECT_THAT(html, HasSubstr("class=\"bar s0\""));
  EXPECT_THAT(html, Not(HasSubstr("over concurrency")));
}

TEST(HtmlReport, NothingMeasuredIsAReportToo) {
  BenchRun run;
  EXPECT_EQ(unbalanced_tag(html_report(run)), "");
  run.levels.resize(2);
  run.levels[0].add(bad("timeout", "late"));
  EXPECT_EQ(unbalanced_tag(html_report(run)), "");
}

TEST(Chart, TicksAreRoundAndCoverTheRange) {
  EXPECT_THAT(round_ticks(0, 10, 5), ElementsAre(0, 2, 4, 6, 8, 10));
  EXPECT_THAT(round_ticks(0.9, 4.2, 3), ElementsAre(2, 4));
  EXPECT_THAT(round_ticks(5, 5, 5), ElementsAre(5));
  EXPECT_EQ(short_number(0.05), "0.05");
  EXPECT_EQ(short_number(12345), "12.35k");
  EXPECT_EQ(short_number(1'500'000), "1.5M");
}

TEST(Chart, BarsCountEveryValue) {
  Histogram chart;
  for (int i = 0; i < 1000; ++i) chart.values.push_back(i % 100);
  chart.values.push_back(1e6);  // late: counted in the last bar
  const std::string svg = draw(chart);
  int64_t sum = 0;
  for (size_t at = 0; (at = svg.find("<rect class=\"bar", at)) != svg.npos; ++at)
    sum += std::stoll(svg.substr(svg.find("<title>", at) + 7));
  EXPECT_EQ(sum, 1001);
  EXPECT_THAT(svg, HasSubstr("and beyond"));
}

}  // namespace
}  // namespace moectl
