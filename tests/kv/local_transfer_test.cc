// What only the in-process backend can show: faults on demand and heartbeats on a clock that the test owns. What all
// backends share is in tests/contract/kv_transfer_test.cc.
#include <gtest/gtest.h>

#include <algorithm>

#include "kv/local_fabric.h"
#include "kv/transfer.h"

namespace tandem::kv {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

struct Instance {
  Instance(const std::shared_ptr<LocalFabric>& fabric, const TransferOptions& options, size_t bytes)
      : memory(bytes), transfer(make_local_transfer(fabric, options, memory)) {}

  template <class Event>
  const Event* last() const {
    for (auto it = events.rbegin(); it != events.rend(); ++it) {
      if (const auto* found = std::get_if<Event>(&*it)) return found;
    }
    return nullptr;
  }

  std::vector<std::byte> memory;
  std::unique_ptr<KvTransfer> transfer;
  std::vector<TransferEvent> events;
};

class LocalTransfer : public testing::Test {
 protected:
  static TransferOptions prefill_options() { return {.port = 8998, .listen = true, .epoch = 11}; }
  static TransferOptions decode_options() { return {.epoch = 22}; }

  void poll_both() {
    prefill.transfer->poll(now, prefill.events);
    decode.transfer->poll(now, decode.events);
  }
  PeerId connect() {
    const PeerId peer = decode.transfer->connect("127.0.0.1", 8998, now);
    poll_both();
    poll_both();
    EXPECT_NE(decode.last<PeerConnected>(), nullptr);
    return peer;
  }

  TimePoint now{};
  std::shared_ptr<LocalFabric> fabric = make_local_fabric();
  Instance prefill{fabric, prefill_options(), 4096};
  Instance decode{fabric, decode_options(), 1024};
};

TEST_F(LocalTransfer, AKilledPeerIsLostAndItsReadsEnd) {
  const PeerId peer = connect();
  fabric->hold_reads(decode.transfer->address(), true);
  const CopyRange range{0, 0, 64};
  decode.transfer->post_read(5, peer, {&range, 1});
  poll_both();
  EXPECT_EQ(decode.last<ReadFinished>(), nullptr);
  fabric->kill(prefill.transfer->address());
  poll_both();
  ASSERT_NE(decode.last<PeerLost>(), nullptr);
  EXPECT_EQ(decode.last<PeerLost>()->peer, peer);
  ASSERT_NE(decode.last<ReadFinished>(), nullptr);
  EXPECT_EQ(decode.last<ReadFinished>()->read_id, 5u);
  EXPECT_EQ(decode.last<ReadFinished>()->status.error().code, ErrorCode::kPeerLost);
  prefill.events.clear();
  prefill.transfer->poll(now, prefill.events);
  EXPECT_TRUE(prefill.events.empty()) << "the dead do nothing";
}

TEST_F(LocalTransfer, AFrozenPeerIsLostByMissedHeartbeatsAndLearnsItWhenItThaws) {
  connect();
  fabric->freeze(prefill.transfer->address(), true);
  for (int i = 0; i < 3; ++i, now += seconds(5)) poll_both();  // at 0 s, at 5 s (it had lived since), at 10 s (miss 1)
  EXPECT_EQ(decode.last<PeerLost>(), nullptr);
  poll_both();
  ASSERT_NE(decode.last<PeerLost>(), nullptr);
  EXPECT_NE(decode.last<PeerLost>()->reason.find("heartbeats"), std::string::npos);
  fabric->freeze(prefill.transfer->address(), false);
  poll_both();
  EXPECT_NE(prefill.last<PeerLost>(), nullptr);
}

TEST_F(LocalTransfer, AProcessThatStoodStillItselfKeepsItsPeers) {
  connect();
  poll_both();
  for (int i = 0; i < 5; ++i) {
    now += seconds(100);
    poll_both();
  }
  EXPECT_EQ(decode.last<PeerLost>(), nullptr);
  EXPECT_EQ(prefill.last<PeerLost>(), nullptr);
}

TEST_F(LocalTransfer, AFrozenListenerTimesOutAfterTheConnectDeadline) {
  fabric->freeze(prefill.transfer->address(), true);
  decode.transfer->connect("127.0.0.1", 8998, now);
  now += milliseconds(4999);
  poll_both();
  EXPECT_EQ(decode.last<PeerLost>(), nullptr);
  now += milliseconds(1);
  poll_both();
  ASSERT_NE(decode.last<PeerLost>(), nullptr);
  EXPECT_NE(decode.last<PeerLost>()->reason.find("no answer within 5 s"), std::string::npos);
}

TEST_F(LocalTransfer, ReadsFailOnRequestAndTheConnectionStays) {
  const PeerId peer = connect();
  fabric->fail_reads(decode.transfer->address(), 1);
  const CopyRange range{0, 0, 64};
  prefill.memory[0] = std::byte(9);
  decode.transfer->post_read(1, peer, {&range, 1});
  poll_both();
  EXPECT_FALSE(decode.last<ReadFinished>()->status);
  EXPECT_EQ(decode.memory[0], std::byte(0));
  decode.transfer->post_read(2, peer, {&range, 1});
  poll_both();
  EXPECT_TRUE(decode.last<ReadFinished>()->status);
  EXPECT_EQ(decode.memory[0], std::byte(9));
  EXPECT_EQ(decode.last<PeerLost>(), nullptr);
}

TEST_F(LocalTransfer, AReadFromAFrozenPeerWaitsForIt) {
  const PeerId peer = connect();
  fabric->freeze(prefill.transfer->address(), true);
  const CopyRange range{0, 0, 64};
  decode.transfer->post_read(1, peer, {&range, 1});
  poll_both();
  EXPECT_EQ(decode.last<ReadFinished>(), nullptr);
  fabric->freeze(prefill.transfer->address(), false);
  poll_both();
  EXPECT_TRUE(decode.last<ReadFinished>()->status);
}

TEST_F(LocalTransfer, APeerThatNeverTakesItsMessagesIsLostNotBufferedForever) {
  const PeerId peer = connect();
  for (int i = 0; i < 20000; ++i) decode.transfer->send(peer, "x");
  poll_both();
  ASSERT_NE(decode.last<PeerLost>(), nullptr);
  EXPECT_NE(decode.last<PeerLost>()->reason.find("send queue full"), std::string::npos);
}

}  // namespace
}  // namespace tandem::kv
