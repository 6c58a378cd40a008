#include "core/api/cluster.h"

#include <fmt/format.h>
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "core/base/error.h"
#include "core/base/hmac.h"
#include "core/base/json_depth.h"

namespace moectl::api {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kVersion = "1";
constexpr int64_t kMaxAgeMs = 60'000;
constexpr size_t kMaxPrefill = 3, kMaxEndpointBytes = 300, kMaxIdBytes = 128;
constexpr int kMaxAttempt = 1000;

std::string header_name(std::string_view field) {
  return std::string(kClusterHeaderPrefix) + std::string(field);
}

[[noreturn]] void refuse(std::string_view field, std::string_view why) {
  const std::string name = header_name(field);
  throw Error(Code::kInvalidArgument, fmt::format("header {}: {}", name, why), name);
}

// Every cluster header but the signature, sorted: a field that a later version adds is signed like the known ones.
using SortedFields = std::map<std::string, std::string, std::less<>>;

std::string signature_of(const SortedFields& fields, const BodyDigest& body, std::string_view secret) {
  std::string text = "moectl-cluster\n";
  for (const auto& [name, value] : fields) text.append(name).append(":").append(value).append("\n");
  text += body.hex;
  return to_hex(hmac_sha256(secret, text));
}

const std::string& required(const SortedFields& fields, std::string_view field) {
  const auto it = fields.find(field);
  if (it == fields.end()) refuse(field, "is missing");
  return it->second;
}

int64_t number(const SortedFields& fields, std::string_view field, int64_t min, int64_t max) {
  const std::string& text = required(fields, field);
  int64_t value = 0;
  const char* end = text.data() + text.size();
  auto [last, ec] = std::from_chars(text.data(), end, value);
  if (ec != std::errc{} || last != end || value < min || value > max)
    refuse(field, fmt::format("expected a whole number from {} to {}", min, max));
  return value;
}

bool is_id(std::string_view s) {
  return !s.empty() && s.size() <= kMaxIdBytes && std::all_of(s.begin(), s.end(), [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '.' || c == '_' ||
           c == '-';
  });
}

bool is_endpoint(std::string_view s) {
  const size_t colon = s.rfind(':');
  if (s.size() > kMaxEndpointBytes || colon == std::string_view::npos || colon == 0) return false;
  const std::string_view host = s.substr(0, colon), port = s.substr(colon + 1);
  unsigned value = 0;
  auto [last, ec] = std::from_chars(port.data(), port.data() + port.size(), value);
  if (ec != std::errc{} || last != port.data() + port.size() || value < 1 || value > 65535) return false;
  return std::all_of(host.begin(), host.end(), [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           std::string_view(".-_:[]").find(c) != std::string_view::npos;
  });
}

std::vector<std::string> endpoints(const std::string& text) {
  std::vector<std::string> result;
  for (size_t begin = 0; !text.empty() && begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const std::string entry = text.substr(begin, end - begin);
    if (result.size() == kMaxPrefill || !is_endpoint(entry))
      refuse("prefill", fmt::format("expected at most {} endpoints like `10.0.0.1:8102`, with commas", kMaxPrefill));
    result.push_back(entry);
    begin = end + 1;
  }
  return result;
}

double finite(double value) {
  return value > -std::numeric_limits<double>::max() && value < std::numeric_limits<double>::max() ? value : 0;
}

// Microseconds are enough, and 17 digits would hide them.
double rounded(double milliseconds) {
  const double value = finite(milliseconds);
  return std::abs(value) < 1e12 ? double(int64_t(value * 1000 + (value < 0 ? -0.5 : 0.5))) / 1000 : value;
}

Json to_json(const std::vector<Candidate>& candidates) {
  Json list = Json::array();
  for (const Candidate& c : candidates)
    list.push_back({{"worker", c.worker},
                    {"load", rounded(c.load)},
                    {"cached_blocks", c.cached_blocks},
                    {"chosen", c.chosen},
                    {"why", c.why}});
  return list;
}

// What another process sent, inside our own answer: as JSON when it is, else as text.
Json embedded(const std::string& text) {
  try {
    check_json_depth(text, 32, "timeline");
  } catch (const Error&) {
    return nullptr;
  }
  Json value = Json::parse(text, nullptr, false);
  if (value.is_discarded()) return text;
  return value;
}

std::string ascii_line(const Json& value) {
  return value.dump(-1, ' ', true, Json::error_handler_t::replace);
}

// ------------------------------------------------------------------------------------------------ load report

[[noreturn]] void bad_report(std::string_view why) {
  throw Error(Code::kBadData, fmt::format("not a worker's load report: {}", why));
}

std::string text_field(const nlohmann::json& object, const char* name, bool needed = false) {
  const auto it = object.find(name);
  if (it == object.end() && !needed) return "";
  if (it == object.end() || !it->is_string()) bad_report(fmt::format("`{}` must be a string", name));
  const std::string value = it->get<std::string>();
  if (value.size() > 1024) bad_report(fmt::format("`{}` is longer than 1024 bytes", name));
  return value;
}

std::string choice_field(const nlohmann::json& object, const char* name, std::vector<std::string_view> allowed) {
  const std::string value = text_field(object, name, true);
  if (std::find(allowed.begin(), allowed.end(), value) == allowed.end())
    bad_report(fmt::format("`{}` must be one of {}", name, fmt::join(allowed, ", ")));
  return value;
}

// Counts are added up by whoever reads them: no true one is near this bound, and no sum of a few wraps.
constexpr uint64_t kMaxCount = uint64_t(1) << 48;

int64_t count_field(const nlohmann::json& object, const char* name) {
  const auto it = object.find(name);
  if (it == object.end()) return 0;
  if (!it->is_number_unsigned() || it->get<uint64_t>() > kMaxCount)
    bad_report(fmt::format("`{}` must be a whole number from 0 to 2^48", name));
  return it->get<int64_t>();
}

double seconds_field(const nlohmann::json& object, const char* name) {
  const auto it = object.find(name);
  if (it == object.end()) return 0;
  if (!it->is_number() || !(it->get<double>() >= 0 && it->get<double>() < 1e9))
    bad_report(fmt::format("`{}` must be a number of seconds, not negative", name));
  return it->get<double>();
}

}  // namespace

BodyDigest digest_of(std::string_view body) {
  return {to_hex(sha256(body))};
}

int64_t unix_ms() {
  using std::chrono::duration_cast, std::chrono::milliseconds, std::chrono::system_clock;
  return duration_cast<milliseconds>(system_clock::now().time_since_epoch()).count();
}

HeaderList sign_cluster_headers(const ClusterHeaders& headers, const BodyDigest& body, std::string_view secret,
                                int64_t now_unix_ms) {
  if (secret.empty()) throw Error(Code::kBadConfig, "cluster headers cannot be signed without a secret");
  SortedFields fields = {{"version", std::string(kVersion)},
                         {"request-id", headers.request_id},
                         {"attempt", fmt::format("{}", headers.attempt)},
                         {"deadline", fmt::format("{}", headers.deadline_unix_ms)},
                         {"prefill", fmt::format("{}", fmt::join(headers.prefill, ","))},
                         {"time", fmt::format("{}", now_unix_ms)}};
  if (!headers.client.empty()) fields.emplace("client", headers.client);
  HeaderList result;
  for (const auto& [name, value] : fields) result.emplace_back(header_name(name), value);
  result.emplace_back(header_name("signature"), signature_of(fields, body, secret));
  return result;
}

std::optional<ClusterHeaders> verify_cluster_headers(const HeaderList& lower_case_headers, std::string_view body,
                                                     std::string_view secret, int64_t now_unix_ms) {
  SortedFields fields;
  for (const auto& [name, value] : lower_case_headers) {
    if (!name.starts_with(kClusterHeaderPrefix)) continue;
    const std::string field = name.substr(kClusterHeaderPrefix.size());
    if (!fields.emplace(field, value).second) refuse(field, "is given twice");
  }
  if (fields.empty()) return std::nullopt;
  if (secret.empty())
    refuse("signature", "this server takes no cluster headers: it was started without --cluster-secret-file");
  const std::string signature = required(fields, "signature");
  fields.erase("signature");
  if (required(fields, "version") != kVersion) refuse("version", fmt::format("expected {}", kVersion));
  for (const char* field : {"attempt", "deadline", "prefill", "request-id", "time"}) required(fields, field);
  if (!constant_time_equal(signature, signature_of(fields, digest_of(body), secret)))
    refuse("signature",
           "does not belong to this request under the cluster's secret; do the router and this server "
           "read the same --cluster-secret-file?");
  const int64_t time = number(fields, "time", 0, std::numeric_limits<int64_t>::max());
  const int64_t oldest = now_unix_ms - kMaxAgeMs, newest = now_unix_ms + kMaxAgeMs;
  if (time < oldest || time > newest)
    refuse("time", fmt::format("is more than {} s from this server's clock; are the clocks of both machines right?",
                               kMaxAgeMs / 1000));
  ClusterHeaders result;
  result.request_id = required(fields, "request-id");
  if (!is_id(result.request_id)) refuse("request-id", "expected 1 to 128 letters, digits, `.`, `_` or `-`");
  result.attempt = int(number(fields, "attempt", 1, kMaxAttempt));
  result.deadline_unix_ms = number(fields, "deadline", 0, std::numeric_limits<int64_t>::max());
  result.prefill = endpoints(required(fields, "prefill"));
  if (const auto client = fields.find("client"); client != fields.end()) {
    if (!is_id(client->second)) refuse("client", "expected 1 to 128 letters, digits, `.`, `_` or `-`");
    result.client = client->second;
  }
  return result;
}

std::string cluster_problem(const HeaderList& lower_case_headers, std::string_view body, std::string_view secret,
                            int64_t now_unix_ms) {
  try {
    verify_cluster_headers(lower_case_headers, body, secret, now_unix_ms);
    return "";
  } catch (const Error& e) {
    const std::string_view field = std::string_view(e.param()).substr(kClusterHeaderPrefix.size());
    if (field == "signature") return secret.empty() ? "it has no --cluster-secret-file" : "other secret";
    if (field == "version") return "another version of the cluster protocol";
    if (field != "time") return e.what();
    for (const auto& [name, value] : lower_case_headers)
      if (name == e.param())
        return fmt::format("clock differs by {} s", (now_unix_ms - std::strtoll(value.c_str(), nullptr, 10)) / 1000);
    return e.what();
  }
}

std::string token_comment(int choice, const std::vector<int32_t>& ids, int64_t position) {
  return fmt::format(": moectl {{\"choice\":{},\"ids\":[{}],\"pos\":{}}}\n\n", choice, fmt::join(ids, ","), position);
}

std::string to_json(const Timeline& timeline) {
  Json stages = Json::array();
  for (const Stage& stage : timeline.stages)
    stages.push_back({{"name", stage.name},
                      {"start_ms", rounded(stage.start_ms)},
                      {"duration_ms", rounded(stage.duration_ms)},
                      {"detail", stage.detail}});
  Json object = {{"role", timeline.role},
                 {"worker", timeline.worker},
                 {"request_id", timeline.request_id},
                 {"stages", std::move(stages)}};
  if (timeline.role == "router") {
    object["prefill_candidates"] = to_json(timeline.prefill_candidates);
    object["decode_candidates"] = to_json(timeline.decode_candidates);
  } else {
    object["prefill_worker"] = timeline.prefill_worker;
    object["prefill_reason"] = timeline.prefill_reason;
    object["kv_bytes"] = timeline.kv_bytes;
    object["prompt_tokens"] = timeline.prompt_tokens;
    object["cached_tokens"] = timeline.cached_tokens;
    object["output_tokens"] = timeline.output_tokens;
    if (const auto& balance = timeline.expert_balance)
      object["expert_balance"] = {{"mean", rounded(balance->mean)},
                                  {"lowest", rounded(balance->lowest)},
                                  {"lowest_layer", balance->lowest_layer}};
  }
  object["ttft_ms"] = rounded(timeline.ttft_ms);
  object["tokens_per_second"] = rounded(timeline.tokens_per_second);
  if (!timeline.inner_json.empty()) object["inner"] = embedded(timeline.inner_json);
  return ascii_line(object);
}

std::string to_json(const LoadReport& report) {
  return ascii_line({{"role", report.role},
                     {"model", report.model},
                     {"state", report.state},
                     {"kv_endpoint", report.kv_endpoint},
                     {"exactness", report.exactness},
                     {"kv_format", report.kv_format},
                     {"model_hash", report.model_hash},
                     {"num_running", report.num_running},
                     {"num_waiting", report.num_waiting},
                     {"num_tokens_in_flight", report.num_tokens_in_flight},
                     {"kv_pages_total", report.kv_pages_total},
                     {"kv_pages_used", report.kv_pages_used},
                     {"max_model_len", report.max_model_len},
                     {"instance_id", report.instance_id},
                     {"seconds_since_progress", report.seconds_since_progress},
                     {"cluster_problem", report.cluster_problem}});
}

LoadReport parse_load_report(std::string_view json) {
  check_json_depth(json, 16, "a worker's load report");
  const nlohmann::json object = nlohmann::json::parse(json, nullptr, false);
  if (!object.is_object()) bad_report("expected a JSON object");
  LoadReport report;
  report.role = choice_field(object, "role", {"prefill", "decode"});
  report.model = text_field(object, "model", true);
  report.state = choice_field(object, "state", {"loading", "ready", "draining", "stalled", "failed"});
  report.kv_endpoint = text_field(object, "kv_endpoint");
  if (!report.kv_endpoint.empty() && !is_endpoint(report.kv_endpoint)) bad_report("`kv_endpoint` must be HOST:PORT");
  report.exactness = text_field(object, "exactness");
  report.kv_format = text_field(object, "kv_format");
  report.model_hash = text_field(object, "model_hash");
  report.num_running = count_field(object, "num_running");
  report.num_waiting = count_field(object, "num_waiting");
  report.num_tokens_in_flight = count_field(object, "num_tokens_in_flight");
  report.kv_pages_total = count_field(object, "kv_pages_total");
  report.kv_pages_used = count_field(object, "kv_pages_used");
  report.max_model_len = count_field(object, "max_model_len");
  report.instance_id = text_field(object, "instance_id");
  report.seconds_since_progress = seconds_field(object, "seconds_since_progress");
  report.cluster_problem = text_field(object, "cluster_problem");
  return report;
}

}  // namespace moectl::api
