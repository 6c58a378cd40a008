#include "core/serving/worker_service.h"

#include <malloc.h>

#include <utility>

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/serving/info_handlers.h"
#include "core/serving/kv_role.h"

namespace moectl {
namespace {

void log_formats(const ServiceOptions& options, const ModelText& text) {
  if (!text.chat_template) return;
  const auto by = [](const std::string& flag) { return flag == "auto" ? "by the checkpoint" : "by flag"; };
  log::info("chat: reasoning parser {} ({}), tool-call parser {} ({})", text.reasoning ? text.reasoning->name : "none",
            by(options.reasoning_parser), text.tool_calls ? text.tool_calls->name : "none",
            by(options.tool_call_parser));
  if (text.tool_calls && !text.tool_template.takes_tools)
    log::warn("--tool-call-parser {}: the chat template shows no tools to the model", text.tool_calls->name);
}

}  // namespace

WorkerService::WorkerService(ServiceOptions options) {
  instance_.options = std::move(options);
  const ApiOptions& api = instance_.options.api;
  ports_ = std::make_unique<ServicePorts>(api, http::ServerOptions{.name = "api"}, data_routes(instance_),
                                          ops_routes(instance_));
  instance_.administration = ports_->administration(instance_.options.cluster_secret);
  instance_.url = ports_->url();
  ports_->start();
}

WorkerService::~WorkerService() {
  stop(std::chrono::milliseconds(0));
}

void WorkerService::load(EngineConfig config) {
  const ServiceOptions& options = instance_.options;
  if (options.role == Role::kDecode) {
    const std::filesystem::path dir = config.model_dir;
    instance_.text =
        ModelText::load(dir, options.skip_tokenizer_init, options.reasoning_parser, options.tool_call_parser);
    log_formats(options, instance_.text);
    if (config.shape.empty()) instance_.defaults = read_generation_defaults(dir);
    if (!options.cluster_secret.empty()) {
      KvClientOptions client{.secret = options.cluster_secret};
      instance_.prefill_source = std::make_shared<RemotePrefillSource>(std::move(client));
      config.prefill_source = instance_.prefill_source;
    }
  }
  config.prefill_role = options.role == Role::kPrefill;
  instance_.admission.set_limits(engine_admission(config.max_num_seqs));
  const int dp_size = config.parallelism.dp_size;  // TP ranks hold the same tokens
  instance_.engine = Engine::create(std::move(config));
  instance_.max_request_tokens = instance_.engine->info().kv_pool_tokens / dp_size;
  if (options.role == Role::kPrefill) instance_.kv_server = start_kv_server(instance_);
  malloc_trim(0);  // what loading needed and freed goes back to the system
  instance_.phase = InstancePhase::kReady;
}

std::optional<std::string> WorkerService::kv_endpoint() const {
  if (!instance_.kv_server) return std::nullopt;
  return fmt::format("{}:{}", url_host(instance_.options.api.host), instance_.kv_server->port());
}

const ModelInfo& WorkerService::model_info() const {
  return instance_.engine->info();
}

void WorkerService::drain() {
  instance_.shutting_down = true;
  start_draining(instance_);
}

int WorkerService::num_in_flight() const {
  return instance_.num_in_flight();
}

std::optional<std::string> WorkerService::failure() {
  if (!instance_.loaded()) return std::nullopt;
  const EngineStats stats = instance_.engine->stats();
  if (!stats.failed) return std::nullopt;
  instance_.phase = InstancePhase::kFailed;
  return stats.failure;
}

void WorkerService::close(std::chrono::milliseconds grace) {
  if (!ports_) return;
  ports_->stop(grace);
  // Coroutines that the cut left behind hold references to the instance and cancel their engine requests when they are
  // destroyed, with their server: so the engine goes last, and no job may still be on the pool.
  instance_.pool.join();
  ports_.reset();
  instance_.kv_server.reset();
}

void WorkerService::stop(std::chrono::milliseconds grace) {
  close(grace);
  instance_.engine.reset();
  instance_.prefill_source.reset();
}

}  // namespace moectl
