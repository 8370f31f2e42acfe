#include "api/node.h"

#include <gtest/gtest.h>

#include <random>

namespace tandem::api {
namespace {

EngineRequest full_request() {
  EngineRequest request;
  request.id = RequestId{77};
  request.rid = "client's";
  request.input_ids = {1, 2, -3, 1 << 30};
  request.sampling.edit().max_new_tokens = 9;
  request.sampling.edit().max_new_tokens_given = true;
  request.sampling.edit().temperature = 0.25;
  request.sampling.edit().stop = {"a", "", "\n\n"};
  request.sampling.edit().stop_token_ids = {5};
  request.sampling.edit().stop_regex = {"x+"};
  request.sampling.edit().ignore_eos = true;
  request.sampling.edit().skip_special_tokens = false;
  request.sampling.edit().stream_interval = 3;
  request.sampling.edit().logit_bias = {{4, -1.5f}};
  request.seed = uint64_t(1) << 63;
  request.eos_token_ids = {0, 1};
  request.return_logprob = true;
  request.logprob_start_len = 2;
  request.top_logprobs_num = 4;
  request.token_ids_logprob = {8, 9};
  request.bootstrap = BootstrapInfo{"host", uint16_t(8998), uint64_t(12345)};
  request.data_parallel_rank = 3;
  request.priority = -1;
  request.is_health_check = true;
  return request;
}

EngineEvent full_event() {
  EngineEvent event;
  event.id = RequestId{78};
  event.tokens = {10, 11};
  TokenLogprob logprob;
  logprob.logprob = -0.5f;
  logprob.token = 10;
  logprob.top = {{10, -0.5f}, {12, -1.f}};
  logprob.token_ids = {-2.f};
  event.logprobs = {logprob, logprob};
  logprob.present = false;
  event.input_logprobs = {logprob};
  event.prompt_tokens = 4;
  event.cached_tokens = 2;
  event.total_retractions = 1;
  event.times = RequestTimes{0.5, std::nullopt, 0.25};
  event.finish = FinishReason{FinishKind::kStopText, 3, "stop", 5, "why", 503};
  return event;
}

std::vector<NodeMessage> one_of_each() {
  RankFigures figures;
  figures.forward_steps = 5;
  figures.running = 3;
  figures.decode_step_us = 77;
  figures.total_blocks = 44;
  figures.lost = true;
  figures.sleep_ms = 2000;
  figures.held_for = 7;
  figures.retractions = 5;
  figures.failed_transfers = 6;
  figures.profiling = true;
  return {NodeSubmit{3, full_request()},
          NodeCancel{2, RequestId{7}, 1, "text"},
          NodeFlush{1, 99},
          NodeDrain{4},
          NodeFlushed{1, 99, true},
          NodeEvent{3, full_event()},
          NodeFigures{{figures, RankFigures{}}},
          NodeLoaded{0xfeed, {{"a", 1}, {"", 2}}, {{"e", 5}}},
          NodeGo{{{"b", 3}}, {{"f", 4}}},
          NodeStop{},
          NodeWantsStop{},
          NodeSlowDown{2, 180000},
          NodeHold{3, 255, 64, 300000},
          NodeExperts{"what balancers say"},
          NodeProfile{2, 5, 1, 7, ProfileCall{"/tmp/x", 5, 12, false, false, true, false, true, true, "p", "17.5"}},
          NodeProfiled{2, 5, 3, "why"}};
}

// What is read is written again to the same bytes, so no field is lost on either way.
TEST(NodeMessages, EveryMessageComesBackAsItWas) {
  for (const NodeMessage& message : one_of_each()) {
    const std::string bytes = encode_node_message(message);
    const Result<NodeMessage> read = decode_node_message(bytes);
    ASSERT_TRUE(read) << read.error().message;
    EXPECT_EQ(read->index(), message.index());
    EXPECT_EQ(encode_node_message(*read), bytes);
  }
  const auto submit = std::get<NodeSubmit>(*decode_node_message(encode_node_message(NodeSubmit{3, full_request()})));
  EXPECT_EQ(submit.rank, 3u);
  EXPECT_EQ(submit.request.input_ids, full_request().input_ids);
  EXPECT_EQ(submit.request.sampling->stop, full_request().sampling->stop);
  EXPECT_EQ(submit.request.seed, full_request().seed);
  EXPECT_EQ(submit.request.bootstrap->room, full_request().bootstrap->room);
  const auto event = std::get<NodeEvent>(*decode_node_message(encode_node_message(NodeEvent{3, full_event()}))).event;
  EXPECT_EQ(event.tokens, full_event().tokens);
  EXPECT_EQ(event.logprobs[1].top, full_event().logprobs[1].top);
  EXPECT_EQ(event.finish->message, "why");
}

TEST(NodeMessages, WhatIsCutOrLongerIsCorrupt) {
  for (const NodeMessage& message : one_of_each()) {
    const std::string bytes = encode_node_message(message);
    for (size_t size = 0; size < bytes.size(); ++size) {
      EXPECT_FALSE(decode_node_message(std::string_view(bytes).substr(0, size))) << message.index() << " " << size;
    }
    EXPECT_FALSE(decode_node_message(bytes + '\0'));
  }
}

TEST(NodeMessages, OtherVersionsTypesAndChoicesAreNamed) {
  std::string bytes = encode_node_message(NodeStop{});
  bytes[0] = 9;
  EXPECT_EQ(decode_node_message(bytes).error().code, ErrorCode::kInvalidInput);
  bytes[0] = char(kNodeMessageVersion);
  bytes[2] = 99;
  EXPECT_NE(decode_node_message(bytes).error().message.find("unknown type 99"), std::string::npos);
}

TEST(NodeMessages, RandomDamageNeverCrashesAndCountsAreNotBelieved) {
  std::mt19937 random(1);
  for (const NodeMessage& message : one_of_each()) {
    const std::string bytes = encode_node_message(message);
    for (int i = 0; i < 3000; ++i) {
      std::string damaged = bytes;
      for (int change = 0; change < 1 + i % 3; ++change) damaged[random() % damaged.size()] = char(random());
      static_cast<void>(decode_node_message(damaged));
    }
  }
}

}  // namespace
}  // namespace tandem::api
