#include "core/worker/decode_service.h"

#include <malloc.h>

#include <utility>

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/worker/info_handlers.h"

namespace moectl {
namespace {

constexpr size_t kMaxBodyBytes = 32u << 20;

http::Response respond_to_error(const http::Request&, int status, std::string_view message, std::exception_ptr error) {
  if (error) {
    try {
      std::rethrow_exception(error);
    } catch (const Error& e) {
      return error_response(api::from_error(e));
    } catch (...) {
      return error_response(api::from_status(500, "An internal error; the server's log has more"));
    }
  }
  return error_response(api::from_status(status, message));
}

// Every route of the data port, known or not, needs a key when keys are configured. All keys are compared, whatever the
// outcome, so that the time tells nothing.
std::optional<http::Response> check_key(const std::vector<std::string>& keys, const http::Request& request) {
  const std::string_view given = api::api_key_of(request.header("authorization"));
  bool known = false;
  for (const std::string& key : keys) known |= api::equal_constant_time(key, given);
  if (known) return std::nullopt;
  return error_response(api::invalid_api_key());
}

std::unique_ptr<http::Server> make_server(http::ServerOptions options, std::vector<Route> routes) {
  options.max_body_bytes = kMaxBodyBytes;
  auto server = http::Server::create(std::move(options), respond_to_error);
  for (Route& route : routes) server->route(route.method, route.path, std::move(route.handler));
  return server;
}

std::string url_of(const char* scheme, std::string host, uint16_t port) {
  if (host == "0.0.0.0") host = "127.0.0.1";
  if (host == "::") host = "::1";
  return host.find(':') == std::string::npos ? fmt::format("{}://{}:{}", scheme, host, port)
                                             : fmt::format("{}://[{}]:{}", scheme, host, port);
}

}  // namespace

DecodeService::DecodeService(ServiceOptions options) {
  instance_.options = std::move(options);
  const ServiceOptions& o = instance_.options;
  http::ServerOptions data{.host = o.host, .port = uint16_t(o.port), .name = "api"};
  data.ssl_certfile = o.ssl_certfile;
  data.ssl_keyfile = o.ssl_keyfile;
  data_server_ = make_server(std::move(data), data_routes(instance_));
  if (!o.api_keys.empty())
    data_server_->set_gate([&o](const http::Request& request) { return check_key(o.api_keys, request); });
  if (o.ops_port >= 0)
    ops_server_ =
        make_server({.host = "127.0.0.1", .port = uint16_t(o.ops_port), .name = "ops"}, ops_routes(instance_));
  data_server_->start();
  if (ops_server_) ops_server_->start();
}

DecodeService::~DecodeService() {
  stop(std::chrono::milliseconds(0));
}

void DecodeService::load(EngineConfig config) {
  const std::filesystem::path dir = config.model_dir;
  instance_.text = ModelText::load(dir, instance_.options.skip_tokenizer_init, instance_.options.reasoning_parser);
  instance_.defaults = read_generation_defaults(dir);
  instance_.engine = Engine::create(std::move(config));
  malloc_trim(0);  // what loading needed and freed goes back to the system
  instance_.phase = InstancePhase::kReady;
}

std::string DecodeService::url() const {
  return url_of(instance_.options.ssl_certfile.empty() ? "http" : "https", instance_.options.host,
                data_server_->port());
}

std::optional<std::string> DecodeService::ops_url() const {
  if (!ops_server_) return std::nullopt;
  return url_of("http", "127.0.0.1", ops_server_->port());
}

const ModelInfo& DecodeService::model_info() const {
  return instance_.engine->info();
}

void DecodeService::drain() {
  start_draining(instance_);
}

int DecodeService::num_in_flight() const {
  return instance_.in_flight;
}

std::optional<std::string> DecodeService::failure() {
  if (!instance_.loaded()) return std::nullopt;
  const EngineStats stats = instance_.engine->stats();
  if (!stats.failed) return std::nullopt;
  instance_.phase = InstancePhase::kFailed;
  return stats.failure;
}

void DecodeService::stop(std::chrono::milliseconds grace) {
  if (std::exchange(stopped_, true)) return;
  data_server_->stop(grace);
  if (ops_server_) ops_server_->stop(std::chrono::milliseconds(0));
  // Coroutines that the cut left behind hold references to the instance and cancel their engine requests when they are
  // destroyed, with their server: so the engine goes last, and no job may still be on the pool.
  instance_.pool.join();
  data_server_.reset();
  ops_server_.reset();
  instance_.engine.reset();
}

}  // namespace moectl
