// A peer that does not keep to the link's protocol is refused or lost, by name, and the instance serves on.
#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "kv/transfer.h"
#include "kv/transfers/link_wire.h"
#include "transport/transport.h"

namespace tandem::kv {
namespace {

class RoguePeer : public testing::Test {
 protected:
  void SetUp() override {
    auto made = make_ucx_transfer({.listen = true, .epoch = 11}, memory);
    ASSERT_TRUE(made) << made.error().message;
    transfer = std::move(made).value();
    const std::string address = transfer->address();
    port = uint16_t(std::stoi(address.substr(address.rfind(':') + 1)));
    context = std::move(transport::Context::create(rogue_memory, false, {}, {.epoch = 5})).value();
    worker = std::move(transport::Worker::create(*context)).value();
    endpoint = *worker->connect(*transport::resolve("127.0.0.1", port));
  }
  template <class Done>
  bool pump_until(Done done) {
    const TimePoint deadline = clock.now() + std::chrono::seconds(20);
    while (!done()) {
      if (clock.now() > deadline) return false;
      const bool any = transfer->poll(clock.now(), events);
      if (!worker->progress(clock.now(), arrived) && !any) std::this_thread::yield();
    }
    return true;
  }
  void send(const LinkFrame& frame) { worker->send(endpoint, encode_link_frame(frame)); }
  HelloFrame hello() const { return {.epoch = 5, .heartbeat_ms = 1000, .region_bytes = rogue_memory.size()}; }
  // What the instance says before it hangs up.
  std::string refusal() {
    std::string reason;
    EXPECT_TRUE(pump_until([&] {
      for (const transport::Event& event : arrived) {
        const auto* message = std::get_if<transport::MessageArrived>(&event);
        if (message == nullptr) continue;
        const auto frame = decode_link_frame(message->bytes);
        if (frame && std::holds_alternative<RefuseFrame>(*frame)) reason = std::get<RefuseFrame>(*frame).reason;
      }
      return !reason.empty();
    }));
    return reason;
  }
  template <class Event>
  int count() const {
    return int(std::count_if(events.begin(), events.end(), [](const auto& e) { return std::get_if<Event>(&e); }));
  }
  void greet() {
    send(hello());
    ASSERT_TRUE(pump_until([&] { return count<PeerConnected>() == 1; }));
  }

  SystemClock clock;
  std::vector<std::byte> memory{4096}, rogue_memory{4096};
  std::unique_ptr<KvTransfer> transfer;
  uint16_t port = 0;
  std::unique_ptr<transport::Context> context;
  std::unique_ptr<transport::Worker> worker;
  transport::EndpointId endpoint;
  std::vector<TransferEvent> events;
  std::vector<transport::Event> arrived;
};

TEST_F(RoguePeer, AnotherWireVersionIsRefusedAndNeverAnnounced) {
  std::string bytes = encode_link_frame(hello());
  bytes[5] = 9;
  worker->send(endpoint, bytes);
  EXPECT_EQ(refusal(), "wire version 3 wanted, 9 came");
  EXPECT_TRUE(events.empty());
}

TEST_F(RoguePeer, AnotherEpochThanItHasGreetedWithIsRefused) {
  HelloFrame forged = hello();
  forged.epoch = 6;
  send(forged);
  EXPECT_EQ(refusal(), "another epoch than it has greeted with");
  EXPECT_TRUE(events.empty());
}

TEST_F(RoguePeer, RubbishInsteadOfAHelloIsRefused) {
  worker->send(endpoint, std::string("GET / HTTP/1.1\r\n\r\n"));
  EXPECT_NE(refusal().find("frame type 71"), std::string::npos);
  EXPECT_TRUE(events.empty());
}

TEST_F(RoguePeer, AMessageBeforeTheHelloEndsTheConnection) {
  send(MessageFrame{5, "hello"});
  ASSERT_TRUE(pump_until([&] {
    return std::any_of(arrived.begin(), arrived.end(),
                       [](const auto& e) { return std::get_if<transport::EndpointFailed>(&e); });
  }));
  EXPECT_TRUE(events.empty());
}

TEST_F(RoguePeer, AMessageAnnouncedTooLongLosesThePeer) {
  greet();
  send(MessageFrame{UINT32_MAX, "x"});
  EXPECT_EQ(refusal(), "a message out of order or too long");
  EXPECT_EQ(count<PeerLost>(), 1);
  EXPECT_EQ(count<PeerMessage>(), 0);
}

TEST_F(RoguePeer, AMessageLongerThanAnnouncedLosesThePeer) {
  greet();
  send(MessageFrame{3, "four"});
  EXPECT_EQ(refusal(), "a message longer than announced");
  EXPECT_EQ(count<PeerLost>(), 1);
}

TEST_F(RoguePeer, AContinuationOfNothingLosesThePeer) {
  greet();
  send(ContinueFrame{"x"});
  EXPECT_EQ(refusal(), "a message out of order or too long");
  EXPECT_EQ(count<PeerLost>(), 1);
}

TEST_F(RoguePeer, AHeartbeatOfAnotherEpochLosesThePeer) {
  greet();
  send(HeartbeatFrame{6});
  EXPECT_EQ(refusal(), "a heartbeat of another epoch");
  EXPECT_EQ(count<PeerLost>(), 1);
}

TEST_F(RoguePeer, ASecondHelloLosesThePeer) {
  greet();
  send(hello());
  EXPECT_EQ(refusal(), "a second hello");
  EXPECT_EQ(count<PeerLost>(), 1);
}

TEST_F(RoguePeer, AReadOutsideTheRegionLosesThePeerAndGetsNoBytes) {
  const ReadRequestFrame::Part bad[] = {{4096, 1}, {4095, 2}, {0, 4097}, {UINT64_MAX, 2}, {0, 0}};
  for (const ReadRequestFrame::Part& part : bad) {
    events.clear();
    arrived.clear();
    endpoint = *worker->connect(*transport::resolve("127.0.0.1", port));
    greet();
    send(ReadRequestFrame{1, {{0, 1}, part}});
    EXPECT_NE(refusal().find("from 4096 bytes"), std::string::npos);
    EXPECT_EQ(count<PeerLost>(), 1);
    for (const transport::Event& event : arrived) {
      const auto* message = std::get_if<transport::MessageArrived>(&event);
      if (message == nullptr) continue;
      EXPECT_FALSE(std::holds_alternative<ReadDataFrame>(*decode_link_frame(message->bytes)));
    }
  }
}

TEST_F(RoguePeer, BytesThatNobodyAskedForLoseThePeer) {
  greet();
  send(ReadDataFrame{1, "here you are"});
  EXPECT_EQ(refusal(), "bytes that nobody asked for");
  EXPECT_EQ(count<PeerLost>(), 1);
}

TEST_F(RoguePeer, MoreBytesThanAskedForLoseThePeerAndWriteNothingBeyond) {
  greet();
  const PeerId id = std::get<PeerConnected>(events[0]).peer;
  const CopyRange range{0, 100, 3};
  transfer->post_read(1, id, {&range, 1});
  const auto asked = [&]() -> std::optional<uint64_t> {
    for (const transport::Event& event : arrived) {
      const auto* message = std::get_if<transport::MessageArrived>(&event);
      if (message == nullptr) continue;
      const auto frame = decode_link_frame(message->bytes);
      if (frame && std::holds_alternative<ReadRequestFrame>(*frame)) return std::get<ReadRequestFrame>(*frame).tag;
    }
    return std::nullopt;
  };
  ASSERT_TRUE(pump_until([&] { return asked().has_value(); }));
  send(ReadDataFrame{*asked(), "four"});
  EXPECT_EQ(refusal(), "bytes that nobody asked for");
  EXPECT_EQ(count<ReadFinished>(), 1);
  EXPECT_EQ(memory[103], std::byte(0));
}

TEST_F(RoguePeer, ACallerWhoNeverGreetsIsDroppedAfterTheDeadline) {
  const TimePoint end = clock.now() + std::chrono::milliseconds(200);  // for the connection to stand
  ASSERT_TRUE(pump_until([&] { return clock.now() > end; }));
  const auto hung_up = [&] {
    return std::any_of(arrived.begin(), arrived.end(),
                       [](const auto& e) { return std::get_if<transport::EndpointFailed>(&e); });
  };
  EXPECT_FALSE(hung_up());
  transfer->poll(clock.now() + std::chrono::seconds(6), events);
  EXPECT_TRUE(pump_until(hung_up));
  EXPECT_TRUE(events.empty());
}

}  // namespace
}  // namespace tandem::kv
