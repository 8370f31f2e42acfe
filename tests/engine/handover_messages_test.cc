// The bytes of the handover: fixed ones, round trips, and every damage refused.
#include <gtest/gtest.h>

#include "api/handover.h"

namespace tandem::api {
namespace {

std::vector<HandoverMessage> one_of_each() {
  HandoverConfirmed confirmed{1, 2, 3, 44, 5, 0x1234, TokenLogprob{}};
  confirmed.logprob->logprob = -0.5f;
  confirmed.logprob->token = 44;
  confirmed.logprob->top = {{44, -0.5f}, {7, -2.0f}};
  confirmed.logprob->token_ids = {-3.0f};
  const KvIdentity identity{0x1122334455667788, 1, 61, 576, 64, 0};
  return {HandoverHello{identity},
          HandoverHelloReply{false, "page size differs", identity, 1000, {{"", 9001}, {"node-1", 9002}}},
          HandoverWant{1, 2, 300, 0xabc},
          HandoverSource{1, 2, 3, {7, 8, 9, 100}},
          HandoverAnnounce{1, 2, 3, 0, 61, 64, 128},
          HandoverConfirm{1, 2, 3, true},
          confirmed,
          HandoverAck{1, 2},
          HandoverAbort{1, 2, "gone"},
          HandoverQueued{{5, 6, uint64_t(1) << 62}}};
}

TEST(HandoverMessages, BytesAreAsDocumented) {
  const std::string bytes = encode_handover(0x0102030405060708, HandoverAbort{5, 6, "no"});
  const std::string expected(
      "TDHO\x03\x00\x09\x00\x08\x07\x06\x05\x04\x03\x02\x01\x16\x00\x00\x00"
      "\x05\x00\x00\x00\x00\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00no",
      42);
  EXPECT_EQ(bytes, expected);
}

TEST(HandoverMessages, EachComesBackAsItWent) {
  for (const HandoverMessage& message : one_of_each()) {
    const std::string bytes = encode_handover(99, message);
    const Result<HandoverEnvelope> back = decode_handover(bytes);
    ASSERT_TRUE(back.has_value()) << back.error().message;
    EXPECT_EQ(back->epoch, 99u);
    ASSERT_EQ(back->message.index(), message.index());
    EXPECT_EQ(encode_handover(99, back->message), bytes);
  }
  const auto confirmed = decode_handover(encode_handover(1, one_of_each()[6]));
  const auto& value = std::get<HandoverConfirmed>(confirmed->message);
  EXPECT_EQ(value.digest, 0x1234u);
  EXPECT_EQ(value.first_token, 44);
  ASSERT_TRUE(value.logprob.has_value());
  EXPECT_EQ(value.logprob->top[1], (std::pair<int32_t, float>(7, -2.0f)));
}

TEST(HandoverMessages, EveryPrefixAndEveryTailIsRefused) {
  for (const HandoverMessage& message : one_of_each()) {
    const std::string bytes = encode_handover(99, message);
    for (size_t length = 0; length < bytes.size(); ++length) {
      EXPECT_FALSE(decode_handover(std::string_view(bytes).substr(0, length)).has_value());
    }
    EXPECT_FALSE(decode_handover(bytes + "x").has_value());
  }
}

TEST(HandoverMessages, FlippedBytesAreRefusedOrStayOneMessage) {
  for (const HandoverMessage& message : one_of_each()) {
    const std::string bytes = encode_handover(99, message);
    for (size_t i = 0; i < bytes.size(); ++i) {
      for (const int bit : {0, 3, 7}) {
        std::string damaged = bytes;
        damaged[i] = char(damaged[i] ^ (1 << bit));
        const Result<HandoverEnvelope> back = decode_handover(damaged);
        if (!back) continue;
        EXPECT_EQ(encode_handover(back->epoch, back->message).size(), damaged.size());
      }
    }
  }
}

TEST(HandoverMessages, ListLongerThanTheMessageAllocatesNothing) {
  std::string bytes = encode_handover(1, HandoverSource{1, 2, 3, {7}});
  bytes[bytes.size() - 5] = char(0xff);  // the count's highest byte
  const Result<HandoverEnvelope> back = decode_handover(bytes);
  ASSERT_FALSE(back.has_value());
  EXPECT_EQ(back.error().code, ErrorCode::kCorrupt);
}

TEST(HandoverMessages, OtherVersionIsNamed) {
  std::string bytes = encode_handover(1, HandoverAck{1, 2});
  bytes[4] = 9;
  const Result<HandoverEnvelope> back = decode_handover(bytes);
  ASSERT_FALSE(back.has_value());
  EXPECT_EQ(back.error().message, "wire version differs: theirs 9, ours 3");
}

TEST(HandoverMessages, MismatchNamesTheFieldAndBothValues) {
  const KvIdentity ours{1, 1, 61, 576, 64, 0};
  EXPECT_TRUE(check_compatible(ours, ours).has_value());
  const auto message = [&](auto change) {
    KvIdentity theirs = ours;
    change(theirs);
    return check_compatible(ours, theirs).error().message;
  };
  EXPECT_EQ(message([](KvIdentity& k) { k.model_fingerprint = 2; }),
            "model fingerprint differs: prefill has 1, decode has 2");
  EXPECT_EQ(message([](KvIdentity& k) { k.dtype = 0; }), "kv dtype differs: prefill has 1, decode has 0");
  EXPECT_EQ(message([](KvIdentity& k) { k.num_layers = 60; }), "num_layers differs: prefill has 61, decode has 60");
  EXPECT_EQ(message([](KvIdentity& k) { k.row_width = 1; }), "kv row width differs: prefill has 576, decode has 1");
  EXPECT_EQ(message([](KvIdentity& k) { k.block_tokens = 1; }), "page size differs: prefill has 64, decode has 1");
  EXPECT_EQ(message([](KvIdentity& k) { k.layout = 1; }), "kv layout differs: prefill has 0, decode has 1");
}

TEST(PromptDigest, DependsOnEveryIdAndItsPlace) {
  const auto ids = [](std::vector<int32_t> list) { return list; };
  EXPECT_NE(prompt_digest(ids({1, 2, 3})), prompt_digest(ids({1, 3, 2})));
  EXPECT_NE(prompt_digest(ids({1, 2, 3})), prompt_digest(ids({1, 2})));
  EXPECT_NE(prompt_digest(ids({0})), prompt_digest(ids({0, 0})));
}

}  // namespace
}  // namespace tandem::api
