#include "loadgen/one_batch.h"

#include <gtest/gtest.h>

#include <fstream>

#include "loadgen/batch_call.h"
#include "tests/loadgen/fake_server.h"

namespace tandem::loadgen {
namespace {

TimePoint at(int ms) { return TimePoint(std::chrono::seconds(5) + std::chrono::milliseconds(ms)); }

std::string event(int index, int tokens, std::string_view reason = "null") {
  return fmt::format(R"({{"index": {}, "text": "x", "meta_info": {{"completion_tokens": {}, "finish_reason": {}}}}})",
                     index, tokens, reason);
}

constexpr const char* kLength = R"({"type": "length", "length": 2})";

TEST(BatchMeter, TheLastFirstTokenAndTheLastEventCount) {
  BatchMeter meter(2, at(0));
  EXPECT_TRUE(meter.on_event(event(0, 1), at(100)));
  EXPECT_TRUE(meter.on_event(event(0, 2, kLength), at(150)));
  EXPECT_TRUE(meter.on_event(event(1, 1), at(250)));
  EXPECT_FALSE(meter.finish()) << "sequence 1 has not finished";
  EXPECT_TRUE(meter.on_event(event(1, 2, kLength), at(300)));
  EXPECT_TRUE(meter.on_event("[DONE]", at(310)));
  auto times = meter.finish();
  ASSERT_TRUE(times) << times.error().message;
  EXPECT_NEAR(times->last_ttft_s, 0.250, 1e-9);
  EXPECT_NEAR(times->latency_s, 0.310, 1e-9);
}

TEST(BatchMeter, AnythingButACompleteBatchIsAnErrorThatSaysWhy) {
  auto fault = [](std::vector<std::string> events) {
    BatchMeter meter(2, at(0));
    for (const std::string& data : events) {
      if (auto good = meter.on_event(data, at(1)); !good) return good.error().message;
    }
    auto end = meter.finish();
    return end ? std::string() : end.error().message;
  };
  EXPECT_EQ(fault({R"({"error": {"message": "out of memory"}})"}), "out of memory");
  EXPECT_NE(fault({event(0, 1, R"({"type": "abort", "message": "gone"})")}).find("sequence 0 finished with"),
            std::string::npos);
  EXPECT_NE(fault({event(0, 1, R"({"type": "stop", "matched": 3})")}).find("stop"), std::string::npos);
  EXPECT_NE(fault({"{"}).find("not JSON"), std::string::npos);
  EXPECT_NE(fault({event(2, 1)}).find("sequence 2 in a batch of 2"), std::string::npos);
  EXPECT_NE(fault({event(0, 1, kLength)}).find("before sequence 1 of 2 finished"), std::string::npos);
  EXPECT_NE(fault({event(0, 1, kLength), event(1, 3, kLength)}).find("sequence 1: no event of its own"),
            std::string::npos);
  EXPECT_EQ(fault({event(0, 1, kLength), event(1, 1, kLength)}), "");
}

TEST(OneBatch, CapacityIsTheSumOverAllRanksOfTheServersThatDecode) {
  auto capacity = [](std::string_view text) {
    auto info = json::Document::parse(text, "info");
    EXPECT_TRUE(info);
    return token_capacity(info->root());
  };
  EXPECT_EQ(capacity(R"({"internal_states": [{"memory_usage": {"token_capacity": 100}},
                                             {"memory_usage": {"token_capacity": 120}}]})"),
            220);
  EXPECT_EQ(capacity(R"({"prefill": [{"internal_states": [{"memory_usage": {"token_capacity": 9}}]}],
                         "decode": [{"internal_states": [{"memory_usage": {"token_capacity": 50}}]},
                                    {"internal_states": [{"memory_usage": {"token_capacity": 60}}]}]})"),
            110);
  EXPECT_FALSE(capacity(R"({"internal_states": [{"memory_usage": {}}]})"));
  EXPECT_FALSE(capacity("[]"));
}

TEST(OneBatch, PrintsAndSavesSGLangsLines) {
  OneBatchResult r{.run_name = "r1", .batch_size = 8, .input_len = 100, .output_len = 16};
  r.latency_s = 2.00004;
  r.last_ttft_s = 0.4;
  r.input_throughput = 2000;
  r.output_throughput = 80;
  r.overall_throughput = 464;
  r.last_gen_throughput = 79.987;
  EXPECT_EQ(format_one_batch(r),
            "batch size: 8\ninput_len: 100\noutput_len: 16\nlatency: 2.00 s\ninput throughput: 2000.00 tok/s\n"
            "output throughput: 80.00 tok/s\nlast_ttft: 0.40 s\nlast generation throughput: 79.99 tok/s\n");
  EXPECT_EQ(one_batch_jsonl(r),
            R"({"run_name": "r1", "batch_size": 8, "input_len": 100, "output_len": 16, "latency": 2.0, )"
            R"("input_throughput": 2000.0, "output_throughput": 80.0, "overall_throughput": 464.0, "last_ttft": 0.4, )"
            R"("last_gen_throughput": 79.99, "acc_length": -1.0})"
            "\n");
  EXPECT_NE(one_batch_table({{r}}, 0).find("| 8 | 100 | 2.00 | 2000.00 | 80.00 | n/a | 100.00 |\n"), std::string::npos);
  EXPECT_NE(one_batch_table({{r}}, 3.6).find("| 100.00 | 0.50 | 12.50 |\n"), std::string::npos);
  r.output_len = 1;
  r.acc_length = 2.5;
  const std::string one = format_one_batch(r);
  EXPECT_EQ(one.find("output throughput"), std::string::npos);
  EXPECT_NE(one.find("acc_length: 2.50 \n"), std::string::npos);
}

// Answers a batch of prompts: first tokens 10 ms apart, then all the others at once.
void answer_batch(std::shared_ptr<FakeServer::Call> call, std::vector<size_t>* lengths) {
  auto body = json::Document::parse(call->body, "body");
  ASSERT_TRUE(body);
  simdjson::dom::array prompts;
  ASSERT_FALSE(body->root()["input_ids"].get(prompts));
  for (auto prompt : prompts) lengths->push_back(simdjson::dom::array(prompt).size());
  call->writer->begin(200, "text/event-stream", {});
  const int batch = int(prompts.size());
  for (int i = 0; i < batch; ++i) {
    call->server.after(10 * (i + 1), [call, i] { call->writer->write(net::sse_event(event(i, 1))); });
  }
  call->server.after(10 * batch + 50, [call, batch] {
    for (int i = 0; i < batch; ++i) call->writer->write(net::sse_event(event(i, call->tokens, kLength)));
    call->writer->write(net::sse_event("[DONE]"));
    call->writer->end();
  });
}

struct Outcome {
  std::string printed, error;
  std::vector<OneBatchResult> results;
};

Outcome run(const OneBatchConfig& config) {
  static const SystemClock clock;
  Outcome outcome;
  BenchParts parts;
  parts.clock = &clock;
  parts.tokenizer = tiny_tokenizer();
  parts.print = [&](std::string_view text) { outcome.printed += text; };
  auto results = run_one_batch(config, parts);
  if (results) {
    outcome.results = *results;
  } else {
    outcome.error = results.error().message;
  }
  return outcome;
}

TEST(OneBatch, RunsEveryCombinationThatFitsAsOneRequestEach) {
  std::vector<size_t> lengths;
  FakeServer server([&](auto call) { answer_batch(std::move(call), &lengths); });
  server.server_info =
      R"({"internal_states": [{"memory_usage": {"token_capacity": 300}, "last_gen_throughput": 12.5}]})";
  const std::string path = testing::TempDir() + "tandem_one_batch.jsonl";
  std::remove(path.c_str());
  OneBatchConfig config;
  config.base_url = server.origin();
  config.batch_size = {1, 4};
  config.input_len = {30, 200};
  config.output_len = {5};
  config.result_filename = path;
  config.show_report = true;
  const Outcome outcome = run(config);
  ASSERT_EQ(outcome.error, "");
  ASSERT_EQ(outcome.results.size(), 3u) << outcome.printed;
  EXPECT_EQ(lengths, (std::vector<size_t>{30, 200, 30, 30, 30, 30})) << "warm-up (1024 in) does not fit and is skipped";
  EXPECT_EQ(server.generations, 3);
  EXPECT_EQ(server.flushes, 3);
  EXPECT_NE(outcome.printed.find("skipped: batch size 4 x (200 + 5) tokens is above the server's 300\n"),
            std::string::npos)
      << outcome.printed;
  const OneBatchResult& last = outcome.results[2];
  EXPECT_EQ(last.batch_size, 4);
  EXPECT_GE(last.last_ttft_s, 0.040);
  EXPECT_GE(last.latency_s, 0.090);
  EXPECT_NEAR(last.input_throughput, 120 / last.last_ttft_s, 1e-6);
  const double decode_s = last.latency_s - last.last_ttft_s;  // 0 where a busy machine delivers all events at once
  EXPECT_NEAR(last.output_throughput * decode_s, decode_s > 0 ? 20 : 0, 1e-6);
  EXPECT_NEAR(last.overall_throughput, 140 / last.latency_s, 1e-6);
  EXPECT_EQ(last.last_gen_throughput, 12.5);
  EXPECT_NE(outcome.printed.find("Results are saved to " + path), std::string::npos);
  EXPECT_NE(outcome.printed.find("| batch size |"), std::string::npos);
  std::ifstream file(path);
  int lines = 0;
  for (std::string line; std::getline(file, line);) ++lines;
  EXPECT_EQ(lines, 3);
  std::remove(path.c_str());
}

TEST(OneBatch, WarmUpRunsEachBatchSizeFirst) {
  std::vector<size_t> lengths;
  FakeServer server([&](auto call) { answer_batch(std::move(call), &lengths); });
  OneBatchConfig config;
  config.base_url = server.origin();
  config.batch_size = {1, 2};
  config.input_len = {8};
  config.output_len = {2};
  config.result_filename = "";
  const Outcome outcome = run(config);
  EXPECT_EQ(outcome.error, "");
  EXPECT_EQ(lengths, (std::vector<size_t>{1024, 1024, 1024, 8, 8, 8}));
  config.skip_warmup = true;
  lengths.clear();
  EXPECT_EQ(run(config).error, "");
  EXPECT_EQ(lengths, (std::vector<size_t>{8, 8, 8}));
}

TEST(OneBatch, AFailedOrSilentBatchIsAnErrorThatNamesTheCase) {
  FakeServer server([](auto call) {
    if (call->index == 0) return call->writer->send(json_answer(400, R"({"error": {"message": "too many tokens"}})"));
    call->writer->begin(200, "text/event-stream", {});
    if (call->index == 1) return call->writer->end();
    call->server.after(3'600'000, [call] {});
  });
  OneBatchConfig config;
  config.base_url = server.origin();
  config.input_len = {8};
  config.skip_warmup = true;
  config.result_filename = "";
  config.request_timeout = std::chrono::seconds(2);
  EXPECT_EQ(run(config).error, "batch size 1, input 8, output 16: HTTP 400: too many tokens");
  EXPECT_EQ(run(config).error, "batch size 1, input 8, output 16: the answer ended before sequence 0 of 1 finished");
  EXPECT_EQ(run(config).error, "batch size 1, input 8, output 16: no complete answer within 2.0 s");
}

TEST(OneBatchConfig, EachFaultIsRefusedByTheNameOfItsFlag) {
  OneBatchConfig config;
  auto fault = [&] {
    auto valid = config.validate();
    return valid ? std::string() : valid.error().message;
  };
  EXPECT_NE(fault().find("--base-url"), std::string::npos);
  config.base_url = "http://localhost:1";
  EXPECT_EQ(fault(), "");
  config.batch_size = {1, 0};
  EXPECT_NE(fault().find("--batch-size"), std::string::npos);
  config.batch_size = {1};
  config.output_len = {};
  EXPECT_NE(fault().find("--output-len"), std::string::npos);
  config.output_len = {1};
  config.temperature = -1;
  EXPECT_NE(fault().find("--temperature"), std::string::npos);
}

}  // namespace
}  // namespace tandem::loadgen
