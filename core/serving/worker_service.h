// WorkerService: a worker of either role as a process runs it: the HTTP servers, the model behind them, the KV
// connections to its peers, and the life from binding the ports to the last answer. Called from one thread (the
// command's); the servers and the engine have their own.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "core/engine/engine.h"
#include "core/serving/instance.h"

namespace moectl {

class WorkerService {
 public:
  // Binds the ports and listens: every request is answered 503 "Loading model" until load() is done. Throws when a port
  // is taken or TLS files cannot be used.
  explicit WorkerService(ServiceOptions options);
  ~WorkerService();  // cuts what still runs
  WorkerService(const WorkerService&) = delete;

  // Loads weights and, for the decode role, tokenizer and template; blocks. The prefill role then listens on its KV
  // port. Throws Error{kBadData}, Error{kBadConfig}.
  void load(EngineConfig config);

  std::string url() const { return instance_.url; }  // "http://127.0.0.1:8000"
  std::optional<std::string> ops_url() const { return ports_->ops_url(); }
  std::optional<std::string> kv_endpoint() const;  // prefill role, after load(): "127.0.0.1:9100"
  const ModelInfo& model_info() const;             // after load()

  // No new requests; /readiness says 503, running streams and transfers continue.
  void drain();
  int num_in_flight() const;  // requests and transfers
  // Why the engine ended; new requests get 503 from then on. nullopt: it runs.
  std::optional<std::string> failure();
  // Closes the ports; what is open after `grace` is cut. The engine stays, since ranks of one that failed may hang.
  void close(std::chrono::milliseconds grace);
  // Closes the ports and ends the engine.
  void stop(std::chrono::milliseconds grace);

 private:
  Instance instance_;
  std::unique_ptr<ServicePorts> ports_;  // null: closed
};

}  // namespace moectl
