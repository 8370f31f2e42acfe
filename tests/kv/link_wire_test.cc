#include "kv/transfers/link_wire.h"

#include <gtest/gtest.h>

#include <random>

namespace tandem::kv {
namespace {

HelloFrame hello() {
  return {.epoch = 0x1122334455667788, .heartbeat_ms = 5000, .region_bytes = 4096, .gpu_memory = "here"};
}

TEST(LinkWire, HelloLiesOnTheWireAsTheProtocolSays) {
  const std::string bytes = encode_link_frame(hello());
  std::string expected("\x01TDMK\x03\x00\x88\x77\x66\x55\x44\x33\x22\x11\x88\x13\x00\x00", 19);
  expected += std::string("\x00\x10\x00\x00\x00\x00\x00\x00\x04\x00here", 14);
  EXPECT_EQ(bytes, expected);
}

TEST(LinkWire, FramesComeBackAsTheyWere) {
  const auto greeting = decode_link_frame(encode_link_frame(hello()));
  ASSERT_TRUE(greeting);
  const auto& back = std::get<HelloFrame>(*greeting);
  EXPECT_EQ(back.epoch, hello().epoch);
  EXPECT_EQ(back.heartbeat_ms, hello().heartbeat_ms);
  EXPECT_EQ(back.region_bytes, hello().region_bytes);
  EXPECT_EQ(back.gpu_memory, "here");
  const std::string message = encode_link_frame(MessageFrame{70000, "begin"});
  const auto first = decode_link_frame(message);
  ASSERT_TRUE(first);
  EXPECT_EQ(std::get<MessageFrame>(*first).total_bytes, 70000u);
  EXPECT_EQ(std::get<MessageFrame>(*first).part, "begin");
  const std::string next = encode_link_frame(ContinueFrame{"end"});
  EXPECT_EQ(std::get<ContinueFrame>(*decode_link_frame(next)).part, "end");
  const auto request = decode_link_frame(encode_link_frame(ReadRequestFrame{7, {{1, 2}, {UINT64_MAX, UINT32_MAX}}}));
  ASSERT_TRUE(request);
  EXPECT_EQ(std::get<ReadRequestFrame>(*request).tag, 7u);
  ASSERT_EQ(std::get<ReadRequestFrame>(*request).parts.size(), 2u);
  EXPECT_EQ(std::get<ReadRequestFrame>(*request).parts[1].offset, UINT64_MAX);
  EXPECT_EQ(std::get<ReadRequestFrame>(*request).parts[1].bytes, UINT32_MAX);
  const std::string data = encode_link_frame(ReadDataFrame{7, "bytes"});
  EXPECT_EQ(std::get<ReadDataFrame>(*decode_link_frame(data)).bytes, "bytes");
  EXPECT_EQ(std::get<HeartbeatFrame>(*decode_link_frame(encode_link_frame(HeartbeatFrame{9}))).epoch, 9u);
  EXPECT_EQ(std::get<RefuseFrame>(*decode_link_frame(encode_link_frame(RefuseFrame{"why"}))).reason, "why");
  EXPECT_EQ(std::get<ByeFrame>(*decode_link_frame(encode_link_frame(ByeFrame{"done"}))).reason, "done");
}

TEST(LinkWire, EveryCutAndEveryTailOfAFixedFrameIsCorrupt) {
  for (const LinkFrame& frame : {LinkFrame(hello()), LinkFrame(RefuseFrame{"why"}), LinkFrame(HeartbeatFrame{9})}) {
    const std::string bytes = encode_link_frame(frame);
    for (size_t size = 0; size < bytes.size(); ++size) EXPECT_FALSE(decode_link_frame(bytes.substr(0, size))) << size;
    EXPECT_FALSE(decode_link_frame(bytes + "x"));
  }
}

TEST(LinkWire, AnotherMagicOrVersionIsRefusedByName) {
  std::string bytes = encode_link_frame(hello());
  bytes[5] = 9;
  EXPECT_NE(decode_link_frame(bytes).error().message.find("wire version 3 wanted, 9 came"), std::string::npos);
  bytes[1] = 'X';
  EXPECT_NE(decode_link_frame(bytes).error().message.find("magic"), std::string::npos);
}

TEST(LinkWire, LengthsBeyondTheLimitsAreRefused) {
  const auto cut = decode_link_frame(encode_link_frame(RefuseFrame{std::string(100000, 'x')}));
  EXPECT_EQ(std::get<RefuseFrame>(*cut).reason.size(), kMaxReasonBytes);
}

TEST(LinkWire, RandomBytesNeverCrash) {
  std::mt19937 random(3);
  const std::string good = encode_link_frame(hello());
  for (int i = 0; i < 50000; ++i) {
    std::string bytes = i % 2 == 0 ? good : std::string(random() % 80, '\0');
    for (int k = 0; k < 3 && !bytes.empty(); ++k) bytes[random() % bytes.size()] = char(random());
    if (!bytes.empty() && i % 2 != 0) bytes[0] = char(random() % 8);
    static_cast<void>(decode_link_frame(bytes));
  }
}

}  // namespace
}  // namespace tandem::kv
