#include "loadgen/bench_serving.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "loadgen/runner.h"
#include "tests/loadgen/fake_server.h"

namespace tandem::loadgen {
namespace {

const SystemClock& clock() {
  static const SystemClock clock;
  return clock;
}

BenchConfig config_for(const FakeServer& server) {
  BenchConfig config;
  config.base_url = server.origin();
  config.dataset_name = "random";
  config.num_prompts = 12;
  config.random_input_len = 10;
  config.random_output_len = 5;
  config.random_range_ratio = 1;
  config.save_results = false;
  config.request_timeout = std::chrono::seconds(60);
  return config;
}

struct Outcome {
  std::string printed, progress, error;
  std::optional<Report> report;
};

Outcome run_bench(const BenchConfig& config, std::shared_ptr<const text::Tokenizer> tokenizer = tiny_tokenizer(),
                  std::stop_token stop = {}) {
  Outcome outcome;
  BenchParts parts;
  parts.clock = &clock();
  parts.tokenizer = std::move(tokenizer);
  parts.print = [&](std::string_view text) { outcome.printed += text; };
  parts.progress = [&](std::string_view text) { outcome.progress += text; };
  parts.stop = stop;
  auto report = run_bench_serving(config, parts);
  if (report) {
    outcome.report = *report;
  } else {
    outcome.error = report.error().message;
  }
  return outcome;
}

TEST(BenchServing, MeasuresAServersKnownGaps) {
  FakeServer server([](auto call) { stream_tokens(call, 60, 20); });
  server.server_info = R"({"internal_states": [{"avg_spec_accept_length": 1.0}], "tp_size": 4})";
  const std::string path = testing::TempDir() + "tandem_bench_serving.jsonl";
  std::remove(path.c_str());
  BenchConfig config = config_for(server);
  config.save_results = true;
  config.output_file = path;
  config.flush_cache = true;
  const Outcome first = run_bench(config);
  ASSERT_TRUE(first.report) << first.error;
  const Report& r = *first.report;
  EXPECT_EQ(r.completed, 12);
  EXPECT_EQ(r.failures.count, 0) << first.printed;
  EXPECT_EQ(r.total_input_tokens, 120);
  EXPECT_EQ(r.total_output_tokens, 60);
  EXPECT_EQ(r.total_output_tokens_retokenized,
            12 * int64_t(tiny_tokenizer()->encode(" the the the the the", false).size()));
  // Never faster than the script; a loaded machine may be slower.
  EXPECT_GE(r.ttft.median, 60);
  EXPECT_LT(r.ttft.median, 5000);
  EXPECT_GE(r.itl.mean, 19);
  EXPECT_LT(r.itl.mean, 2000);
  EXPECT_GE(r.e2e.median, 140);
  EXPECT_GE(r.duration_s, 0.140);
  EXPECT_NEAR(r.accept_length.value_or(0), 1.0, 1e-9);
  EXPECT_EQ(server.generations, 13) << "one warm-up";
  EXPECT_EQ(server.flushes, 1);
  EXPECT_NE(first.printed.find("Serving Benchmark Result"), std::string::npos);
  EXPECT_NE(first.printed.find("#Input tokens: 120\n"), std::string::npos);
  EXPECT_NE(first.progress.find("12/12"), std::string::npos);

  ASSERT_TRUE(run_bench(config).report);
  std::ifstream file(path);
  std::string line;
  int lines = 0;
  while (std::getline(file, line)) {
    ++lines;
    EXPECT_NE(line.find(R"("completed": 12)"), std::string::npos);
    EXPECT_NE(line.find(R"("tp_size": 4)"), std::string::npos);
  }
  EXPECT_EQ(lines, 2) << "one line appended per run";
  std::remove(path.c_str());
}

TEST(BenchServing, OpenAiBackendsAreAskedAndReadInTheirForm) {
  for (auto [backend, path] :
       {std::pair("sglang-oai", "/v1/completions"), std::pair("vllm-chat", "/v1/chat/completions")}) {
    std::atomic<int> right{0};
    FakeServer server([&](auto call) {
      const bool named = call->body.find(R"("model":"served-model")") != std::string::npos;
      right += call->path == path && named && call->authorization == "Bearer k";
      stream_tokens(call, 1, 1);
    });
    BenchConfig config = config_for(server);
    config.backend = backend;
    config.authorization = "Bearer k";
    const Outcome done = run_bench(config);
    ASSERT_TRUE(done.report) << done.error;
    EXPECT_EQ(done.report->completed, 12) << done.printed;
    EXPECT_EQ(done.report->total_output_tokens, 60);
    EXPECT_EQ(right, 13) << backend;
  }
}

TEST(BenchServing, WaitingForAPlaceIsNotMeasured) {
  FakeServer server([](auto call) { stream_tokens(call, 50, 1); });
  BenchConfig config = config_for(server);
  config.max_concurrency = 3;
  config.warmup_requests = 0;
  const Outcome done = run_bench(config);
  ASSERT_TRUE(done.report) << done.error;
  EXPECT_EQ(done.report->completed, 12);
  EXPECT_EQ(server.peak_alive, 3);
  EXPECT_GE(done.report->duration_s, 4 * 0.050) << "four rounds";
  EXPECT_LT(done.report->ttft.median, 1000 * done.report->duration_s / 2);
  EXPECT_LE(done.report->concurrency, 3.0);
}

TEST(BenchServing, EachKindOfFailureIsCountedAndShown) {
  FakeServer server([](auto call) {
    net::ResponseWriter& writer = *call->writer;
    if (call->index % 6 == 0) return stream_tokens(call, 1, 1);
    if (call->index % 6 == 1) return writer.send(json_answer(503, R"({"error": {"message": "queue full"}})"));
    writer.begin(200, "text/event-stream", {});
    writer.write(token_event(*call, 1));
    if (call->index % 6 == 2) {
      writer.write(net::sse_event(R"({"text": " the", "meta_info": {"completion_tokens": 2, "finish_reason": )"
                                  R"({"type": "abort", "message": "decode lost"}}})"));
    }
    if (call->index % 6 == 3) writer.write(net::sse_event(R"({"error": {"message": "transfer failed"}})"));
    if (call->index % 6 == 4) writer.write("data: {\"text\":\n\n");
    writer.end();  // index 5: simply ends
  });
  BenchConfig config = config_for(server);
  config.warmup_requests = 0;
  const Outcome done = run_bench(config);
  ASSERT_TRUE(done.report) << done.error;
  EXPECT_EQ(done.report->completed, 2);
  EXPECT_EQ(done.report->failures.count, 10);
  EXPECT_EQ(done.report->total_output_tokens, 10) << "failures give no tokens";
  for (const char* part : {"10 of 12 requests failed", "2 x HTTP 503: queue full", "2 x aborted: decode lost",
                           "2 x transfer failed", "not JSON", "2 x the answer ended without a finish reason"}) {
    EXPECT_NE(done.printed.find(part), std::string::npos) << part << "\n" << done.printed;
  }
  config.count_failures_as_success = true;
  const Outcome original = run_bench(config);
  ASSERT_TRUE(original.report) << original.error;
  EXPECT_EQ(original.report->completed, 10) << "all but the 503s";
}

TEST(BenchServing, ASilentServerEndsAtTheTimeoutAndTheOthersCount) {
  FakeServer server([](auto call) {
    if (call->index % 2 == 0) return stream_tokens(call, 1, 1);
    if (call->index % 4 == 1) call->writer->begin(200, "text/event-stream", {});
    call->server.after(3'600'000, [call] {});  // keeps the exchange open
  });
  BenchConfig config = config_for(server);
  config.warmup_requests = 0;
  config.request_timeout = std::chrono::seconds(2);
  const Outcome done = run_bench(config);
  ASSERT_TRUE(done.report) << done.error;
  EXPECT_EQ(done.report->completed, 6);
  EXPECT_NE(done.printed.find("6 x no complete answer within 2.0 s"), std::string::npos) << done.printed;
  EXPECT_LT(done.report->duration_s, 30);
}

TEST(BenchServing, AStopHangsUpEverything) {
  std::stop_source stop;
  std::atomic<int> hung_up{0};
  FakeServer server([&](auto call) {
    call->writer->begin(200, "text/event-stream", {});
    call->writer->on_closed([&] { ++hung_up; });
    call->server.after(3'600'000, [call] {});
    if (call->index == 11) stop.request_stop();
  });
  BenchConfig config = config_for(server);
  config.warmup_requests = 0;
  const Outcome done = run_bench(config, tiny_tokenizer(), stop.get_token());
  EXPECT_FALSE(done.report);
  EXPECT_NE(done.error.find("stopped with 0 of 12"), std::string::npos) << done.error;
  const TimePoint deadline = clock().now() + std::chrono::seconds(20);
  while (hung_up < 12 && clock().now() < deadline) std::this_thread::yield();
  EXPECT_EQ(hung_up, 12);
}

TEST(BenchServing, AWarmUpWithoutOneSuccessEndsTheRun) {
  FakeServer server([](auto call) { call->writer->send(json_answer(400, R"({"error": {"message": "no such"}})")); });
  BenchConfig config = config_for(server);
  config.warmup_requests = 3;
  const Outcome done = run_bench(config);
  EXPECT_FALSE(done.report);
  EXPECT_NE(done.error.find("HTTP 400: no such"), std::string::npos) << done.error;
  EXPECT_EQ(server.generations, 3);
}

TEST(BenchServing, WarmUpAsksForAtMost32Tokens) {
  std::atomic<int> warm_tokens{0};
  FakeServer server([&](auto call) {
    if (call->index == 0) warm_tokens = call->tokens;
    stream_tokens(call, 0, 0);
  });
  BenchConfig config = config_for(server);
  config.num_prompts = 1;
  config.random_output_len = 100;
  const Outcome done = run_bench(config);
  ASSERT_TRUE(done.report) << done.error;
  EXPECT_EQ(warm_tokens, 32);
  EXPECT_EQ(done.report->total_output_tokens, 100);
}

TEST(BenchServing, ARefusedFlushEndsTheRun) {
  FakeServer server([](auto call) { stream_tokens(call, 1, 1); });
  server.flush_status = 400;
  BenchConfig config = config_for(server);
  config.flush_cache = true;
  EXPECT_NE(run_bench(config).error.find("/flush_cache: HTTP 400"), std::string::npos);
}

TEST(BenchServing, TheTokenizerIsFoundThroughTheServersInfo) {
  FakeServer server([](auto call) { stream_tokens(call, 1, 1); });
  server.server_info = fmt::format(R"({{"prefill": [{{"tokenizer_path": "{}"}}], "decode": []}})", tiny_directory());
  const Outcome found = run_bench(config_for(server), nullptr);
  ASSERT_TRUE(found.report) << found.error;
  EXPECT_EQ(found.report->completed, 12);
}

TEST(BenchServing, NoTokenizerAnywhereSaysWhatWasTried) {
  FakeServer server([](auto call) { stream_tokens(call, 1, 1); });
  server.server_info = R"({"tokenizer_path": "/elsewhere/model"})";
  const Outcome done = run_bench(config_for(server), nullptr);
  for (const char* part : {"--tokenizer", "served-model", "/elsewhere/model"}) {
    EXPECT_NE(done.error.find(part), std::string::npos) << done.error;
  }
}

TEST(BenchServing, AServerThatIsNotThereIsAnErrorNotAWait) {
  uint16_t port = 0;
  {
    FakeServer gone([](auto) {});
    port = gone.port();
  }
  BenchConfig config;
  config.base_url = fmt::format("http://127.0.0.1:{}", port);
  config.dataset_name = "random";
  const Outcome done = run_bench(config);
  EXPECT_FALSE(done.report);
  EXPECT_NE(done.error.find("/v1/models"), std::string::npos) << done.error;
}

TEST(RunLoad, RequestsLeaveAtTheirTimesAndThousandsMayBeUnderWay) {
  FakeServer server([](auto call) { stream_tokens(call, 300, 1); });
  LoadPlan plan;
  auto url = net::parse_url(server.origin() + "/generate");
  ASSERT_TRUE(url);
  plan.url = *url;
  constexpr int kRequests = 1000;
  for (int i = 0; i < kRequests; ++i) plan.arrivals.push_back(std::chrono::microseconds(i * 200));
  plan.body = [](size_t) { return std::string(R"({"sampling_params": {"max_new_tokens": 2}})"); };
  plan.expectation = [](size_t) { return Expectation{.output_len = 2}; };
  auto outcome = run_load(plan, clock(), {});
  ASSERT_TRUE(outcome) << outcome.error().message;
  int good = 0;
  for (int i = 0; i < kRequests; ++i) {
    const RequestResult& r = outcome->results[size_t(i)];
    good += r.success;
    EXPECT_GE(r.start_s, seconds(plan.arrivals[size_t(i)])) << i;
    if (!r.success) ADD_FAILURE() << i << ": " << r.error;
  }
  EXPECT_EQ(good, kRequests);
  EXPECT_GT(server.peak_alive, 300);
}

TEST(RunLoad, StopDispatchLetsWhatIsUnderWayEnd) {
  std::stop_source stop;
  FakeServer server([&](auto call) {
    if (call->index == 5) stop.request_stop();
    stream_tokens(call, 50, 1);
  });
  LoadPlan plan;
  auto url = net::parse_url(server.origin() + "/generate");
  ASSERT_TRUE(url);
  plan.url = *url;
  plan.arrivals.assign(1000, Duration::zero());
  plan.max_concurrency = 4;
  plan.stop_dispatch = stop.get_token();
  plan.body = [](size_t) { return std::string(R"({"sampling_params": {"max_new_tokens": 2}})"); };
  plan.expectation = [](size_t) { return Expectation{.output_len = 2}; };
  auto outcome = run_load(plan, clock(), {});
  ASSERT_TRUE(outcome) << outcome.error().message;
  EXPECT_GE(outcome->results.size(), 6u);
  EXPECT_LT(outcome->results.size(), 20u);
  for (const RequestResult& result : outcome->results) EXPECT_TRUE(result.success) << result.error;
}

}  // namespace
}  // namespace tandem::loadgen
