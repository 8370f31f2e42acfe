// Circuit breaker, health bookkeeping, backoff, admission, configuration: pure, on a clock that the test moves.
#include <gtest/gtest.h>

#include <vector>

#include "router/admission.h"
#include "router/circuit_breaker.h"
#include "router/instance_table.h"
#include "router/metrics_merge.h"
#include "router/retry.h"

namespace tandem::router {
namespace {

using namespace std::chrono_literals;
using State = CircuitBreaker::State;

struct BreakerTest : ::testing::Test {
  BreakerTest() : breaker(config()) {}
  static BreakerConfig config() {
    BreakerConfig config;
    config.failure_threshold = 3;
    config.success_threshold = 2;
    return config;
  }
  void run(Outcome outcome) { breaker.end(breaker.begin(clock.now()), outcome, clock.now()); }
  State state() { return breaker.state(clock.now()); }
  ManualClock clock;
  CircuitBreaker breaker;
};

TEST_F(BreakerTest, OpensAtTheThresholdAndClosesAfterTrialSuccesses) {
  run(Outcome::kFailure);
  run(Outcome::kFailure);
  run(Outcome::kSuccess);
  run(Outcome::kNeutral);
  EXPECT_EQ(state(), State::kClosed);
  run(Outcome::kFailure);
  EXPECT_EQ(state(), State::kOpen);
  EXPECT_FALSE(breaker.allows(clock.now()));
  clock.advance(59s);
  EXPECT_EQ(state(), State::kOpen);
  clock.advance(1s);
  EXPECT_EQ(state(), State::kHalfOpen);
  EXPECT_TRUE(breaker.allows(clock.now()));
  run(Outcome::kSuccess);
  EXPECT_EQ(state(), State::kHalfOpen);
  run(Outcome::kSuccess);
  EXPECT_EQ(state(), State::kClosed);
}

TEST_F(BreakerTest, ForgetsFailuresThatAreOlderThanTheWindow) {
  run(Outcome::kFailure);
  run(Outcome::kFailure);
  clock.advance(121s);
  run(Outcome::kFailure);
  EXPECT_EQ(state(), State::kClosed);
}

TEST_F(BreakerTest, AFailedTrialOpensItForAnotherTimeout) {
  for (int i = 0; i < 3; ++i) run(Outcome::kFailure);
  clock.advance(60s);
  run(Outcome::kSuccess);
  run(Outcome::kFailure);
  EXPECT_EQ(state(), State::kOpen);
  clock.advance(60s);
  run(Outcome::kSuccess);
  EXPECT_EQ(state(), State::kHalfOpen) << "successes before the failed trial do not count";
}

TEST_F(BreakerTest, BoundsItsTrialsAndIgnoresRequestsFromBefore) {
  const bool old = breaker.begin(clock.now());
  for (int i = 0; i < 3; ++i) run(Outcome::kFailure);
  clock.advance(60s);
  const bool first = breaker.begin(clock.now()), second = breaker.begin(clock.now());
  EXPECT_TRUE(first && second);
  EXPECT_FALSE(breaker.allows(clock.now()));
  breaker.end(old, Outcome::kFailure, clock.now());
  EXPECT_EQ(state(), State::kHalfOpen);
  breaker.end(first, Outcome::kNeutral, clock.now());
  EXPECT_TRUE(breaker.allows(clock.now()));
}

TEST(CircuitBreaker, SwitchedOffAlwaysAllows) {
  CircuitBreaker breaker({.enabled = false, .failure_threshold = 1});
  for (int i = 0; i < 5; ++i) breaker.end(breaker.begin({}), Outcome::kFailure, {});
  EXPECT_TRUE(breaker.allows({}));
}

TEST(InstanceTable, GoesInAtTheFirstSuccessOutAfterFailuresAndBackAfterSuccesses) {
  ManualClock clock;
  InstanceTable table({}, {});
  auto instance = *table.add({"localhost:30000", Role::kPrefill, 8998}, clock.now());
  EXPECT_EQ(instance->address.url, "http://localhost:30000");
  EXPECT_EQ(instance->host, "localhost");
  EXPECT_FALSE(instance->healthy);
  EXPECT_FALSE(table.note_check(*instance, false, clock.now()));
  EXPECT_TRUE(table.note_check(*instance, true, clock.now()));
  EXPECT_EQ(instance->next_check, clock.now() + 60s);
  EXPECT_FALSE(table.note_check(*instance, false, clock.now()));
  EXPECT_EQ(instance->next_check, clock.now() + 1s) << "a failing one is asked again soon";
  EXPECT_FALSE(table.note_check(*instance, false, clock.now()));
  EXPECT_TRUE(table.note_check(*instance, false, clock.now()));
  EXPECT_FALSE(instance->healthy);
  EXPECT_FALSE(table.note_check(*instance, true, clock.now()));
  EXPECT_TRUE(table.note_check(*instance, true, clock.now()));
  EXPECT_TRUE(instance->healthy);
}

TEST(InstanceTable, KnowsAnInstanceByItsOriginAndNeverReusesIds) {
  InstanceTable table({}, {});
  auto first = *table.add({"http://h:1/", Role::kDecode, {}}, {});
  EXPECT_FALSE(table.add({"h:1", Role::kDecode, {}}, {}).has_value());
  EXPECT_FALSE(table.add({"https://h:2", Role::kDecode, {}}, {}).has_value());
  EXPECT_EQ(table.remove("http://h:1"), first);
  EXPECT_TRUE(first->removed);
  EXPECT_EQ(table.remove("h:1"), nullptr);
  auto again = *table.add({"h:1", Role::kDecode, {}}, {});
  EXPECT_NE(again->id, first->id);
}

TEST(InstanceTable, OffersHealthyInstancesWhoseBreakerIsClosed) {
  InstanceTable table({}, {.failure_threshold = 1});
  auto a = *table.add({"h:1", Role::kDecode, {}}, {});
  auto b = *table.add({"h:2", Role::kDecode, {}}, {});
  auto c = *table.add({"h:3", Role::kPrefill, {}}, {});
  for (auto& instance : {a, b, c}) instance->healthy = true;
  EXPECT_EQ(table.available(Role::kDecode, {}).size(), 2u);
  a->breaker.end(a->breaker.begin({}), Outcome::kFailure, {});
  EXPECT_EQ(table.available(Role::kDecode, {}), std::vector{b});
  b->healthy = false;
  EXPECT_TRUE(table.available(Role::kDecode, {}).empty());
}

// The whole recovery of an instance at the default pace: ten failures, a minute away, three trials, back.
TEST(InstanceTable, ABrokenInstanceIsBackAfterAMinuteAndThreeTrials) {
  ManualClock clock;
  clock.advance(1h);
  InstanceTable table({}, {});
  auto broken = *table.add({"h:1", Role::kDecode, {}}, clock.now());
  auto sound = *table.add({"h:2", Role::kDecode, {}}, clock.now());
  for (auto& instance : {broken, sound}) table.note_check(*instance, true, clock.now());
  const auto request = [&](Outcome outcome) {
    broken->breaker.end(broken->breaker.begin(clock.now()), outcome, clock.now());
  };
  const auto available = [&] { return table.available(Role::kDecode, clock.now()).size(); };
  for (int i = 0; i < 9; ++i, clock.advance(12s)) request(Outcome::kFailure);
  EXPECT_EQ(available(), 2u) << "nine failures are not ten";
  request(Outcome::kFailure);
  EXPECT_EQ(available(), 1u) << "ten within two minutes";
  for (int i = 0; i < 59; ++i) {  // good health checks alone do not bring it back: it fails requests
    clock.advance(1s);
    table.note_check(*broken, true, clock.now());
    ASSERT_EQ(available(), 1u) << i;
  }
  clock.advance(1s);
  EXPECT_EQ(available(), 2u) << "after a minute it may try";
  request(Outcome::kSuccess);
  request(Outcome::kSuccess);
  EXPECT_EQ(broken->breaker.state(clock.now()), State::kHalfOpen);
  request(Outcome::kSuccess);
  EXPECT_EQ(broken->breaker.state(clock.now()), State::kClosed);
  request(Outcome::kFailure);
  EXPECT_EQ(available(), 2u) << "the old failures are forgotten";
  // Killed and started again, it is back with its second good check, without the minute.
  for (int i = 0; i < 9; ++i) request(Outcome::kFailure);
  for (int i = 0; i < 3; ++i) table.note_check(*broken, false, clock.now());
  EXPECT_EQ(available(), 1u);
  table.note_check(*broken, true, clock.now());
  table.note_check(*broken, true, clock.now());
  EXPECT_EQ(available(), 2u);
}

TEST(Backoff, GrowsIsCappedAndJitters) {
  RetryConfig config;
  std::mt19937_64 random(1);
  double expected = 0.050;
  for (int next = 2; next < 30; ++next) {
    double lowest = 1e9, highest = 0;
    for (int i = 0; i < 200; ++i) {
      const double wait = seconds(backoff(config, next, random));
      lowest = std::min(lowest, wait);
      highest = std::max(highest, wait);
    }
    const double centre = std::min(expected, 30.0);
    EXPECT_GE(lowest, centre * 0.8 - 1e-6);
    EXPECT_LE(highest, centre * 1.2 + 1e-6);
    EXPECT_GT(highest - lowest, centre * 0.2) << "the jitter is used";
    expected *= 1.5;
  }
}

TEST(Retry, IsForTheStatusesThatAnotherPairMayHeal) {
  for (int status : {408, 429, 500, 502, 503, 504}) EXPECT_TRUE(is_retryable(status)) << status;
  for (int status : {200, 206, 400, 401, 404, 409, 413, 501, 505}) EXPECT_FALSE(is_retryable(status)) << status;
}

TEST(Admission, RunsUpToItsLimitQueuesInOrderAndIsFullBeyond) {
  Admission admission(1, 2);
  std::vector<int> started;
  auto start = [&](int n) { return [&started, n] { started.push_back(n); }; };
  uint64_t ticket = 0, second = 0, third = 0;
  EXPECT_EQ(admission.enter(start(1), ticket), Admission::Entry::kRunning);
  EXPECT_EQ(admission.enter(start(2), second), Admission::Entry::kWaiting);
  EXPECT_EQ(admission.enter(start(3), third), Admission::Entry::kWaiting);
  EXPECT_EQ(admission.enter(start(4), ticket), Admission::Entry::kFull);
  EXPECT_TRUE(admission.forget(second));
  EXPECT_FALSE(admission.forget(second));
  admission.leave();
  EXPECT_EQ(started, (std::vector<int>{1, 3}));
  admission.leave();
  EXPECT_EQ(admission.running(), 0u);
  Admission unlimited(-1, 0);
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(unlimited.enter([] {}, ticket), Admission::Entry::kRunning);
}

TEST(RouterConfig, RefusesWhatCannotWork) {
  RouterConfig config;
  config.instances = {{"h:1", Role::kPrefill, {}}, {"h:2", Role::kDecode, {}}};
  EXPECT_TRUE(config.validate().has_value());
  auto fails = [&](auto change, std::string_view names) {
    RouterConfig changed = config;
    change(changed);
    auto status = changed.validate();
    ASSERT_FALSE(status.has_value()) << names;
    EXPECT_NE(status.error().message.find(names), std::string::npos) << status.error().message;
  };
  fails([](auto& c) { c.instances.push_back({"http://h:1", Role::kPrefill, {}}); }, "given twice");
  fails([](auto& c) { c.instances.push_back({"https://h:3", Role::kPrefill, {}}); }, "https");
  fails([](auto& c) { c.instances.push_back({"h:3", Role::kPlain, {}}); }, "h:3");
  fails([](auto& c) { c.disaggregated = false; }, "h:1");
  fails([](auto& c) { c.max_concurrent_requests = 0; }, "max-concurrent-requests");
  fails([](auto& c) { c.retry.max_attempts = 0; }, "retry-max-retries");
  fails([](auto& c) { c.retry.jitter = 1.5; }, "jitter");
  fails([](auto& c) { c.policy.cache_threshold = -1; }, "cache-threshold");
  fails([](auto& c) { c.health.endpoint = "health"; }, "endpoint");
  fails([](auto& c) { c.health.interval = Duration(0); }, "interval");
}

TEST(MergeMetrics, LabelsSamplesAndDescribesEachFamilyOnce) {
  const std::string a =
      "# HELP x_total An x.\n# TYPE x_total counter\nx_total 3\n# TYPE h histogram\nh_bucket{le=\"1\"} 1\n"
      "h_sum 0.5\nh_count 1\n";
  const std::string b =
      "# HELP x_total An x.\n# TYPE x_total counter\nx_total{rank=\"0\"} 4 123\nx_total{} 5\nnonsense\n";
  EXPECT_EQ(merge_metrics({{"http://a", a}, {"b\"\\", b}}),
            "# HELP x_total An x.\n# TYPE x_total counter\n"
            "x_total{worker_addr=\"http://a\"} 3\n"
            "x_total{worker_addr=\"b\\\"\\\\\",rank=\"0\"} 4 123\n"
            "x_total{worker_addr=\"b\\\"\\\\\"} 5\n"
            "# TYPE h histogram\n"
            "h_bucket{worker_addr=\"http://a\",le=\"1\"} 1\n"
            "h_sum{worker_addr=\"http://a\"} 0.5\n"
            "h_count{worker_addr=\"http://a\"} 1\n");
}

}  // namespace
}  // namespace tandem::router
