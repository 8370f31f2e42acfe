// Where a request's time went: the Req Time Stats line to the letter, and the times that come with events.
#include "engine/step/times.h"

#include <gtest/gtest.h>

#include "engine/roles/decode_worker.h"
#include "tests/engine/pair_rig.h"

namespace tandem::engine {
namespace {

using scheduler::LifeKind;
using scheduler::RequestState;
using namespace std::chrono_literals;

constexpr TimePoint kStart{1000s};

void enter(Request& request, RequestState state, Duration after) {
  request.life.entered_at[size_t(state)] = kStart + after;
  request.life.state = state;
}

void fill(Request& request, LifeKind kind) {
  request.input.rid = "r1";
  request.life.kind = kind;
  request.tokens = {1, 2, 3, 4, 5};
  request.prompt_tokens = 3;
  enter(request, RequestState::kNew, 0ms);
}

TEST(TimeStatsLine, OfACombinedServer) {
  Request request;
  fill(request, LifeKind::kCombined);
  enter(request, RequestState::kWaiting, 1ms);
  enter(request, RequestState::kPrefilling, 5ms);
  enter(request, RequestState::kRunning, 20ms);
  enter(request, RequestState::kFinished, 105ms);
  EXPECT_EQ(time_stats_line(request, kStart + 105ms, 5000.105),
            "Req Time Stats(rid=r1, bootstrap_room=None, input len=3, output len=2, type=unified): "
            "queue_duration=4.00ms, forward_duration=100.00ms, start=5000.000");
}

TEST(TimeStatsLine, OfAPrefillServer) {
  Request request;
  fill(request, LifeKind::kPrefill);
  request.input.bootstrap = api::BootstrapInfo{"p", 1, 77};
  enter(request, RequestState::kBootstrapping, 0ms);
  enter(request, RequestState::kWaiting, 2ms);
  enter(request, RequestState::kPrefilling, 5ms);
  enter(request, RequestState::kInflight, 15ms);
  enter(request, RequestState::kFinished, 16500us);
  EXPECT_EQ(time_stats_line(request, kStart + 17ms, 5000.017),
            "Req Time Stats(rid=r1, bootstrap_room=77, input len=3, output len=2, type=prefill): "
            "bootstrap_queue_duration(2.00ms); queue_duration=3.00ms, forward_duration=10.00ms, "
            "transfer_duration=1.50ms, start=5000.000");
}

TEST(TimeStatsLine, OfADecodeServerSplitsTheWaitForBlocksFromTheHandshake) {
  Request request;
  fill(request, LifeKind::kDecode);
  request.input.bootstrap = api::BootstrapInfo{"p", 1, 77};
  request.sink = std::make_unique<SinkHandover>();
  enter(request, RequestState::kPreparing, 0ms);
  request.sink->peer_ready_at = kStart + 3ms;
  enter(request, RequestState::kReserved, 10ms);
  enter(request, RequestState::kReceiving, 11ms);
  enter(request, RequestState::kArrived, 30ms);
  enter(request, RequestState::kRunning, 31ms);
  enter(request, RequestState::kFinished, 131ms);
  EXPECT_EQ(time_stats_line(request, kStart + 131ms, 5000.131),
            "Req Time Stats(rid=r1, bootstrap_room=77, input len=3, output len=2, type=decode): "
            "prealloc_queue_duration(10.00ms) = alloc_wait(7.00ms) + bootstrap(3.00ms) + other(0.00ms); "
            "transfer_duration=20.00ms; queue_duration=1.00ms, forward_duration=100.00ms, start=5000.000");
}

TEST(TimeStatsLine, OfARequestThatNeverRanHasZeros) {
  Request request;
  fill(request, LifeKind::kCombined);
  enter(request, RequestState::kWaiting, 0ms);
  enter(request, RequestState::kAborted, 9ms);
  EXPECT_NE(time_stats_line(request, kStart + 9ms, 1).find("queue_duration=0.00ms, forward_duration=0.00ms"),
            std::string::npos);
}

TEST(RequestTimes, ComeOnceWithTheFirstEventOfACombinedServer) {
  tandem::testing::Rig rig(tandem::testing::small_config());
  rig.submit(tandem::testing::greedy_request(1, tandem::testing::prompt_of(1, 40), 3));  // two chunks
  rig.run_until_idle();
  const std::vector<api::RequestTimes>& times = rig.answers[1].times;
  ASSERT_EQ(times.size(), 1u);
  EXPECT_TRUE(times[0].queue_time.has_value());
  EXPECT_TRUE(times[0].prefill_launch_delay.has_value());
  EXPECT_NEAR(times[0].prefill_launch_latency.value_or(-1), 100e-6, 1e-9) << "one turn of the rig's clock";
}

TEST(RequestTimes, OfAPairAreEachSidesOwn) {
  tandem::testing::Pair pair;
  pair.submit(tandem::testing::greedy_request(1, tandem::testing::prompt_of(1, 20), 6), 1);
  pair.run_until_idle();
  const std::vector<api::RequestTimes>& prefill = pair.prefill->rig.answers[1].times;
  const std::vector<api::RequestTimes>& decode = pair.decode->rig.answers[1].times;
  ASSERT_EQ(prefill.size(), 1u);
  EXPECT_TRUE(prefill[0].prefill_launch_latency.has_value());
  ASSERT_EQ(decode.size(), 1u);
  EXPECT_TRUE(decode[0].queue_time.has_value());
  EXPECT_FALSE(decode[0].prefill_launch_delay.has_value());
}

}  // namespace
}  // namespace tandem::engine
