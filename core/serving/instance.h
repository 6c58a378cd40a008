// Instance: what all handlers of one serving process share. The model's parts are written once, before `phase` leaves
// kLoading, and only read afterwards; everything else is safe from any thread.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/engine/engine.h"
#include "core/model/config.h"
#include "core/pd/kv_client.h"
#include "core/pd/kv_server.h"
#include "core/service/service.h"
#include "core/serving/admission.h"
#include "core/serving/health.h"
#include "core/serving/model_text.h"
#include "core/serving/service_metrics.h"
#include "core/serving/service_options.h"

namespace moectl {

std::string random_instance_id();  // 16 hex digits

enum class InstancePhase { kLoading, kReady, kDraining, kFailed };

struct Instance {
  ServiceOptions options;
  std::string url;                              // of the data port; set before it serves
  const std::string id = random_instance_id();  // of this process, for GET /load
  Administration administration;                // written before it serves
  std::atomic<InstancePhase> phase{InstancePhase::kLoading};
  std::atomic<bool> shutting_down{false};      // draining will not end
  std::atomic<int> in_flight{0};               // generation requests
  std::atomic<bool> reads_expert_load{false};  // core/serving/expert_load.h
  const int64_t started =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
  ServiceMetrics metrics;
  // Reads, renders and tokenizes: work that would stall the I/O thread.
  CpuPool pool{2};
  // Large jobs use one of the pool's threads at a time (prepare.h), so small ones never wait behind them.
  Admission large_jobs{large_job_admission()};
  // In front of the engine; the limits are set with the engine's.
  Admission admission{engine_admission(EngineConfig{}.max_num_seqs)};

  ModelText text;  // decode
  GenerationDefaults defaults;
  std::shared_ptr<RemotePrefillSource> prefill_source;  // decode, with a secret
  std::unique_ptr<Engine> engine;
  int64_t max_request_tokens = 0;       // prompt and answer: what a rank's KV pool holds; 0: the engine alone checks it
  std::unique_ptr<KvServer> kv_server;  // prefill; goes before the engine

  int num_in_flight() const;                                        // generation requests and transfers to peers
  bool loaded() const { return phase != InstancePhase::kLoading; }  // then engine is set
  // Empty: whatever is served.
  bool serves(std::string_view model) const { return model.empty() || model == options.served_model_name; }
};

// Takes no new requests from now on; running ones finish. Nothing happens unless the instance is ready.
void start_draining(Instance& instance);
// Takes requests again, unless the process is about to end (false).
bool stop_draining(Instance& instance);

// A handler that runs only when the model is loaded and, for work (`generates`), when the instance is not draining;
// bodies must be JSON. It answers 503 or 415 itself.
http::Handler when_ready(Instance& instance, bool generates, http::Handler handler);

}  // namespace moectl
