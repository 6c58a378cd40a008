#include "core/serving/service_metrics.h"

#include "core/base/log.h"

namespace moectl {
namespace {

const std::vector<double> kLatencySeconds = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5,
                                             0.75,  1,     2.5,  5,    7.5,  10,   20,   40,  80,   160};
const std::vector<double> kInterTokenSeconds = {0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1,
                                                0.15,   0.2,   0.3,    0.4,   0.5,  0.75,  1,    2.5};
const std::vector<double> kTransferSeconds = {0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
                                              0.1,    0.25,   0.5,   1,      2.5,   5,    10,    30};
const std::vector<double> kTokens = {1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144};

const char* name_of(Outcome outcome) {
  switch (outcome) {
    case Outcome::kSuccess:
      return "success";
    case Outcome::kRefused:
      return "refused";
    case Outcome::kCancelled:
      return "cancelled";
    case Outcome::kFailed:
      return "failed";
  }
  return "failed";
}

}  // namespace

ServiceMetrics::ServiceMetrics()
    : first_token_(registry_.histogram("moectl_time_to_first_token_seconds", "From the request to its first token",
                                       kLatencySeconds)),
      inter_token_(registry_.histogram("moectl_inter_token_latency_seconds", "Between two tokens of an answer",
                                       kInterTokenSeconds)),
      request_(registry_.histogram("moectl_e2e_request_latency_seconds", "From the request to the end of its answer",
                                   kLatencySeconds)),
      queue_(registry_.histogram("moectl_request_queue_time_seconds", "From the request to its place in the batch",
                                 kLatencySeconds)),
      transfer_(registry_.histogram("moectl_kv_transfer_seconds", "From the first to the last block of a transfer",
                                    kTransferSeconds)),
      prompt_tokens_(registry_.histogram("moectl_request_prompt_tokens", "Prompt tokens of a request", kTokens)),
      generation_tokens_(
          registry_.histogram("moectl_request_generation_tokens", "Generated tokens of a request", kTokens)),
      in_flight_(registry_.gauge("moectl_requests_in_flight", "Generation requests taken and not yet answered")),
      ready_(registry_.gauge("moectl_ready", "1 when new requests are taken")) {
  for (Outcome outcome : {Outcome::kSuccess, Outcome::kRefused, Outcome::kCancelled, Outcome::kFailed})
    registry_.counter("moectl_requests_total", "Generation requests by outcome", {{"outcome", name_of(outcome)}});
  prefills("local");
  prefills("remote");
}

metrics::Counter ServiceMetrics::prefills(const char* where) {
  return registry_.counter("moectl_prefills_total", "Prompts by where they were computed", {{"where", where}});
}

void ServiceMetrics::observe_prefill(const PrefillStats& stats) {
  queue_.observe(stats.queue_seconds);
  prefills(stats.worker.empty() ? "local" : "remote").add();
  if (!stats.worker.empty()) transfer_.observe(stats.transfer_seconds);
}

void ServiceMetrics::count_request(Outcome outcome) {
  registry_.counter("moectl_requests_total", "Generation requests by outcome", {{"outcome", name_of(outcome)}}).add();
}

void ServiceMetrics::observe_request(double seconds, double prompt_tokens, double generation_tokens) {
  request_.observe(seconds);
  prompt_tokens_.observe(prompt_tokens);
  generation_tokens_.observe(generation_tokens);
}

void ServiceMetrics::show_engine(const EngineStats& stats) {
  const auto gauge = [&](const char* name, const char* help, double value) { registry_.gauge(name, help).set(value); };
  const auto total = [&](const char* name, const char* help, auto value) {
    registry_.counter(name, help).set_total(double(value));
  };
  gauge("moectl_num_requests_running", "Requests in the batch", double(stats.num_running));
  gauge("moectl_num_requests_waiting", "Requests waiting for the batch", double(stats.num_waiting));
  gauge("moectl_num_remote_prefills", "Requests whose prompt another worker computes",
        double(stats.num_remote_prefills));
  gauge("moectl_kv_cache_usage_ratio", "KV pages held by requests, of all",
        stats.kv_pages_total ? double(stats.kv_pages_used) / double(stats.kv_pages_total) : 0);
  gauge("moectl_kv_cache_pages", "KV pages of the pool", double(stats.kv_pages_total));
  gauge("moectl_kv_cache_pages_used", "KV pages held by requests", double(stats.kv_pages_used));
  gauge("moectl_kv_cache_pages_cached", "KV pages that hold reusable prefixes", double(stats.kv_pages_cached));
  gauge("moectl_seconds_since_progress", "Time without a completed step while there is work",
        stats.seconds_since_progress);
  total("moectl_prompt_tokens_total", "Prompt tokens of all requests", stats.prompt_tokens_total);
  total("moectl_generation_tokens_total", "Tokens generated", stats.generation_tokens_total);
  total("moectl_prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache", stats.prefix_cache_queries);
  total("moectl_prefix_cache_hits_total", "Prompt tokens served by the prefix cache", stats.prefix_cache_hits);
  total("moectl_num_preemptions_total", "Requests preempted and recomputed", stats.num_preemptions_total);
  total("moectl_engine_steps_total", "Engine steps", stats.num_steps_total);
  total("moectl_engine_busy_seconds_total", "Time of the device in steps", stats.busy_seconds_total);
  total("moectl_engine_idle_seconds_total", "Time of the device between steps while there was work",
        stats.idle_seconds_total);
}

// Two or three series per layer, not one per expert: a model has up to 20,000 experts.
void ServiceMetrics::show_expert_load(const ExpertLoad& load) {
  for (const ExpertLoad::Layer& layer : load.layers) {
    const std::optional<double> experts = balancedness(layer.experts), ranks = balancedness(layer.ranks);
    if (!experts) continue;  // an MTP module that no step runs
    const metrics::Labels labels = {{"layer", std::to_string(layer.layer_idx)}};
    registry_.gauge("moectl_expert_load", "Tokens per expert, mean / max: 1 is balanced", labels).set(*experts);
    if (layer.ranks.size() > 1)
      registry_.gauge("moectl_expert_rank_load", "Tokens per rank, over its experts, mean / max", labels).set(*ranks);
    registry_.counter("moectl_expert_tokens_total", "Tokens of all experts, one per choice of a gate", labels)
        .set_total(double(layer.num_tokens()));
  }
}

void ServiceMetrics::set_expert_load(const ExpertLoad& load) {
  auto copy = std::make_shared<const ExpertLoad>(load);
  std::lock_guard lock(expert_load_mutex_);
  expert_load_ = std::move(copy);
}

std::shared_ptr<const ExpertLoad> ServiceMetrics::expert_load() const {
  std::lock_guard lock(expert_load_mutex_);
  return expert_load_;
}

std::optional<LoadBalance> ServiceMetrics::expert_balance() const {
  return load_balance(*expert_load(), &ExpertLoad::Layer::experts);
}

void ServiceMetrics::show_transfers(const KvTransferTotals& totals) {
  registry_.gauge("moectl_kv_transfers_active", "KV transfers under way").set(double(totals.num_active));
  registry_.counter("moectl_kv_transfer_bytes_total", "Bytes of KV moved between workers")
      .set_total(double(totals.num_bytes));
  for (const auto& [cause, count] : totals.failures)
    registry_.counter("moectl_kv_transfer_failures_total", "KV transfers that failed, by cause", {{"cause", cause}})
        .set_total(double(count));
  for (const auto& [leg, count] : totals.leg_failures)
    registry_.counter("moectl_pd_leg_failures_total", "Attempts that failed, by the leg of the request", {{"leg", leg}})
        .set_total(double(count));
}

std::string ServiceMetrics::text(const InstanceReport& report) {
  ready_.set(report.phase == "ready");
  for (const char* state : {"loading", "ready", "draining", "stalled", "failed"})
    registry_
        .gauge("moectl_worker_state", "1 for the state the worker is in", {{"role", report.role}, {"state", state}})
        .set(report.phase == state);
  if (report.stats) show_engine(*report.stats);
  show_expert_load(*expert_load());
  if (report.info)
    registry_.gauge("moectl_weight_bytes", "Bytes of the weights").set(double(report.info->weight_bytes));
  if (report.transfers) show_transfers(*report.transfers);
  registry_.counter("moectl_log_lines_dropped_total", "Log lines lost because stderr did not take them")
      .set_total(double(log::num_dropped()));
  return registry_.text();
}

}  // namespace moectl
