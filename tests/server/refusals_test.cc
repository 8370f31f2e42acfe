// Malformed and unservable bodies: each gets its status and a message that names the fault, and leaves the server
// answering.
#include "tests/server/support.h"

namespace tandem::server {
namespace {

using namespace testing;

enum class Form { kValidation, kNative, kOpenAi };

struct BadBody {
  const char* path;
  std::string body;
  Form form;
  const char* message;  // what it must contain
};

const char* const kG = "/generate";
const char* const kC = "/v1/completions";
const char* const kM = "/v1/chat/completions";

std::string deep(int depth) { return std::string(depth, '[') + std::string(depth, ']'); }

std::string sampling(const std::string& params) { return R"({"input_ids":[5],"sampling_params":{)" + params + "}}"; }
std::string with(const std::string& field) { return R"({"input_ids":[5],)" + field + "}"; }
std::string chat(const std::string& field) { return R"({"messages":[{"role":"user","content":"a"}],)" + field + "}"; }

constexpr Form v = Form::kValidation, n = Form::kNative, o = Form::kOpenAi;

std::vector<BadBody> broken_json() {
  return {
      {kG, "", v, "body"},
      {kG, "   ", v, "body"},
      {kG, "{", v, "body"},
      {kG, "[]", v, "wanted an object, got an array"},
      {kG, "null", v, "got null"},
      {kG, R"({"text":"a"} x)", v, "behind the JSON object"},
      {kG, R"({"text":"a",})", v, "body"},
      {kG, R"({"text" "a"})", v, "':'"},
      {kG, R"({"text":"a)", v, "no end"},
      {kG, "{\"text\":\"a\nb\"}", v, "control character"},
      {kG, R"({"text":"\x"})", v, "escape"},
      {kG, R"({"text":"\ud800"})", v, "escape"},
      {kG, "{\"text\":\"\xff\xfe\"}", v, "UTF-8"},
      {kG, R"({"input_ids":[1,2)", v, "input_ids"},
      {kG, R"({"input_ids":[1,,2]})", v, "input_ids"},
      {kG, R"({"input_ids":[01]})", v, "input_ids"},
      {kG, with(R"("unknown":[1,})"), v, "unknown"},
      {kG, with(R"("unknown":)" + deep(300)), v, "nested deeper"},
      {kG, with(R"("sampling_params":{"temperature":NaN})"), v, "sampling_params"},
      {kG, with(R"("sampling_params":{"temperature":1e999})"), v, "sampling_params"},
  };
}

std::vector<BadBody> wrong_types() {
  return {
      {kG, R"({"text":5})", v, "text: wanted a string"},
      {kG, R"({"text":["a",5]})", v, "text: wanted a string, got a number"},
      {kG, R"({"input_ids":"abc"})", v, "input_ids"},
      {kG, R"({"input_ids":[1,"x"]})", v, "input_ids: wanted an integer"},
      {kG, R"({"input_ids":[1.5]})", v, "input_ids: wanted an integer"},
      {kG, R"({"input_ids":[[1],2]})", v, "input_ids"},
      {kG, R"({"input_ids":[99999999999]})", v, "input_ids"},
      {kG, sampling(R"("temperature":"hot")"), v, "sampling_params.temperature"},
      {kG, sampling(R"("temperature":"inf")"), v, "finite"},
      {kG, sampling(R"("max_new_tokens":1.5)"), v, "sampling_params.max_new_tokens: wanted an integer, got 1.5"},
      {kG, sampling(R"("max_new_tokens":9223372036854775808)"), v, "sampling_params"},
      {kG, sampling(R"("ignore_eos":"maybe")"), v, "sampling_params.ignore_eos: wanted a boolean"},
      {kG, sampling(R"("logit_bias":{"a":1})"), v, "logit_bias"},
      {kG, with(R"("sampling_params":5)"), v, "sampling_params: wanted an object"},
      {kG, with(R"("stream":"perhaps")"), v, "stream: wanted a boolean"},
      {kG, with(R"("rid":5)"), v, "rid: wanted a string"},
      {kG, with(R"("bootstrap_room":-1)"), v, "bootstrap_room"},
      {kG, with(R"("bootstrap_port":70000)"), v, "bootstrap_port"},
      {kC, R"({"prompt":{}})", v, "prompt"},
      {kC, R"({"max_tokens":4})", v, "prompt: is required"},
      {kC, R"({"prompt":["a",[1]]})", v, "prompt"},
      {kM, R"({"messages":"hello"})", v, "messages: wanted an array, got a string"},
      {kM, R"({"messages":[{"content":"a"}]})", v, "messages[0].role: is required"},
      {kM, R"({"messages":[{"role":"user","content":5}]})", v, "messages[0].content"},
      {kM, "{}", v, "messages: is required"},
  };
}

// Understood, but not to be served.
std::vector<BadBody> unservable() {
  return {
      {kG, "{}", n, "Either text, input_ids or input_embeds should be provided."},
      {kG, R"({"input_ids":[]})", n, "input_ids cannot be empty."},
      {kG, R"({"input_ids":[[1],[]]})", n, "input_ids cannot be empty."},
      {kG, R"({"text":[]})", n, "batch is empty"},
      {kG, R"({"input_ids":[-1]})", n, "input_ids must be in [0, 8192), got -1"},
      {kG, R"({"input_ids":[8192]})", n, "got 8192"},
      {kG, sampling(R"("top_q":1)"), n, "Unknown sampling parameter 'top_q'."},
      {kG, sampling(R"("temperature":-1)"), n, "temperature must be non-negative, got -1"},
      {kG, sampling(R"("top_p":0)"), n, "top_p must be in (0, 1], got 0"},
      {kG, sampling(R"("top_k":0)"), n, "top_k must be -1 (disable) or at least 1, got 0"},
      {kG, sampling(R"("min_p":1.5)"), n, "min_p"},
      {kG, sampling(R"("frequency_penalty":3)"), n, "frequency_penalty must be in [-2, 2], got 3"},
      {kG, sampling(R"("repetition_penalty":-1)"), n, "repetition_penalty"},
      {kG, sampling(R"("max_new_tokens":-1)"), n, "max_new_tokens must be at least 0, got -1"},
      {kG, sampling(R"("max_new_tokens":4,"min_new_tokens":5)"), n, "min_new_tokens must be in [0, max_new_tokens(4)]"},
      {kG, sampling(R"("max_new_tokens":4096)"), n, "maximum context length of 4096 tokens"},
      {kG, sampling(R"("n":0)"), n, "n must be in"},
      {kG, sampling(R"("n":2000000000)"), n, "n must be in"},
      {kG, sampling(R"("stop":"")"), n, "stop"},
      {kG, sampling(R"("stop_regex":"(")"), n, "("},
      {kG, sampling(R"("stream_interval":0)"), n, "stream_interval"},
      {kG, sampling(R"("logit_bias":{"8192":1})"), n, "logit_bias"},
      {kG, sampling(R"("regex":"a*")"), n, "regex is not supported"},
      {kG, sampling(R"("json_schema":"{}")"), n, "json_schema is not supported"},
      {kG, with(R"("lora_path":"x")"), n, "lora_path is not supported"},
      {kG, with(R"("return_hidden_states":true)"), n, "return_hidden_states is not supported"},
      {kG, with(R"("image_data":["x"])"), n, "image_data is not supported"},
      {kG, with(R"("data_parallel_rank":1)"), n, "data_parallel_rank must be in [0, 1), got 1"},
      {kG, with(R"("top_logprobs_num":-1)"), n, "top_logprobs_num"},
      {kG, with(R"("token_ids_logprob":[9000])"), n, "token_ids_logprob"},
      {kG, with(R"("rid":["a","b"])"), n, "rid"},
      {kG, R"({"input_ids":[[5],[6]],"sampling_params":[{}]})", n, "sampling_params"},
      {kG, R"({"input_ids":[[5],[6]],"bootstrap_room":[1,2,3]})", n, "bootstrap_room"},
      {kC, R"({"prompt":""})", o, "prompt cannot be empty."},
      {kC, R"({"prompt":[]})", o, "prompt cannot be empty."},
      {kC, R"({"prompt":"a","max_tokens":0})", o, "max_tokens must be positive"},
      {kC, R"({"prompt":"a","best_of":3})", o, "best_of"},
      {kC, R"({"prompt":"a","suffix":"b"})", o, "suffix is not supported"},
      {kC, R"({"prompt":"a","logprobs":-1})", o, "logprobs"},
      {kC, R"({"prompt":"a","response_format":{"type":"json_object"}})", o, "response_format"},
      {kM, R"({"messages":[]})", o, "Messages cannot be empty."},
      {kM, chat(R"("tools":[{"type":"function"}])"), o, "tools is not supported"},
      {kM, chat(R"("tool_choice":"required")"), o, "tool_choice"},
      {kM, chat(R"("top_logprobs":3)"), o, "top_logprobs needs logprobs"},
      {kM, chat(R"("temperature":-0.5)"), o, "temperature"},
      {kM, R"({"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"u"}}]}]})", o,
       "image_url"},
      {kM, R"({"messages":[{"role":"wizard","content":"a"}]})", o, "wizard"},
  };
}

std::string expected_shape(Form form) { return form == Form::kNative ? "/error/message" : "/message"; }

TEST(Refusals, EveryBadBodyGetsItsStatusFormAndMessage) {
  Fixture fixture;
  fixture.engine().set_script(says({10}));
  std::vector<BadBody> all = broken_json();
  for (BadBody& bad : wrong_types()) all.push_back(std::move(bad));
  for (BadBody& bad : unservable()) all.push_back(std::move(bad));
  for (const BadBody& bad : all) {
    SCOPED_TRACE(std::string(bad.path) + " " + bad.body.substr(0, 200));
    auto response = fixture.post(bad.path, bad.body);
    EXPECT_EQ(response.status, 400) << response.body;
    std::string message = at(response.body, expected_shape(bad.form));
    EXPECT_NE(message.find(bad.message), std::string::npos) << response.body;
    if (bad.form == Form::kValidation) {
      EXPECT_EQ(at(response.body, "/type"), "Bad Request");
    }
    if (bad.form == Form::kOpenAi) {
      EXPECT_EQ(at(response.body, "/type"), "BadRequestError");
    }
  }
  EXPECT_TRUE(fixture.engine().submitted().empty());
  EXPECT_EQ(fixture.post(kG, R"({"input_ids":[5]})").status, 200);
  EXPECT_TRUE(eventually([&] { return fixture.idle(); }));
}

TEST(Refusals, AStreamedCallIsToldInAnEvent) {
  Fixture fixture;
  auto response = fixture.post(kG, R"({"input_ids":[5],"stream":true,"sampling_params":{"top_p":7}})");
  EXPECT_EQ(response.status, 200);
  auto events = events_of(response.body);
  ASSERT_EQ(events.size(), 2u) << response.body;
  EXPECT_EQ(events[0], R"({"error":{"message":"top_p must be in (0, 1], got 7."}})");
  EXPECT_EQ(events[1], "[DONE]");
  EXPECT_EQ(fixture.post(kG, R"({"input_ids":[5],"stream":true,"rid":5})").status, 400) << "a wrong type comes before";
}

TEST(Refusals, PromptsThatDoNotFitTheContext) {
  Fixture fixture;
  std::string ids = "5";
  for (int i = 1; i < 4096; ++i) ids += ",5";
  auto response = fixture.post(kG, R"({"input_ids":[)" + ids + "]}");
  EXPECT_EQ(response.status, 400);
  EXPECT_EQ(at(response.body, "/error/message"),
            "The input (4096 tokens) is longer than the model's context length (4096 tokens).");
  auto text = fixture.post(kG, R"({"text":")" + std::string(3 << 20, 'a') + R"("})");
  EXPECT_EQ(text.status, 400);
  EXPECT_NE(at(text.body, "/error/message").find("longer than the model's context length"), std::string::npos);
}

TEST(Refusals, AutoTruncateMakesItFit) {
  ServerConfig config = tiny_config();
  config.allow_auto_truncate = true;
  Fixture fixture(config);
  fixture.engine().set_script(says({10}));
  std::string ids = "5";
  for (int i = 1; i < 5000; ++i) ids += ",5";
  auto response = fixture.post(kG, R"({"input_ids":[)" + ids + R"(],"sampling_params":{"max_new_tokens":4096}})");
  EXPECT_EQ(response.status, 200) << response.body;
  EXPECT_EQ(fixture.engine().submitted()[0].input_ids.size(), 4090u);
  EXPECT_EQ(fixture.engine().submitted()[0].sampling->max_new_tokens, 4);
}

TEST(Refusals, WithoutATokenizerOnlyIdsAreTaken) {
  ServerConfig config = tiny_config();
  config.skip_tokenizer_init = true;
  Fixture fixture(config);
  fixture.engine().set_script(says({10}));
  auto text = fixture.post(kG, R"({"text":"a"})");
  EXPECT_EQ(text.status, 400);
  EXPECT_NE(text.body.find("skip_tokenizer_init"), std::string::npos);
  auto ids = fixture.post(kG, R"({"input_ids":[5]})");
  EXPECT_EQ(ids.status, 200);
  EXPECT_EQ(at(ids.body, "/text"), "(none)");
  EXPECT_EQ(at(ids.body, "/output_ids"), "[10]");
  EXPECT_EQ(fixture.post("/tokenize", R"({"prompt":"a"})").status, 400);
}

}  // namespace
}  // namespace tandem::server
