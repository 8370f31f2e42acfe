// Log lines to the letter, as users' scripts grep them, and the metrics' names.
#include "engine/step/stats.h"

#include <gtest/gtest.h>

#include "tests/engine/pair_rig.h"

namespace tandem::engine {
namespace {

LoadFigures some_load() {
  LoadFigures load;
  load.running = 3;
  load.queued = 4;
  load.prealloc = 5;
  load.transferring = 6;
  load.retracted = 7;
  load.inflight = 8;
  load.used_tokens = 250;
  load.total_tokens = 1000;
  load.preallocated_tokens = 130;
  return load;
}

TEST(LogLines, PrefillLineEndsWithCommaAndSpace) {
  const PrefillFigures batch{2, 64, 32, 1234.567};
  EXPECT_EQ(prefill_line(batch, some_load(), false),
            "Prefill batch, #new-seq: 2, #new-token: 64, #cached-token: 32, token usage: 0.25, #running-req: 3, "
            "#queue-req: 4, ");
  EXPECT_EQ(prefill_line(batch, some_load(), true),
            "Prefill batch, #new-seq: 2, #new-token: 64, #cached-token: 32, token usage: 0.25, #running-req: 3, "
            "#queue-req: 4, #prealloc-req: 5, #inflight-req: 8, input throughput (token/s): 1234.57, ");
}

TEST(LogLines, DecodeLineHasTheHandoverQueuesOnlyOnADecodeServer) {
  EXPECT_EQ(
      decode_line({2, 99.999}, some_load(), false),
      "Decode batch, #running-req: 2, #token: 250, token usage: 0.25, cuda graph: False, gen throughput (token/s): "
      "100.00, #queue-req: 4, ");
  EXPECT_EQ(
      decode_line({2, 0}, some_load(), true),
      "Decode batch, #running-req: 2, #token: 250, token usage: 0.25, pre-allocated usage: 0.13, #prealloc-req: 5, "
      "#transfer-req: 6, #retracted-req: 7, cuda graph: False, gen throughput (token/s): 0.00, #queue-req: 4, ");
}

TEST(RateMeter, GivesTokensOverTheTimeBetweenCalls) {
  ManualClock clock;
  clock.advance(std::chrono::seconds(5));
  RateMeter meter;
  meter.add(100);
  EXPECT_EQ(meter.take(clock.now()), 0) << "nothing to divide by yet";
  meter.add(30);
  clock.advance(std::chrono::seconds(2));
  EXPECT_DOUBLE_EQ(meter.take(clock.now()), 15);
  clock.advance(std::chrono::seconds(2));
  EXPECT_DOUBLE_EQ(meter.take(clock.now()), 0);
}

TEST(SchedulerMetrics, ServedHandoverShowsInSglangsNames) {
  using namespace tandem::testing;
  PairOptions options;
  options.decode.decode_log_interval = 1;
  options.decode.model_name = "m";
  Pair pair(options);
  pair.submit(greedy_request(1, prompt_of(1, 20), 6), 1);
  pair.run_until_idle();
  const std::string decode = pair.decode->rig.metrics.scrape(), prefill = pair.prefill->rig.metrics.scrape();
  for (const char* name :
       {"sglang:num_running_reqs", "sglang:num_used_tokens", "sglang:token_usage", "sglang:gen_throughput",
        "sglang:num_queue_reqs", "sglang:cache_hit_rate", "sglang:max_total_num_tokens", "sglang:num_retracted_reqs",
        "sglang:utilization", "sglang:new_token_ratio", "sglang:num_prefill_prealloc_queue_reqs",
        "sglang:num_prefill_inflight_queue_reqs", "sglang:num_decode_prealloc_queue_reqs",
        "sglang:num_decode_transfer_queue_reqs", "sglang:kv_transfer_speed_gb_s", "sglang:kv_transfer_latency_ms",
        "sglang:num_bootstrap_failed_reqs_total", "sglang:num_transfer_failed_reqs_total"}) {
    EXPECT_NE(decode.find(std::string(name) + "{"), std::string::npos) << name;
    EXPECT_NE(prefill.find(std::string(name) + "{"), std::string::npos) << name;
  }
  const auto value = [](const std::string& text, const std::string& start) {
    const size_t at = text.find(start);
    EXPECT_NE(at, std::string::npos) << start;
    const size_t end = text.find('\n', at);
    return std::stod(text.substr(text.rfind(' ', end) + 1, end));
  };
  EXPECT_EQ(value(decode, "sglang:max_total_num_tokens{"), 256);
  EXPECT_GT(value(decode, "sglang:kv_transfer_latency_ms{"), 0);
  EXPECT_EQ(value(prefill, "sglang:utilization{"), -1);
  EXPECT_EQ(value(decode, "sglang:spec_accept_length{"), 0) << "there is no speculative decoding";
  EXPECT_EQ(value(prefill, "tandem:handovers_total{"), 1);
  EXPECT_EQ(value(decode, "tandem:handovers_total{"), 1);
  EXPECT_EQ(value(decode, "tandem:handover_bytes_total{"), double(20 * pair.token_bytes()));
  EXPECT_EQ(value(prefill, "sglang:queue_time_seconds_count{"), 1);
  EXPECT_EQ(value(decode, "sglang:queue_time_seconds_count{"), 1);
  EXPECT_NE(decode.find("stage=\"decode_transferred\""), std::string::npos);
  EXPECT_NE(decode.find("model_name=\"m\""), std::string::npos);
}

}  // namespace
}  // namespace tandem::engine
