#include "profile/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

namespace tandem::profile {

struct Metrics::State {
  prometheus::Registry registry;
};

Metrics::Metrics() : state_(std::make_unique<State>()) {}
Metrics::~Metrics() = default;

void Counter::add(double value) const { counter_->Increment(value); }
double Counter::value() const { return counter_->Value(); }
void Gauge::set(double value) const { gauge_->Set(value); }
double Gauge::value() const { return gauge_->Value(); }
void Histogram::observe(double value) const { histogram_->Observe(value); }
void Histogram::add(const std::vector<double>& buckets, double sum) const { histogram_->ObserveMultiple(buckets, sum); }

Counter Metrics::counter(const std::string& name, const std::string& help, const Labels& labels) {
  Counter made;
  made.counter_ = &prometheus::BuildCounter().Name(name).Help(help).Register(state_->registry).Add(labels);
  return made;
}

Gauge Metrics::gauge(const std::string& name, const std::string& help, const Labels& labels) {
  Gauge made;
  made.gauge_ = &prometheus::BuildGauge().Name(name).Help(help).Register(state_->registry).Add(labels);
  return made;
}

Histogram Metrics::histogram(const std::string& name, const std::string& help, const Labels& labels,
                             const std::vector<double>& bounds) {
  Histogram made;
  made.histogram_ = &prometheus::BuildHistogram().Name(name).Help(help).Register(state_->registry).Add(labels, bounds);
  return made;
}

std::string Metrics::scrape() const { return prometheus::TextSerializer().Serialize(state_->registry.Collect()); }

}  // namespace tandem::profile
