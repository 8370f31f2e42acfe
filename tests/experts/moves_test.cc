#include "experts/moves.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "experts/repair.h"
#include "tests/experts/plan_fixture.h"

namespace tandem::experts {
namespace {

std::vector<int32_t> row_of(const ExpertPlacement& placement, int32_t layer = 0) {
  return {placement.layer(layer).begin(), placement.layer(layer).end()};
}

// Every expert once, the rest and the order at random.
ExpertPlacement random_placement(const EpTopology& topology, int32_t num_logical, Random& random) {
  ExpertPlacement placement = trivial_placement(1, num_logical, topology.num_slots());
  std::vector<int32_t>& slots = placement.logical_of_slot;
  for (size_t i = size_t(num_logical); i < slots.size(); ++i) slots[i] = random.below(num_logical);
  for (size_t i = slots.size() - 1; i > 0; --i) std::swap(slots[i], slots[size_t(random.below(int32_t(i) + 1))]);
  return placement;
}

// A mover that copies: bytes of every slot before, places that moves were read into, and what each slot points at after
// the switch. Bytes are stood for by the expert's id.
class CopyingMover {
 public:
  explicit CopyingMover(std::vector<int32_t> bytes) : bytes_(std::move(bytes)) {}

  void run(const std::vector<ExpertMove>& moves) {
    std::map<int32_t, int32_t> read;  // to_slot: bytes
    int32_t stage = 0;
    for (const ExpertMove& move : moves) {
      ASSERT_GE(move.stage, stage);  // ascending
      stage = move.stage;
      ASSERT_EQ(read.count(move.to_slot), 0u);
      ASSERT_TRUE(move.stage == 0 || read.count(move.from_slot) == 1);
      read[move.to_slot] = move.stage == 0 ? bytes_[size_t(move.from_slot)] : read[move.from_slot];
      ASSERT_EQ(read[move.to_slot], move.logical);
    }
    for (const auto& [slot, bytes] : read) bytes_[size_t(slot)] = bytes;
  }
  const std::vector<int32_t>& bytes() const { return bytes_; }

 private:
  std::vector<int32_t> bytes_;
};

// A mover that has a slab of places per rank with `num_spare` spare ones, and renames instead of copying where told.
class SlabMover {
 public:
  SlabMover(const std::vector<int32_t>& experts, const EpTopology& topology, int32_t num_spare)
      : topology_(topology), places_per_rank_(topology.slots_per_rank + num_spare) {
    bytes_.assign(size_t(topology.num_ranks * places_per_rank_), -1);
    for (int32_t slot = 0; slot < topology.num_slots(); ++slot) {
      table_.push_back(topology.rank_of(slot) * places_per_rank_ + slot % topology.slots_per_rank);
      bytes_[size_t(table_.back())] = experts[size_t(slot)];
    }
  }

  void run(const std::vector<ExpertMove>& moves) {
    std::vector<int32_t> next = table_;
    std::set<int32_t> used(table_.begin(), table_.end());
    for (const ExpertMove& move : moves) {
      const int32_t source = move.stage == 0 ? table_[size_t(move.from_slot)] : next[size_t(move.from_slot)];
      int32_t place = source;
      if (move.path != MovePath::kRename) {
        place = topology_.rank_of(move.to_slot) * places_per_rank_;
        const int32_t end = place + places_per_rank_;
        while (place < end && used.count(place) > 0) ++place;
        ASSERT_LT(place, end) << "no spare place left";
        used.insert(place);
        bytes_[size_t(place)] = bytes_[size_t(source)];
      }
      next[size_t(move.to_slot)] = place;
    }
    table_ = next;
    ASSERT_EQ(std::set<int32_t>(table_.begin(), table_.end()).size(), table_.size());  // each slot has its own place
  }

  std::vector<int32_t> experts() const {
    std::vector<int32_t> result;
    for (int32_t place : table_) result.push_back(bytes_[size_t(place)]);
    return result;
  }

 private:
  EpTopology topology_;
  int32_t places_per_rank_;
  std::vector<int32_t> table_;  // place of each slot
  std::vector<int32_t> bytes_;  // of each place
};

MovePath path_between(const EpTopology& topology, int32_t from_slot, int32_t to_slot) {
  if (topology.rank_of(from_slot) == topology.rank_of(to_slot)) return MovePath::kSameRank;
  return topology.node_of(from_slot) == topology.node_of(to_slot) ? MovePath::kSameNode : MovePath::kCrossNode;
}

std::vector<ExpertMove> moves_of(const ExpertPlacement& from, const ExpertPlacement& to, const EpTopology& topology) {
  SentExperts sent(size_t(topology.num_ranks), 0);
  return plan_moves(from, to, topology, 0, sent);
}

// visit(from, to, topology) over random placements on 8 to 144 ranks.
template <class Visit>
void for_each_pair(Visit visit) {
  Random random(3);
  for (const EpTopology& topology :
       {EpTopology{1, 8, 3}, EpTopology{2, 8, 5}, EpTopology{4, 16, 2}, EpTopology{4, 32, 9}, EpTopology{9, 72, 4},
        EpTopology{18, 144, 2}, EpTopology{8, 8, 3}}) {
    for (int32_t repetition = 0; repetition < 12; ++repetition) {
      const int32_t num_logical = topology.num_slots() - random.below(topology.num_slots() / 2);
      const ExpertPlacement from = random_placement(topology, num_logical, random);
      visit(from, random_placement(topology, num_logical, random), topology);
    }
  }
}

TEST(Moves, W2_ChainsAndCyclesGiveTheRightBytes) {
  struct Example {
    const char* name;
    EpTopology topology;
    std::vector<int32_t> from, to;
  };
  const Example examples[] = {
      {"a to b to c to a", {1, 3, 1}, {0, 1, 2}, {2, 0, 1}},
      {"a chain of replicas", {1, 4, 1}, {0, 0, 1, 2}, {0, 1, 2, 0}},
      {"a swap on a rank", {1, 1, 2}, {0, 1}, {1, 0}},
      {"the same expert twice on a rank", {1, 2, 3}, {0, 1, 2, 0, 1, 2}, {0, 1, 2, 1, 1, 0}},
      {"received twice by a rank", {2, 2, 3}, {0, 0, 0, 1, 2, 2}, {0, 1, 2, 1, 0, 0}},
      {"a rank that sends and receives the same expert", {1, 2, 2}, {0, 1, 2, 1}, {1, 0, 1, 2}},
      {"two cycles over the same ranks", {2, 4, 2}, {0, 1, 2, 3, 4, 5, 6, 7}, {2, 7, 4, 1, 6, 3, 0, 5}},
  };
  for (const Example& example : examples) {
    SCOPED_TRACE(example.name);
    const int32_t num_logical = 1 + *std::max_element(example.from.begin(), example.from.end());
    const ExpertPlacement from{1, num_logical, example.topology.num_slots(), example.from, {}};
    const ExpertPlacement to{1, num_logical, example.topology.num_slots(), example.to, {}};
    const std::vector<ExpertMove> moves = moves_of(from, to, example.topology);
    CopyingMover copying(example.from);
    copying.run(moves);
    EXPECT_EQ(copying.bytes(), example.to);
    SlabMover slab(example.from, example.topology, example.topology.slots_per_rank);
    slab.run(moves);
    EXPECT_EQ(slab.experts(), example.to);
  }
}

TEST(Moves, W2_RandomPlansGiveTheRightBytes) {
  for_each_pair([](const ExpertPlacement& from, const ExpertPlacement& to, const EpTopology& topology) {
    const std::vector<ExpertMove> moves = moves_of(from, to, topology);
    CopyingMover copying(row_of(from));
    copying.run(moves);
    ASSERT_EQ(copying.bytes(), row_of(to));
    SlabMover slab(row_of(from), topology, topology.slots_per_rank);
    slab.run(moves);
    ASSERT_EQ(slab.experts(), row_of(to));
  });
}

TEST(Moves, W3_NothingIsMovedForUnchangedSlotsAndEverythingElseOnce) {
  for_each_pair([](const ExpertPlacement& from, const ExpertPlacement& to, const EpTopology& topology) {
    std::set<int32_t> moved;
    for (const ExpertMove& move : moves_of(from, to, topology)) {
      ASSERT_TRUE(moved.insert(move.to_slot).second);
      ASSERT_EQ(move.logical, to.logical_of_slot[size_t(move.to_slot)]);
    }
    for (int32_t slot = 0; slot < topology.num_slots(); ++slot) {
      ASSERT_EQ(moved.count(slot) == 1, from.logical_of_slot[size_t(slot)] != to.logical_of_slot[size_t(slot)]);
    }
    ASSERT_TRUE(moves_of(to, to, topology).empty());
  });
}

TEST(Moves, W3_AtMostOneFetchAcrossNodesPerExpertAndNode) {
  for_each_pair([](const ExpertPlacement& from, const ExpertPlacement& to, const EpTopology& topology) {
    std::set<std::pair<int32_t, int32_t>> fetched;
    for (const ExpertMove& move : moves_of(from, to, topology)) {
      if (move.path != MovePath::kCrossNode) continue;
      ASSERT_EQ(move.stage, 0);
      const int32_t node = topology.node_of(move.to_slot);
      ASSERT_TRUE(fetched.insert({move.logical, node}).second);
      for (int32_t slot = 0; slot < topology.num_slots(); ++slot) {  // nobody on the node had it
        ASSERT_TRUE(from.logical_of_slot[size_t(slot)] != move.logical || topology.node_of(slot) != node);
      }
    }
  });
}

TEST(Moves, W4_EverySourceHasTheBytesAndEveryPathIsTheNearest) {
  for_each_pair([](const ExpertPlacement& from, const ExpertPlacement& to, const EpTopology& topology) {
    const SlotsOfExperts before = slots_of_experts(from, 0);
    SentExperts sent(size_t(topology.num_ranks), 0), counted = sent;
    const std::vector<ExpertMove> moves = plan_moves(from, to, topology, 0, sent);
    std::set<int32_t> given;  // slots whose bytes were renamed away
    for (const ExpertMove& move : moves) {
      const MovePath path = path_between(topology, move.from_slot, move.to_slot);
      if (move.path == MovePath::kRename) {
        ASSERT_EQ(path, MovePath::kSameRank);
        ASSERT_TRUE(given.insert(move.from_slot).second);
        ASSERT_NE(to.logical_of_slot[size_t(move.from_slot)], move.logical);
      } else {
        ASSERT_EQ(path, move.path);
        if (path != MovePath::kSameRank) counted[size_t(topology.rank_of(move.from_slot))] += 1;
      }
      if (move.stage > 0) {
        const auto source = std::find_if(moves.begin(), moves.end(),
                                         [&](const ExpertMove& each) { return each.to_slot == move.from_slot; });
        ASSERT_TRUE(source != moves.end() && source->stage == move.stage - 1 && source->logical == move.logical);
        continue;
      }
      ASSERT_EQ(from.logical_of_slot[size_t(move.from_slot)], move.logical);
      for (int32_t slot : before.of(move.logical)) {
        ASSERT_GE(path_between(topology, slot, move.to_slot), path);
      }
    }
    ASSERT_EQ(sent, counted);
  });
}

TEST(Moves, EqualSourcesTakeTurns) {
  // Expert 0 on ranks 0 and 1, experts 1 to 5 on ranks 2 to 6; then 0 goes to ranks 3 to 6, whose experts move up.
  const EpTopology topology{1, 8, 1};
  const ExpertPlacement from{1, 5, 8, {0, 0, 1, 2, 3, 4, 4, 4}, {}}, to{1, 5, 8, {0, 0, 1, 2, 3, 4, 0, 0}, {}};
  const std::vector<ExpertMove> moves = moves_of(from, to, topology);
  ASSERT_EQ(moves.size(), 2u);
  EXPECT_EQ(moves[0].from_slot, 0);
  EXPECT_EQ(moves[1].from_slot, 1);
}

TEST(Moves, ANodeFetchesOnceAndPassesOn) {
  // Node 1 (ranks 2 and 3, two slots each) gets expert 0 three times.
  const EpTopology topology{2, 4, 2};
  const ExpertPlacement from{1, 4, 8, {0, 1, 2, 3, 1, 2, 3, 1}, {}}, to{1, 4, 8, {0, 1, 2, 3, 0, 0, 3, 0}, {}};
  const std::vector<ExpertMove> expected{{0, 0, 4, 0, MovePath::kCrossNode, 0},
                                         {0, 0, 5, 4, MovePath::kSameRank, 1},
                                         {0, 0, 7, 4, MovePath::kSameNode, 1}};
  EXPECT_EQ(moves_of(from, to, topology), expected);
}

TEST(LayerSteps, EveryStepIsAValidPlacementWithinTheSparePlacesAndTheLastIsTheGoal) {
  for_each_pair([](const ExpertPlacement& from, const ExpertPlacement& to, const EpTopology& topology) {
    for (int32_t max_incoming : {1, 2, 4}) {
      SlabMover slab(row_of(from), topology, max_incoming);
      const std::vector<LayerStep> steps = plan_layer_steps(from, to, topology, 0, max_incoming);
      ASSERT_LE(steps.size(), size_t(2 * topology.num_slots()));
      for (const LayerStep& step : steps) {
        // M1: the map and its inverse agree, every expert has a slot, shares add up.
        const ExpertPlacement now{1, from.num_logical, from.num_slots, step.logical_of_slot, step.share};
        ASSERT_TRUE(validate(now, topology).has_value());
        slab.run(step.moves);
        if (testing::Test::HasFatalFailure()) return;
        ASSERT_EQ(slab.experts(), step.logical_of_slot);
      }
      ASSERT_EQ(steps.back().logical_of_slot, row_of(to));
      ASSERT_EQ(steps.back().share, shares_of_slots(to, 0));
    }
  });
}

TEST(LayerSteps, EnoughSparePlacesNeedOneStep) {
  for_each_pair([](const ExpertPlacement& from, const ExpertPlacement& to, const EpTopology& topology) {
    const std::vector<LayerStep> steps = plan_layer_steps(from, to, topology, 0, topology.slots_per_rank);
    ASSERT_EQ(steps.size(), from.logical_of_slot == to.logical_of_slot ? 0u : 1u);
  });
}

TEST(LayerSteps, ACycleThatDoesNotFitIsBrokenByExchanges) {
  // All experts of two ranks change place in one long cycle; one spare place each.
  const EpTopology topology{1, 2, 4};
  const ExpertPlacement from{1, 8, 8, {0, 1, 2, 3, 4, 5, 6, 7}, {}}, to{1, 8, 8, {4, 5, 6, 7, 1, 2, 3, 0}, {}};
  const std::vector<LayerStep> steps = plan_layer_steps(from, to, topology, 0, 1);
  SlabMover slab(row_of(from), topology, 1);
  for (const LayerStep& step : steps) {
    slab.run(step.moves);
    std::set<int32_t> experts(step.logical_of_slot.begin(), step.logical_of_slot.end());
    EXPECT_EQ(experts.size(), 8u);
  }
  EXPECT_EQ(slab.experts(), row_of(to));
}

TEST(LayerSteps, NewSharesAloneAreOneStepWithoutMovesAndNoChangeIsNone) {
  const EpTopology topology{1, 2, 2};
  const ExpertPlacement from{1, 3, 4, {0, 1, 0, 2}, {}};
  ExpertPlacement to = from;
  EXPECT_TRUE(plan_layer_steps(from, to, topology, 0, 1).empty());
  to.share = {kShareUnit / 4, kShareUnit, 3 * kShareUnit / 4, kShareUnit};
  const std::vector<LayerStep> steps = plan_layer_steps(from, to, topology, 0, 1);
  ASSERT_EQ(steps.size(), 1u);
  EXPECT_TRUE(steps[0].moves.empty());
  EXPECT_EQ(steps[0].share, to.share);
}

TEST(Maps, M1_TheInverseOfEveryStepHoldsEverySlotOnce) {
  Random random(9);
  const EpTopology topology{4, 16, 3};
  const ExpertPlacement from = random_placement(topology, 30, random), to = random_placement(topology, 30, random);
  for (const LayerStep& step : plan_layer_steps(from, to, topology, 0, 2)) {
    const SlotsOfExperts inverse = slots_of_experts({1, 30, 48, step.logical_of_slot, {}}, 0);
    EXPECT_EQ(std::set<int32_t>(inverse.slot.begin(), inverse.slot.end()).size(), 48u);
    for (int32_t expert = 0; expert < 30; ++expert) {
      ASSERT_FALSE(inverse.of(expert).empty());
      for (int32_t slot : inverse.of(expert)) ASSERT_EQ(step.logical_of_slot[size_t(slot)], expert);
    }
  }
}

TEST(LayerSteps, RepairPlansFitIntoFewSteps) {
  const PlanShape shape{{4, 32, 9}, 256, 8};
  const auto windows = drifting_loads(LoadKind::kLogNormal, {.num_layers = 4}, 2, 0.2, 5);
  const ExpertPlacement current = must_plan("tandem", shape, windows[0]);
  const ExpertPlacement repaired = repair(windows[1], current, shape.topology, {});
  for (int32_t layer = 0; layer < 4; ++layer) {
    EXPECT_LE(plan_layer_steps(current, repaired, shape.topology, layer, 4).size(), 2u);
  }
}

}  // namespace
}  // namespace tandem::experts
