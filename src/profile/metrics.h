// One registry of counters, gauges and histograms per process, in Prometheus text form. Handles are cheap to copy and
// valid as long as their Metrics; updating is lock-free or nearly so and allowed on any thread. Creating takes a lock:
// do it at start. Asking twice for the same name and labels gives the same metric.
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

namespace tandem::profile {

using Labels = std::map<std::string, std::string>;

class Counter {
 public:
  void add(double value = 1) const;
  double value() const;

 private:
  friend class Metrics;
  prometheus::Counter* counter_ = nullptr;
};

class Gauge {
 public:
  void set(double value) const;
  double value() const;

 private:
  friend class Metrics;
  prometheus::Gauge* gauge_ = nullptr;
};

class Histogram {
 public:
  void observe(double value) const;
  // Adds to each bucket as if that many values had been observed there; sum: theirs. buckets: one more than bounds.
  void add(const std::vector<double>& buckets, double sum) const;

 private:
  friend class Metrics;
  prometheus::Histogram* histogram_ = nullptr;
};

class Metrics {
 public:
  Metrics();
  ~Metrics();

  Counter counter(const std::string& name, const std::string& help, const Labels& labels);
  Gauge gauge(const std::string& name, const std::string& help, const Labels& labels);
  Histogram histogram(const std::string& name, const std::string& help, const Labels& labels,
                      const std::vector<double>& bounds);
  // Prometheus text exposition format 0.0.4.
  std::string scrape() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tandem::profile
