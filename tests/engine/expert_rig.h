// Small expert slabs for tests of the balancer: three layers, of which two have eight experts, whose weights say which
// they are, on four ranks of two nodes.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <set>
#include <vector>

#include "device/digest.h"
#include "experts/placement.h"
#include "kernels/moe.h"
#include "model/expert_slots.h"

namespace tandem::testing {

using experts::ExpertPlacement;

inline constexpr int32_t kLayers = 3, kExperts = 8, kSpares = 2;
inline constexpr int64_t kHidden = 16, kWidth = 16;
inline const experts::EpTopology kTopology{2, 4, 3};  // layer 0 is dense

// An expert whose every weight says which it is.
inline kernels::ExpertWeights make_expert(int32_t layer, int32_t expert) {
  const std::vector<float> values(size_t(2 * kWidth * kHidden), float(layer * 100 + expert));
  const auto pack = [&](int64_t rows, int64_t cols) {
    kernels::RawWeight raw;
    raw.data = values.data();
    raw.rows = rows;
    raw.cols = raw.row_stride = cols;
    return kernels::pack(kernels::Backend::kRef, kernels::Isa::kAvx2, {raw});
  };
  return {pack(2 * kWidth, kHidden), pack(kHidden, kWidth)};
}

inline std::unique_ptr<model::ExpertSlots> make_slots(const ExpertPlacement& placement, int32_t rank) {
  auto slots = std::make_unique<model::ExpertSlots>(
      model::ExpertSlots::Shape{{1, 2}, kLayers, kTopology.slots_per_rank, kSpares}, make_expert(0, 0));
  for (const int32_t layer : {1, 2}) {
    const std::span<const int32_t> row = placement.layer(layer);
    for (int32_t s = 0; s < kTopology.slots_per_rank; ++s) {
      const int32_t expert = row[size_t(rank * kTopology.slots_per_rank + s)];
      EXPECT_TRUE(slots->fill(slots->layer(layer).place_of_slot[size_t(s)], make_expert(layer, expert)));
    }
    slots->set_placement(layer, {row.begin(), row.end()},
                         build_dispatch(placement, kTopology, layer, rank, experts::DispatchAlgorithm::kStatic));
  }
  return slots;
}

// Every expert once, the rest at random; the dense layer stays trivial.
inline ExpertPlacement random_placement(uint32_t seed) {
  ExpertPlacement placement = experts::trivial_placement(kLayers, kExperts, kTopology.num_slots());
  std::mt19937 random(seed);
  for (const int32_t layer : {1, 2}) {
    const auto begin = placement.logical_of_slot.begin() + layer * kTopology.num_slots();
    for (int32_t slot = kExperts; slot < kTopology.num_slots(); ++slot) begin[slot] = int32_t(random() % kExperts);
    std::shuffle(begin, begin + kTopology.num_slots(), random);
  }
  return placement;
}

// Each slot's bytes on this rank are its expert's, the kernels' table points there, no place is used twice, and the
// others are the spares.
inline void expect_holds(const model::ExpertSlots& mine, const ExpertPlacement& wanted, int32_t rank) {
  std::set<int32_t> used;
  for (const int32_t layer : {1, 2}) {
    const std::span<const int32_t> row = wanted.layer(layer);
    EXPECT_EQ(mine.layer(layer).logical_of_slot, std::vector<int32_t>(row.begin(), row.end()));
    for (int32_t s = 0; s < kTopology.slots_per_rank; ++s) {
      const int32_t place = mine.layer(layer).place_of_slot[size_t(s)];
      EXPECT_TRUE(used.insert(place).second) << "place " << place << " is used twice";
      const kernels::ExpertWeights expert = make_expert(layer, row[size_t(rank * kTopology.slots_per_rank + s)]);
      std::vector<std::byte> bytes(mine.place(place).size() + 64);
      auto* at = reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(bytes.data()) + 63) / 64 * 64);
      expert.gate_up.copy_to(at);
      expert.down.copy_to(at + expert.gate_up.bytes());
      EXPECT_EQ(std::memcmp(at, mine.place(place).data(), mine.place(place).size()), 0);
      EXPECT_EQ(mine.digest(place), device::digest(mine.place(place)));
    }
  }
  EXPECT_EQ(mine.num_places() - int32_t(used.size()), kSpares);  // staging never grows
}

}  // namespace tandem::testing
