// Which requests are sent: random token ids or the prompts of a file, and the times between arrivals.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "cmd/bench/serve.h"
#include "core/base/error.h"
#include "core/base/json_depth.h"

namespace moectl {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kFirstId = 10;  // below it stand the special tokens of many vocabularies
constexpr size_t kMaxPrompts = 1 << 20, kMaxLineBytes = 16 << 20, kMaxFileBytes = 1 << 30;

uint64_t mixed(uint64_t a, uint64_t b) {  // splitmix64 of both
  uint64_t x = a + 0x9e3779b97f4a7c15ull * (b + 1);
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

void append_ids(std::string& body, int count, int vocab_size, uint64_t seed) {
  std::mt19937_64 rng(seed);
  const uint64_t choices = uint64_t(vocab_size - kFirstId);
  for (int i = 0; i < count; ++i) {
    if (body.back() != '[') body += ',';
    fmt::format_to(std::back_inserter(body), "{}", kFirstId + int(rng() % choices));
  }
}

[[noreturn]] void bad_line(const std::string& path, int64_t line, std::string_view what) {
  throw Error(Code::kBadData,
              fmt::format("{}:{}: {}; expected {{\"prompt\": \"...\"}} or {{\"messages\": [...]}}", path, line, what));
}

BenchRequest read_line(const std::string& path, int64_t line, const std::string& text, const std::string& tail) {
  check_json_depth(text, 64, fmt::format("{}:{}", path, line));
  const Json object = Json::parse(text, nullptr, false);
  if (!object.is_object()) bad_line(path, line, "not a JSON object");
  const bool chat = object.contains("messages"), plain = object.contains("prompt");
  if (chat == plain) bad_line(path, line, chat ? "both `prompt` and `messages`" : "neither `prompt` nor `messages`");
  Json body;
  if (chat)
    body["messages"] = object["messages"];
  else
    body["prompt"] = object["prompt"];
  std::string start = body.dump(-1, ' ', false, Json::error_handler_t::replace);
  start.pop_back();
  return {chat ? "/v1/chat/completions" : "/v1/completions", start + tail};
}

}  // namespace

BenchRequests::BenchRequests(const BenchServeOptions& options, std::string model)
    : load_(options.load), serve_load_(options.serve_load), model_(std::move(model)) {
  const std::string& path = serve_load_.prompts_file;
  if (path.empty()) return;
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error(Code::kNotFound, fmt::format("--prompts {}: the file cannot be read", path));
  const std::string tail = body_tail();
  std::string line;
  size_t num_bytes = 0;
  for (int64_t number = 1; std::getline(file, line); ++number) {
    num_bytes += line.size();
    if (line.size() > kMaxLineBytes || num_bytes > kMaxFileBytes || of_file_.size() >= kMaxPrompts)
      bad_line(path, number, "too large (16 MiB a line, 1 GiB and 1048576 prompts a file)");
    if (line.find_first_not_of(" \t\r") == line.npos) continue;
    of_file_.push_back(read_line(path, number, line, tail));
  }
  if (of_file_.empty()) throw Error(Code::kBadData, fmt::format("--prompts {}: no prompts in it", path));
}

std::string BenchRequests::body_tail() const {
  std::string tail;
  if (!model_.empty())
    tail += fmt::format(",\"model\":{}", Json(model_).dump(-1, ' ', false, Json::error_handler_t::replace));
  tail += fmt::format(",\"max_tokens\":{},\"ignore_eos\":true,\"temperature\":0,\"stream\":true,", load_.output_len);
  return tail + "\"stream_options\":{\"include_usage\":true},\"return_token_ids\":true}";
}

BenchRequest BenchRequests::make(int phase, int64_t index) const {
  if (!of_file_.empty()) return of_file_[size_t(index) % of_file_.size()];
  const uint64_t seed = mixed(load_.seed, uint64_t(phase));
  const int shared = std::min(serve_load_.shared_prefix_len, load_.input_len);
  std::string body = "{\"prompt\":[";
  append_ids(body, shared, serve_load_.vocab_size, seed);
  append_ids(body, load_.input_len - shared, serve_load_.vocab_size, mixed(seed, uint64_t(index)));
  return {"/v1/completions", body + "]" + body_tail()};
}

double PoissonArrivals::next_gap() {
  const double uniform = double(rng_() >> 11) * 0x1p-53;  // [0, 1)
  return -std::log1p(-uniform) / rate_;
}

}  // namespace moectl
