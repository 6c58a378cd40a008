// What the parts of `moectl inspect`'s report are written with.
#pragma once

#include <fmt/core.h>

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <utility>

#include "core/model/rank_memory.h"

namespace moectl {

std::string thousands(int64_t n);   // "25,377,216"
std::string bytes_text(int64_t n);  // "31.9 MB"
std::string plural(int64_t n, const char* one, const char* many);
// Printable ASCII; the rest as \xNN, so that a name from a checkpoint cannot drive the terminal.
std::string escaped_ascii(std::string_view s);

class InspectText {
 public:
  void section(const char* title) { out_ += fmt::format("{}{}\n", out_.empty() ? "" : "\n", title); }
  void line(const char* label, const std::string& value) { out_ += fmt::format("  {:<17} {}\n", label, value); }
  // A line whose number is aligned with its neighbours'.
  void number(const char* label, int64_t n, const std::string& note) {
    std::string s = fmt::format("  {:<17} {:>17}  {}", label, thousands(n), note);
    out_ += s.substr(0, s.find_last_not_of(' ') + 1) + "\n";
  }
  std::string take() { return std::move(out_); }

 private:
  std::string out_;
};

void add_ranks(const RankMemory& rank, InspectText& text);
nlohmann::json to_json(const RankMemory& rank);

}  // namespace moectl
