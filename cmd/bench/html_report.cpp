#include "cmd/bench/html_report.h"

#include <algorithm>
#include <cmath>

#include "cmd/bench/html_chart.h"
#include "core/base/error.h"

namespace moectl {
namespace {

constexpr const char* kStyle = R"(
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #1b2430; --soft: #5c6878; --line: #e2e6eb;
  --band: #f1f4f8; --bad: #b3261e; --c0: #2563c9; --c1: #c96a12; --c2: #14875c; --c3: #8b3fb0; --c4: #c23a55; --c5: #5f7183; }
@media (prefers-color-scheme: dark) {
  :root { --page: #12161c; --card: #1a2029; --text: #e4e9f0; --soft: #98a5b5; --line: #2c3542; --band: #202834;
    --bad: #ff8a80; --c0: #6ea8ff; --c1: #f2a65a; --c2: #52c99b; --c3: #c792ea; --c4: #ff8fa3; --c5: #9fb0c3; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 28px 24px 48px; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 17px; margin: 32px 0 10px; }
p { margin: 0; color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px; margin-top: 20px; }
.card, figure, .table { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.card { padding: 12px 16px; } .card b { display: block; font-size: 22px; font-weight: 600; } .card span { color: var(--soft); font-size: 13px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 14px; }
figure { margin: 0; padding: 14px 16px 10px; } figcaption { font-weight: 600; margin-bottom: 6px; }
figure svg { display: block; width: 100%; height: auto; }
.table { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 14px; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
thead th { border-top: 0; color: var(--soft); font-weight: 500; font-size: 13px; }
th:first-child, td:first-child, td.name { text-align: left; } tr.more td { border-top: 0; }
.bad { color: var(--bad); font-weight: 600; } .left td { text-align: left; white-space: normal; }
.grid { stroke: var(--line); } .axis { stroke: var(--soft); } .mark { stroke: var(--text); stroke-dasharray: 3 3; opacity: .6; }
text { font: 12px system-ui, sans-serif; fill: var(--soft); } .marked { fill: var(--text); }
.band0 { fill: var(--band); } .band1 { fill: none; }
.s0 { --c: var(--c0); } .s1 { --c: var(--c1); } .s2 { --c: var(--c2); } .s3 { --c: var(--c3); } .s4 { --c: var(--c4); } .s5 { --c: var(--c5); }
.line { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; } .line.dashed { stroke-dasharray: 6 4; }
.dot { fill: var(--c); stroke: var(--card); stroke-width: 1.5; } .bar { fill: var(--c); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; color: var(--soft); font-size: 13px; padding-top: 4px; }
.legend i { display: inline-block; width: 18px; border-top: 3px solid var(--c); margin-right: 6px; vertical-align: middle; }
.legend i.dashed { border-top-style: dashed; }
)";

std::string milliseconds_text(double seconds) {
  const double ms = seconds * 1e3;
  return ms < 9.995 ? fmt::format("{:.2f}", ms) : ms < 99.95 ? fmt::format("{:.1f}", ms) : fmt::format("{:.0f}", ms);
}

std::vector<double> milliseconds(const Samples& samples) {
  std::vector<double> values = samples.values();
  for (double& value : values) value *= 1e3;
  return values;
}

std::string card(std::string_view value, std::string_view what) {
  return fmt::format("<div class=\"card\"><b>{}</b><span>{}</span></div>\n", html_escape(value), html_escape(what));
}

// Of the measurement with the most output a second.
std::string cards(const BenchRun& run) {
  const BenchLevel* best = &run.levels[0];
  int64_t ok = 0, failed = 0;
  for (const BenchLevel& level : run.levels) {
    ok += level.num_ok;
    failed += level.num_failed;
    if (level.per_second(level.output_tokens) > best->per_second(best->output_tokens)) best = &level;
  }
  const std::string at = run.levels.size() > 1 ? fmt::format(", {}", best->label()) : "";
  std::string out = "<div class=\"cards\">\n";
  out += card(fmt::format("{:.0f}", best->per_second(best->output_tokens)), "output tokens a second" + at);
  out += card(fmt::format("{:.2f}", best->per_second(best->num_ok)), "requests a second" + at);
  if (best->ttft.count() > 0)
    out += card(milliseconds_text(describe(best->ttft.values()).p50) + " ms", "time to first token, p50" + at);
  if (best->itl.count() > 0)
    out += card(milliseconds_text(describe(best->itl.values()).p50) + " ms", "between tokens, p50" + at);
  out += card(fmt::format("{}", ok), "requests answered");
  out += fmt::format("<div class=\"card\"><b{}>{}</b><span>requests failed</span></div>\n",
                     failed > 0 ? " class=\"bad\"" : "", failed);
  return out + "</div>\n";
}

std::string summary_table(const BenchRun& run) {
  std::string out =
      "<h2>Summary</h2>\n<div "
      "class=\"table\"><table><thead><tr><th>Measurement</th><th>answered</th><th>failed</th><th>"
      "seconds</th><th>requests/s</th><th>prompt tokens/s</th><th>output tokens/s</th><th>most in "
      "flight</th><th>cached "
      "prompt tokens</th><th>client CPU</th></tr></thead><tbody>\n";
  for (const BenchLevel& level : run.levels)
    out += fmt::format(
        "<tr><td>{}</td><td>{}</td><td{}>{}</td><td>{:.2f}</td><td>{:.2f}</td><td>{:.0f}</td><td>{:.0f}</td><td>{}</"
        "td><td>"
        "{}</td><td>{:.2f} s</td></tr>\n",
        html_escape(level.label()), level.num_ok, level.num_failed > 0 ? " class=\"bad\"" : "", level.num_failed,
        level.seconds, level.per_second(level.num_ok), level.per_second(level.prompt_tokens),
        level.per_second(level.output_tokens), level.max_in_flight, level.cached_tokens, level.cpu_seconds);
  return out + "</tbody></table></div>\n";
}

std::string latency_table(const BenchRun& run) {
  std::string out =
      "<h2>Latency in milliseconds</h2>\n<div "
      "class=\"table\"><table><thead><tr><th>Measurement</th><th></th><th>mean</th>"
      "<th>p50</th><th>p90</th><th>p95</th><th>p99</th><th>max</th><th>count</th></tr></thead><tbody>\n";
  for (const BenchLevel& level : run.levels) {
    bool first = true;
    for (const auto& [name, samples] : {std::pair{"time to first token", &level.ttft},
                                        {"time per output token", &level.tpot},
                                        {"between tokens", &level.itl},
                                        {"whole answer", &level.e2e}}) {
      if (samples->count() == 0) continue;
      const Distribution d = describe(samples->values());
      out += fmt::format("<tr{}><td>{}</td><td class=\"name\">{}</td>", first ? "" : " class=\"more\"",
                         first ? html_escape(level.label()) : "", name);
      for (double value : {d.mean, d.p50, d.p90, d.p95, d.p99, d.max})
        out += fmt::format("<td>{}</td>", milliseconds_text(value));
      out += fmt::format("<td>{}</td></tr>\n", samples->count());
      first = false;
    }
  }
  return out + "</tbody></table></div>\n";
}

std::string error_table(const BenchRun& run) {
  std::string rows;
  for (const BenchLevel& level : run.levels)
    for (const auto& [kind, failure] : level.failures)
      rows += fmt::format("<tr><td>{}</td><td class=\"bad\">{} x {}</td><td>{}</td></tr>\n", html_escape(level.label()),
                          failure.count, html_escape(kind), html_escape(failure.example));
  if (rows.empty()) return "";
  return "<h2>Failed requests</h2>\n<div class=\"table\"><table class=\"left\"><tbody>\n" + rows +
         "</tbody></table></div>\n";
}

// Share of values at or below x, thinned to what a line can show.
ChartSeries cumulative(const std::string& name, std::vector<double> values, int color) {
  std::sort(values.begin(), values.end());
  ChartSeries series;
  series.name = name;
  series.color = color;
  series.dashed = color >= kNumSeriesColors;
  constexpr size_t kPoints = 200;
  const size_t count = std::min(values.size(), kPoints);
  for (size_t i = 0; i < count; ++i) {
    const size_t at = count == 1 ? 0 : i * (values.size() - 1) / (count - 1);
    series.points.emplace_back(values[at], double(at + 1) / double(values.size()));
  }
  return series;
}

// Levels whose times differ by a factor: a linear axis would press the fast ones together.
bool spans_magnitudes(const LineChart& chart) {
  double low = INFINITY, high = 0;
  for (const ChartSeries& series : chart.series) {
    if (series.points.empty()) continue;
    const double middle = series.points[series.points.size() / 2].first;
    low = std::min(low, middle);
    high = std::max(high, middle);
  }
  return high > 4 * low && low > 0;
}

std::string distribution(const BenchRun& run, const std::string& title, Samples BenchLevel::*member) {
  std::string out;
  LineChart lines;
  lines.title = title + ": cumulative share";
  lines.x_label = "milliseconds";
  lines.y_percent = true;
  int color = 0;
  for (const BenchLevel& level : run.levels) {
    if ((level.*member).count() > 0)
      lines.series.push_back(cumulative(level.label(), milliseconds(level.*member), color));
    ++color;
  }
  if (run.levels.size() == 1 && (run.levels[0].*member).count() > 0) {
    Histogram bars;
    bars.title = title + ": distribution";
    bars.x_label = "milliseconds";
    bars.values = milliseconds(run.levels[0].*member);
    const Distribution d = describe(bars.values);
    bars.marks = {{"p50", d.p50}, {"p90", d.p90}, {"p99", d.p99}};
    out += draw(bars);
  }
  lines.log_x = spans_magnitudes(lines);
  return out + draw(lines);
}

// All measurements one after the other, as they ran.
std::string throughput_over_time(const BenchRun& run) {
  double total = 0;
  for (const BenchLevel& level : run.levels) total += level.seconds;
  const size_t group = size_t(std::max(1.0, std::ceil(total / 160 / BenchLevel::kTimeBin)));  // bins a point
  const double step = double(group) * BenchLevel::kTimeBin;
  LineChart chart;
  chart.title = "Output tokens a second over time";
  chart.x_label = run.levels.size() > 1 ? "seconds, measurements one after the other" : "seconds";
  ChartSeries series;
  series.name = "output tokens a second";
  double start = 0;
  for (const BenchLevel& level : run.levels) {
    chart.bands.push_back({level.label(), start, start + level.seconds});
    const auto& bins = level.tokens_by_time;
    for (size_t i = 0; i * group < bins.size(); ++i) {
      const double from = double(i) * step, to = std::min(from + step, level.seconds);
      if (to - from < step / 2 && i > 0) continue;  // a rest too short for a rate
      int64_t tokens = 0;
      for (size_t j = i * group; j < std::min(bins.size(), (i + 1) * group); ++j) tokens += bins[j];
      if (to > from) series.points.emplace_back(start + (from + to) / 2, double(tokens) / (to - from));
    }
    start += level.seconds;
  }
  if (run.levels.size() == 1) chart.bands.clear();
  chart.series.push_back(std::move(series));
  return draw(chart);
}

std::string over_concurrency(const BenchRun& run) {
  std::vector<const BenchLevel*> levels;
  for (const BenchLevel& level : run.levels)
    if (level.concurrency > 0 && level.num_ok > 0) levels.push_back(&level);
  std::sort(levels.begin(), levels.end(), [](auto* a, auto* b) { return a->concurrency < b->concurrency; });
  if (levels.size() < 2) return "";
  const auto chart = [&](const std::string& title, const std::string& unit) {
    LineChart chart;
    chart.title = title + " over concurrency";
    chart.x_label = "requests in flight";
    chart.y_label = unit;
    for (const BenchLevel* level : levels) chart.x_ticks.push_back(level->concurrency);
    chart.log_x = levels.back()->concurrency > 4 * levels.front()->concurrency;
    return chart;
  };
  const auto latency = [&](const std::string& title, Samples BenchLevel::*member) {
    LineChart lines = chart(title, "milliseconds");
    for (const auto& [name, value, color] :
         {std::tuple{"p50", &Distribution::p50, 0}, {"p90", &Distribution::p90, 2}, {"p99", &Distribution::p99, 1}}) {
      ChartSeries series{name, {}, color, false, true};
      for (const BenchLevel* level : levels)
        if ((level->*member).count() > 0)
          series.points.emplace_back(level->concurrency, describe((level->*member).values()).*value * 1e3);
      lines.series.push_back(std::move(series));
    }
    return draw(lines);
  };
  LineChart throughput = chart("Output tokens a second", "");
  ChartSeries series{"output tokens a second", {}, 0, false, true};
  for (const BenchLevel* level : levels)
    series.points.emplace_back(level->concurrency, level->per_second(level->output_tokens));
  throughput.series.push_back(std::move(series));
  return "<h2>Over concurrency</h2>\n<div class=\"charts\">\n" + latency("Time to first token", &BenchLevel::ttft) +
         latency("Time per output token", &BenchLevel::tpot) + draw(throughput) +
         latency("Whole answer", &BenchLevel::e2e) + "</div>\n";
}

}  // namespace

std::string html_report(const BenchRun& run) {
  std::string out = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
      "content=\"width=device-width, initial-scale=1\">\n<title>moectl bench serve: "
      "{}</title>\n<style>{}</style></head>\n"
      "<body><main>\n<h1>{}</h1>\n<p>{} &middot; {} &middot; seed {} &middot; {}</p>\n",
      html_escape(run.model), kStyle, html_escape(run.model.empty() ? "moectl bench serve" : run.model + " under load"),
      html_escape(run.url), html_escape(run.load), run.seed, html_escape(run.started));
  if (run.interrupted) out += "<p class=\"bad\">Interrupted: shown is what was measured so far.</p>\n";
  if (!run.levels.empty()) {
    out += cards(run) + summary_table(run) + error_table(run) + over_concurrency(run);
    out += "<h2>Distributions and throughput</h2>\n<div class=\"charts\">\n" +
           distribution(run, "Time to first token", &BenchLevel::ttft) +
           distribution(run, "Between tokens", &BenchLevel::itl) + throughput_over_time(run) + "</div>\n" +
           latency_table(run);
  }
  return out + "</main></body></html>\n";
}

}  // namespace moectl
