#include "experts/placement.h"

#include <fmt/format.h>

#include "base/check.h"

namespace tandem::experts {
namespace {

Status validate_layer(const ExpertPlacement& placement, int32_t layer) {
  const std::span<const int32_t> slots = placement.layer(layer);
  std::vector<int64_t> num_slots(size_t(placement.num_logical), 0), shares(size_t(placement.num_logical), 0);
  for (int32_t slot = 0; slot < placement.num_slots; ++slot) {
    const int32_t expert = slots[size_t(slot)];
    if (expert < 0 || expert >= placement.num_logical) {
      return invalid_input(
          fmt::format("layer {}, slot {}: expert {} is not in [0, {})", layer, slot, expert, placement.num_logical));
    }
    num_slots[size_t(expert)] += 1;
    if (placement.share.empty()) continue;
    const int32_t share = placement.share[size_t(layer) * size_t(placement.num_slots) + size_t(slot)];
    if (share < 0) return invalid_input(fmt::format("layer {}, slot {}: share {} is negative", layer, slot, share));
    shares[size_t(expert)] += share;
  }
  for (int32_t expert = 0; expert < placement.num_logical; ++expert) {
    if (num_slots[size_t(expert)] == 0) {
      return invalid_input(fmt::format("layer {}: expert {} has no slot", layer, expert));
    }
    if (!placement.share.empty() && shares[size_t(expert)] != kShareUnit) {
      return invalid_input(fmt::format("layer {}: the shares of expert {} add up to {} of {}", layer, expert,
                                       shares[size_t(expert)], kShareUnit));
    }
  }
  return Ok{};
}

}  // namespace

SlotsOfExperts slots_of_experts(const ExpertPlacement& placement, int32_t layer) {
  const std::span<const int32_t> experts = placement.layer(layer);
  SlotsOfExperts inverse{std::vector<int32_t>(size_t(placement.num_logical) + 1), std::vector<int32_t>(experts.size())};
  for (int32_t expert : experts) inverse.begin[size_t(expert) + 1] += 1;
  for (size_t i = 1; i < inverse.begin.size(); ++i) inverse.begin[i] += inverse.begin[i - 1];
  std::vector<int32_t> next(inverse.begin.begin(), inverse.begin.end() - 1);
  for (size_t slot = 0; slot < experts.size(); ++slot) {
    inverse.slot[size_t(next[size_t(experts[slot])]++)] = int32_t(slot);
  }
  return inverse;
}

std::vector<int32_t> shares_of_slots(const ExpertPlacement& placement, int32_t layer) {
  const size_t num_slots = size_t(placement.num_slots);
  if (!placement.share.empty()) {
    const auto first = placement.share.begin() + ptrdiff_t(size_t(layer) * num_slots);
    return {first, first + ptrdiff_t(num_slots)};
  }
  std::vector<int32_t> shares(num_slots);
  const SlotsOfExperts inverse = slots_of_experts(placement, layer);
  for (int32_t expert = 0; expert < placement.num_logical; ++expert) {
    const std::span<const int32_t> slots = inverse.of(expert);
    for (size_t i = 0; i < slots.size(); ++i) {
      shares[size_t(slots[i])] =
          kShareUnit / int32_t(slots.size()) + (int32_t(i) < kShareUnit % int32_t(slots.size()) ? 1 : 0);
    }
  }
  return shares;
}

uint64_t layer_hash(const ExpertPlacement& placement, int32_t layer) {
  uint64_t hash = 0xCBF29CE484222325;
  const auto add = [&hash](int32_t value) {
    for (int shift = 0; shift < 32; shift += 8) hash = (hash ^ ((uint32_t(value) >> shift) & 0xFF)) * 0x100000001B3;
  };
  for (int32_t expert : placement.layer(layer)) add(expert);
  for (int32_t share : shares_of_slots(placement, layer)) add(share);
  return hash;
}

ExpertPlacement trivial_placement(int32_t num_layers, int32_t num_logical, int32_t num_slots) {
  CHECK(num_logical > 0 && num_slots >= num_logical);
  ExpertPlacement placement{num_layers, num_logical, num_slots, {}, {}};
  placement.logical_of_slot.reserve(size_t(num_layers) * size_t(num_slots));
  for (int32_t layer = 0; layer < num_layers; ++layer) {
    for (int32_t slot = 0; slot < num_slots; ++slot) placement.logical_of_slot.push_back(slot % num_logical);
  }
  return placement;
}

Status validate(const ExpertPlacement& placement, const EpTopology& topology) {
  if (topology.num_nodes < 1 || topology.num_ranks < 1 || topology.num_ranks % topology.num_nodes != 0) {
    return invalid_input(fmt::format("{} ranks do not divide over {} nodes", topology.num_ranks, topology.num_nodes));
  }
  if (placement.num_slots != topology.num_slots()) {
    return invalid_input(fmt::format("the placement has {} slots per layer, {} ranks of {} slots have {}",
                                     placement.num_slots, topology.num_ranks, topology.slots_per_rank,
                                     topology.num_slots()));
  }
  const size_t cells = size_t(placement.num_layers) * size_t(placement.num_slots);
  if (placement.logical_of_slot.size() != cells) {
    return invalid_input(fmt::format("the placement has {} entries, {} layers of {} slots need {}",
                                     placement.logical_of_slot.size(), placement.num_layers, placement.num_slots,
                                     cells));
  }
  if (!placement.share.empty() && placement.share.size() != cells) {
    return invalid_input(fmt::format("the placement has {} shares, {} layers of {} slots need {}",
                                     placement.share.size(), placement.num_layers, placement.num_slots, cells));
  }
  for (int32_t layer = 0; layer < placement.num_layers; ++layer) {
    RETURN_IF_ERROR(validate_layer(placement, layer));
  }
  return Ok{};
}

}  // namespace tandem::experts
