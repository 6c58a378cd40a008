// What the router and the workers exchange besides the OpenAI API: signed request headers, SSE comments with
// token ids, the timeline, and the load report. Both sides use these functions and no other spelling. docs/pd.md and
// docs/router.md explain them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moectl::api {

// ------------------------------------------------------------------------------------------------ router -> decode
// worker Accepted only when signed with the cluster secret; refused (400) from anyone else.
inline constexpr std::string_view kClusterHeaderPrefix = "x-moectl-cluster-";

struct ClusterHeaders {
  std::string request_id;
  int attempt = 1;                   // 1, 2, ... of one client request
  int64_t deadline_unix_ms = 0;      // 0: none
  std::vector<std::string> prefill;  // KV endpoints "host:port", best first, at most 3; empty: prefill locally
  std::string client;                // who asks, for fair admission: an id that says nothing else; empty: not told
};

using HeaderList = std::vector<std::pair<std::string, std::string>>;
// Of a body, for sign_cluster_headers(): the part that takes time when the body is large.
struct BodyDigest {
  std::string hex;
};
BodyDigest digest_of(std::string_view body);
int64_t unix_ms();
// Headers "x-moectl-cluster-*" with an HMAC-SHA256 over version, fields, time and a hash of the body.
HeaderList sign_cluster_headers(const ClusterHeaders& headers, const BodyDigest& body, std::string_view secret,
                                int64_t now_unix_ms);
inline HeaderList sign_cluster_headers(const ClusterHeaders& headers, std::string_view body, std::string_view secret,
                                       int64_t now_unix_ms) {
  return sign_cluster_headers(headers, digest_of(body), secret, now_unix_ms);
}
// nullopt: the request carries none of them. Throws Error{kInvalidArgument} naming the header: no or wrong signature,
// no secret configured, older than 60 s, malformed. Constant-time compare.
std::optional<ClusterHeaders> verify_cluster_headers(const HeaderList& lower_case_headers, std::string_view body,
                                                     std::string_view secret, int64_t now_unix_ms);

// ------------------------------------------------------------------------------------------------ worker -> router, in
// streams
// ": moectl {"choice":0,"ids":[...],"pos":N}", with the blank line that ends it, before each event that carries text:
// ids of the new output tokens of choice `choice`, and the sampler position after them. Only on requests with cluster
// headers; the router strips every comment line.
std::string token_comment(int choice, const std::vector<int32_t>& ids, int64_t position);

// ------------------------------------------------------------------------------------------------ timeline
// With the request header "x-moectl-debug: 1" the answer tells where the request went and how long each stage took: as
// an SSE comment
// ": moectl-timeline {json}" before [DONE], or as the response header "x-moectl-timeline". The router replaces the
// worker's by its own, with the worker's inside.
inline constexpr std::string_view kDebugHeader = "x-moectl-debug";
inline constexpr std::string_view kTimelineHeader = "x-moectl-timeline";
inline constexpr std::string_view kTimelineComment = ": moectl-timeline ";

struct Stage {
  std::string name;  // "queue", "route", "prefill.queue", "prefill.compute", "kv.transfer", "first_token", "decode"
  double start_ms = 0, duration_ms = 0;  // from the arrival of the request at the process that reports
  std::string detail;                    // "12 pages, 1.9 MB, 2.4 GB/s"
};
struct Candidate {
  std::string worker;
  double load = 0;
  int cached_blocks = 0;
  bool chosen = false;
  std::string why;  // "longest prefix", "unhealthy: connection refused", ...
};
// Of the tokens per expert, mean / max, over the MoE layers.
struct ExpertBalance {
  double mean = 0, lowest = 0;
  int lowest_layer = 0;
};

struct Timeline {
  std::string role;    // "router" | "decode"
  std::string worker;  // url of the process that reports
  std::string request_id;
  std::vector<Stage> stages;
  std::vector<Candidate> prefill_candidates, decode_candidates;  // router only
  std::string prefill_worker;                                    // decode only: who computed the prompt; empty: locally
  std::string prefill_reason;  // decode only: why locally ("short prompt", "no prefill worker", "transfer failed: ...")
  int64_t kv_bytes = 0;
  int prompt_tokens = 0, cached_tokens = 0, output_tokens = 0;
  double ttft_ms = 0, tokens_per_second = 0;
  std::optional<ExpertBalance> expert_balance;  // decode only: of all the worker's requests since its start
  std::string inner_json;                       // router: the decode worker's timeline, as it came
};
std::string to_json(const Timeline& timeline);  // one line, ASCII only

// ------------------------------------------------------------------------------------------------ GET /load
struct LoadReport {
  std::string role;         // "prefill" | "decode"
  std::string model;        // served model name
  std::string state;        // "loading" | "ready" | "draining" | "stalled" | "failed" (core/serving/health.h)
  std::string kv_endpoint;  // prefill: "host:port"; else empty
  std::string exactness, kv_format, model_hash;  // ModelInfo
  int64_t num_running = 0, num_waiting = 0;
  int64_t num_tokens_in_flight = 0;  // prompt tokens not yet computed + tokens held by running requests
  int64_t kv_pages_total = 0, kv_pages_used = 0;
  int64_t max_model_len = 0;
  std::string instance_id;              // drawn when the process starts: a restarted worker reports another one
  double seconds_since_progress = 0.0;  // while there is work and no step completes; 0 when idle
  // Why this worker refuses what the asking router signs: "other secret", "clock differs by 3600 s". Empty: it does
  // not, or the question was not signed.
  std::string cluster_problem;
};
std::string to_json(const LoadReport& report);
LoadReport parse_load_report(std::string_view json);  // throws Error{kBadData}

// Why verify_cluster_headers() would refuse these headers, in few words, for LoadReport::cluster_problem. Empty: it
// accepts them, or there are none.
std::string cluster_problem(const HeaderList& lower_case_headers, std::string_view body, std::string_view secret,
                            int64_t now_unix_ms);

}  // namespace moectl::api
