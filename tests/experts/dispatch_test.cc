#include "experts/dispatch.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace tandem::experts {
namespace {

constexpr DispatchAlgorithm kAll[] = {DispatchAlgorithm::kStatic, DispatchAlgorithm::kDynamic, DispatchAlgorithm::kFake,
                                      DispatchAlgorithm::kWeighted};
constexpr EpTopology kTopologies[] = {{1, 1, 12}, {1, 8, 3}, {2, 8, 2}, {4, 12, 1}, {1, 4, 3}, {3, 6, 5}};

// Every expert once, the rest at random, slots in random order; random shares if asked for, zeros among them.
ExpertPlacement random_placement(const EpTopology& topology, int32_t num_logical, bool with_shares, uint64_t seed) {
  std::mt19937_64 random(seed);
  ExpertPlacement placement = trivial_placement(2, num_logical, topology.num_slots());
  if (with_shares) placement.share.assign(placement.logical_of_slot.size(), 0);
  for (int32_t layer = 0; layer < 2; ++layer) {
    auto first = placement.logical_of_slot.begin() + ptrdiff_t(layer) * placement.num_slots;
    for (int32_t i = num_logical; i < placement.num_slots; ++i) first[i] = int32_t(random() % uint64_t(num_logical));
    std::shuffle(first, first + placement.num_slots, random);
    if (!with_shares) continue;
    const SlotsOfExperts inverse = slots_of_experts(placement, layer);
    for (int32_t expert = 0; expert < num_logical; ++expert) {
      int32_t left = kShareUnit;
      for (int32_t slot : inverse.of(expert)) {
        const bool last = slot == inverse.of(expert).back();
        const int32_t part = last ? left : int32_t(random() % 3 == 0 ? 0 : random() % uint64_t(left + 1));
        placement.share[size_t(layer) * size_t(placement.num_slots) + size_t(slot)] = part;
        left -= part;
      }
    }
  }
  EXPECT_TRUE(validate(placement, topology).has_value());
  return placement;
}

// visit(placement, topology) over random placements of every topology, with and without shares.
template <class Visit>
void for_each_placement(Visit visit) {
  for (const EpTopology& topology : kTopologies) {
    for (uint64_t seed = 0; seed < 20; ++seed) {
      const int32_t num_logical = std::max(1, topology.num_slots() - int32_t(seed % 8));
      visit(random_placement(topology, num_logical, seed % 2 == 1, seed), topology);
    }
  }
}

// What the ranks' tables give each slot together, in parts of kShareUnit per rank.
std::vector<int64_t> parts_of_slots(const ExpertPlacement& placement, const EpTopology& topology, int32_t layer,
                                    DispatchAlgorithm algorithm) {
  std::vector<int64_t> parts(size_t(placement.num_slots), 0);
  for (int32_t rank = 0; rank < topology.num_ranks; ++rank) {
    const LayerDispatch table = build_dispatch(placement, topology, layer, rank, algorithm);
    for (int32_t expert = 0; expert < placement.num_logical; ++expert) {
      for (int32_t i = table.begin[size_t(expert)], before = 0; i < table.begin[size_t(expert) + 1]; ++i) {
        EXPECT_GT(table.upto[size_t(i)], before);
        parts[size_t(table.slot[size_t(i)])] += table.upto[size_t(i)] - before;
        before = table.upto[size_t(i)];
      }
    }
  }
  return parts;
}

TEST(Dispatch, NamesAreSglangsAndOurs) {
  for (DispatchAlgorithm algorithm : kAll) {
    EXPECT_EQ(parse_dispatch_algorithm(to_string(algorithm)).value(), algorithm);
  }
  EXPECT_EQ(parse_dispatch_algorithm("nearest").error().message,
            "there is no dispatch algorithm 'nearest'; there are: static, dynamic, fake, weighted");
}

TEST(Dispatch, EveryEntryIsASlotOfItsExpertAndTheLastThresholdIsTheWhole) {
  for_each_placement([](const ExpertPlacement& placement, const EpTopology& topology) {
    for (DispatchAlgorithm algorithm : kAll) {
      for (int32_t rank = 0; rank < topology.num_ranks; ++rank) {
        const LayerDispatch table = build_dispatch(placement, topology, 1, rank, algorithm);
        for (int32_t expert = 0; expert < placement.num_logical; ++expert) {
          const int32_t first = table.begin[size_t(expert)], end = table.begin[size_t(expert) + 1];
          ASSERT_LT(first, end);
          ASSERT_EQ(table.upto[size_t(end) - 1], kShareUnit);
          for (int32_t i = first; i < end; ++i) {
            ASSERT_EQ(placement.layer(1)[size_t(table.slot[size_t(i)])], expert);
          }
          ASSERT_TRUE(algorithm != DispatchAlgorithm::kStatic || end == first + 1);
        }
      }
    }
  });
}

TEST(Dispatch, M3_StaticGivesEachReplicaItsQuotaOfRanks) {
  for_each_placement([](const ExpertPlacement& placement, const EpTopology& topology) {
    const std::vector<int32_t> quotas = static_quotas(placement, topology, 0);
    const std::vector<int32_t> shares = shares_of_slots(placement, 0);
    const std::vector<int64_t> parts = parts_of_slots(placement, topology, 0, DispatchAlgorithm::kStatic);
    for (size_t slot = 0; slot < quotas.size(); ++slot) {
      ASSERT_EQ(parts[slot], int64_t(quotas[slot]) * kShareUnit);
      const int64_t exact = int64_t(shares[slot]) * topology.num_ranks;
      ASSERT_GE(quotas[slot], exact / kShareUnit);
      ASSERT_LE(quotas[slot], (exact + kShareUnit - 1) / kShareUnit);
    }
  });
}

TEST(Dispatch, M3_TheOwnRankThenTheOwnNodeIsPreferredWithinQuota) {
  // 2 nodes of 4 ranks; expert 0 on ranks 1 and 2 of node 0 and rank 6 of node 1: quotas 3, 3, 2.
  const EpTopology topology{2, 8, 1};
  const ExpertPlacement placement{1, 6, 8, {1, 0, 0, 2, 3, 4, 0, 5}, {}};
  EXPECT_EQ(static_quotas(placement, topology, 0), (std::vector<int32_t>{8, 3, 3, 8, 8, 8, 2, 8}));
  const auto slot_for = [&](int32_t rank) {
    return build_dispatch(placement, topology, 0, rank, DispatchAlgorithm::kStatic).choose(0, 0);
  };
  EXPECT_EQ(slot_for(1), 1);
  EXPECT_EQ(slot_for(2), 2);
  EXPECT_EQ(slot_for(6), 6);
  EXPECT_EQ(slot_for(3), 1);  // node 0 goes to node 0
  EXPECT_EQ(slot_for(0), 1);
  EXPECT_EQ(slot_for(7), 6);  // the last of slot 6's quota
  EXPECT_EQ(slot_for(4), 2);  // node 1's replica has enough ranks
  EXPECT_EQ(slot_for(5), 2);
}

TEST(Dispatch, WeightedSharesAreExactOverAllRanks) {
  for_each_placement([](const ExpertPlacement& placement, const EpTopology& topology) {
    const std::vector<int32_t> shares = shares_of_slots(placement, 1);
    const std::vector<int64_t> parts = parts_of_slots(placement, topology, 1, DispatchAlgorithm::kWeighted);
    for (size_t slot = 0; slot < parts.size(); ++slot) {
      ASSERT_EQ(parts[slot], int64_t(shares[slot]) * topology.num_ranks);
    }
  });
}

TEST(Dispatch, WeightedSendsNoFurtherThanQuotasForce) {
  // Equal thirds over 4 ranks of 2 nodes: a rank with a replica serves itself alone, rank 3 splits over all three.
  const EpTopology topology{2, 4, 1};
  const ExpertPlacement placement{1, 2, 4, {0, 0, 0, 1}, {}};
  for (int32_t rank = 0; rank < 3; ++rank) {
    const LayerDispatch table = build_dispatch(placement, topology, 0, rank, DispatchAlgorithm::kWeighted);
    EXPECT_EQ(table.slot, (std::vector<int32_t>{rank, 3}));
  }
  const LayerDispatch table = build_dispatch(placement, topology, 0, 3, DispatchAlgorithm::kWeighted);
  EXPECT_EQ(table.slot, (std::vector<int32_t>{0, 1, 2, 3}));
}

TEST(Dispatch, M4_DynamicFrequenciesMatchTheShares) {
  const EpTopology topology{1, 4, 3};
  ExpertPlacement placement = trivial_placement(1, 3, 12);
  placement.share.assign(12, kShareUnit / 4);
  for (size_t i = 0; i < 4; ++i) placement.share[3 * i] = kShareUnit / 8 * std::vector<int32_t>{1, 4, 0, 3}[i];
  for (DispatchAlgorithm algorithm : {DispatchAlgorithm::kDynamic, DispatchAlgorithm::kFake}) {
    const LayerDispatch table = build_dispatch(placement, topology, 0, 2, algorithm);
    std::map<int32_t, int32_t> count;
    constexpr int32_t kDraws = 80000;
    for (int32_t token = 0; token < kDraws / 8; ++token) {
      for (uint32_t choice = 0; choice < 8; ++choice) count[table.choose(0, draw_of(7, uint64_t(token), choice))] += 1;
    }
    double chi_square = 0;
    for (int32_t slot : {0, 3, 9}) {
      const double expected = double(kDraws) * placement.share[size_t(slot)] / kShareUnit;
      chi_square += (count[slot] - expected) * (count[slot] - expected) / expected;
    }
    EXPECT_EQ(count.size(), 3u);    // no slot outside the list, none for a share of 0
    EXPECT_LT(chi_square, 13.816);  // 2 degrees of freedom, 0.1 %
  }
}

TEST(Dispatch, DrawsFillTheirRangeEvenly) {
  std::vector<int32_t> bins(64, 0);
  for (uint64_t seed = 0; seed < 8; ++seed) {
    for (uint64_t token = 0; token < 1024; ++token) {
      for (uint32_t choice = 0; choice < 8; ++choice) {
        ASSERT_LT(draw_of(seed, token, choice), uint32_t(kShareUnit));
        bins[draw_of(seed, token, choice) >> 10] += 1;
      }
    }
  }
  double chi_square = 0;
  for (int32_t count : bins) chi_square += (count - 1024.0) * (count - 1024.0) / 1024.0;
  EXPECT_LT(chi_square, 103.4);  // 63 degrees of freedom, 0.1 %
  EXPECT_NE(draw_of(1, 2, 3), draw_of(1, 3, 2));
}

TEST(Dispatch, ServedBalanceIsWhatTheTablesGive) {
  for_each_placement([](const ExpertPlacement& placement, const EpTopology& topology) {
    ExpertLoad load{2, placement.num_logical, {}};
    for (int32_t i = 0; i < 2 * placement.num_logical; ++i) load.tokens.push_back(1000 + 37 * i);
    for (DispatchAlgorithm algorithm : kAll) {
      std::vector<double> ranks(2 * size_t(topology.num_ranks));
      for (int32_t layer = 0; layer < 2; ++layer) {
        const std::vector<int64_t> parts = parts_of_slots(placement, topology, layer, algorithm);
        for (int32_t slot = 0; slot < placement.num_slots; ++slot) {
          ranks[size_t(layer * topology.num_ranks + topology.rank_of(slot))] +=
              double(parts[size_t(slot)]) * double(load.layer(layer)[size_t(placement.layer(layer)[size_t(slot)])]);
        }
      }
      const Balancedness expected = balancedness_of_ranks(ranks, topology.num_ranks);
      const Balancedness served = served_balance(load, placement, topology, algorithm);
      EXPECT_NEAR(served.mean, expected.mean, 1e-12);
      EXPECT_NEAR(served.worst, expected.worst, 1e-12);
    }
  });
}

TEST(Balancedness, LayersWithoutLoadDoNotCount) {
  const EpTopology topology{1, 2, 1};
  const ExpertLoad load{2, 2, {0, 0, 30, 10}};
  const Balancedness result = balancedness(load, trivial_placement(2, 2, 2), topology);
  EXPECT_EQ(result.layer, (std::vector<double>{1, 20.0 / 30}));
  EXPECT_DOUBLE_EQ(result.mean, 20.0 / 30);
  EXPECT_DOUBLE_EQ(result.worst, 20.0 / 30);
}

}  // namespace
}  // namespace tandem::experts
