#include "loadgen/report.h"

#include <gtest/gtest.h>

#include "tests/loadgen/tokenizer.h"

namespace tandem::loadgen {
namespace {

RequestResult good(double start, double ttft, std::vector<double> itls, double latency, int32_t input, int32_t output) {
  RequestResult r;
  r.success = true;
  r.start_s = start;
  r.ttft_s = ttft;
  r.itls_s = std::move(itls);
  r.latency_s = latency;
  r.input_len = input;
  r.output_len = output;
  r.generated_text = "the house";
  return r;
}

RequestResult bad(std::string error) {
  RequestResult r;
  r.error = std::move(error);
  r.input_len = 1000;
  r.output_len = 1000;
  r.latency_s = 1000;
  r.ttft_s = 1000;
  r.generated_text = "not counted";
  return r;
}

// Three requests, worked out by hand: two start together, one at 1.5 s.
std::vector<RequestResult> three() {
  return {good(0.0, 0.5, {0.25, 0.25, 0.5}, 1.5, 10, 4), good(0.0, 1.0, {1.0}, 2.0, 20, 2),
          good(1.5, 0.5, {}, 0.6, 30, 1)};
}

Report report_of(const std::vector<RequestResult>& results, double duration) {
  return make_report(results, duration, std::nullopt, *find_backend("sglang"), *tiny_tokenizer());
}

TEST(Report, EveryRowByItsDefinition) {
  auto results = three();
  results.push_back(bad("boom"));
  const Report r = report_of(results, 4.0);
  EXPECT_EQ(r.completed, 3);
  EXPECT_EQ(r.total_input_tokens, 60);
  EXPECT_EQ(r.total_output_tokens, 7);
  const auto tokens = int64_t(tiny_tokenizer()->encode("the house", false).size());
  EXPECT_EQ(r.total_output_tokens_retokenized, 3 * tokens);
  EXPECT_DOUBLE_EQ(r.request_throughput, 0.75);
  EXPECT_DOUBLE_EQ(r.input_throughput, 15);
  EXPECT_DOUBLE_EQ(r.output_throughput, 1.75);
  EXPECT_DOUBLE_EQ(r.total_throughput, 16.75);
  EXPECT_DOUBLE_EQ(r.concurrency, 4.1 / 4);
  // Tokens at 0.5, 0.75 | 1.0, 1.5 and 1.0 | 2.0 and 2.0: the second bucket holds three.
  EXPECT_EQ(r.max_output_tokens_per_s, 3);
  // Buckets touched: 0-1, 0-2, 1-2.
  EXPECT_EQ(r.max_concurrent_requests, 3);
  EXPECT_NEAR(r.e2e.mean, (1500 + 2000 + 600) / 3.0, 1e-9);
  EXPECT_NEAR(r.e2e.median, 1500, 1e-9);
  EXPECT_NEAR(r.ttft.mean, 2000 / 3.0, 1e-9);
  EXPECT_NEAR(r.ttft.p99, 500 + 0.98 * 500, 1e-9) << "between 500 and 1000 at rank 1.98";
  // TPOT: (1.5 - 0.5) / 3 and (2 - 1) / 1; the request of one token has none.
  EXPECT_NEAR(r.tpot.mean, (1000 / 3.0 + 1000) / 2, 1e-9);
  EXPECT_NEAR(r.tpot.median, (1000 / 3.0 + 1000) / 2, 1e-9);
  EXPECT_NEAR(r.itl.mean, 500, 1e-9);
  EXPECT_NEAR(r.itl.median, 375, 1e-9);
  EXPECT_NEAR(r.itl.p95, 500 + 0.85 * 500, 1e-9) << "rank 2.85 of 250 250 500 1000";
  EXPECT_NEAR(r.itl.max, 1000, 1e-9);
  EXPECT_NEAR(r.itl.std, 306.18621784789724, 1e-9) << "of the population";
  EXPECT_EQ(r.failures.count, 1);
}

TEST(Report, NoSuccessGivesZerosAndNoDivision) {
  const Report r = report_of({bad("x")}, 2.0);
  EXPECT_EQ(r.completed, 0);
  EXPECT_EQ(r.output_throughput, 0);
  EXPECT_EQ(r.ttft.p99, 0);
  EXPECT_EQ(r.max_concurrent_requests, 0);
  EXPECT_EQ(report_of({}, 0).concurrency, 0);
}

TEST(Report, SpeculativeOpenAiChunksAreSharedByTheirTokens) {
  RequestResult r = good(0, 0.5, {0.4}, 1.0, 5, 4);
  r.generated_text = "the house and the road";
  r.itl_text_bytes = {uint32_t(std::string(" and the road").size())};
  const auto tokens = tiny_tokenizer()->encode(" and the road", false).size();
  ASSERT_GT(tokens, 1u);
  auto itl = [&](const char* backend, std::optional<double> accept) {
    return make_report({{r}}, 1, accept, *find_backend(backend), *tiny_tokenizer()).itl.mean;
  };
  EXPECT_NEAR(itl("sglang-oai", 2.5), 400.0 / double(tokens), 1e-9);
  EXPECT_NEAR(itl("sglang-oai", std::nullopt), 400, 1e-9);
  EXPECT_NEAR(itl("vllm", 2.5), 400, 1e-9);
}

TEST(Percentile, InterpolatesLinearlyAsNumpyDoes) {
  const std::vector<double> values{1, 2, 4, 8, 16};
  EXPECT_DOUBLE_EQ(percentile(values, 0), 1);
  EXPECT_DOUBLE_EQ(percentile(values, 50), 4);
  EXPECT_DOUBLE_EQ(percentile(values, 90), 12.8);
  EXPECT_DOUBLE_EQ(percentile(values, 99), 15.68);
  EXPECT_DOUBLE_EQ(percentile(values, 100), 16);
  EXPECT_DOUBLE_EQ(percentile({values.data(), 1}, 99), 1);
}

BenchConfig config() {
  BenchConfig c;
  c.dataset_name = "random";
  return c;
}

TEST(ReportFormat, TheBlockIsSGLangsToTheLetter) {
  BenchConfig c = config();
  c.request_rate = 16;
  c.max_concurrency = 8;
  Report r = report_of(three(), 4.0);
  r.total_output_tokens_retokenized = 6;
  r.accept_length = 1.5;
  EXPECT_EQ(format_block(r, c),
            "\n"
            "============ Serving Benchmark Result ============\n"
            "Backend:                                 sglang    \n"
            "Traffic request rate:                    16.0      \n"
            "Max request concurrency:                 8         \n"
            "Successful requests:                     3         \n"
            "Benchmark duration (s):                  4.00      \n"
            "Total input tokens:                      60        \n"
            "Total input text tokens:                 60        \n"
            "Total input vision tokens:               0         \n"
            "Total generated tokens:                  7         \n"
            "Total generated tokens (retokenized):    6         \n"
            "Request throughput (req/s):              0.75      \n"
            "Input token throughput (tok/s):          15.00     \n"
            "Output token throughput (tok/s):         1.75      \n"
            "Peak output token throughput (tok/s):    3.00      \n"
            "Peak concurrent requests:                3         \n"
            "Total token throughput (tok/s):          16.75     \n"
            "Concurrency:                             1.02      \n"
            "Accept length:                           1.50      \n"
            "----------------End-to-End Latency----------------\n"
            "Mean E2E Latency (ms):                   1366.67   \n"
            "Median E2E Latency (ms):                 1500.00   \n"
            "---------------Time to First Token----------------\n"
            "Mean TTFT (ms):                          666.67    \n"
            "Median TTFT (ms):                        500.00    \n"
            "P99 TTFT (ms):                           990.00    \n"
            "-----Time per Output Token (excl. 1st token)------\n"
            "Mean TPOT (ms):                          666.67    \n"
            "Median TPOT (ms):                        666.67    \n"
            "P99 TPOT (ms):                           993.33    \n"
            "---------------Inter-Token Latency----------------\n"
            "Mean ITL (ms):                           500.00    \n"
            "Median ITL (ms):                         375.00    \n"
            "P95 ITL (ms):                            925.00    \n"
            "P99 ITL (ms):                            985.00    \n"
            "Max ITL (ms):                            1000.00   \n"
            "==================================================\n");
  c.request_rate = INFINITY;
  c.max_concurrency.reset();
  r.accept_length.reset();
  const std::string block = format_block(r, c);
  EXPECT_NE(block.find("Traffic request rate:                    inf       \n"), std::string::npos);
  EXPECT_NE(block.find("Max request concurrency:                 not set   \n"), std::string::npos);
  EXPECT_EQ(block.find("Accept length"), std::string::npos);
}

TEST(ReportFormat, TheSavedLineHasSGLangsKeysInOrder) {
  BenchConfig c = config();
  c.tag = "t\"1";
  auto results = three();
  results.push_back(bad("boom"));
  const std::string line =
      format_jsonl(report_of(results, 4.0), c, json::Object{{"tp_size", 2}, {"rate", 0.5}}, results);
  const std::string head =
      R"({"tag": "t\"1", "backend": "sglang", "dataset_name": "random", "request_rate": Infinity, )"
      R"("max_concurrency": null, "sharegpt_output_len": null, "random_input_len": 1024, "random_output_len": 1024, )"
      R"("random_range_ratio": 0.0, "server_info": {"tp_size": 2, "rate": 0.5}, "duration": 4.0, "completed": 3, )"
      R"("failed": 1, "total_input_tokens": 60, "total_input_text_tokens": 60, "total_input_vision_tokens": 0, )"
      R"("total_output_tokens": 7, )";
  EXPECT_EQ(line.substr(0, head.size()), head);
  size_t at = 0;
  for (const char* key : {"total_output_tokens_retokenized",
                          "request_throughput",
                          "input_throughput",
                          "output_throughput",
                          "total_throughput",
                          "mean_e2e_latency_ms",
                          "median_e2e_latency_ms",
                          "std_e2e_latency_ms",
                          "p99_e2e_latency_ms",
                          "mean_ttft_ms",
                          "median_ttft_ms",
                          "std_ttft_ms",
                          "p99_ttft_ms",
                          "mean_tpot_ms",
                          "median_tpot_ms",
                          "std_tpot_ms",
                          "p99_tpot_ms",
                          "mean_itl_ms",
                          "median_itl_ms",
                          "std_itl_ms",
                          "p95_itl_ms",
                          "p99_itl_ms",
                          "concurrency",
                          "accept_length",
                          "max_output_tokens_per_s",
                          "max_concurrent_requests"}) {
    const size_t found = line.find("\"" + std::string(key) + "\": ");
    ASSERT_NE(found, std::string::npos) << key;
    EXPECT_GT(found, at) << key;
    at = found;
  }
  EXPECT_TRUE(line.ends_with("\"max_concurrent_requests\": 3}\n")) << line;
}

TEST(ReportFormat, DetailsAreArraysOverAllRequests) {
  BenchConfig c = config();
  c.request_rate = 2.5;
  c.output_details = true;
  auto results = three();
  results.push_back(bad("boom"));
  results.back().generated_text = "x\ny";
  const std::string line = format_jsonl(report_of(results, 4.0), c, nullptr, results);
  for (const char* part :
       {R"("request_rate": 2.5,)", R"("server_info": null,)", R"("input_lens": [10, 20, 30, 1000])",
        R"("output_lens": [4, 2, 1, 0])", R"("ttfts": [0.5, 1.0, 0.5, 1000.0])",
        R"("itls": [[0.25, 0.25, 0.5], [1.0], [], []])",
        R"("generated_texts": ["the house", "the house", "the house", "x\ny"])", R"("errors": ["", "", "", "boom"])"}) {
    EXPECT_NE(line.find(part), std::string::npos) << part << "\n" << line;
  }
  EXPECT_EQ(std::count(line.begin(), line.end(), '\n'), 1);
}

TEST(ReportFormat, FailuresAreGroupedMostFrequentFirst) {
  std::vector<RequestResult> results = three();
  for (int i = 0; i < 3; ++i) results.push_back(bad("refused"));
  results.push_back(bad("cut"));
  for (int i = 0; i < 5; ++i) results.push_back(bad("rare " + std::to_string(i)));
  const std::string text = format_failures(report_of(results, 1), results.size());
  EXPECT_EQ(text,
            "9 of 12 requests failed:\n  3 x refused\n  1 x cut\n  1 x rare 0\n  1 x rare 1\n  1 x rare 2\n"
            "  and 2 other errors\n");
  EXPECT_EQ(format_failures(report_of(three(), 1), 3), "");
}

TEST(ReportFormat, TheDefaultFileNameSaysBackendDatePromptsAndLengths) {
  BenchConfig c = config();
  const std::string name = default_output_file(c, 1763856000);  // noon of 2025-11-23 in UTC
  EXPECT_TRUE(name == "sglang_1123_1000_1024_1024.jsonl" || name == "sglang_1122_1000_1024_1024.jsonl" ||
              name == "sglang_1124_1000_1024_1024.jsonl")
      << name;
  c.dataset_name = "generated-shared-prefix";
  EXPECT_TRUE(default_output_file(c, 0).ends_with("_1000_generated-shared-prefix.jsonl"));
}

TEST(ReportFormat, NumbersAreWrittenAsPythonWritesThem) {
  EXPECT_EQ(python_float(16), "16.0");
  EXPECT_EQ(python_float(2.5), "2.5");
  EXPECT_EQ(python_float(0.1), "0.1");
  EXPECT_EQ(python_float(1e-7), "1e-07");
  EXPECT_EQ(python_float(INFINITY), "inf");
  EXPECT_EQ(
      python_json(json::Object{{"a", json::Array{1, 2.0, nullptr, "x"}}, {"b", -INFINITY}, {"c", json::Object{}}}),
      R"({"a": [1, 2.0, null, "x"], "b": -Infinity, "c": {}})");
}

}  // namespace
}  // namespace tandem::loadgen
