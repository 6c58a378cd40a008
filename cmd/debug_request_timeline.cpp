// The timeline of a request as text: one axis, a bar a stage, the decode worker's own stages below the router's.
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "cmd/debug_request.h"
#include "core/base/error.h"
#include "core/base/json_depth.h"

namespace moectl {
namespace {

using Json = nlohmann::json;

constexpr int kNameWidth = 20, kBarWidth = 36, kWidth = 100;
constexpr size_t kMaxRows = 200;  // of stages and of candidates: a server may send more than anybody reads

std::string text_at(const Json& object, const char* name) {
  const auto it = object.find(name);
  return it != object.end() && it->is_string() ? it->get<std::string>() : std::string();
}

double number_at(const Json& object, const char* name) {
  const auto it = object.find(name);
  const double value = it != object.end() && it->is_number() ? it->get<double>() : 0;
  return std::isfinite(value) ? std::clamp(value, -1e15, 1e15) : 0;
}

std::vector<api::Candidate> read_candidates(const Json& object, const char* name) {
  std::vector<api::Candidate> result;
  const auto it = object.find(name);
  if (it == object.end() || !it->is_array()) return result;
  for (const Json& entry : *it) {
    if (!entry.is_object() || result.size() >= kMaxRows) continue;
    result.push_back({text_at(entry, "worker"), number_at(entry, "load"),
                      int(std::clamp(number_at(entry, "cached_blocks"), 0.0, 1e9)),
                      entry.contains("chosen") && entry["chosen"].is_boolean() && entry["chosen"].get<bool>(),
                      text_at(entry, "why")});
  }
  return result;
}

std::string milliseconds_text(double ms) {
  if (std::abs(ms) < 9.995) return fmt::format("{:.2f} ms", ms);
  if (std::abs(ms) < 9999.5) return fmt::format("{:.0f} ms", ms);
  return fmt::format("{:.1f} s", ms / 1e3);
}

std::string bytes_text(double bytes) {
  if (bytes >= 1e9) return fmt::format("{:.2f} GB", bytes / 1e9);
  if (bytes >= 1e6) return fmt::format("{:.1f} MB", bytes / 1e6);
  if (bytes >= 1e3) return fmt::format("{:.1f} KB", bytes / 1e3);
  return fmt::format("{:.0f} bytes", bytes);
}

// Cuts at a character; the fields of a timeline are ASCII but for details.
std::string fitted(std::string_view text, size_t width) {
  std::string shown = printable(text);
  std::replace(shown.begin(), shown.end(), '\n', ' ');
  if (shown.size() <= width) return shown;
  size_t end = width - 2;
  while (end > 0 && (static_cast<unsigned char>(shown[end]) & 0xc0) == 0x80) --end;
  return shown.substr(0, end) + "..";
}

struct Row {
  int depth = 0;
  std::string name;
  double start_ms = 0, duration_ms = 0;
  std::string detail;
  bool has_bar = true;
};

// Where the decode worker's clock began on the router's: behind what the router did before it spoke to a worker.
double inner_offset(const api::Timeline& outer) {
  double end = 0;
  for (const api::Stage& stage : outer.stages)
    if (stage.name == "route" || stage.name == "queue") end = std::max(end, stage.start_ms + stage.duration_ms);
  return end;
}

void add_rows(std::vector<Row>& rows, const api::Timeline& timeline, int depth, double offset) {
  std::string title = timeline.role.empty() ? "server" : timeline.role;
  rows.push_back({depth, fmt::format("{} {}", title, timeline.worker), offset, 0, "", false});
  for (const api::Stage& stage : timeline.stages)
    rows.push_back({depth + 1, stage.name, offset + stage.start_ms, stage.duration_ms, stage.detail});
}

std::string bar_text(const Row& row, double end_ms, bool color) {
  const double scale = end_ms > 0 ? kBarWidth / end_ms : 0;
  const int first = std::clamp(int(row.start_ms * scale), 0, kBarWidth - 1);
  const int last = std::clamp(int(std::ceil((row.start_ms + row.duration_ms) * scale)), first + 1, kBarWidth);
  std::string bar;
  for (int i = 0; i < kBarWidth; ++i) {
    if (color && i == first) bar += row.depth == 0 ? "\033[35m" : row.depth == 1 ? "\033[36m" : "\033[32m";
    const bool sliver = row.duration_ms * scale < 0.25;  // a moment: shown, but not as long as a column
    bar += i >= first && i < last ? (sliver ? "▏" : "█") : " ";
    if (color && i == last - 1) bar += "\033[0m";
  }
  return bar;
}

void print_row(std::string& out, const Row& row, double end_ms, bool color) {
  const std::string indent(size_t(2 * row.depth), ' ');
  if (!row.has_bar) {
    out += fmt::format("{}{}\n", indent, fitted(row.name, kWidth - indent.size()));
    return;
  }
  const std::string name = indent + fitted(row.name, size_t(kNameWidth) - indent.size());
  std::string line = fmt::format("{:<{}} {:>8} {:>9}  {}", name, kNameWidth, milliseconds_text(row.start_ms),
                                 milliseconds_text(row.duration_ms), bar_text(row, end_ms, color));
  constexpr size_t kUsed = kNameWidth + 1 + 8 + 1 + 9 + 2 + kBarWidth + 1;
  if (row.detail.size() + kUsed <= kWidth) {
    if (!row.detail.empty()) line += " " + fitted(row.detail, kWidth - kUsed);
    while (line.ends_with(' ')) line.pop_back();
    out += line + "\n";
  } else {
    while (line.ends_with(' ')) line.pop_back();
    out += fmt::format("{}\n{}  {}\n", line, indent, fitted(row.detail, kWidth - indent.size() - 2));
  }
}

void print_candidates(std::string& out, const char* title, const std::vector<api::Candidate>& candidates) {
  if (candidates.empty()) return;
  out += fmt::format("  {}\n", title);
  for (const api::Candidate& candidate : candidates)
    out +=
        fmt::format("  {} {:<28} load {:<8.4g} cached {:>4} blocks  {}\n", candidate.chosen ? "->" : "  ",
                    fitted(candidate.worker, 28), candidate.load, candidate.cached_blocks, fitted(candidate.why, 36));
}

void print_facts(std::string& out, const api::Timeline& timeline) {
  const auto fact = [&](std::string_view name, const std::string& value) {
    if (!value.empty()) out += fmt::format("  {:<14} {}\n", name, fitted(value, kWidth - 17));
  };
  const bool decode = timeline.role != "router";
  if (decode) {
    std::string prefill =
        timeline.prefill_worker.empty() ? "by the decode worker itself" : "by " + timeline.prefill_worker;
    if (!timeline.prefill_reason.empty()) prefill += fmt::format(" ({})", timeline.prefill_reason);
    fact("prefill", prefill);
    if (timeline.kv_bytes > 0) fact("KV received", bytes_text(double(timeline.kv_bytes)));
    fact("tokens", fmt::format("{} in ({} cached), {} out", timeline.prompt_tokens, timeline.cached_tokens,
                               timeline.output_tokens));
    if (const auto& balance = timeline.expert_balance)
      fact("experts", fmt::format("balancedness {:.2f}, lowest {:.2f} in layer {} (tokens per expert, mean / max)",
                                  balance->mean, balance->lowest, balance->lowest_layer));
  }
  if (timeline.ttft_ms > 0) {
    std::string first = fmt::format("first token after {}", milliseconds_text(timeline.ttft_ms));
    if (timeline.tokens_per_second > 0) first += fmt::format(", {:.1f} tokens/s", timeline.tokens_per_second);
    fact(decode ? "decode" : "router", first);
  }
}

}  // namespace

api::Timeline parse_timeline(std::string_view text) {
  check_json_depth(text, 32, "the timeline");
  const Json json = Json::parse(text, nullptr, false);
  if (!json.is_object()) throw Error(Code::kBadData, "the timeline is not a JSON object");
  api::Timeline timeline;
  timeline.role = text_at(json, "role");
  timeline.worker = text_at(json, "worker");
  timeline.request_id = text_at(json, "request_id");
  if (const auto stages = json.find("stages"); stages != json.end() && stages->is_array())
    for (const Json& stage : *stages)
      if (stage.is_object() && timeline.stages.size() < kMaxRows)
        timeline.stages.push_back({text_at(stage, "name"), number_at(stage, "start_ms"),
                                   std::max(0.0, number_at(stage, "duration_ms")), text_at(stage, "detail")});
  timeline.prefill_candidates = read_candidates(json, "prefill_candidates");
  timeline.decode_candidates = read_candidates(json, "decode_candidates");
  timeline.prefill_worker = text_at(json, "prefill_worker");
  timeline.prefill_reason = text_at(json, "prefill_reason");
  timeline.kv_bytes = int64_t(number_at(json, "kv_bytes"));
  const auto count = [&](const char* name) { return int(std::clamp(number_at(json, name), 0.0, 1e9)); };
  timeline.prompt_tokens = count("prompt_tokens");
  timeline.cached_tokens = count("cached_tokens");
  timeline.output_tokens = count("output_tokens");
  timeline.ttft_ms = number_at(json, "ttft_ms");
  timeline.tokens_per_second = number_at(json, "tokens_per_second");
  if (const auto balance = json.find("expert_balance"); balance != json.end() && balance->is_object())
    timeline.expert_balance = {number_at(*balance, "mean"), number_at(*balance, "lowest"),
                               int(std::clamp(number_at(*balance, "lowest_layer"), 0.0, 1e9))};
  if (const auto inner = json.find("inner"); inner != json.end() && inner->is_object())
    timeline.inner_json = inner->dump();
  return timeline;
}

std::string timeline_text(const api::Timeline& timeline, const ClientTimes& client, bool color) {
  std::vector<Row> rows;
  rows.push_back({0, "this client", 0, 0, "", false});
  if (client.ttft_ms) rows.push_back({1, "to first text", 0, *client.ttft_ms, ""});
  rows.push_back({1, "whole answer", 0, client.total_ms, ""});
  for (Row& row : rows) row.depth = row.has_bar ? 1 : 0;
  add_rows(rows, timeline, 0, 0);
  std::optional<api::Timeline> inner;
  if (!timeline.inner_json.empty()) {
    inner = parse_timeline(timeline.inner_json);
    add_rows(rows, *inner, 1, inner_offset(timeline));
  }
  double end_ms = 0;
  for (const Row& row : rows) end_ms = std::max(end_ms, row.start_ms + row.duration_ms);

  std::string out = fmt::format("{:<{}} {:>8} {:>9}  |{:<{}}|\n", "stage", kNameWidth, "from", "took",
                                fmt::format("0{:>{}}", milliseconds_text(end_ms), kBarWidth - 3), kBarWidth - 2);
  for (const Row& row : rows) print_row(out, row, end_ms, color);
  out += "\n";
  print_candidates(out, "candidates for prefill", timeline.prefill_candidates);
  print_candidates(out, "candidates for decode", timeline.decode_candidates);
  if (inner) print_facts(out, *inner);
  print_facts(out, timeline);
  if (!timeline.request_id.empty()) out += fmt::format("  {:<14} {}\n", "request id", fitted(timeline.request_id, 80));
  return out;
}

std::string client_text(const ClientTimes& client) {
  std::string out = fmt::format("  {:<14} head after {}", "this client", milliseconds_text(client.head_ms));
  if (client.ttft_ms) out += fmt::format(", first text {}", milliseconds_text(*client.ttft_ms));
  if (!client.gaps_ms.empty()) {
    std::vector<double> sorted = client.gaps_ms;
    std::sort(sorted.begin(), sorted.end());
    out += fmt::format(", between events p50 {} max {}", milliseconds_text(sorted[sorted.size() / 2]),
                       milliseconds_text(sorted.back()));
  }
  return out + fmt::format(", total {}\n", milliseconds_text(client.total_ms));
}

std::string printable(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    const bool c1 = c == 0xc2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xa0;
    if ((c < 0x20 && c != '\n' && c != '\t') || c == 0x7f) {
      out += fmt::format("\\x{:02x}", c);
    } else if (c1) {
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(text[++i]));
    } else {
      out += text[i];
    }
  }
  return out;
}

}  // namespace moectl
