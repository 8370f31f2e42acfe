// Two or three nodes in one process. What happens when processes die is in tests/e2e/nodes_test.py.
#include "parallel/node_group.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>

#include "parallel/ucx/wire.h"
#include "tests/parallel/node_rig.h"
#include "transport/transport.h"

namespace tandem::parallel {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

const SystemClock kClock;

uint16_t free_port() {
  const auto context = transport::Context::create({});
  return *(*transport::Worker::create(**context))->listen("127.0.0.1", 0);
}

std::vector<std::shared_ptr<NodeGroup>> meet(int32_t num_nodes, int32_t ranks_per_node) {
  std::vector<MeetingOptions> options;
  const uint16_t port = free_port();
  for (int32_t node = 0; node < num_nodes; ++node) {
    options.push_back(meeting_options(num_nodes, node, ranks_per_node, port));
  }
  std::vector<std::shared_ptr<NodeGroup>> groups;
  for (MeetResult& result : meet_all(options, kClock)) {
    EXPECT_TRUE(result) << result.error().message;
    groups.push_back(std::move(result).value());
  }
  return groups;
}

StepVote random_vote(uint64_t step, int32_t rank) {
  std::mt19937_64 random(step * 100 + uint64_t(rank));
  StepVote vote;
  vote.step = step;
  vote.num_tokens = uint32_t(random() % 1000);
  vote.kind = StepKind(random() % 4);
  vote.sleep_ms = uint32_t(random() % 10);
  vote.change_version = uint32_t(random() % 10);
  vote.wants_shutdown = random() % 4 != 0;
  return vote;
}

TEST(RecordStream, WhoHasNotSaidWhoHeIsMayOnlySayALittle) {
  const auto announces = [](uint32_t bytes) {
    std::string length(4, '\0');
    std::memcpy(length.data(), &bytes, sizeof(bytes));
    return length;
  };
  RecordStream stranger;
  stranger.feed(announces(kMaxHelloBytes + 1));
  EXPECT_FALSE(stranger.next());
  RecordStream known;
  known.allow(kMaxRecordBytes);
  known.feed(announces(kMaxHelloBytes + 1));
  EXPECT_TRUE(known.next());
  known = {};
  known.allow(kMaxRecordBytes);
  known.feed(announces(kMaxRecordBytes + 1));
  EXPECT_FALSE(known.next());
}

TEST(NodeGroup, DecisionsAreThoseOfOneProcess) {
  constexpr uint64_t kFirst = 7, kSteps = 300;
  const auto groups = meet(2, 2);
  std::vector<std::unique_ptr<Communicator>> ranks;
  for (const auto& group : groups) {
    for (auto& rank : group->communicators(seconds(30))) ranks.push_back(std::move(rank));
  }
  std::atomic<int> wrong = 0;
  {
    std::vector<std::jthread> threads;
    for (const auto& rank : ranks) {
      threads.emplace_back([&wrong, &rank = *rank] {
        for (uint64_t step = kFirst; step < kFirst + kSteps; ++step) {
          rank.post_vote(random_vote(step, rank.rank().value), kClock.now());
          Result<std::optional<StepDecision>> decision = rank.poll_decision(kClock.now());
          while (decision && !decision->has_value()) {
            rank.wait(milliseconds(20));
            decision = rank.poll_decision(kClock.now());
          }
          std::vector<StepVote> votes;
          for (int32_t r = 0; r < rank.num_ranks(); ++r) votes.push_back(random_vote(step, r));
          if (!decision || **decision != decide(votes)) ++wrong;
        }
      });
    }
  }
  EXPECT_EQ(wrong.load(), 0);
}

TEST(NodeGroup, AnIdleRankWakesWhenAnotherNodeVotes) {
  const auto groups = meet(2, 1);
  const auto first = groups[0]->communicators(seconds(30)), second = groups[1]->communicators(seconds(30));
  const TimePoint begin = kClock.now();
  std::jthread other([&] { second[0]->post_vote(random_vote(1, 1), kClock.now()); });
  first[0]->wait(seconds(20));
  EXPECT_LT(kClock.now() - begin, seconds(10));
  std::jthread waker([&] { first[0]->wake(); });
  first[0]->post_vote(random_vote(1, 0), kClock.now());
  while (!second[0]->poll_decision(kClock.now())->has_value()) second[0]->wait(milliseconds(20));
}

ExchangeShape small_shape(int32_t num_ranks) {
  ExchangeShape shape;
  shape.num_ranks = num_ranks;
  shape.slots_per_rank = 5;
  shape.top_k = 4;
  shape.hidden = 96;
  shape.max_tokens = 700;  // about 150 KB of rows: several messages
  shape.max_low_latency_tokens = 40;
  return shape;
}

ExchangeRound random_round(uint64_t number, int32_t rank, const ExchangeShape& shape) {
  std::mt19937_64 random(number);
  ExchangeRound round;
  round.mode = random() % 2 ? ExchangeMode::kLowLatency : ExchangeMode::kNormal;
  round.tag = {number / 3, int32_t(number % 3)};
  round.seed = number;
  const int64_t most = round.mode == ExchangeMode::kNormal ? shape.max_tokens : shape.max_low_latency_tokens;
  for (int32_t r = 0; r <= rank; ++r) round.num_tokens = random() % 4 == 0 ? 0 : int64_t(random() % uint64_t(most + 1));
  return round;
}

TEST(NodeGroup, ExchangedResultsAreBitIdenticalToOneProcess) {
  constexpr uint64_t kRounds = 60;
  const ExchangeShape shape = small_shape(4);
  const auto groups = meet(2, 2);
  std::vector<std::unique_ptr<ExpertExchange>> apart, together = make_local_exchanges(shape, seconds(30), 0);
  for (const auto& group : groups) {
    auto ranks = group->exchanges(shape, seconds(30), 0);
    ASSERT_TRUE(ranks) << ranks.error().message;
    for (auto& rank : *ranks) apart.push_back(std::move(rank));
  }
  using Results = std::vector<std::vector<float>>;
  std::vector<Results> of_apart(4), of_together(4);
  std::atomic<int> errors = 0;
  const auto run = [&](std::vector<std::unique_ptr<ExpertExchange>>& exchanges, std::vector<Results>& all) {
    std::vector<std::jthread> threads;
    for (size_t r = 0; r < exchanges.size(); ++r) {
      threads.emplace_back([&, r] {
        ExchangeRank rank(*exchanges[r], kClock);
        for (uint64_t number = 1; number <= kRounds; ++number) {
          Result<std::vector<float>> results = rank.run(random_round(number, int32_t(r), shape));
          if (!results) {
            ++errors;
            ADD_FAILURE() << results.error().message;
            return;
          }
          all[r].push_back(std::move(*results));
        }
      });
    }
  };
  run(apart, of_apart);
  run(together, of_together);
  EXPECT_EQ(errors.load(), 0);
  for (size_t r = 0; r < 4; ++r) {
    ASSERT_EQ(of_apart[r].size(), kRounds);
    for (size_t i = 0; i < kRounds; ++i) EXPECT_EQ(of_apart[r][i], of_together[r][i]) << "rank " << r << " round " << i;
  }
}

TEST(NodeGroup, ALostNodeIsNamedAtOnceByEveryRankAndByTheLink) {
  auto groups = meet(3, 2);
  std::atomic<int> told = 0;
  for (int32_t node : {0, 1}) {
    LinkHandlers handlers;
    handlers.on_lost = [&](int32_t lost, const std::string& reason) {
      if (lost == 2 && reason.find("node 2") != std::string::npos) ++told;
    };
    groups[size_t(node)]->start(handlers);
  }
  const auto first = groups[0]->communicators(seconds(60));
  const auto exchanges = groups[1]->exchanges(small_shape(6), seconds(60), 0);
  const TimePoint begin = kClock.now();
  groups[2].reset();
  first[1]->post_vote(random_vote(1, 1), kClock.now());
  Result<std::optional<StepDecision>> decision = first[1]->poll_decision(kClock.now());
  while (decision) {
    first[1]->wait(milliseconds(100));
    decision = first[1]->poll_decision(kClock.now());
  }
  EXPECT_EQ(decision.error().code, ErrorCode::kPeerLost);
  EXPECT_NE(decision.error().message.find("node 2"), std::string::npos) << decision.error().message;
  const Result<std::vector<float>> results =
      ExchangeRank(*(*exchanges)[0], kClock).run(random_round(1, 2, small_shape(6)));
  ASSERT_FALSE(results);
  EXPECT_NE(results.error().message.find("node"), std::string::npos) << results.error().message;
  while (told.load() < 1 && kClock.now() - begin < seconds(20)) std::this_thread::yield();
  EXPECT_EQ(told.load(), 1) << "node 0's link names it; node 1 has none to it";
  EXPECT_LT(kClock.now() - begin, seconds(20));
}

// As SIGSTOP: its connections stand, but its link's thread does nothing.
TEST(NodeGroup, ANodeThatStandsStillIsNamedWithinTheSilenceWhateverItsRanksDo) {
  std::vector<MeetingOptions> options;
  const uint16_t port = free_port();
  for (int32_t node = 0; node < 2; ++node) {
    options.push_back(meeting_options(2, node, 1, port));
    options.back().silence = milliseconds(1200);
  }
  std::vector<MeetResult> groups = meet_all(options, kClock);
  ASSERT_TRUE(groups[0] && groups[1]);
  std::atomic<bool> is_frozen = false;
  BoundedQueue<bool> thaw(1), nothing(1);
  LinkHandlers frozen;
  frozen.on_tick = [&] {
    if (is_frozen.load()) thaw.pop(seconds(60));
  };
  (*groups[0])->start({});
  (*groups[1])->start(frozen);
  nothing.pop(milliseconds(2500));  // no rank says anything: no loss
  EXPECT_EQ((*groups[0])->failure(), nullptr);
  is_frozen = true;
  const TimePoint begin = kClock.now();
  while ((*groups[0])->failure() == nullptr && kClock.now() - begin < seconds(30)) nothing.pop(milliseconds(10));
  ASSERT_NE((*groups[0])->failure(), nullptr);
  EXPECT_NE((*groups[0])->failure()->message.find("node 1 (127.0.0.1) was lost: nothing was heard"), std::string::npos);
  is_frozen = false;
  thaw.close();
}

TEST(NodeGroup, ASilentNodeIsNamedAfterTheDeadlineWithStepAndLayer) {
  const auto groups = meet(2, 2);
  const auto votes = groups[0]->communicators(milliseconds(300));
  votes[0]->post_vote(random_vote(17, 0), kClock.now());
  Result<std::optional<StepDecision>> decision = votes[0]->poll_decision(kClock.now());
  while (decision) {
    votes[0]->wait(milliseconds(20));
    decision = votes[0]->poll_decision(kClock.now());
  }
  for (const char* part : {"step 17", "rank 1", "node 1", "ranks 2 to 3", "asked by rank 0 of 4"}) {
    EXPECT_NE(decision.error().message.find(part), std::string::npos) << decision.error().message;
  }
  const auto others = meet(2, 1);
  const auto exchanges = others[0]->exchanges(small_shape(2), milliseconds(300), 0);
  ExchangeRound round;
  round.tag = {23, 5};
  round.num_tokens = 3;
  const Result<std::vector<float>> results = ExchangeRank(*(*exchanges)[0], kClock).run(round);
  ASSERT_FALSE(results);
  for (const char* part : {"step 23", "layer 5", "rank(s) 1 of node 1"}) {
    EXPECT_NE(results.error().message.find(part), std::string::npos) << results.error().message;
  }
}

TEST(NodeGroup, ADifferingSettingIsNamedOnAllNodes) {
  std::vector<MeetingOptions> options;
  const uint16_t port = free_port();
  for (int32_t node = 0; node < 2; ++node) {
    options.push_back(meeting_options(2, node, 1, port));
    options.back().agreed = {{"--dp-size", "2"}, {"--page-size", node == 0 ? "1" : "16"}};
  }
  for (const MeetResult& result : meet_all(options, kClock)) {
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().code, ErrorCode::kInvalidInput);
    for (const char* part : {"--page-size", "node 0 (127.0.0.1) has 1", "node 1 (127.0.0.1) has 16"}) {
      EXPECT_NE(result.error().message.find(part), std::string::npos) << result.error().message;
    }
  }
}

TEST(NodeGroup, AMissingNodeIsNamedAndNobodyWaitsForever) {
  std::vector<MeetingOptions> options;
  const uint16_t port = free_port();
  for (int32_t node = 0; node < 2; ++node) options.push_back(meeting_options(3, node, 1, port));
  for (MeetingOptions& each : options) each.timeout = milliseconds(700);
  options[1].timeout = seconds(20);
  const auto results = meet_all(options, kClock);
  for (const MeetResult& result : results) {
    ASSERT_FALSE(result);
    EXPECT_NE(result.error().message.find("node(s) 2 of 3 did not come"), std::string::npos) << result.error().message;
  }
  MeetingOptions alone = meeting_options(2, 1, 1, free_port());
  alone.timeout = milliseconds(500);
  const auto lonely = NodeGroup::meet(alone, kClock, [] { return false; });
  ASSERT_FALSE(lonely);
  EXPECT_NE(lonely.error().message.find("node 0 at 127.0.0.1"), std::string::npos) << lonely.error().message;
}

TEST(NodeGroup, ASecondNodeOfTheSameRankIsTurnedAwayAndTheGroupStillForms) {
  const uint16_t port = free_port();
  const std::vector<MeetingOptions> options = {meeting_options(3, 0, 1, port), meeting_options(3, 1, 1, port),
                                               meeting_options(3, 1, 1, port)};
  std::vector<MeetResult> results(3, MeetResult(timed_out("not run")));
  MeetResult late = timed_out("not run");
  {
    std::vector<std::jthread> threads;
    std::atomic<int> refused = 0;
    for (size_t i = 0; i < 3; ++i) {
      threads.emplace_back([&, i] {
        results[i] = NodeGroup::meet(options[i], kClock, [] { return false; });
        if (!results[i]) ++refused;
      });
    }
    while (refused.load() == 0) std::this_thread::yield();
    late = NodeGroup::meet(meeting_options(3, 2, 1, port), kClock, [] { return false; });
  }
  EXPECT_TRUE(results[0]);
  EXPECT_TRUE(late);
  ASSERT_NE(bool(results[1]), bool(results[2])) << "one of the two is in";
  const MeetResult& refused = results[1] ? results[2] : results[1];
  EXPECT_NE(refused.error().message.find("--node-rank 1 is taken"), std::string::npos) << refused.error().message;
}

TEST(NodeGroup, LimitsAreTheLeastOfAllNodes) {
  std::vector<MeetingOptions> options;
  const uint16_t port = free_port();
  for (int32_t node = 0; node < 2; ++node) {
    options.push_back(meeting_options(2, node, 1, port));
    options.back().limits = {100 + node, 50 - node};
  }
  for (const MeetResult& result : meet_all(options, kClock)) {
    ASSERT_TRUE(result);
    EXPECT_EQ((*result)->limits(), (std::vector<int64_t>{100, 49}));
  }
}

TEST(NodeGroup, TheLinkCarriesMessagesOfAnyLengthInOrderAndLeavingIsAgreed) {
  const auto groups = meet(2, 1);
  std::array<std::vector<std::string>, 2> got;
  std::array<std::atomic<size_t>, 2> count = {};
  std::atomic<int> lost = 0;
  for (size_t node = 0; node < 2; ++node) {
    LinkHandlers handlers;
    handlers.on_message = [&, node](int32_t from, std::string bytes) {
      EXPECT_EQ(from, int32_t(1 - node));
      got[node].push_back(std::move(bytes));
      ++count[node];
    };
    handlers.on_lost = [&](int32_t, const std::string&) { ++lost; };
    groups[node]->start(handlers);
  }
  std::vector<std::string> sent;
  for (size_t i = 0; i < 200; ++i) sent.push_back(std::string(i * i, char('a' + i % 26)));
  sent.push_back(std::string(5 << 20, 'z'));
  for (const std::string& message : sent) {
    for (size_t node = 0; node < 2; ++node) {
      ASSERT_EQ(groups[node]->send(int32_t(1 - node), message), PushResult::kPushed);
    }
  }
  const TimePoint begin = kClock.now();
  const auto all_here = [&] { return count[0].load() >= sent.size() && count[1].load() >= sent.size(); };
  while (!all_here() && kClock.now() - begin < seconds(20)) std::this_thread::yield();
  {
    std::jthread other([&] { groups[1]->leave(); });
    groups[0]->leave();
  }
  EXPECT_LT(kClock.now() - begin, seconds(20));
  EXPECT_EQ(lost.load(), 0);
  for (size_t node = 0; node < 2; ++node) EXPECT_EQ(got[node], sent);
}

}  // namespace
}  // namespace tandem::parallel
