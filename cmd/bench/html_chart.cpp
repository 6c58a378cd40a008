#include "cmd/bench/html_chart.h"

#include <algorithm>
#include <cmath>

#include "cmd/bench/serve.h"
#include "core/base/error.h"

namespace moectl {
namespace {

constexpr double kWidth = 560, kHeight = 300, kLeft = 56, kRight = 16, kTop = 22, kBottom = 44;
constexpr int kNumBars = 40;

struct Axis {
  double low = 0, high = 1, from = 0, to = 1;  // values, pixels
  bool log = false;
  std::vector<double> fixed_ticks = {};
  double at(double value) const {
    if (log)
      return from + (to - from) * (std::log(std::max(value, low)) - std::log(low)) / (std::log(high) - std::log(low));
    return from + (to - from) * (value - low) / (high - low);
  }
  std::vector<double> ticks() const {
    if (!fixed_ticks.empty()) return fixed_ticks;
    if (!log) return round_ticks(low, high, 6);
    std::vector<double> all;
    const bool wide = high / low > 200;
    for (double power = std::pow(10, std::floor(std::log10(low))); power <= high; power *= 10)
      for (double digit : {1.0, 2.0, 5.0})
        if ((digit == 1.0 || !wide) && power * digit >= low * 0.999 && power * digit <= high * 1.001)
          all.push_back(power * digit);
    return all;
  }
};

Axis x_axis(double low, double high, bool log) {
  if (log) {
    low = std::max({low, high * 1e-4, 1e-9});  // events that arrive together are zero apart
    high = std::max(high, low * 1.2);
    return {low / 1.05, high * 1.05, kLeft, kWidth - kRight, true};
  }
  return {low, high > low ? high : low + 1, kLeft, kWidth - kRight, false};
}

Axis y_axis(double high) {
  const std::vector<double> ticks = round_ticks(0, high > 0 ? high : 1, 5);
  const double step = ticks.size() > 1 ? ticks[1] - ticks[0] : 1;
  const double top = ticks.back() >= high ? ticks.back() : ticks.back() + step;
  return {0, top, kHeight - kBottom, kTop, false};
}

std::string open_figure(const std::string& title) {
  return fmt::format(
      "<figure>\n<figcaption>{}</figcaption>\n<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">\n",
      html_escape(title), kWidth, kHeight, html_escape(title));
}

std::string grid(const Axis& x, const Axis& y, const std::string& x_label, const std::string& y_label, bool y_percent) {
  std::string out;
  for (double tick : y.ticks()) {
    const double at = y.at(tick);
    out += fmt::format("<line class=\"grid\" x1=\"{}\" x2=\"{}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>", kLeft, kWidth - kRight,
                       at, at);
    out += fmt::format("<text class=\"tick\" x=\"{}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>\n", kLeft - 8, at + 4,
                       y_percent ? fmt::format("{:.0f} %", tick * 100) : short_number(tick));
  }
  for (double tick : x.ticks()) {
    const double at = x.at(tick);
    out += fmt::format("<line class=\"axis\" x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1}\" y2=\"{2}\"/>", at,
                       kHeight - kBottom, kHeight - kBottom + 4);
    out += fmt::format("<text class=\"tick\" x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n", at,
                       kHeight - kBottom + 18, short_number(tick));
  }
  out += fmt::format("<line class=\"axis\" x1=\"{}\" x2=\"{}\" y1=\"{}\" y2=\"{}\"/>\n", kLeft, kWidth - kRight,
                     kHeight - kBottom, kHeight - kBottom);
  out += fmt::format("<text class=\"label\" x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n",
                     (kLeft + kWidth - kRight) / 2, kHeight - 6, html_escape(x_label));
  return out + fmt::format("<text class=\"label\" x=\"{}\" y=\"12\">{}</text>\n", kLeft, html_escape(y_label));
}

std::string draw_series(const ChartSeries& series, const Axis& x, const Axis& y) {
  std::string path;
  for (const auto& [px, py] : series.points)
    path += fmt::format("{}{:.1f},{:.1f}", path.empty() ? "M" : " L", x.at(px), y.at(py));
  std::string out =
      fmt::format("<path class=\"line s{}{}\" d=\"{}\"><title>{}</title></path>\n", series.color % kNumSeriesColors,
                  series.dashed ? " dashed" : "", path, html_escape(series.name));
  if (!series.dots) return out;
  for (const auto& [px, py] : series.points)
    out += fmt::format(
        "<circle class=\"dot s{}\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4\"><title>{}: {} at {}</title></circle>\n",
        series.color % kNumSeriesColors, x.at(px), y.at(py), html_escape(series.name), short_number(py),
        short_number(px));
  return out;
}

std::string legend(const std::vector<ChartSeries>& series) {
  if (series.size() < 2) return "";
  std::string out = "<div class=\"legend\">";
  for (const ChartSeries& s : series)
    out += fmt::format("<span><i class=\"s{}{}\"></i>{}</span>", s.color % kNumSeriesColors, s.dashed ? " dashed" : "",
                       html_escape(s.name));
  return out + "</div>\n";
}

}  // namespace

std::string html_escape(std::string_view text) {
  std::string out;
  for (char c : text) {
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '"')
      out += "&quot;";
    else
      out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return out;
}

std::vector<double> round_ticks(double low, double high, int about) {
  if (!(high > low) || !std::isfinite(high - low)) return {low};
  const double raw = (high - low) / about, power = std::pow(10, std::floor(std::log10(raw)));
  double step = 10 * power;
  for (double factor : {1.0, 2.0, 5.0})
    if (factor * power >= raw * 0.999) {
      step = factor * power;
      break;
    }
  std::vector<double> ticks;
  for (double i = std::ceil(low / step - 1e-9); i * step <= high + step * 1e-9 && ticks.size() < 100; ++i)
    ticks.push_back(i == 0 ? 0.0 : i * step);  // never -0
  return ticks.empty() ? std::vector<double>{low} : ticks;
}

std::string short_number(double value) {
  const double size = std::abs(value);
  if (size >= 1e6) return fmt::format("{:.4g}M", value / 1e6);
  if (size >= 1e4) return fmt::format("{:.4g}k", value / 1e3);
  if (size >= 100) return fmt::format("{:.0f}", value);
  return size < 1e-12 ? "0" : fmt::format("{:.3g}", value);
}

std::string draw(const LineChart& chart) {
  double low = INFINITY, high = -INFINITY, top = 0;
  for (const ChartSeries& series : chart.series)
    for (const auto& [x, y] : series.points) {
      low = std::min(low, x);
      high = std::max(high, x);
      top = std::max(top, y);
    }
  if (!(low <= high)) return "";
  for (const ChartBand& band : chart.bands) low = std::min(low, band.from), high = std::max(high, band.to);
  Axis x = x_axis(low, high, chart.log_x);
  x.fixed_ticks = chart.x_ticks;
  const Axis y = y_axis(chart.y_percent ? 1 : top);
  std::string out = open_figure(chart.title);
  for (size_t i = 0; i < chart.bands.size(); ++i) {
    const ChartBand& band = chart.bands[i];
    const double from = x.at(band.from), width = std::max(0.0, x.at(band.to) - from);
    out += fmt::format("<rect class=\"band{}\" x=\"{:.1f}\" y=\"{}\" width=\"{:.1f}\" height=\"{}\"/>", i % 2, from,
                       kTop, width, kHeight - kBottom - kTop);
    if (width > 7.0 * double(band.name.size()))
      out += fmt::format("<text class=\"tick\" x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n",
                         from + width / 2, kTop + 14, html_escape(band.name));
  }
  out += grid(x, y, chart.x_label, chart.y_label, chart.y_percent);
  for (const ChartSeries& series : chart.series) out += draw_series(series, x, y);
  return out + "</svg>\n" + legend(chart.series) + "</figure>\n";
}

std::string draw(const Histogram& chart) {
  if (chart.values.empty()) return "";
  std::vector<double> sorted = chart.values;
  std::sort(sorted.begin(), sorted.end());
  // The axis ends not far behind the 99th percentile, so that a single late value does not flatten the rest.
  const double p50 = percentile(sorted, 0.5), p99 = percentile(sorted, 0.99);
  const double last = std::min(sorted.back(), p99 + 0.6 * (p99 - p50));
  const double low = sorted.front() < last / 3 ? 0 : sorted.front();
  Axis x = x_axis(low, last > low ? last : low + std::max(low * 0.1, 1e-3), false);
  std::vector<int64_t> counts(kNumBars);
  const double width = (x.high - x.low) / kNumBars;
  for (double value : sorted) ++counts[size_t(std::clamp(int((value - x.low) / width), 0, kNumBars - 1))];
  const Axis y = y_axis(double(*std::max_element(counts.begin(), counts.end())));
  std::string out = open_figure(chart.title);
  out += grid(x, y, chart.x_label, fmt::format("of {}", sorted.size()), false);
  for (int i = 0; i < kNumBars; ++i) {
    if (counts[size_t(i)] == 0) continue;
    const double from = x.at(x.low + i * width), to = x.at(x.low + (i + 1) * width),
                 top = y.at(double(counts[size_t(i)]));
    out += fmt::format(
        "<rect class=\"bar s0\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\"><title>{} from {} to "
        "{}{}</title></rect>\n",
        from + 0.5, top, std::max(1.0, to - from - 1), kHeight - kBottom - top, counts[size_t(i)],
        short_number(x.low + i * width), short_number(x.low + (i + 1) * width),
        i == kNumBars - 1 && sorted.back() > x.high ? " and beyond" : "");
  }
  double free_from = 0;  // so that marks close to each other do not overwrite their names
  int row = 0;
  for (const auto& [name, value] : chart.marks) {
    if (value < x.low || value > x.high) continue;
    const double at = x.at(value);
    row = at < free_from ? row + 1 : 0;
    const bool right = at > kWidth - 90;
    out += fmt::format("<line class=\"mark\" x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1}\" y2=\"{2}\"/>", at, kTop,
                       kHeight - kBottom);
    out += fmt::format("<text class=\"marked\" x=\"{:.1f}\" y=\"{}\" text-anchor=\"{}\">{} {}</text>\n",
                       right ? at - 4 : at + 4, kTop + 10 + 13 * row, right ? "end" : "start", html_escape(name),
                       short_number(value));
    free_from = at + 70;
  }
  return out + "</svg>\n</figure>\n";
}

}  // namespace moectl
