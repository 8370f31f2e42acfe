#include "kv/transfer_thread.h"

#include <gtest/gtest.h>

#include <atomic>
#include <functional>

#include "kv/local_fabric.h"

namespace tandem::kv {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

const SystemClock kClock;

// One instance with its transfer thread and the engine's end of the port.
struct Instance {
  Instance(const std::shared_ptr<LocalFabric>& fabric, const TransferOptions& options, size_t bytes, size_t capacity)
      : memory(bytes),
        port(capacity),
        thread(make_local_transfer(fabric, options, memory), port, kClock, [this] { ++wakes; }) {}

  // The next report of this type; others on the way are dropped.
  template <class Report>
  std::optional<Report> next() {
    const TimePoint deadline = kClock.now() + seconds(20);
    while (kClock.now() < deadline) {
      auto report = port.reports.pop(milliseconds(100));
      if (!report) continue;
      if (auto* found = std::get_if<Report>(&*report)) return std::move(*found);
    }
    return std::nullopt;
  }

  std::vector<std::byte> memory;
  TransferPort port;
  std::atomic<int> wakes = 0;
  TransferThread thread;
};

class TransferThreadTest : public testing::Test {
 protected:
  PeerId connect(Instance& from) {
    EXPECT_EQ(from.port.commands.push(ConnectCommand{77, "127.0.0.1", 8998}), PushResult::kPushed);
    const auto started = from.next<ConnectStarted>();
    EXPECT_TRUE(started);
    EXPECT_EQ(started->connect_id, 77u);
    const auto connected = from.next<PeerConnected>();
    EXPECT_TRUE(connected);
    EXPECT_EQ(connected->peer, started->peer);
    EXPECT_EQ(connected->epoch, 11u);
    return started->peer;
  }

  std::shared_ptr<LocalFabric> fabric = make_local_fabric();
  Instance prefill{fabric, {.port = 8998, .listen = true, .epoch = 11}, 4096, 64};
};

TEST_F(TransferThreadTest, CarriesCommandsOutAndReportsInAndWakesTheEngine) {
  Instance decode(fabric, {.epoch = 22}, 4096, 64);
  const PeerId peer = connect(decode);
  decode.port.commands.push(SendCommand{peer, "hello"});
  const auto message = prefill.next<PeerMessage>();
  ASSERT_TRUE(message);
  EXPECT_EQ(message->bytes, "hello");

  prefill.memory[100] = std::byte(42);  // announced by the message below, which orders it before the read
  prefill.port.commands.push(SendCommand{message->peer, "written"});
  ASSERT_TRUE(decode.next<PeerMessage>());
  decode.port.commands.push(ReadCommand{1, peer, {{100, 7, 1}}});
  const auto finished = decode.next<ReadFinished>();
  ASSERT_TRUE(finished);
  EXPECT_TRUE(finished->status);
  EXPECT_EQ(decode.memory[7], std::byte(42));
  EXPECT_GT(decode.wakes.load(), 0);
  const TimePoint deadline = kClock.now() + seconds(20);
  while (decode.thread.bytes_read() != 1 && kClock.now() < deadline) std::this_thread::yield();
  EXPECT_EQ(decode.thread.bytes_read(), 1u);

  decode.port.commands.push(DisconnectCommand{peer});
  EXPECT_TRUE(prefill.next<PeerLost>());
}

TEST_F(TransferThreadTest, AnEngineThatDoesNotTakeReportsLosesNoneOfThem) {
  Instance decode(fabric, {.epoch = 22}, 4096, 4);
  const PeerId peer = connect(decode);
  decode.port.commands.push(SendCommand{peer, "hello"});
  const auto hello = prefill.next<PeerMessage>();
  ASSERT_TRUE(hello);
  const int count = 1000;  // far more than decode's four places
  for (int i = 0; i < count; ++i) {
    while (prefill.port.commands.push(SendCommand{hello->peer, std::to_string(i)}) != PushResult::kPushed) {
      std::this_thread::yield();
    }
  }
  const TimePoint deadline = kClock.now() + seconds(20);
  while (decode.port.reports.size() < 4 && kClock.now() < deadline) std::this_thread::yield();
  EXPECT_EQ(decode.port.reports.size(), 4u);
  for (int i = 0; i < count; ++i) {
    const auto message = decode.next<PeerMessage>();
    ASSERT_TRUE(message);
    EXPECT_EQ(message->bytes, std::to_string(i));
  }
}

TEST_F(TransferThreadTest, ManyConnectsWithFullReportsAreHeldBackNotLost) {
  Instance decode(fabric, {.epoch = 22}, 4096, 4);
  int pushed = 0, started = 0, lost = 0;
  const int count = 200;
  const TimePoint deadline = kClock.now() + seconds(20);
  while ((started < count || lost < count) && kClock.now() < deadline) {
    while (pushed < count &&
           decode.port.commands.push(ConnectCommand{uint64_t(pushed), "127.0.0.1", 9}) == PushResult::kPushed) {
      ++pushed;
    }
    while (auto report = decode.port.reports.try_pop()) {
      started += std::holds_alternative<ConnectStarted>(*report);
      lost += std::holds_alternative<PeerLost>(*report);
    }
  }
  EXPECT_EQ(started, count);
  EXPECT_EQ(lost, count);
}

TEST_F(TransferThreadTest, StopsWithWorkUnderWay) {
  auto decode = std::make_unique<Instance>(fabric, TransferOptions{.epoch = 22}, 4096, 4);
  const PeerId peer = connect(*decode);
  fabric->hold_reads(decode->thread.address(), true);
  decode->port.commands.push(ReadCommand{1, peer, {{0, 0, 64}}});
  decode.reset();
  EXPECT_TRUE(prefill.next<PeerLost>());
}

}  // namespace
}  // namespace tandem::kv
