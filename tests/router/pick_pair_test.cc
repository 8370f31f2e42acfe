#include "router/pick_pair.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

namespace tandem::router {
namespace {

using namespace std::chrono_literals;
const TimePoint kNow{};

std::vector<Candidate> candidates(std::vector<size_t> in_flight) {
  std::vector<Candidate> out;
  for (size_t i = 0; i < in_flight.size(); ++i) out.push_back({InstanceId{uint32_t(i + 1)}, in_flight[i], {}});
  return out;
}

Picker picker(Policy policy, uint64_t seed = 1) {
  PolicyConfig config;
  config.policy = policy;
  config.max_tree_size = 10000;
  return Picker(config, seed);
}

TEST(Picker, ReturnsNothingWithoutCandidates) {
  for (Policy policy : {Policy::kRandom, Policy::kRoundRobin, Policy::kPowerOfTwo, Policy::kCacheAware}) {
    EXPECT_EQ(picker(policy).pick({}, "text", kNow), std::nullopt) << to_string(policy);
  }
}

TEST(Picker, IsDeterministicForASeed) {
  for (Policy policy : {Policy::kRandom, Policy::kPowerOfTwo, Policy::kCacheAware}) {
    Picker a = picker(policy, 7), b = picker(policy, 7);
    for (int i = 0; i < 50; ++i)
      EXPECT_EQ(a.pick(candidates({0, 0, 0, 0}), "", kNow), b.pick(candidates({0, 0, 0, 0}), "", kNow));
  }
}

TEST(Picker, RandomReachesEverybodyAboutEqually) {
  Picker random = picker(Policy::kRandom);
  std::map<uint32_t, int> counts;
  for (int i = 0; i < 4000; ++i) ++counts[random.pick(candidates({9, 0, 3, 1}), "", kNow)->value];
  ASSERT_EQ(counts.size(), 4u);
  for (auto [id, count] : counts) EXPECT_NEAR(count, 1000, 150) << id;  // over 5 sigma
}

TEST(Picker, RoundRobinTakesTurns) {
  Picker turns = picker(Policy::kRoundRobin);
  std::vector<uint32_t> order;
  for (int i = 0; i < 6; ++i) order.push_back(turns.pick(candidates({5, 0, 0}), "", kNow)->value);
  EXPECT_EQ(order, (std::vector<uint32_t>{1, 2, 3, 1, 2, 3}));
}

TEST(Picker, PowerOfTwoNeverTakesTheMostLoadedOfMany) {
  Picker two = picker(Policy::kPowerOfTwo);
  for (int i = 0; i < 200; ++i) EXPECT_NE(two.pick(candidates({3, 1, 9, 2}), "", kNow)->value, 3u);
  auto loads = candidates({0, 9});
  loads[0].load = 500;
  loads[1].load = 100;
  for (int i = 0; i < 20; ++i) EXPECT_EQ(two.pick(loads, "", kNow)->value, 2u) << "polled tokens go before requests";
  loads[1].load.reset();
  for (int i = 0; i < 20; ++i) EXPECT_EQ(two.pick(loads, "", kNow)->value, 1u) << "tokens of one side do not compare";
}

TEST(Picker, CacheAwareReturnsToThePlaceOfAPrefix) {
  Picker cache = picker(Policy::kCacheAware);
  const std::string prefix(100, 'p');
  const auto first = cache.pick(candidates({0, 0, 0, 0}), prefix + "a", kNow);
  for (int i = 0; i < 20; ++i) {
    auto loads = candidates({30, 30, 30, 30});
    for (auto& load : loads) load.in_flight += load.id == *first ? 20 : 0;  // busier, but not out of balance
    EXPECT_EQ(cache.pick(loads, prefix + std::string(1, char('b' + i)), kNow), first);
  }
}

TEST(Picker, CacheAwareIgnoresAMatchUpToTheThreshold) {
  Picker cache = picker(Policy::kCacheAware);
  const auto first = cache.pick(candidates({0, 0}), std::string(30, 'p') + std::string(70, 'x'), kNow);
  auto loads = candidates({0, 0});
  loads[first->value - 1].in_flight = 1;
  EXPECT_NE(cache.pick(loads, std::string(30, 'p') + std::string(70, 'y'), kNow), first) << "0.30 is not above 0.3";
  EXPECT_EQ(cache.pick(loads, std::string(30, 'p') + "x" + std::string(69, 'z'), kNow), first) << "0.31 is";
}

TEST(Picker, CacheAwarePutsBalanceFirstWhenBothThresholdsArePassed) {
  Picker cache = picker(Policy::kCacheAware);
  const std::string text(100, 't');
  const auto first = cache.pick(candidates({0, 0}), text, kNow);
  auto loads = candidates({100, 100});
  loads[first->value - 1].in_flight = 164;
  EXPECT_EQ(cache.pick(loads, text, kNow), first) << "a difference of 64 is not above 64";
  loads[first->value - 1].in_flight = 165;
  EXPECT_NE(cache.pick(loads, text, kNow), first) << "165 > 1.5 * 100 and 165 - 100 > 64";
  Picker other = picker(Policy::kCacheAware);
  const auto place = other.pick(candidates({0, 0}), text, kNow);
  loads = candidates({200, 200});
  loads[place->value - 1].in_flight = 290;
  EXPECT_EQ(other.pick(loads, text, kNow), place) << "290 is not above 1.5 * 200";
}

TEST(Picker, CacheAwareWithoutTextGoesToTheLeastLoadedAndSpreadsTies) {
  Picker cache = picker(Policy::kCacheAware);
  std::set<uint32_t> seen;
  for (int i = 0; i < 100; ++i) seen.insert(cache.pick(candidates({1, 0, 0, 1}), "", kNow)->value);
  EXPECT_EQ(seen, (std::set<uint32_t>{2, 3}));
}

TEST(Picker, CacheAwareForgetsAnInstanceThatIsGone) {
  Picker cache = picker(Policy::kCacheAware);
  const std::string text(100, 't');
  auto all = candidates({0, 0});
  const auto first = cache.pick(all, text, kNow);
  std::erase_if(all, [&](const Candidate& c) { return c.id == *first; });
  const auto second = cache.pick(all, text, kNow);
  ASSERT_TRUE(second.has_value());
  EXPECT_NE(second, first) << "only candidates are chosen";
  cache.forget(*first);
  EXPECT_EQ(cache.prefixes().find(text, std::array{*first}).matched_bytes, 0u);
}

TEST(Picker, CacheAwareHoldsNoMoreTextThanItsTree) {
  Picker cache = picker(Policy::kCacheAware);
  TimePoint now = kNow;
  for (int i = 0; i < 500; ++i) {
    now += 1s;
    cache.pick(candidates({0, 0}), std::to_string(i) + std::string(200, char('a' + i % 26)), now);
    ASSERT_LE(cache.prefixes().bytes(), 10000u);
  }
  EXPECT_GT(cache.prefixes().bytes(), 1000u);
}

TEST(PickPair, NeedsBothSidesAndUsesEachOnesPolicy) {
  Picker prefill = picker(Policy::kRoundRobin), decode = picker(Policy::kRoundRobin);
  const auto prefills = candidates({0, 0}), decodes = candidates({0, 0, 0});
  EXPECT_FALSE(pick_pair({prefill, decode}, prefills, {}, "", kNow).has_value());
  EXPECT_FALSE(pick_pair({prefill, decode}, {}, decodes, "", kNow).has_value());
  for (uint32_t i = 0; i < 6; ++i) {
    auto pair = pick_pair({prefill, decode}, prefills, decodes, "", kNow);
    ASSERT_TRUE(pair.has_value());
    EXPECT_EQ(pair->prefill.value, i % 2 + 1) << "a vain call takes no turn";
    EXPECT_EQ(pair->decode.value, i % 3 + 1);
  }
}

TEST(DrawRooms, AreDistinctUniformAndFitASignedNumber) {
  std::mt19937_64 random(1);
  const auto rooms = draw_rooms(random, 10000);
  EXPECT_EQ(std::set<uint64_t>(rooms.begin(), rooms.end()).size(), rooms.size());
  EXPECT_LT(*std::max_element(rooms.begin(), rooms.end()), uint64_t(1) << 63);
  EXPECT_NEAR(std::count_if(rooms.begin(), rooms.end(), [](uint64_t r) { return r >> 62; }), 5000, 300);
}

TEST(PrefixIndex, FindsTheLongestPrefixOfACandidate) {
  PrefixIndex index(1000);
  const InstanceId a{1}, b{2}, c{3};
  index.insert("hello world", a, kNow);
  index.insert("hello there", b, kNow + 1s);
  EXPECT_EQ(index.bytes(), 6u + 5u + 5u) << "the common part is held once";
  auto match = index.find("hello wonder", std::array{a, b});
  EXPECT_EQ(match.instance, a);
  EXPECT_EQ(match.matched_bytes, 8u);
  match = index.find("hello wonder", std::array{b, c});
  EXPECT_EQ(match.instance, b);
  EXPECT_EQ(match.matched_bytes, 6u);
  EXPECT_EQ(index.find("hello", std::array{a, b}).instance, b) << "the more recent one";
  EXPECT_EQ(index.find("hello", std::array{c}).matched_bytes, 0u);
  EXPECT_EQ(index.find("", std::array{a}).matched_bytes, 0u);
}

TEST(PrefixIndex, EvictsTheLeastRecentlyUsedFirst) {
  PrefixIndex index(1000);
  const InstanceId a{1};
  index.insert("one111", a, kNow);
  index.insert("two222", a, kNow + 1s);
  index.insert("three3", a, kNow + 2s);
  index.insert("one111", a, kNow + 3s);
  index.evict_to(13);
  EXPECT_EQ(index.find("two222", std::array{a}).matched_bytes, 1u) << "'t' is shared with three3";
  EXPECT_EQ(index.find("one111", std::array{a}).matched_bytes, 6u);
  EXPECT_EQ(index.find("three3", std::array{a}).matched_bytes, 6u);
  index.evict_to(0);
  EXPECT_EQ(index.bytes(), 0u);
}

// Against the plain definition: the longest common prefix with any text that the instance was given.
TEST(PrefixIndex, AgreesWithAListOfTextsOverRandomOnes) {
  std::mt19937_64 random(42);
  PrefixIndex index(1 << 20);
  std::map<uint32_t, std::vector<std::string>> texts;
  auto draw = [&] {
    std::string text(random() % 12 + 1, 'a');
    for (char& c : text) c = static_cast<char>('a' + random() % 2);
    return text;
  };
  TimePoint now = kNow;
  for (int i = 0; i < 2000; ++i) {
    const uint32_t id = random() % 3 + 1;
    const std::string text = draw();
    index.insert(text, InstanceId{id}, now += 1s);
    texts[id].push_back(text);
    const std::string wanted = draw();
    const uint32_t asked = random() % 3 + 1;
    size_t longest = 0;
    for (const auto& known : texts[asked]) {
      size_t n = 0;
      while (n < std::min(known.size(), wanted.size()) && known[n] == wanted[n]) ++n;
      longest = std::max(longest, n);
    }
    // A node says who passed through it, also where his text went another way inside its edge: never less.
    EXPECT_GE(index.find(wanted, std::array{InstanceId{asked}}).matched_bytes, longest);
  }
}

TEST(LengthBuckets, CutLengthsIntoRangesOfEqualWorkAndFollowWhatComes) {
  LengthBuckets buckets;
  EXPECT_FALSE(buckets.place(10, 2, kNow).has_value()) << "nothing is known yet";
  for (int i = 0; i < 99; ++i) buckets.place(10, 2, kNow);
  for (int i = 0; i < 10; ++i) buckets.place(100, 2, kNow);
  const TimePoint later = kNow + 5s;
  EXPECT_EQ(buckets.place(10, 2, later), 0u) << "a hundred short ones are as much as ten long ones";
  EXPECT_EQ(buckets.place(100, 2, later), 1u);
  EXPECT_EQ(buckets.place(99, 2, later), 0u);
  EXPECT_EQ(buckets.place(5000, 2, later), 1u) << "the last range has no end";
  for (int i = 0; i < 4096; ++i) buckets.place(i % 2 ? 1000 : 3000, 2, later);
  EXPECT_EQ(buckets.place(1000, 2, later + 4s), 1u) << "adjusted every five seconds only";
  EXPECT_EQ(buckets.place(1000, 2, later + 5s), 0u);
  EXPECT_EQ(buckets.place(3000, 2, later + 5s), 1u);
  EXPECT_LT(*buckets.place(1, 3, later + 5s), 3u) << "another number of instances is another division at once";
  EXPECT_EQ(buckets.place(3000, 1, later + 5s), 0u);
}

TEST(Picker, BucketSendsLongPromptsElsewhereUntilLoadsDiffer) {
  Picker bucket = picker(Policy::kBucket);
  const auto even = candidates({0, 0});
  for (int i = 0; i < 50; ++i) {
    bucket.pick(even, {"", 100}, kNow);
    bucket.pick(even, {"", 10000}, kNow);
  }
  const TimePoint later = kNow + 5s;
  EXPECT_EQ(bucket.pick(even, {"", 100}, later), InstanceId{1});
  EXPECT_EQ(bucket.pick(even, {"", 10000}, later), InstanceId{2});
  EXPECT_EQ(bucket.pick(candidates({0, 200}), {"", 10000}, later), InstanceId{1}) << "load goes before length";
}

TEST(RankLoads, TakesTheRankWithTheFewestAndSurvivesAnotherNumberOfRanks) {
  RankLoads ranks;
  EXPECT_EQ(ranks.num_ranks(), 0u);
  ranks.resize(3);
  EXPECT_EQ(ranks.take(), 0u);
  EXPECT_EQ(ranks.take(), 1u);
  EXPECT_EQ(ranks.take(), 2u);
  ranks.give_back(1);
  EXPECT_EQ(ranks.take(), 1u);
  ranks.resize(1);
  ranks.give_back(2);
  EXPECT_EQ(ranks.loads(), std::vector<size_t>{1});
}

TEST(Rooms, OfARankAreInRangeAndLeaveItAsRemainder) {
  constexpr uint64_t kLast = (uint64_t(1) << 63) - 1;
  for (const uint64_t room : {uint64_t(0), uint64_t(5), uint64_t(1) << 40, kLast - 1, kLast}) {
    for (const size_t ranks : {1, 2, 3, 7, 72}) {
      for (size_t rank = 0; rank < ranks; ++rank) {
        const uint64_t chosen = room_of_rank(room, rank, ranks);
        EXPECT_EQ(chosen % ranks, rank);
        EXPECT_LE(chosen, kLast);
      }
    }
  }
}

}  // namespace
}  // namespace tandem::router
