#include "profile/metrics.h"

#include <gtest/gtest.h>

#include <thread>

namespace tandem::profile {
namespace {

TEST(Metrics, ScrapesWhatWasCounted) {
  Metrics metrics;
  Counter requests = metrics.counter("sglang:num_requests_total", "requests", {{"model_name", "tiny"}});
  Gauge running = metrics.gauge("sglang:num_running_reqs", "running", {});
  Histogram ttft = metrics.histogram("sglang:time_to_first_token_seconds", "ttft", {}, {0.1, 1});
  requests.add();
  requests.add(2);
  running.set(7);
  ttft.observe(0.5);
  std::string text = metrics.scrape();
  EXPECT_NE(text.find("sglang:num_requests_total{model_name=\"tiny\"} 3"), std::string::npos) << text;
  EXPECT_NE(text.find("sglang:num_running_reqs 7"), std::string::npos) << text;
  EXPECT_NE(text.find("sglang:time_to_first_token_seconds_bucket{le=\"0.1\"} 0"), std::string::npos) << text;
  EXPECT_NE(text.find("sglang:time_to_first_token_seconds_bucket{le=\"1\"} 1"), std::string::npos) << text;
}

TEST(Metrics, AskingTwiceGivesTheSameMetricAndThreadsMayCount) {
  Metrics metrics;
  Counter first = metrics.counter("n", "n", {{"a", "b"}});
  Counter second = metrics.counter("n", "n", {{"a", "b"}});
  {
    std::jthread other([&] {
      for (int i = 0; i < 1000; ++i) second.add();
    });
    for (int i = 0; i < 1000; ++i) first.add();
  }
  EXPECT_EQ(first.value(), 2000);
}

}  // namespace
}  // namespace tandem::profile
