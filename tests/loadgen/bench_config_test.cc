#include "loadgen/bench_config.h"

#include <gtest/gtest.h>

#include <functional>

#include "loadgen/request_body.h"

namespace tandem::loadgen {
namespace {

BenchConfig random_config() {
  BenchConfig config;
  config.dataset_name = "random";
  return config;
}

TEST(BenchConfig, DefaultsOfTheRandomDatasetAreValid) {
  auto valid = random_config().validate();
  EXPECT_TRUE(valid) << (valid ? "" : valid.error().message);
}

TEST(BenchConfig, EachFaultIsRefusedByTheNameOfItsFlag) {
  const std::pair<const char*, std::function<void(BenchConfig&)>> cases[] = {
      {"--backend", [](BenchConfig& c) { c.backend = "trt"; }},
      {"--dataset-name", [](BenchConfig& c) { c.dataset_name = "mmmu"; }},
      {"--dataset-path", [](BenchConfig& c) { c.dataset_name = "sharegpt"; }},
      {"--dataset-path",
       [](BenchConfig& c) {
         c.dataset_name = "random-ids";
         c.dataset_path = "x";
       }},
      {"--base-url", [](BenchConfig& c) { c.base_url = "https://host:1"; }},
      {"--port", [](BenchConfig& c) { c.port = 70000; }},
      {"--num-prompts", [](BenchConfig& c) { c.num_prompts = 0; }},
      {"--random-input-len", [](BenchConfig& c) { c.random_input_len = 0; }},
      {"--random-output-len", [](BenchConfig& c) { c.random_output_len = -1; }},
      {"--random-range-ratio", [](BenchConfig& c) { c.random_range_ratio = 1.5; }},
      {"--random-range-ratio", [](BenchConfig& c) { c.random_range_ratio = NAN; }},
      {"--request-rate", [](BenchConfig& c) { c.request_rate = 0; }},
      {"--request-rate", [](BenchConfig& c) { c.request_rate = NAN; }},
      {"--max-concurrency", [](BenchConfig& c) { c.max_concurrency = 0; }},
      {"--warmup-requests", [](BenchConfig& c) { c.warmup_requests = -1; }},
      {"--return-logprob",
       [](BenchConfig& c) {
         c.return_logprob = true;
         c.backend = "sglang-oai";
       }},
      {"--tokenize-prompt",
       [](BenchConfig& c) {
         c.tokenize_prompt = true;
         c.backend = "vllm";
       }},
      {"--print-requests", [](BenchConfig& c) { c.print_requests = true; }},
      {"--apply-chat-template", [](BenchConfig& c) { c.apply_chat_template = true; }},
      {"--prompt-suffix", [](BenchConfig& c) { c.prompt_suffix = "x"; }},
      {"--extra-request-body", [](BenchConfig& c) { c.extra_request_body = "[1]"; }},
      {"--extra-request-body", [](BenchConfig& c) { c.extra_request_body = "{"; }},
      {"--gsp-question-len", [](BenchConfig& c) { c.gsp_question_len = 0; }},
      {"--plot-throughput: not in this version", [](BenchConfig& c) { c.plot_throughput = true; }},
      {"--profile-by-stage needs --profile-num-steps", [](BenchConfig& c) { c.profile_by_stage = true; }},
      {"--profile-prefill-url and --profile-decode-url need --pd-separated",
       [](BenchConfig& c) { c.profile_prefill_url = {"http://a:1"}; }},
  };
  for (const auto& [wanted, spoil] : cases) {
    BenchConfig config = random_config();
    spoil(config);
    auto valid = config.validate();
    ASSERT_FALSE(valid) << wanted;
    EXPECT_NE(valid.error().message.find(wanted), std::string::npos) << valid.error().message;
  }
}

TEST(BenchConfig, OriginComesFromTheBaseUrlOrHostAndTheBackendsPort) {
  BenchConfig config = random_config();
  EXPECT_EQ(config.origin(), "http://0.0.0.0:30000");
  config.backend = "vllm-chat";
  config.host = "::1";
  EXPECT_EQ(config.origin(), "http://[::1]:8000");
  config.base_url = "http://node:99/";
  EXPECT_EQ(config.origin(), "http://node:99");
}

// The body that `config` posts for an item, keys in order.
std::string body_of(const BenchConfig& config, const WorkItem& item) {
  auto shape = request_shape(config, "the-model");
  EXPECT_TRUE(shape);
  return request_body(*shape, item);
}

TEST(RequestBody, EachBackendSendsTheKeysOfSGLangsClient) {
  BenchConfig config = random_config();
  const WorkItem item{.text = "Hi \"you\"", .ids = {}, .input_len = 3, .output_len = 7};
  EXPECT_EQ(body_of(config, item),
            R"({"text":"Hi \"you\"","sampling_params":{"temperature":0E0,"max_new_tokens":7,"ignore_eos":true},)"
            R"("stream":true,"lora_path":null,"return_logprob":false,"logprob_start_len":-1})");
  const WorkItem ids{.text = {}, .ids = {4, 5}, .input_len = 2, .output_len = 7};
  EXPECT_NE(body_of(config, ids).find(R"({"input_ids":[4,5],"sampling)"), std::string::npos);
  config.backend = "sglang-oai";
  config.disable_ignore_eos = true;
  EXPECT_EQ(body_of(config, item),
            R"({"model":"the-model","prompt":"Hi \"you\"","temperature":0E0,"best_of":1,"max_tokens":7,"stream":true,)"
            R"("ignore_eos":false})");
  config.backend = "sglang-oai-chat";
  config.disable_stream = true;
  EXPECT_EQ(body_of(config, item),
            R"({"model":"the-model","messages":[{"role":"user","content":"Hi \"you\""}],"temperature":0E0,)"
            R"("max_completion_tokens":7,"stream":false,"ignore_eos":false})");
}

TEST(RequestBody, TheExtraBodyReplacesWholeTopLevelKeys) {
  BenchConfig config = random_config();
  config.extra_request_body =
      R"({"sampling_params": {"max_new_tokens": 2}, "rid": "é", "stream": false, "big": 1e300})";
  const std::string body = body_of(config, {.text = "x", .ids = {}, .input_len = 1, .output_len = 7});
  EXPECT_EQ(body, R"({"text":"x","sampling_params":{"max_new_tokens":2},"stream":false,"lora_path":null,)"
                  R"("return_logprob":false,"logprob_start_len":-1,"rid":"é","big":1E300})");
  auto shape = request_shape(config, "m");
  ASSERT_TRUE(shape);
  EXPECT_FALSE(streams(*shape));
  EXPECT_FALSE(expects_full_length(*shape)) << "the length asked for is not known any more";
}

}  // namespace
}  // namespace tandem::loadgen
