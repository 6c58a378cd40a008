// Charts as inline SVG for one HTML page: lines over a linear or logarithmic axis, and bars of a distribution. Pure.
// Colours are classes of html_report.cpp's style sheet (s0 .. s5), so that they follow light and dark.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moectl {

inline constexpr int kNumSeriesColors = 6;

struct ChartSeries {
  std::string name;
  std::vector<std::pair<double, double>> points;  // x ascending
  int color = 0;
  bool dashed = false, dots = false;
};

struct ChartBand {  // a part of the x axis with a name
  std::string name;
  double from = 0, to = 0;
};

struct LineChart {
  std::string title, x_label, y_label;
  std::vector<ChartSeries> series;
  std::vector<ChartBand> bands;
  std::vector<double> x_ticks;  // empty: round numbers
  bool log_x = false;
  bool y_percent = false;  // y from 0 to 1, shown as 0 % to 100 %
};

struct Histogram {
  std::string title, x_label;
  std::vector<double> values;
  std::vector<std::pair<std::string, double>> marks;  // "p50", value
};

std::string draw(const LineChart& chart);
std::string draw(const Histogram& chart);

std::string html_escape(std::string_view text);
std::vector<double> round_ticks(double low, double high, int about);  // 1, 2 or 5 times a power of ten apart
std::string short_number(double value);                               // 0.5, 12, 1.5k

}  // namespace moectl
