#include "experts/placement.h"

#include <gtest/gtest.h>

#include "experts/balancedness.h"

namespace tandem::experts {
namespace {

const EpTopology kFour{2, 4, 3};  // 12 slots

TEST(Placement, TrivialPlacementGoesRoundTheExperts) {
  const ExpertPlacement placement = trivial_placement(2, 8, 12);
  EXPECT_EQ(std::vector<int32_t>(placement.layer(1).begin(), placement.layer(1).end()),
            (std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3}));
  EXPECT_TRUE(validate(placement, kFour).has_value());
}

TEST(Placement, FaultsAreNamed) {
  const auto fault = [](ExpertPlacement placement) { return validate(placement, kFour).error().message; };
  ExpertPlacement good = trivial_placement(2, 8, 12);
  ExpertPlacement bad = good;
  bad.logical_of_slot[12 + 7] = 6;
  EXPECT_EQ(fault(bad), "layer 1: expert 7 has no slot");
  bad.logical_of_slot[12 + 7] = 8;
  EXPECT_EQ(fault(bad), "layer 1, slot 7: expert 8 is not in [0, 8)");
  EXPECT_EQ(fault(trivial_placement(2, 8, 11)), "the placement has 11 slots per layer, 4 ranks of 3 slots have 12");
  bad = good;
  bad.logical_of_slot.pop_back();
  EXPECT_EQ(fault(bad), "the placement has 23 entries, 2 layers of 12 slots need 24");
}

TEST(Placement, M2_TheHashOfALayerSeesExpertsAndShares) {
  ExpertPlacement placement = trivial_placement(2, 8, 12), same = placement, other = placement;
  same.share.assign(24, kShareUnit / 2);
  for (size_t slot : {4, 5, 6, 7, 16, 17, 18, 19}) same.share[slot] = kShareUnit;
  EXPECT_EQ(layer_hash(placement, 1), layer_hash(same, 1));
  same.share[0] += 1;
  EXPECT_NE(layer_hash(placement, 0), layer_hash(same, 0));
  std::swap(other.logical_of_slot[0], other.logical_of_slot[1]);
  EXPECT_NE(layer_hash(placement, 0), layer_hash(other, 0));
  EXPECT_EQ(layer_hash(placement, 1), layer_hash(other, 1));
}

TEST(Placement, SharesOfAnExpertAddUp) {
  ExpertPlacement placement = trivial_placement(1, 8, 12);
  placement.share.assign(12, kShareUnit);
  for (size_t slot : {0, 1, 2, 3}) placement.share[slot] = 0;
  EXPECT_TRUE(validate(placement, kFour).has_value());
  placement.share[0] = 5;
  EXPECT_EQ(validate(placement, kFour).error().message, "layer 0: the shares of expert 0 add up to 65541 of 65536");
  placement.share[0] = -1;
  EXPECT_EQ(validate(placement, kFour).error().message, "layer 0, slot 0: share -1 is negative");
}

TEST(RankLoads, FollowShares) {
  const ExpertLoad load{1, 2, {100, 40}};
  ExpertPlacement placement{1, 2, 4, {0, 1, 0, 1}, {}};
  const EpTopology topology{1, 2, 2};
  EXPECT_EQ(rank_loads(load, placement, topology), (std::vector<double>{70, 70}));
  placement.share = {16384, 65536, 49152, 0};
  EXPECT_EQ(rank_loads(load, placement, topology), (std::vector<double>{65, 75}));
}

}  // namespace
}  // namespace tandem::experts
