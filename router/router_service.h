// The router as a whole: its servers, its prober, its life cycle. Methods are called by the owner's thread.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "router/context.h"
#include "router/prober.h"

namespace moectl::router {

class RouterService {
 public:
  // Binds and starts to probe and to serve. Throws Error{kBadConfig} without a secret or workers, and what binding and
  // the workers file throw.
  explicit RouterService(RouterOptions options);
  ~RouterService();
  RouterService(const RouterService&) = delete;

  const std::string& url() const { return context_.url; }
  uint16_t port() const { return ports_->port(); }
  std::optional<std::string> ops_url() const { return ports_->ops_url(); }
  // Empty: ready.
  std::string not_ready_reason() const;
  void drain();
  int num_in_flight() const { return context_.in_flight; }
  void stop(std::chrono::milliseconds grace);

 private:
  RouterContext context_;
  Prober prober_;
  std::unique_ptr<ServicePorts> ports_;
  bool stopped_ = false;
};

}  // namespace moectl::router
