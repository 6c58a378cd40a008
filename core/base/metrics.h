// Metrics: counters, gauges and histograms in Prometheus' text format. prometheus-cpp stays behind this header. Any
// thread may create, change and collect; references stay valid as long as the Registry. Label values must come from a
// bounded set (paths of the route table, status codes), never from a request.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

namespace prometheus {
class Counter;
class Gauge;
class Histogram;
}  // namespace prometheus

namespace moectl::metrics {

using Labels = std::map<std::string, std::string>;

class Counter {
 public:
  void add(double amount = 1.0);  // amount >= 0
  // For totals that are counted elsewhere (engine statistics): moves up to `total`, never down.
  void set_total(double total);

 private:
  friend class Registry;
  explicit Counter(prometheus::Counter& impl) : impl_(&impl) {}
  prometheus::Counter* impl_;
};

class Gauge {
 public:
  void set(double value);
  void add(double amount);

 private:
  friend class Registry;
  explicit Gauge(prometheus::Gauge& impl) : impl_(&impl) {}
  prometheus::Gauge* impl_;
};

class Histogram {
 public:
  void observe(double value);

 private:
  friend class Registry;
  explicit Histogram(prometheus::Histogram& impl) : impl_(&impl) {}
  prometheus::Histogram* impl_;
};

class Registry {
 public:
  Registry();
  ~Registry();
  // Asking twice for the same name and labels gives the same metric.
  Counter counter(const std::string& name, const std::string& help, const Labels& labels = {});
  Gauge gauge(const std::string& name, const std::string& help, const Labels& labels = {});
  Histogram histogram(const std::string& name, const std::string& help, const std::vector<double>& buckets,
                      const Labels& labels = {});
  std::string text() const;  // text/plain; version=0.0.4

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moectl::metrics
