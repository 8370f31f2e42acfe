#include "api/openai.h"

#include <gtest/gtest.h>

namespace tandem::api {
namespace {

TEST(ParseCompletion, TakesTheFourFormsOfPrompt) {
  auto prompt = [](const std::string& text) { return *parse_completion(R"({"prompt":)" + text + "}"); };
  EXPECT_EQ(prompt(R"("a")").items.at(0).text, "a");
  EXPECT_FALSE(prompt(R"("a")").is_batch);
  EXPECT_EQ(prompt(R"(["a","b"])").items.at(1).text, "b");
  EXPECT_TRUE(prompt(R"(["a"])").is_batch);
  EXPECT_EQ(prompt("[1,2]").items.at(0).input_ids, (std::vector<int32_t>{1, 2}));
  EXPECT_FALSE(prompt("[1,2]").is_batch);
  EXPECT_EQ(prompt("[[1],[2]]").items.at(1).input_ids, std::vector<int32_t>{2});
}

TEST(ParseCompletion, MapsOpenAiNamesToSampling) {
  auto call =
      parse_completion(R"({"prompt":"a","max_tokens":"7","min_tokens":2,"temperature":0,"top_p":0.5,"n":2,"seed":-3,
      "stop":["x"],"frequency_penalty":1,"presence_penalty":-1,"logit_bias":{"5":-100},"top_k":4,"min_p":0.1,
      "repetition_penalty":1.1,"stop_token_ids":[9],"stop_regex":"a+","ignore_eos":true,"no_stop_trim":true,
      "skip_special_tokens":false,"best_of":2,"user":"u","logprobs":0,"echo":true})");
  ASSERT_TRUE(call.has_value());
  ASSERT_FALSE(call->refusal.has_value()) << call->refusal->message;
  const SamplingParams& params = *call->sampling.at(0);
  EXPECT_EQ(params.max_new_tokens, 7);
  EXPECT_EQ(params.min_new_tokens, 2);
  EXPECT_EQ(params.temperature, 0);
  EXPECT_EQ(params.seed, static_cast<uint64_t>(-3));
  EXPECT_EQ(params.logit_bias.at(0).second, -100.0f);
  EXPECT_EQ(params.stop_regex.at(0), "a+");
  EXPECT_FALSE(params.skip_special_tokens);
  EXPECT_EQ(call->n, 2);
  EXPECT_TRUE(call->items.at(0).return_logprob) << "logprobs 0 asks for the chosen token's";
  EXPECT_EQ(call->items[0].logprob_start_len, 0) << "echo shows the prompt's too";
}

TEST(ParseCompletion, SglangsClientsDefaultsAreAccepted) {
  auto call = parse_completion(R"({"model":"m","prompt":"a","temperature":0.0,"best_of":1,"max_tokens":16,"stream":true,
      "ignore_eos":true,"lora_path":null,"suffix":null,"response_format":{"type":"text"},"stream_options":null})");
  ASSERT_TRUE(call.has_value());
  EXPECT_FALSE(call->refusal.has_value());
}

TEST(ParseChat, TakesTextPartsAndTheNewerTokenName) {
  auto call =
      parse_chat(R"({"messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"a"},
      {"type":"text","text":"b"}]},{"role":"assistant","content":null,"tool_calls":null}],"max_tokens":null,
      "max_completion_tokens":9,"tools":[],"tool_choice":"auto","separate_reasoning":true,"stream_reasoning":false,
      "stream_options":{"include_usage":true},"stream":true,"chat_template_kwargs":{},"parallel_tool_calls":false})",
                 {});
  ASSERT_TRUE(call.has_value()) << call.error().message;
  ASSERT_FALSE(call->refusal.has_value()) << call->refusal->message;
  EXPECT_EQ(call->messages.at(1).content, "a b");
  EXPECT_EQ(call->messages.at(2).content, "");
  EXPECT_EQ(call->sampling.at(0)->max_new_tokens, 9);
  EXPECT_TRUE(call->include_usage);
}

// SGLang's router sends n bootstrap entries for a chat with n answers; one prompt has one room to begin with.
TEST(ParseChat, TakesOneBootstrapEntryForEachOfItsAnswers) {
  auto call = parse_chat(R"({"messages":[{"role":"user","content":"x"}],"n":2,"bootstrap_host":["h","h"],
      "bootstrap_port":[8998,8998],"bootstrap_room":[41,77]})",
                         {});
  ASSERT_TRUE(call.has_value()) << call.error().message;
  EXPECT_FALSE(call->refusal.has_value()) << call->refusal->message;
  ASSERT_EQ(call->items.size(), 1u);
  EXPECT_EQ(call->items[0].bootstrap.host, "h");
  EXPECT_EQ(call->items[0].bootstrap.port, 8998);
  EXPECT_EQ(call->items[0].bootstrap.room, 41u);
  call = parse_chat(R"({"messages":[{"role":"user","content":"x"}],"n":2,"bootstrap_room":[1,2,3]})", {});
  ASSERT_TRUE(call.has_value());
  EXPECT_TRUE(call->refusal.has_value());
  call = parse_completion(R"({"prompt":["a","b"],"n":2,"bootstrap_room":[1,2,3,4]})");
  ASSERT_TRUE(call.has_value());
  EXPECT_EQ(call->items[1].bootstrap.room, 3u);
}

OpenAiHead head_of(Dialect dialect) {
  OpenAiHead head;
  head.dialect = dialect;
  head.id = "i";
  head.model = "m";
  head.created = 5;
  return head;
}

TEST(FormatOpenAi, ChatAnswerIsByteExact) {
  FinishReason finish;
  finish.kind = FinishKind::kStopToken;
  finish.matched_token = 1;
  OpenAiChoice choice;
  choice.text = "hi";
  choice.finish = &finish;
  std::string choices;
  append_choice(choices, Dialect::kChat, choice);
  EXPECT_EQ(format_answer(head_of(Dialect::kChat), choices, {3, 2, std::nullopt}),
            R"({"id":"i","object":"chat.completion","created":5,"model":"m","choices":[{"index":0,"message":)"
            R"({"role":"assistant","content":"hi","reasoning_content":null,"tool_calls":null},"logprobs":null,)"
            R"("finish_reason":"stop","matched_stop":1}],"usage":{"prompt_tokens":3,"total_tokens":5,)"
            R"("completion_tokens":2,"prompt_tokens_details":null,"reasoning_tokens":0},)"
            R"("metadata":{"weight_version":"default"}})");
}

TEST(FormatOpenAi, ChunksAreByteExact) {
  OpenAiChoice choice;
  choice.index = 1;
  std::string role, delta, completion, usage;
  append_chunk(role, head_of(Dialect::kChat), ChunkKind::kRole, choice, nullptr);
  EXPECT_EQ(role, R"({"id":"i","object":"chat.completion.chunk","created":5,"model":"m","choices":[{"index":1,"delta":)"
                  R"({"role":"assistant","content":"","reasoning_content":null,"tool_calls":null},"logprobs":null,)"
                  R"("finish_reason":null,"matched_stop":null}],"usage":null})");
  choice.text = "x";
  append_chunk(delta, head_of(Dialect::kChat), ChunkKind::kDelta, choice, nullptr);
  EXPECT_NE(delta.find(R"("delta":{"role":null,"content":"x","reasoning_content":null,"tool_calls":null})"),
            std::string::npos);
  append_chunk(completion, head_of(Dialect::kCompletion), ChunkKind::kDelta, choice, nullptr);
  EXPECT_EQ(completion,
            R"({"id":"i","object":"text_completion","created":5,"model":"m","choices":[{"index":1,"text":"x",)"
            R"("logprobs":null,"finish_reason":null,"matched_stop":null}],"usage":null})");
  append_usage_chunk(usage, head_of(Dialect::kChat), {1, 2, 1});
  EXPECT_NE(usage.find(R"("choices":[],"usage":{"prompt_tokens":1,"total_tokens":3,"completion_tokens":2,)"
                       R"("prompt_tokens_details":{"cached_tokens":1})"),
            std::string::npos);
}

}  // namespace
}  // namespace tandem::api
