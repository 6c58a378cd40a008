#include "router/prober.h"

#include <sys/stat.h>

#include <algorithm>
#include <utility>

#include "core/base/error.h"
#include "core/base/log.h"

namespace moectl::router {
namespace {

constexpr size_t kMaxReportBytes = 64 << 10;

std::vector<WorkerAddress> configured(const RouterOptions& options) {
  std::vector<WorkerAddress> addresses;
  for (const std::string& url : options.prefill_urls) addresses.push_back({Role::kPrefill, worker_url(url)});
  for (const std::string& url : options.decode_urls) addresses.push_back({Role::kDecode, worker_url(url)});
  return addresses;
}

// Signed, so that a worker with another secret or another clock says so here and not to clients.
Task<api::LoadReport> ask(RouterContext& context, std::string url) {
  const RouterOptions& options = context.options;
  http::ClientRequest request;
  api::ClusterHeaders cluster;
  cluster.request_id = "probe";
  for (auto& header : api::sign_cluster_headers(cluster, api::digest_of(""), options.cluster_secret, api::unix_ms()))
    request.headers.push_back(std::move(header));
  request.url = std::move(url);
  request.connect_timeout = request.header_timeout = request.idle_timeout = options.probe_timeout;
  if (!options.api.api_keys.empty()) request.headers.emplace_back("authorization", "Bearer " + options.api.api_keys[0]);
  std::unique_ptr<http::ClientResponse> response = co_await context.client->send(std::move(request));
  const std::string body = co_await response->read_all(kMaxReportBytes);
  if (response->status() == 401)
    throw Error(Code::kUnavailable, "it refuses this router's API key; give both the same --api-key");
  if (response->status() != 200)
    throw Error(Code::kUnavailable, fmt::format("GET /load answered {}", response->status()));
  co_return api::parse_load_report(body);
}

}  // namespace

Prober::Prober(RouterContext& context) : context_(context) {
  const RouterOptions& options = context_.options;
  std::vector<WorkerAddress> addresses = configured(options);
  if (!options.workers_file.empty()) {
    stamp_ = file_stamp();
    addresses = options.read_workers_file(options.workers_file);
  }
  context_.dispatcher.set_workers(addresses, Clock::now());
}

void Prober::start() {
  thread_.spawn("the router's prober", supervise());
}

void Prober::stop() {
  thread_.stop();
}

void Prober::probe_now(int id) {
  std::lock_guard lock(mutex_);
  const auto it = watched_.find(id);
  if (it == watched_.end() || std::exchange(it->second.pending, true)) return;
  it->second.channel.push(true);
}

std::string Prober::file_stamp() const {
  struct stat info {};
  if (::stat(context_.options.workers_file.c_str(), &info) != 0) return "";
  return fmt::format("{}.{}.{}.{}", info.st_ino, info.st_size, info.st_mtim.tv_sec, info.st_mtim.tv_nsec);
}

void Prober::read_file_again() {
  const std::string& file = context_.options.workers_file;
  std::string stamp = file_stamp();
  if (stamp == stamp_) return;
  stamp_ = std::move(stamp);
  try {
    const std::vector<WorkerAddress> addresses = context_.options.read_workers_file(file);
    context_.dispatcher.set_workers(addresses, Clock::now());
    log::info("{} read again: {} workers", file, addresses.size());
  } catch (const std::exception& e) {
    log::warn("{} has changed and is not usable, the workers stay as they were: {}", file, e.what());
  }
}

Task<void> Prober::supervise() {
  for (;;) {
    context_.last_probe_round = Clock::now().time_since_epoch().count();
    try {
      if (!context_.options.workers_file.empty()) read_file_again();
      for (auto& [id, address] : context_.dispatcher.workers())
        if (is_new(id)) co_await http::spawn("the probe of a worker", watch(id, address));
    } catch (const std::exception& e) {
      log::error("the router's prober goes on after: {}", e.what());
    }
    co_await sleep_for(context_.options.probe_interval);
  }
}

bool Prober::is_new(int id) {
  std::lock_guard lock(mutex_);
  return watched_.try_emplace(id).second;
}

Task<void> Prober::watch(int id, WorkerAddress address) {
  while (context_.dispatcher.has_worker(id)) {
    AsyncQueue<bool> wake = begin_probe(id);
    ProbeResult probe;
    probe.started = Clock::now();
    bool ours = false;  // the failure is this process's
    try {
      probe.report = co_await ask(context_, address.url + "/load");
      probe.ok = true;
    } catch (const http::ClientError& e) {
      probe.error = e.what();
      probe.refused = e.failure() == http::ClientFailure::kRefused;
    } catch (const Error& e) {
      probe.error = e.what();
      ours = e.code() == Code::kResourceExhausted;
    } catch (const std::exception& e) {
      probe.error = e.what();
    }
    if (ours) {
      log::warn("{} is not probed: {}", address.url, probe.error);
    } else {
      for (const std::string& line : context_.dispatcher.on_probe(id, probe, Clock::now())) log::info("{}", line);
    }
    // A worker that starts is found soon.
    const bool ready = probe.ok && probe.report.state == "ready";
    co_await wake.pop(ready ? context_.options.probe_interval : context_.options.probe_interval / 4);
  }
  std::lock_guard lock(mutex_);
  watched_.erase(id);
}

AsyncQueue<bool> Prober::begin_probe(int id) {
  std::lock_guard lock(mutex_);
  Wake& wake = watched_[id];
  wake.pending = false;
  return wake.channel;
}

}  // namespace moectl::router
