#include "api/native.h"

#include <gtest/gtest.h>

#include "base/json.h"

namespace tandem::api {
namespace {

Call parsed(const std::string& body) {
  auto call = parse_generate(body);
  EXPECT_TRUE(call.has_value()) << (call ? "" : call.error().message);
  if (!call) return {};
  EXPECT_FALSE(call->refusal.has_value()) << call->refusal->message;
  return *call;
}

TEST(ParseGenerate, TakesTextOrIdsSingleOrBatch) {
  Call text = parsed(R"({"text":"a\u00e9\ud83e\udd86\n"})");
  EXPECT_FALSE(text.is_batch);
  EXPECT_EQ(text.items.at(0).text, "a\xc3\xa9\xf0\x9f\xa6\x86\n");
  EXPECT_FALSE(text.items[0].has_ids);
  Call texts = parsed(R"({"text":["a","b"]})");
  EXPECT_TRUE(texts.is_batch);
  EXPECT_EQ(texts.items.at(1).text, "b");
  Call ids = parsed(" { \"input_ids\" : [ 1 , 2 ,3 ] } ");
  EXPECT_FALSE(ids.is_batch);
  EXPECT_EQ(ids.items.at(0).input_ids, (std::vector<int32_t>{1, 2, 3}));
  Call lists = parsed(R"({"input_ids":[[1],[2,3]]})");
  EXPECT_TRUE(lists.is_batch);
  EXPECT_EQ(lists.items.at(1).input_ids, (std::vector<int32_t>{2, 3}));
  Call one = parsed(R"({"text":["a"]})");
  EXPECT_TRUE(one.is_batch) << "a list of one is a list";
}

TEST(ParseGenerate, TextDecidesTheShapeAndIdsGiveTheTokens) {
  Call call = parsed(R"({"text":["a","b"],"input_ids":[[1],[2]]})");
  EXPECT_TRUE(call.items.at(1).has_ids);
  EXPECT_EQ(call.items[1].input_ids, std::vector<int32_t>{2});
  auto uneven = parse_generate(R"({"text":["a","b"],"input_ids":[[1]]})");
  ASSERT_TRUE(uneven.has_value());
  EXPECT_TRUE(uneven->refusal.has_value());
}

TEST(ParseGenerate, CoercesAsLenientlyAsPydantic) {
  Call call = parsed(R"({"input_ids":["7",8.0,9],"stream":"true","return_logprob":1,"top_logprobs_num":"2",
      "sampling_params":{"max_new_tokens":"5","temperature":1,"top_p":"0.5","ignore_eos":"yes","top_k":3.0,
      "min_p":0,"logit_bias":{"12":"1.5"},"stop":"x","stop_token_ids":[3,"4"]}})");
  EXPECT_EQ(call.items.at(0).input_ids, (std::vector<int32_t>{7, 8, 9}));
  EXPECT_TRUE(call.stream);
  EXPECT_TRUE(call.items[0].return_logprob);
  EXPECT_EQ(call.items[0].top_logprobs_num, 2);
  const SamplingParams& params = *call.sampling.at(0);
  EXPECT_EQ(params.max_new_tokens, 5);
  EXPECT_TRUE(params.max_new_tokens_given);
  EXPECT_EQ(params.temperature, 1.0);
  EXPECT_EQ(params.top_p, 0.5);
  EXPECT_TRUE(params.ignore_eos);
  EXPECT_EQ(params.top_k, 3);
  EXPECT_EQ(params.logit_bias, (std::vector<std::pair<int32_t, float>>{{12, 1.5f}}));
  EXPECT_EQ(params.stop, std::vector<std::string>{"x"});
  EXPECT_EQ(params.stop_token_ids, (std::vector<int32_t>{3, 4}));
}

TEST(ParseGenerate, NullsAndDefaultsOfEveryFieldAreAccepted) {
  parsed(R"({"text":"a","input_ids":null,"input_embeds":null,"image_data":null,"audio_data":[],"lora_path":null,
      "session_params":null,"custom_logit_processor":null,"return_hidden_states":false,"return_entropy":false,
      "background":false,"conversation_id":"c","no_logs":true,"custom_labels":{},"extra_key":null,"priority":null,
      "data_parallel_rank":null,"rid":null,"stream":null,"log_metrics":null,"return_logprob":null,
      "logprob_start_len":null,"top_logprobs_num":null,"token_ids_logprob":null,"bootstrap_host":null,
      "bootstrap_port":null,"bootstrap_room":null,"model":"m","parallel_batch":false,
      "sampling_params":{"stop":null,"regex":null,"json_schema":null,"ebnf":null,"structural_tag":null,
      "custom_params":null,
      "spaces_between_special_tokens":true,"n":1,"stop_regex":null,"logit_bias":null,"sampling_seed":null}})");
  parsed(R"({"text":"a","sampling_params":null})");
}

TEST(ParseGenerate, TheLastOfDuplicateKeysWins) {
  Call call =
      parsed(R"({"text":["x","y"],"text":"z","sampling_params":{"top_k":1,"top_k":2},"stream":true,"stream":false})");
  EXPECT_FALSE(call.is_batch);
  EXPECT_EQ(call.items.at(0).text, "z");
  EXPECT_EQ(call.sampling.at(0)->top_k, 2);
  EXPECT_FALSE(call.stream);
}

TEST(ParseGenerate, ListsGiveEachPromptItsOwn) {
  Call call = parsed(R"({"text":["a","b"],"rid":["r","s"],"return_logprob":[true,false],"logprob_start_len":[0,-1],
      "top_logprobs_num":[1,2],"token_ids_logprob":[[1],null],"sampling_params":[{"top_k":1},{"top_k":2}],
      "bootstrap_host":["h","i"],"bootstrap_port":[1,null],"bootstrap_room":[9223372036854775807,0]})");
  EXPECT_EQ(call.items.at(1).rid, "s");
  EXPECT_TRUE(call.items[0].return_logprob);
  EXPECT_FALSE(call.items[1].return_logprob);
  EXPECT_EQ(call.items[0].logprob_start_len, 0);
  EXPECT_EQ(call.items[1].top_logprobs_num, 2);
  EXPECT_EQ(call.items[0].token_ids_logprob, std::vector<int32_t>{1});
  EXPECT_TRUE(call.items[1].token_ids_logprob.empty());
  EXPECT_EQ(call.sampling_of(1).top_k, 2);
  EXPECT_EQ(call.items[0].bootstrap.host, "h");
  EXPECT_EQ(call.items[0].bootstrap.port, 1);
  EXPECT_FALSE(call.items[1].bootstrap.port.has_value());
  EXPECT_EQ(call.items[0].bootstrap.room, 9223372036854775807u);
}

TEST(ParseGenerate, ScalarsSpreadOverABatch) {
  Call call = parsed(R"({"text":["a","b","c"],"rid":"r","bootstrap_host":"h","bootstrap_port":"8998","bootstrap_room":7,
      "token_ids_logprob":[4,5]})");
  EXPECT_EQ(call.items.at(2).rid, "r_2");
  EXPECT_EQ(call.items[2].bootstrap.room, 9u);
  EXPECT_EQ(call.items[2].bootstrap.port, 8998);
  EXPECT_EQ(call.items[1].token_ids_logprob, (std::vector<int32_t>{4, 5}));
}

TEST(ParseGenerate, NullMaxNewTokensRunsToTheLimit) {
  EXPECT_EQ(parsed(R"({"text":"a","sampling_params":{"max_new_tokens":null}})").sampling.at(0)->max_new_tokens,
            INT32_MAX);
  EXPECT_EQ(parsed(R"({"text":"a"})").sampling.at(0)->max_new_tokens, 128);
}

TEST(ParseGenerate, ReadsABodyOfManyPromptsExactly) {
  std::string body = R"({"input_ids":[)";
  for (int i = 0; i < 900; ++i) {
    body += i ? ",[" : "[";
    for (int k = 0; k < 400; ++k) body += (k ? ", " : "") + std::to_string(i * 31 + k);
    body += "]";
  }
  Call call = parsed(body + R"(],"stream":true})");
  ASSERT_EQ(call.items.size(), 900u);
  for (int i = 0; i < 900; ++i) {
    ASSERT_EQ(call.items[i].input_ids.size(), 400u);
    for (int k = 0; k < 400; ++k) ASSERT_EQ(call.items[i].input_ids[k], i * 31 + k);
    ASSERT_EQ(call.items[i].input_ids.capacity(), 400u) << "memory beyond the ids";
  }
  EXPECT_TRUE(call.stream);
}

TEST(ParseGenerate, LongClientTextIsShortInMessages) {
  auto call = parse_generate(R"({"text":"a","sampling_params":{")" + std::string(100000, 'k') + R"(":1}})");
  ASSERT_TRUE(call.has_value());
  EXPECT_LT(call->refusal->message.size(), 200u);
}

TEST(FormatNative, WholeObjectIsByteExact) {
  NativeSequence sequence(NativeOptions{});
  sequence.add_token(7, nullptr);
  sequence.add_token(8, nullptr);
  sequence.add_text("a\"b\n\xc3\xa9");
  FinishReason finish;
  finish.kind = FinishKind::kStopText;
  finish.matched_text = "\\";
  NativeMeta meta;
  meta.rid = "r";
  meta.index = 3;
  meta.prompt_tokens = 4, meta.completion_tokens = 2, meta.cached_tokens = 1, meta.total_retractions = 5;
  meta.finish = &finish;
  meta.e2e_latency = 2;
  meta.response_sent_to_client_ts = 0.125;
  std::string out;
  sequence.append_object(out, meta);
  EXPECT_EQ(out, R"({"text":"a\"b\n)"
                 "\xc3\xa9"
                 R"(","output_ids":[7,8],"meta_info":{"id":"r","finish_reason":{"type":"stop","matched":"\\"},)"
                 R"("prompt_tokens":4,"weight_version":"default","total_retractions":5,"completion_tokens":2,)"
                 R"("cached_tokens":1,"e2e_latency":2.0,"response_sent_to_client_ts":0.125},"index":3})");
}

TEST(FormatNative, FinishReasonsOfEveryKind) {
  auto text = [](FinishReason finish) {
    std::string out;
    append_finish_reason(out, &finish);
    return out;
  };
  FinishReason finish;
  finish.length = 5;
  EXPECT_EQ(text(finish), R"({"type":"length","length":5})");
  finish.kind = FinishKind::kStopToken, finish.matched_token = 1;
  EXPECT_EQ(text(finish), R"({"type":"stop","matched":1})");
  finish.kind = FinishKind::kAbort, finish.message = "Abort in waiting queue";
  EXPECT_EQ(text(finish), R"({"type":"abort","message":"Abort in waiting queue"})");
  finish.status_code = 500;
  EXPECT_EQ(text(finish), R"({"type":"abort","message":"Abort in waiting queue","status_code":500,"err_type":null})");
  std::string out;
  append_finish_reason(out, nullptr);
  EXPECT_EQ(out, "null");
}

TEST(FormatNative, LogprobsThatAreNotFiniteAreNull) {
  NativeOptions options;
  options.return_logprob = true;
  options.token_text = [](int32_t id) { return "t" + std::to_string(id); };
  NativeSequence sequence(options);
  TokenLogprob logprob;
  logprob.token = 9, logprob.logprob = -std::numeric_limits<float>::infinity();
  sequence.add_token(9, &logprob);
  std::string out;
  sequence.append_object(out, {});
  EXPECT_NE(out.find(R"("output_token_logprobs":[[null,9,"t9"]])"), std::string::npos) << out;
}

}  // namespace
}  // namespace tandem::api
