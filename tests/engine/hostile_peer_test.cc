// Peers that speak the handover's language and mean harm: absurd counts, offsets, generations, ids. What they touch
// fails by name, nothing else does, and every block comes back.
#include <gtest/gtest.h>

#include <random>

#include "engine/remote.h"
#include "tests/engine/pair_rig.h"

namespace tandem {
namespace {

using testing::greedy_request;
using testing::HandTransfer;
using testing::Instance;
using testing::prompt_of;
using testing::small_config;

constexpr uint16_t kPort = 9000;
constexpr uint64_t kRoom = 77, kEpoch = 5;

// A peer that says what a test wants said, and one honest instance.
class HostilePeer {
 public:
  explicit HostilePeer(engine::Role role)
      : is_prefill(role == engine::Role::kPrefill),
        fabric(kv::make_local_fabric()),
        honest(config_of(role), fabric, clock, role == engine::Role::kPrefill ? kPort : 0) {
    kv::TransferOptions options;
    options.host = is_prefill ? "decode" : "prefill";
    options.port = is_prefill ? 0 : kPort;
    options.listen = !is_prefill;
    options.epoch = kEpoch;
    transfer = kv::make_local_transfer(fabric, options, memory);
    if (is_prefill) peer = transfer->connect("prefill", kPort, clock.now());
  }

  void turn(int times = 40) {
    for (int i = 0; i < times; ++i) {
      clock.advance(std::chrono::microseconds(100));
      honest.turn();
      events.clear();
      transfer->poll(clock.now(), events);
      for (const kv::TransferEvent& event : events) take(event);
    }
  }
  void say(const api::HandoverMessage& message) {
    transfer->send(*peer, api::encode_handover(kEpoch, message));
    turn();
  }
  // The newest message of this kind that came.
  template <class Message>
  const Message* last() const {
    for (auto it = heard.rbegin(); it != heard.rend(); ++it) {
      if (const auto* message = std::get_if<Message>(&*it)) return message;
    }
    return nullptr;
  }

  const bool is_prefill;
  ManualClock clock;
  std::shared_ptr<kv::LocalFabric> fabric;
  Instance honest;
  std::vector<std::byte> memory = std::vector<std::byte>(1 << 20);
  std::unique_ptr<kv::KvTransfer> transfer;
  std::optional<PeerId> peer;
  std::vector<kv::TransferEvent> events;
  std::vector<api::HandoverMessage> heard;

 private:
  static engine::EngineConfig config_of(engine::Role role) {
    engine::EngineConfig config = small_config(role);
    config.digest_sample_rate = 0;
    return config;
  }
  void take(const kv::TransferEvent& event) {
    if (const auto* connected = std::get_if<kv::PeerConnected>(&event)) peer = connected->peer;
    const auto* message = std::get_if<kv::PeerMessage>(&event);
    if (message == nullptr) return;
    const auto envelope = api::decode_handover(message->bytes);
    ASSERT_TRUE(envelope);
    heard.push_back(envelope->message);
  }
};

// A decode instance that has asked a hostile prefill for a prompt of 10 tokens: 3 blocks of 4.
class HostilePrefill : public HostilePeer {
 public:
  explicit HostilePrefill(uint32_t blocks = 1000) : HostilePeer(engine::Role::kDecode), num_blocks(blocks) {
    begin(1, kRoom);
  }

  void begin(uint64_t id, uint64_t room) {
    api::EngineRequest request = greedy_request(id, prompt_of(1, 10), 4);
    request.bootstrap = api::BootstrapInfo{"prefill", kPort, room};
    honest.rig.submit(request);
    turn();
    if (const auto* hello = last<api::HandoverHello>(); hello != nullptr && last<api::HandoverWant>() == nullptr) {
      say(api::HandoverHelloReply{true, "", hello->identity, num_blocks, {}});
    }
    ASSERT_NE(last<api::HandoverWant>(), nullptr);
    tag = last<api::HandoverWant>()->tag;
  }
  std::string reason(uint64_t id = 1) {
    const auto& finish = honest.rig.answers[id].finish;
    return finish ? finish->message : "(goes on)";
  }
  void source() { say(api::HandoverSource{kRoom, tag, 1, {0, 1, 2}}); }
  void everything_read() {
    source();
    say(api::HandoverAnnounce{kRoom, tag, 1, 0, 3, 0, 10});
    ASSERT_NE(last<api::HandoverConfirm>(), nullptr);
  }

  const uint32_t num_blocks;
  uint64_t tag = 0;
};

TEST(HostilePrefill, BlocksOutsideItsCacheAreRefused) {
  for (const std::vector<int32_t>& blocks :
       {std::vector<int32_t>{0, 1, 1000}, {0, 1, -1}, {0, 1, INT32_MAX}, {0, 1, INT32_MIN}}) {
    HostilePrefill rig;
    rig.say(api::HandoverSource{kRoom, rig.tag, 1, blocks});
    EXPECT_NE(rig.reason().find("its cache has 1000"), std::string::npos) << rig.reason();
    rig.honest.rig.expect_baseline();
  }
}

TEST(HostilePrefill, AnotherNumberOfBlocksThanThePromptHasIsRefused) {
  for (const size_t count : {size_t(0), size_t(2), size_t(4), size_t(100000)}) {
    HostilePrefill rig;
    rig.say(api::HandoverSource{kRoom, rig.tag, 1, std::vector<int32_t>(count)});
    EXPECT_NE(rig.reason().find("source blocks, the prompt has 3"), std::string::npos) << rig.reason();
    rig.honest.rig.expect_baseline();
  }
}

TEST(HostilePrefill, RowsOutsideThePromptOrTheModelAreRefused) {
  struct Range {
    uint32_t layer_begin, layer_end, token_begin, token_end;
  };
  for (const Range& r : {Range{0, 4, 0, 10},
                         {0, UINT32_MAX, 0, 10},
                         {2, 1, 0, 10},
                         {0, 3, 0, 11},
                         {0, 3, 9, 9},
                         {0, 3, 0, UINT32_MAX},
                         {0, 3, 0x80000000u, 0x80000001u},
                         {0, 3, 5, 10}}) {
    HostilePrefill rig;
    rig.source();
    rig.say(api::HandoverAnnounce{kRoom, rig.tag, 1, r.layer_begin, r.layer_end, r.token_begin, r.token_end});
    EXPECT_NE(rig.reason().find("prefill announced layer"), std::string::npos) << rig.reason();
    rig.honest.rig.expect_baseline();
  }
}

TEST(HostilePrefill, ACacheThatIsSmallerThanItSaysEndsInARefusedRead) {
  HostilePrefill rig(INT32_MAX);
  rig.say(api::HandoverSource{kRoom, rig.tag, 1, {0, 1, INT32_MAX - 1}});
  rig.say(api::HandoverAnnounce{kRoom, rig.tag, 1, 0, 3, 0, 10});
  EXPECT_NE(rig.reason().find("outside the peer's region"), std::string::npos) << rig.reason();
  rig.honest.rig.expect_baseline();
}

TEST(HostilePrefill, AConfirmationOfSomethingElseIsRefused) {
  struct Case {
    api::HandoverConfirmed message;
    const char* word;
  };
  const auto confirmed = [](uint64_t generation, int32_t token, uint32_t cached) {
    return api::HandoverConfirmed{kRoom, 0, generation, token, cached, {}, {}};
  };
  for (const Case& c : {Case{confirmed(2, 5, 0), "another generation"},
                        {confirmed(1, -1, 0), "first token is -1"},
                        {confirmed(1, 97, 0), "first token is 97"},
                        {confirmed(1, INT32_MAX, 0), "first token is"},
                        {confirmed(1, 5, 11), "had 11 of 10 tokens cached"},
                        {confirmed(1, 5, UINT32_MAX), "of 10 tokens cached"}}) {
    HostilePrefill rig;
    rig.everything_read();
    api::HandoverConfirmed message = c.message;
    message.tag = rig.tag;
    rig.say(message);
    EXPECT_NE(rig.reason().find(c.word), std::string::npos) << rig.reason();
    rig.honest.rig.expect_baseline();
  }
}

TEST(HostilePrefill, AConfirmationBeforeTheReadsCountsForNothing) {
  HostilePrefill rig;
  rig.source();
  rig.say(api::HandoverConfirmed{kRoom, rig.tag, 1, 5, 0, {}, {}});
  EXPECT_EQ(rig.reason(), "(goes on)");
  EXPECT_TRUE(rig.honest.rig.answers[1].tokens.empty());
}

TEST(HostilePrefill, RoomsTagsAndGenerationsOfOthersCountForNothing) {
  HostilePrefill rig;
  rig.say(api::HandoverSource{kRoom + 1, rig.tag, 1, {0, 1, 2}});
  rig.say(api::HandoverSource{kRoom, rig.tag + 1, 1, {0, 1, 2}});
  rig.source();
  rig.say(api::HandoverAnnounce{kRoom, rig.tag, 2, 0, 3, 0, 10});
  rig.say(api::HandoverAbort{kRoom, rig.tag + 1, "forged"});
  EXPECT_EQ(rig.reason(), "(goes on)");
  EXPECT_EQ(rig.last<api::HandoverConfirm>(), nullptr) << "nothing was announced of this generation";
  rig.say(api::HandoverAnnounce{kRoom, rig.tag, 1, 0, 3, 0, 10});
  rig.say(api::HandoverConfirmed{kRoom, rig.tag, 1, 5, 0, {}, {}});
  rig.turn(200);
  EXPECT_EQ(rig.honest.rig.answers[1].tokens.size(), 4u) << rig.reason();
}

TEST(HostilePrefill, MadeUpAddressesAreCalledUpToALimit) {
  testing::Rig* rig = nullptr;
  HostilePeer peer(engine::Role::kDecode);
  rig = &peer.honest.rig;
  for (uint64_t i = 1; i <= 300; ++i) {
    api::EngineRequest request = greedy_request(i, prompt_of(1, 4), 2);
    request.bootstrap = api::BootstrapInfo{"nobody-" + std::to_string(i), 1, i};
    rig->submit(request);
  }
  for (int i = 0; i < 20; ++i) rig->turn_engines();
  int refused = 0;
  for (const auto& [id, answer] : rig->answers) {
    refused += answer.finish && answer.finish->message == "too many prefill addresses are being called";
  }
  EXPECT_EQ(refused, 300 - 256);
}

// A prefill instance with one request of 10 tokens, and a hostile decode that has greeted.
class HostileDecode : public HostilePeer {
 public:
  HostileDecode() : HostilePeer(engine::Role::kPrefill) {
    api::EngineRequest request = greedy_request(1, prompt_of(1, 10), 4);
    request.bootstrap = api::BootstrapInfo{"prefill", kPort, kRoom};
    honest.rig.submit(request);
    turn();
    say(api::HandoverHello{{}});  // refused, but names what is wanted
    const auto* reply = last<api::HandoverHelloReply>();
    EXPECT_NE(reply, nullptr);
    if (reply == nullptr) return;
    say(api::HandoverHello{reply->identity});
    EXPECT_TRUE(last<api::HandoverHelloReply>()->accepted);
  }
  api::HandoverWant want() { return {kRoom, 1, 10, api::prompt_digest(prompt_of(1, 10))}; }
};

TEST(HostileDecode, AWantForAnotherPromptIsRefusedAndTheRequestWaitsOn) {
  HostileDecode rig;
  for (const api::HandoverWant& want :
       {api::HandoverWant{kRoom, 9, 0, 0}, {kRoom, 9, UINT32_MAX, 0}, {kRoom, 9, 10, 1}}) {
    rig.say(want);
    ASSERT_NE(rig.last<api::HandoverAbort>(), nullptr);
    EXPECT_NE(rig.last<api::HandoverAbort>()->reason.find("prompt differs"), std::string::npos);
  }
  EXPECT_FALSE(rig.honest.rig.answers[1].finish);
  rig.say(rig.want());
  EXPECT_NE(rig.last<api::HandoverSource>(), nullptr);
}

TEST(HostileDecode, ForgedConfirmationsAndAcknowledgementsReleaseNothing) {
  HostileDecode rig;
  rig.say(rig.want());
  ASSERT_NE(rig.last<api::HandoverSource>(), nullptr);
  const uint64_t generation = rig.last<api::HandoverSource>()->generation;
  rig.say(api::HandoverConfirm{kRoom, 1, generation + 1, false});
  rig.say(api::HandoverConfirm{kRoom, 2, generation, false});
  rig.say(api::HandoverAck{kRoom, 2});
  rig.say(api::HandoverAck{kRoom + 1, 1});
  rig.say(api::HandoverAbort{kRoom, 2, "forged"});
  EXPECT_EQ(rig.last<api::HandoverConfirmed>(), nullptr);
  EXPECT_GT(rig.honest.rig.engine->snapshot().leased_blocks, 0);
  EXPECT_FALSE(rig.honest.rig.answers[1].finish);
  rig.say(api::HandoverConfirm{kRoom, 1, generation, false});
  rig.say(api::HandoverAck{kRoom, 1});
  rig.honest.rig.expect_baseline();
}

TEST(HostileDecode, AFloodOfUnknownRoomsHoldsNoBlocksAndServesOn) {
  HostileDecode rig;
  for (uint64_t i = 0; i < 2000; ++i) {
    const std::string message = api::encode_handover(kEpoch, api::HandoverWant{1000 + i, i, UINT32_MAX, i});
    rig.transfer->send(*rig.peer, message);
    rig.transfer->send(*rig.peer,
                       api::encode_handover(kEpoch, api::HandoverAbort{500000 + i, i, std::string(4096, 'x')}));
  }
  rig.say(api::HandoverQueued{std::vector<uint64_t>(4096, UINT64_MAX)});
  EXPECT_EQ(rig.honest.rig.engine->snapshot().leased_blocks, 0);
  rig.say(rig.want());
  EXPECT_NE(rig.last<api::HandoverSource>(), nullptr);
}

// Whole messages with some bytes changed, at both roles: an instance never falls, and what it holds comes back.
TEST(HostilePeers, DamagedMessagesEndConnectionsAndNothingElse) {
  std::mt19937_64 random(7);
  for (int round = 0; round < 300; ++round) {
    HostileDecode rig;
    const std::vector<api::HandoverMessage> messages = {rig.want(),
                                                        api::HandoverConfirm{kRoom, 1, 1, true},
                                                        api::HandoverAck{kRoom, 1},
                                                        api::HandoverAbort{kRoom, 1, "no"},
                                                        api::HandoverQueued{{kRoom}},
                                                        api::HandoverSource{kRoom, 1, 1, {1, 2}}};
    for (const api::HandoverMessage& message : messages) {
      std::string bytes = api::encode_handover(kEpoch, message);
      if (random() % 2 == 0) bytes[random() % bytes.size()] ^= char(1 << random() % 8);
      rig.transfer->send(*rig.peer, bytes);
      rig.turn(3);
    }
    rig.honest.rig.cancel(1);
    rig.turn();
    rig.honest.rig.expect_baseline();
  }
}

TEST(HostileNode, AnAgeThatDoesNotFitTheClockIsALongTimeAgo) {
  ManualClock clock;
  clock.advance(std::chrono::seconds(1));
  const engine::SendNodeMessage send = [](const api::NodeMessage&) { return PushResult::kPushed; };
  engine::RemoteRank rank(1, clock, send, [](const api::EngineEvent&) {});
  api::RankFigures figures;
  figures.has_progress = true;
  figures.progress_age_us = UINT64_MAX;
  rank.on_figures(figures);
  EXPECT_LT(rank.snapshots()[0].last_progress, clock.now() - std::chrono::hours(24));
}

TEST(HostileNode, ASecondRequestWithAnIdInUseIsDropped) {
  testing::Rig rig(small_config());
  rig.submit(greedy_request(1, prompt_of(1, 10), 4));
  rig.submit(greedy_request(1, prompt_of(2, 12), 4));
  rig.run_until_idle();
  EXPECT_EQ(rig.answers[1].prompt_tokens, 10);
  EXPECT_EQ(rig.answers[1].tokens.size(), 4u);
  rig.expect_baseline();
}

}  // namespace
}  // namespace tandem
