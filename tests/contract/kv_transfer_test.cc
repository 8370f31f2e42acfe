// What every KvTransfer backend must do, run over each. Faults that only one backend can be given are in
// tests/kv/local_transfer_test.cc.
#include "kv/transfer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "kv/local_fabric.h"
#include "tests/contract/kv_backend.h"

namespace tandem::kv {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

uint16_t port_of(const std::string& address) { return uint16_t(std::stoi(address.substr(address.rfind(':') + 1))); }

class LocalPeer final : public EchoPeer {
 public:
  LocalPeer(std::shared_ptr<LocalFabric> fabric, const TransferOptions& options)
      : fabric_(std::move(fabric)), memory_(size_t(kEchoBytes)) {
    for (int64_t i = 0; i < kEchoBytes; ++i) memory_[size_t(i)] = pattern(i);
    transfer_ = make_local_transfer(fabric_, options, memory_);
  }
  uint16_t port() const override { return port_of(transfer_->address()); }
  void pump(TimePoint now) override {
    std::vector<TransferEvent> events;
    transfer_->poll(now, events);
    for (TransferEvent& event : events) {
      auto* message = std::get_if<PeerMessage>(&event);
      if (message == nullptr) continue;
      if (message->bytes == "disconnect me") {
        transfer_->disconnect(message->peer);
      } else {
        transfer_->send(message->peer, std::move(message->bytes));
      }
    }
  }
  void kill() override { fabric_->kill(transfer_->address()); }
  void freeze() override { fabric_->freeze(transfer_->address(), true); }

 private:
  std::shared_ptr<LocalFabric> fabric_;
  std::vector<std::byte> memory_;
  std::unique_ptr<KvTransfer> transfer_;
};

class LocalReader final : public EchoPeer {
 public:
  LocalReader(std::shared_ptr<LocalFabric> fabric, uint16_t port) : fabric_(std::move(fabric)), target_(port) {
    transfer_ = make_local_transfer(fabric_, {.epoch = 33}, memory_);
  }
  uint16_t port() const override { return 0; }
  void pump(TimePoint now) override {
    if (next_read_ == 0) peer_ = transfer_->connect("127.0.0.1", target_, now);
    std::vector<TransferEvent> events;
    transfer_->poll(now, events);
    for (const TransferEvent& event : events) {
      if (std::holds_alternative<PeerConnected>(event)) transfer_->send(peer_, "reading");
    }
    const CopyRange range{0, 0, kReaderBytes};
    if (next_read_++ > 0) transfer_->post_read(next_read_, peer_, {&range, 1});
  }
  void kill() override { fabric_->kill(transfer_->address()); }
  void freeze() override { fabric_->freeze(transfer_->address(), true); }

 private:
  std::shared_ptr<LocalFabric> fabric_;
  const uint16_t target_;
  std::vector<std::byte> memory_{size_t(kReaderBytes)};
  std::unique_ptr<KvTransfer> transfer_;
  PeerId peer_;
  uint64_t next_read_ = 0;
};

class LocalBackend final : public Backend {
 public:
  std::unique_ptr<KvTransfer> make(const TransferOptions& options, std::span<std::byte> region) override {
    return make_local_transfer(fabric_, options, region);
  }
  std::unique_ptr<EchoPeer> start_peer(const TransferOptions& options) override {
    return std::make_unique<LocalPeer>(fabric_, options);
  }
  std::unique_ptr<EchoPeer> start_reader(uint16_t port) override {
    return std::make_unique<LocalReader>(fabric_, port);
  }

 private:
  std::shared_ptr<LocalFabric> fabric_ = make_local_fabric();
};

class KvTransferContract : public testing::TestWithParam<BackendRow> {
 protected:
  // Patient enough for a loaded machine under a sanitizer; the tests of heartbeats hurry.
  static TransferOptions peer_options(Duration heartbeat = seconds(3), int32_t failures = 3) {
    return {.listen = true, .epoch = 11, .heartbeat_interval = heartbeat, .heartbeat_max_failures = failures};
  }
  static TransferOptions own_options(Duration heartbeat = seconds(3), int32_t failures = 3) {
    return {.epoch = 22, .heartbeat_interval = heartbeat, .heartbeat_max_failures = failures};
  }

  // Lets everybody work until done() or a deadline far beyond what is needed.
  template <class Done>
  bool pump_until(Done done, Duration limit = seconds(20)) {
    const TimePoint deadline = clock.now() + limit;
    while (!done()) {
      if (clock.now() > deadline) return false;
      const TimePoint now = clock.now();
      bool any = transfer->poll(now, events);
      if (peer) peer->pump(now);
      if (other) any |= other->poll(now, other_events);
      if (!any) std::this_thread::yield();
    }
    return true;
  }
  template <class Event>
  static int count(const std::vector<TransferEvent>& in) {
    return int(std::count_if(in.begin(), in.end(), [](const auto& e) { return std::holds_alternative<Event>(e); }));
  }
  template <class Event>
  static const Event& nth(const std::vector<TransferEvent>& in, int n = 0) {
    for (const TransferEvent& event : in) {
      if (std::holds_alternative<Event>(event) && n-- == 0) return std::get<Event>(event);
    }
    ADD_FAILURE() << "no such event";
    std::abort();
  }
  template <class Event>
  bool wait_for(int number = 1) {
    return pump_until([&] { return count<Event>(events) >= number; });
  }

  PeerId connect_to(uint16_t port) {
    const PeerId id = transfer->connect("127.0.0.1", port, clock.now());
    EXPECT_TRUE(pump_until([&] { return count<PeerConnected>(events) + count<PeerLost>(events) > 0; }));
    return id;
  }
  // An echo peer and a connection to it.
  PeerId start_and_connect(Duration heartbeat = seconds(3), int32_t failures = 3) {
    peer = backend->start_peer(peer_options(heartbeat, failures));
    transfer = backend->make(own_options(heartbeat, failures), memory);
    const PeerId id = connect_to(peer->port());
    EXPECT_EQ(count<PeerConnected>(events), 1);
    return id;
  }
  void expect_pattern(const CopyRange& range) {
    for (int64_t i = 0; i < range.bytes; ++i) {
      ASSERT_EQ(memory[size_t(range.local_offset + i)], pattern(range.remote_offset + i)) << i;
    }
  }

  SystemClock clock;
  std::unique_ptr<Backend> backend = GetParam().make();
  std::vector<std::byte> memory{size_t(4) << 20}, other_memory{size_t(1) << 20};
  std::unique_ptr<KvTransfer> transfer = backend->make(own_options(), memory);
  std::unique_ptr<EchoPeer> peer;
  std::unique_ptr<KvTransfer> other;  // a second instance in this process, where a test needs both ends
  std::vector<TransferEvent> events, other_events;
};

TEST_P(KvTransferContract, ConnectTellsTheEpochAndMessagesReturnInOrder) {
  const PeerId id = start_and_connect();
  EXPECT_EQ(nth<PeerConnected>(events).peer, id);
  EXPECT_EQ(nth<PeerConnected>(events).epoch, 11u);
  for (int i = 0; i < 500; ++i) transfer->send(id, "message " + std::to_string(i));
  ASSERT_TRUE(wait_for<PeerMessage>(500));
  for (int i = 0; i < 500; ++i) EXPECT_EQ(nth<PeerMessage>(events, i).bytes, "message " + std::to_string(i));
  EXPECT_EQ(nth<PeerMessage>(events).peer, id);
}

TEST_P(KvTransferContract, MessagesOfAnySizeArriveWhole) {
  const PeerId id = start_and_connect();
  const std::vector<size_t> sizes = {0, 1, 61423, 61424, 61425, 122848, 200000, 5000000, 0, 7};
  for (const size_t size : sizes) {
    std::string bytes(size, '\0');
    for (size_t i = 0; i < size; ++i) bytes[i] = char(pattern(int64_t(i + size)));
    transfer->send(id, bytes);
  }
  ASSERT_TRUE(wait_for<PeerMessage>(int(sizes.size())));
  for (size_t n = 0; n < sizes.size(); ++n) {
    const std::string& bytes = nth<PeerMessage>(events, int(n)).bytes;
    ASSERT_EQ(bytes.size(), sizes[n]);
    for (size_t i = 0; i < bytes.size(); ++i) ASSERT_EQ(std::byte(bytes[i]), pattern(int64_t(i + sizes[n])));
  }
}

TEST_P(KvTransferContract, MessagesSentBeforeTheConnectionStandsArrive) {
  peer = backend->start_peer(peer_options());
  const PeerId id = transfer->connect("127.0.0.1", peer->port(), clock.now());
  transfer->send(id, "early");
  transfer->send(id, "bird");
  ASSERT_TRUE(wait_for<PeerMessage>(2));
  EXPECT_EQ(nth<PeerMessage>(events, 0).bytes, "early");
  EXPECT_EQ(nth<PeerMessage>(events, 1).bytes, "bird");
}

TEST_P(KvTransferContract, InboundPeersAreAnnouncedBeforeTheirFirstMessage) {
  other = backend->make(peer_options(), other_memory);
  const std::string address = other->address();
  const PeerId id = transfer->connect("127.0.0.1", port_of(address), clock.now());
  transfer->send(id, "hello");
  ASSERT_TRUE(pump_until([&] { return count<PeerMessage>(other_events) == 1; }));
  ASSERT_TRUE(std::holds_alternative<PeerConnected>(other_events[0]));
  EXPECT_EQ(nth<PeerConnected>(other_events).epoch, 22u);
  EXPECT_EQ(nth<PeerMessage>(other_events).peer, nth<PeerConnected>(other_events).peer);
  other->send(nth<PeerConnected>(other_events).peer, "and back");
  ASSERT_TRUE(wait_for<PeerMessage>());
  EXPECT_EQ(nth<PeerMessage>(events).bytes, "and back");
}

TEST_P(KvTransferContract, ReadsBringTheRightBytesAndNothingElse) {
  const PeerId id = start_and_connect();
  const CopyRange range{123457, 1001, 70001};
  transfer->post_read(7, id, {&range, 1});
  ASSERT_TRUE(wait_for<ReadFinished>());
  EXPECT_EQ(nth<ReadFinished>(events).read_id, 7u);
  ASSERT_TRUE(nth<ReadFinished>(events).status) << nth<ReadFinished>(events).status.error().message;
  expect_pattern(range);
  EXPECT_EQ(memory[1000], std::byte(0));
  EXPECT_EQ(memory[1001 + 70001], std::byte(0));
  EXPECT_EQ(transfer->bytes_read(), 70001u);
}

TEST_P(KvTransferContract, ManyReadsOfManyRangesFinishOnceEach) {
  const PeerId id = start_and_connect();
  std::vector<std::vector<CopyRange>> reads(40);
  int64_t local = 0;
  uint64_t total = 0;
  for (size_t r = 0; r < reads.size(); ++r) {
    for (int64_t i = 0; i < 50; ++i) {
      const CopyRange range{int64_t(r) * 200000 + i * 1777, local, 1 + (int64_t(r) * 37 + i * 101) % 1500};
      reads[r].push_back(range);
      local += range.bytes + 1;
      total += uint64_t(range.bytes);
    }
    transfer->post_read(100 + r, id, reads[r]);
  }
  ASSERT_LT(local, int64_t(memory.size()));
  ASSERT_TRUE(wait_for<ReadFinished>(40));
  std::vector<uint64_t> ids;
  for (int i = 0; i < 40; ++i) {
    EXPECT_TRUE(nth<ReadFinished>(events, i).status);
    ids.push_back(nth<ReadFinished>(events, i).read_id);
  }
  std::sort(ids.begin(), ids.end());
  for (size_t r = 0; r < ids.size(); ++r) EXPECT_EQ(ids[r], 100 + r);
  for (const auto& read : reads) {
    for (const CopyRange& range : read) expect_pattern(range);
  }
  EXPECT_EQ(transfer->bytes_read(), total);
}

TEST_P(KvTransferContract, OneLargeReadArrivesWhole) {
  const PeerId id = start_and_connect();
  const CopyRange range{kEchoBytes - (int64_t(3) << 20) - 5, 11, (int64_t(3) << 20) + 5};
  transfer->post_read(1, id, {&range, 1});
  ASSERT_TRUE(wait_for<ReadFinished>());
  ASSERT_TRUE(nth<ReadFinished>(events).status);
  expect_pattern(range);
}

TEST_P(KvTransferContract, AReadOfNothingFinishes) {
  const PeerId id = start_and_connect();
  transfer->post_read(1, id, {});
  ASSERT_TRUE(wait_for<ReadFinished>());
  EXPECT_TRUE(nth<ReadFinished>(events).status);
}

TEST_P(KvTransferContract, RangesOutsideEitherRegionAreRefusedAndNothingIsWritten) {
  const PeerId id = start_and_connect();
  const int64_t local_end = int64_t(memory.size());
  const CopyRange bad[] = {
      {kEchoBytes, 0, 1},   {kEchoBytes - 1, 0, 2}, {-1, 0, 1},        {0, -1, 1},        {0, 0, 0},
      {0, 0, -1},           {0, local_end, 1},      {0, 0, INT64_MAX}, {INT64_MAX, 0, 1}, {0, INT64_MAX, 1},
      {0, 0, local_end + 1}};
  int posted = 0;
  for (const CopyRange& range : bad) {
    const CopyRange both[] = {{0, 0, 16}, range};
    transfer->post_read(uint64_t(posted++), id, both);
  }
  ASSERT_TRUE(wait_for<ReadFinished>(posted));
  for (int i = 0; i < posted; ++i) {
    ASSERT_FALSE(nth<ReadFinished>(events, i).status) << i;
    EXPECT_EQ(nth<ReadFinished>(events, i).status.error().code, ErrorCode::kInvalidInput);
  }
  EXPECT_EQ(memory[0], std::byte(0)) << "the good range of a bad read";
  EXPECT_EQ(count<PeerLost>(events), 0);
  EXPECT_EQ(transfer->bytes_read(), 0u);
}

TEST_P(KvTransferContract, ReadsFromUnknownPeersFail) {
  const CopyRange range{0, 0, 1};
  transfer->post_read(1, PeerId{4711}, {&range, 1});
  ASSERT_TRUE(wait_for<ReadFinished>());
  EXPECT_EQ(nth<ReadFinished>(events).status.error().code, ErrorCode::kPeerLost);
}

TEST_P(KvTransferContract, CancelledReadsFinishOnceAndTheLinkLives) {
  const PeerId id = start_and_connect();
  std::vector<CopyRange> ranges;
  for (int64_t i = 0; i < 1000; ++i) ranges.push_back({i * 4096, i * 4096 % (3 << 20), 4096});
  transfer->post_read(1, id, ranges);
  transfer->post_read(2, id, ranges);
  events.clear();
  transfer->poll(clock.now(), events);
  transfer->cancel_read(2);
  transfer->cancel_read(2);
  transfer->cancel_read(999);
  ASSERT_TRUE(wait_for<ReadFinished>(2));
  transfer->send(id, "still there");
  ASSERT_TRUE(wait_for<PeerMessage>());
  ASSERT_EQ(count<ReadFinished>(events), 2);
  for (int i = 0; i < 2; ++i) {
    const ReadFinished& read = nth<ReadFinished>(events, i);
    // The in-process backend may have copied the cancelled one within the poll above.
    const bool whole = read.read_id == 1 || read.status;
    EXPECT_EQ(bool(read.status), whole);
    EXPECT_TRUE(whole || read.status.error().code == ErrorCode::kCancelled);
  }
}

TEST_P(KvTransferContract, DisconnectIsHeardByTheOtherSideAndEndsReads) {
  other = backend->make(peer_options(), other_memory);
  const std::string address = other->address();
  const PeerId id = connect_to(port_of(address));
  ASSERT_TRUE(pump_until([&] { return count<PeerConnected>(other_events) == 1; }));
  transfer->send(id, "last words");
  transfer->disconnect(id);
  const CopyRange range{0, 0, 1};
  transfer->post_read(1, id, {&range, 1});
  ASSERT_TRUE(pump_until([&] { return count<PeerLost>(other_events) == 1; }));
  EXPECT_EQ(nth<PeerLost>(other_events).peer, nth<PeerConnected>(other_events).peer);
  ASSERT_EQ(count<PeerMessage>(other_events), 1);
  ASSERT_TRUE(wait_for<ReadFinished>());
  EXPECT_FALSE(nth<ReadFinished>(events).status);
  EXPECT_EQ(count<PeerLost>(events), 0) << "who disconnects needs no telling";
}

TEST_P(KvTransferContract, APeerThatDisconnectsIsLostWithItsReason) {
  const PeerId id = start_and_connect();
  transfer->send(id, "disconnect me");
  ASSERT_TRUE(wait_for<PeerLost>());
  EXPECT_EQ(nth<PeerLost>(events).peer, id);
  EXPECT_NE(nth<PeerLost>(events).reason.find("disconnected by peer"), std::string::npos)
      << nth<PeerLost>(events).reason;
}

TEST_P(KvTransferContract, AKilledPeerIsLostAndItsReadsEndThenARestartOnTheSamePortHasAnotherEpoch) {
  const PeerId id = start_and_connect();
  std::vector<CopyRange> ranges;
  for (int64_t i = 0; i < 1000; ++i) ranges.push_back({i * 8192, 0, 8192});
  for (uint64_t r = 1; r <= 20; ++r) transfer->post_read(r, id, ranges);
  const uint16_t port = peer->port();
  peer->kill();
  ASSERT_TRUE(wait_for<PeerLost>());
  ASSERT_TRUE(wait_for<ReadFinished>(20));
  EXPECT_EQ(count<ReadFinished>(events), 20);
  peer.reset();
  // A read after the loss fails, and sends go nowhere.
  transfer->post_read(21, id, ranges);
  transfer->send(id, "anybody");
  ASSERT_TRUE(wait_for<ReadFinished>(21));
  EXPECT_FALSE(nth<ReadFinished>(events, 20).status);
  EXPECT_EQ(count<PeerLost>(events), 1);

  TransferOptions again = peer_options();
  again.port = port;
  again.epoch = 12;
  peer = backend->start_peer(again);
  events.clear();
  const PeerId second = connect_to(port);
  ASSERT_EQ(count<PeerConnected>(events), 1);
  EXPECT_EQ(nth<PeerConnected>(events).epoch, 12u);
  EXPECT_NE(second, id);
  const CopyRange range{77, 0, 1000};
  transfer->post_read(22, second, {&range, 1});
  ASSERT_TRUE(wait_for<ReadFinished>());
  EXPECT_TRUE(nth<ReadFinished>(events).status);
  expect_pattern(range);
}

TEST_P(KvTransferContract, AReaderKilledWhileReadingIsLostAndTheNextIsServed) {
  other = backend->make(peer_options(), other_memory);
  const uint16_t port = port_of(other->address());
  for (int round = 1; round <= 3; ++round) {
    peer = backend->start_reader(port);
    ASSERT_TRUE(pump_until([&] { return count<PeerMessage>(other_events) == round; }));
    EXPECT_EQ(nth<PeerConnected>(other_events, round - 1).epoch, 33u);
    for (int i = 0; i < 50; ++i) pump_until([&, first = true]() mutable { return !std::exchange(first, false); });
    peer->kill();
    ASSERT_TRUE(pump_until([&] { return count<PeerLost>(other_events) == round; }));
    EXPECT_EQ(nth<PeerLost>(other_events, round - 1).peer, nth<PeerConnected>(other_events, round - 1).peer);
  }
}

TEST_P(KvTransferContract, ConnectionsComeAndGo) {
  other = backend->make(peer_options(), other_memory);
  const uint16_t port = port_of(other->address());
  const CopyRange range{0, 0, 1000};
  for (int round = 1; round <= 40; ++round) {
    const PeerId id = transfer->connect("127.0.0.1", port, clock.now());
    transfer->send(id, "hello");
    ASSERT_TRUE(pump_until([&] { return count<PeerConnected>(events) == round; }));
    transfer->post_read(uint64_t(round), id, {&range, 1});
    ASSERT_TRUE(wait_for<ReadFinished>(round));
    EXPECT_TRUE(nth<ReadFinished>(events, round - 1).status);
    transfer->disconnect(id);
  }
  ASSERT_TRUE(pump_until([&] { return count<PeerLost>(other_events) == 40; }));
  EXPECT_EQ(count<PeerMessage>(other_events), 40);
  EXPECT_EQ(count<PeerLost>(events), 0);
}

TEST_P(KvTransferContract, AFrozenPeerIsLostByMissedHeartbeatsAndItsReadsEnd) {
  const PeerId id = start_and_connect(milliseconds(500), 3);
  peer->freeze();
  const CopyRange range{0, 0, 1 << 20};
  transfer->post_read(1, id, {&range, 1});
  const TimePoint start = clock.now();
  ASSERT_TRUE(wait_for<PeerLost>());
  EXPECT_GE(clock.now() - start, seconds(1));
  EXPECT_NE(nth<PeerLost>(events).reason.find("heartbeats"), std::string::npos) << nth<PeerLost>(events).reason;
  ASSERT_TRUE(wait_for<ReadFinished>());
  EXPECT_FALSE(nth<ReadFinished>(events).status);
}

TEST_P(KvTransferContract, AQuietLinkLivesOnHeartbeats) {
  const PeerId id = start_and_connect(milliseconds(100), 20);
  const TimePoint end = clock.now() + milliseconds(2500);  // without them it would be lost after 2.1 s
  ASSERT_TRUE(pump_until([&] { return clock.now() > end; }));
  EXPECT_EQ(count<PeerLost>(events), 0);
  transfer->send(id, "still there");
  EXPECT_TRUE(wait_for<PeerMessage>());
}

TEST_P(KvTransferContract, ADifferentSecretIsRefusedByName) {
  TransferOptions guarded = peer_options();
  guarded.secret = "open sesame, open sesame";
  peer = backend->start_peer(guarded);
  connect_to(peer->port());
  EXPECT_EQ(count<PeerConnected>(events), 0);
  ASSERT_EQ(count<PeerLost>(events), 1);
  EXPECT_NE(nth<PeerLost>(events).reason.find("secret"), std::string::npos) << nth<PeerLost>(events).reason;

  for (const auto& [secret, connected] : {std::pair("open sesame, open barley", 0), {"open sesame, open sesame", 1}}) {
    TransferOptions mine = own_options();
    mine.secret = secret;
    transfer = backend->make(mine, memory);
    events.clear();
    connect_to(peer->port());
    EXPECT_EQ(count<PeerConnected>(events), connected);
    EXPECT_EQ(count<PeerLost>(events), 1 - connected);
  }
}

TEST_P(KvTransferContract, NobodyListeningIsALossWithinTheDeadline) {
  peer = backend->start_peer(peer_options());
  const uint16_t port = peer->port();
  peer->kill();
  peer.reset();
  const TimePoint start = clock.now();
  connect_to(port);
  EXPECT_EQ(count<PeerConnected>(events), 0);
  EXPECT_EQ(count<PeerLost>(events), 1);
  EXPECT_LT(clock.now() - start, seconds(6));
}

TEST_P(KvTransferContract, AListenerThatNeverAnswersIsALossAfterTheDeadline) {
  peer = backend->start_peer(peer_options());
  peer->freeze();
  TransferOptions hasty = own_options();
  hasty.connect_timeout = milliseconds(300);
  transfer = backend->make(hasty, memory);
  connect_to(peer->port());
  ASSERT_EQ(count<PeerLost>(events), 1);
  EXPECT_NE(nth<PeerLost>(events).reason.find("no answer within 0.3 s"), std::string::npos)
      << nth<PeerLost>(events).reason;
}

TEST_P(KvTransferContract, EndsCleanlyWithWorkUnderWay) {
  const PeerId id = start_and_connect();
  const CopyRange range{0, 0, 3 << 20};
  for (uint64_t r = 0; r < 10; ++r) transfer->post_read(r, id, {&range, 1});
  transfer->send(id, std::string(3000000, 'x'));
  transfer->poll(clock.now(), events);
  transfer.reset();
  std::fill(memory.begin(), memory.end(), std::byte(1));
  EXPECT_EQ(memory[0], std::byte(1));
}

INSTANTIATE_TEST_SUITE_P(All, KvTransferContract, testing::ValuesIn(backends()),
                         [](const auto& info) { return info.param.name; });

}  // namespace

std::unique_ptr<Backend> make_local_backend() { return std::make_unique<LocalBackend>(); }

}  // namespace tandem::kv
