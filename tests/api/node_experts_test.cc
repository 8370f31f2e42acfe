#include "api/node_experts.h"

#include <gtest/gtest.h>

#include <random>

namespace tandem::api {
namespace {

std::vector<NodeExpertMessage> one_of_each() {
  NodeExpertPlan plan{3, 2, 0xaaaa, 0xbbbb, 1, 2, 3, {0, 1, 0}, {32768, 65536, 32768}};
  NodeExpertAnswer answer{7, "why", {5, 6}, {1, 2}, {1, 2, 3, 4}, 9};
  return {NodeExpertAsk{7, NodeExpertAsk::What::kTakeRecording, 1000},
          plan,
          NodeExpertStage{3, 2},
          NodeExpertAbort{3, "late"},
          answer,
          NodeExpertProgress{3, 2, true, 0xcccc, 4, 4096},
          NodeExpertFailed{3, "digest"}};
}

TEST(NodeExpertMessages, EveryMessageComesBackAsItWas) {
  for (const NodeExpertMessage& message : one_of_each()) {
    const std::string bytes = encode_expert_message(message);
    const Result<NodeExpertMessage> read = decode_expert_message(bytes);
    ASSERT_TRUE(read) << read.error().message;
    EXPECT_EQ(read->index(), message.index());
    EXPECT_EQ(encode_expert_message(*read), bytes);
  }
  const auto plan = std::get<NodeExpertPlan>(*decode_expert_message(encode_expert_message(one_of_each()[1])));
  EXPECT_EQ(plan.logical_of_slot, (std::vector<int32_t>{0, 1, 0}));
  EXPECT_EQ(plan.share, (std::vector<int32_t>{32768, 65536, 32768}));
  EXPECT_EQ(plan.num_slots, 3);
}

TEST(NodeExpertMessages, WhatIsCutLongerDamagedOrOfAnotherVersionIsAnError) {
  std::mt19937 random(1);
  for (const NodeExpertMessage& message : one_of_each()) {
    const std::string bytes = encode_expert_message(message);
    for (size_t size = 0; size < bytes.size(); ++size) {
      EXPECT_FALSE(decode_expert_message(std::string_view(bytes).substr(0, size))) << message.index() << " " << size;
    }
    EXPECT_FALSE(decode_expert_message(bytes + '\0'));
    for (int i = 0; i < 1000; ++i) {
      std::string damaged = bytes;
      damaged[random() % damaged.size()] = char(random());
      static_cast<void>(decode_expert_message(damaged));
    }
  }
  std::string bytes = encode_expert_message(NodeExpertStage{1, 1});
  bytes[0] = 9;
  EXPECT_EQ(decode_expert_message(bytes).error().code, ErrorCode::kInvalidInput);
  std::string ask = encode_expert_message(NodeExpertAsk{});
  ask[3 + 8] = 9;
  EXPECT_NE(decode_expert_message(ask).error().message.find("unknown question"), std::string::npos);
}

}  // namespace
}  // namespace tandem::api
