// --log-requests to the letter, by level; the prompts and answers in it stay on one line.
#include "server/core/request_log.h"

#include <fmt/format.h>

#include "tests/server/support.h"

namespace tandem::server::testing {
namespace {

api::EngineRequest some_request() {
  api::EngineRequest request;
  request.rid = "a\nb";
  request.input_ids = {5, 6, 7};
  request.sampling.edit().temperature = 0;
  request.sampling.edit().max_new_tokens = 9;
  request.sampling.edit().stop = {"x\"y"};
  request.bootstrap = api::BootstrapInfo{"h", 1, 12};
  return request;
}

TEST(RequestLog, ReceivedLineGrowsWithTheLevel) {
  const api::EngineRequest request = some_request();
  EXPECT_EQ(received_line(0, request, true, nullptr),
            R"(Receive: obj=GenerateReqInput(rid="a\nb", stream=true, prompt_tokens=3, bootstrap_room=12))");
  const std::string one = received_line(1, request, true, nullptr);
  EXPECT_NE(one.find(R"(sampling_params={'max_new_tokens': 9, 'min_new_tokens': 0, 'temperature': 0,)"),
            std::string::npos)
      << one;
  EXPECT_NE(one.find(R"('stop': ["x\"y"])"), std::string::npos) << one;
  EXPECT_EQ(one.find("input_ids"), std::string::npos) << "no prompt below level 2";
  EXPECT_NE(received_line(2, request, true, nullptr).find("input_ids=[5,6,7])"), std::string::npos);
}

TEST(RequestLog, LevelTwoCutsWhatLevelThreeShowsWhole) {
  api::EngineRequest request = some_request();
  request.input_ids.assign(3000, 5);
  const std::string two = received_line(2, request, false, tiny_tokenizer().get());
  const std::string three = received_line(3, request, false, tiny_tokenizer().get());
  EXPECT_TRUE(two.ends_with("]...)")) << two.substr(two.size() - 20);
  EXPECT_NE(two.find(", text=\""), std::string::npos);
  EXPECT_EQ(std::count(two.begin(), two.end(), ','), std::count(three.begin(), three.end(), ',') - (3000 - 2048));
}

TEST(RequestLog, FinishedLineHasTheEndTheCountsAndTheAnswer) {
  SequenceOptions options;
  options.tokenizer = tiny_tokenizer().get();
  options.logged_text_bytes = logged_length(2);
  Sequence sequence(std::make_shared<const SequenceOptions>(options), {});
  sequence.rid = "r";
  sequence.prompt_tokens = 3;
  const std::vector<int32_t> ids = tiny_tokenizer()->encode("two\nlines", false);
  for (const int32_t id : ids) sequence.take(id, nullptr, nullptr);
  sequence.complete(length_finish(int32_t(ids.size())));
  const std::string finish = fmt::format(R"({{"type":"length","length":{}}})", ids.size());
  const std::string meta =
      fmt::format(R"(Finish: obj=GenerateReqInput(rid="r"), out={{"meta_info":{{"finish_reason":{},"prompt_tokens":3,)"
                  R"("completion_tokens":{},"cached_tokens":0,"e2e_latency":1.500000}})",
                  finish, ids.size());
  EXPECT_EQ(finished_line(1, sequence, 1.5), meta + "}");
  EXPECT_EQ(finished_line(2, sequence, 1.5), meta + R"(,"text":"two\nlines"})");
}

TEST(RequestLog, AServerThatLogsAnswersAsEver) {
  ServerConfig config = tiny_config();
  config.log_requests = true;
  Fixture fixture(config);
  fixture.engine().set_script(says({10, 11}));
  const auto answer = fixture.post("/generate", R"({"input_ids":[5],"rid":"logged"})");
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(at(answer.body, "/meta_info/id"), "logged");
}

TEST(MetaInfo, HasTheEnginesTimesWithMetricsOnly) {
  for (const bool metrics : {false, true}) {
    ServerConfig config = tiny_config();
    config.enable_metrics = metrics;
    Fixture fixture(config);
    fixture.engine().set_script([](const api::EngineRequest& request, const FakeEngine::Sink& sink) {
      api::EngineEvent first = event_of(request, {10});
      first.times = api::RequestTimes{0.25, 0.5, std::nullopt};
      sink(first);
      sink(event_of(request, {11}, length_finish(2)));
    });
    const auto answer = fixture.post("/generate", R"({"input_ids":[5]})");
    EXPECT_EQ(at(answer.body, "/meta_info/queue_time"), metrics ? "0.25" : "(none)");
    EXPECT_EQ(at(answer.body, "/meta_info/prefill_launch_delay"), metrics ? "0.5" : "(none)");
    EXPECT_EQ(at(answer.body, "/meta_info/prefill_launch_latency"), "(none)") << "absent where it does not apply";
    for (const char* key : {"request_received_ts", "request_sent_to_scheduler_ts", "prefill_finished_ts",
                            "decode_finished_ts", "inference_time"}) {
      EXPECT_EQ(at(answer.body, std::string("/meta_info/") + key) != "(none)", metrics) << key;
    }
    EXPECT_NE(at(answer.body, "/meta_info/response_sent_to_client_ts"), "(none)");
  }
}

}  // namespace
}  // namespace tandem::server::testing
