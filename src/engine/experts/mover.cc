#include "engine/experts/mover.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "device/digest.h"

namespace tandem::engine {
namespace {

// One piece of a copy: some 20 us, after which the allowance is looked at again.
constexpr int64_t kPieceBytes = 256 << 10;

std::vector<int32_t> all_shares(const experts::ExpertPlacement& placement) {
  std::vector<int32_t> shares;
  for (int32_t layer = 0; layer < placement.num_layers; ++layer) {
    const std::vector<int32_t> row = shares_of_slots(placement, layer);
    shares.insert(shares.end(), row.begin(), row.end());
  }
  return shares;
}

}  // namespace

ExpertMover::ExpertMover(const ExpertBalancerConfig& config, std::vector<ExpertPort*> ports,
                         experts::ExpertPlacement placement, CopyFn copy)
    : topology_(config.topology),
      dispatch_(config.dispatch),
      layers_per_version_(config.layers_per_version),
      deadline_(config.progress_deadline),
      ports_(std::move(ports)),
      copy_(std::move(copy)),
      placement_(std::move(placement)) {
  CHECK(int32_t(ports_.size()) == topology_.num_ranks);
  num_spares_ = ports_[0]->slots().shape().num_spares;
  for (const ExpertPort* port : ports_) {
    const model::ExpertSlots& slots = port->slots();
    std::vector<PlaceTable>& tables = place_of_.emplace_back();
    for (int32_t layer = 0; layer < slots.shape().num_layers; ++layer) {
      tables.push_back(slots.layer(layer).place_of_slot);
    }
    std::vector<int32_t>& free = free_.emplace_back();
    for (int32_t place = slots.num_places() - num_spares_; place < slots.num_places(); ++place) free.push_back(place);
  }
}

int64_t ExpertMover::begin(const experts::ExpertPlacement& target) {
  CHECK(!is_busy());
  int64_t copies = 0;
  for (int32_t layer = 0; layer < placement_.num_layers; ++layer) {
    if (place_of_[0][size_t(layer)].empty()) continue;  // no routed experts
    for (experts::LayerStep& step : plan_layer_steps(placement_, target, topology_, layer, num_spares_)) {
      for (const experts::ExpertMove& move : step.moves) copies += move.path != experts::MovePath::kRename ? 1 : 0;
      steps_.push_back({layer, std::move(step)});
    }
  }
  if (!steps_.empty()) form_version();
  return copies;
}

// Places that the step needs on each rank beyond those taken already.
bool ExpertMover::fits(const Step& step, const std::vector<size_t>& taken) const {
  std::vector<size_t> needed = taken;
  for (const experts::ExpertMove& move : step.step.moves) {
    if (move.path != experts::MovePath::kRename) needed[size_t(rank_of(move.to_slot))] += 1;
  }
  for (size_t rank = 0; rank < needed.size(); ++rank) {
    if (needed[rank] > free_[rank].size()) return false;
  }
  return true;
}

// As many layers as the flags and the spare places allow; steps of one layer follow each other.
void ExpertMover::form_version() {
  version_layers_.clear();
  next_tables_.clear();
  std::vector<size_t> taken(ports_.size(), 0);
  while (!steps_.empty() && int32_t(version_layers_.size()) < layers_per_version_) {
    const bool again = !version_layers_.empty() && version_layers_.back().layer == steps_.front().layer;
    if (again || !fits(steps_.front(), taken)) break;
    add_step(steps_.front(), taken);
    version_layers_.push_back(std::move(steps_.front()));
    steps_.pop_front();
  }
  CHECK(!version_layers_.empty());  // a step was planned to fit the spares
  phase_ = Phase::kCopying;
  progress_at_ = TimePoint{};
}

void ExpertMover::add_step(const Step& step, std::vector<size_t>& taken) {
  std::vector<PlaceTable> tables;
  for (const auto& of_rank : place_of_) tables.push_back(of_rank[size_t(step.layer)]);
  const std::vector<PlaceTable> before = tables;
  const auto at = [&](auto& of, int32_t slot) -> auto& {
    return of[size_t(rank_of(slot))][size_t(slot % topology_.slots_per_rank)];
  };
  for (const experts::ExpertMove& move : step.step.moves) {  // stages ascend
    const int32_t from_place = move.stage == 0 ? at(before, move.from_slot) : at(tables, move.from_slot);
    if (move.path == experts::MovePath::kRename) {
      at(tables, move.to_slot) = from_place;
      continue;
    }
    const int32_t to_rank = rank_of(move.to_slot);
    const int32_t to_place = free_[size_t(to_rank)][taken[size_t(to_rank)]++];
    copies_.push_back({rank_of(move.from_slot), from_place, to_rank, to_place, 0});
    at(tables, move.to_slot) = to_place;
  }
  next_tables_.push_back(std::move(tables));
}

Status ExpertMover::copy_some(int64_t& allowance) {
  while (!copies_.empty() && allowance > 0) {
    Copy& copy = copies_.front();
    const std::span<const std::byte> from = ports_[size_t(copy.from_rank)]->slots().place(copy.from_place);
    const std::span<std::byte> to = ports_[size_t(copy.to_rank)]->slots().place(copy.to_place);
    const int64_t piece = std::min({kPieceBytes, int64_t(from.size()) - copy.done, allowance});
    RETURN_IF_ERROR(
        copy_(from.subspan(size_t(copy.done), size_t(piece)), to.subspan(size_t(copy.done), size_t(piece))));
    copy.done += piece;
    allowance -= piece;
    bytes_moved_ += piece;
    if (copy.done < int64_t(from.size())) continue;
    RETURN_IF_ERROR(finish_copy(copy));
    copies_.pop_front();
  }
  return Ok{};
}

Status ExpertMover::finish_copy(const Copy& copy) {
  const uint64_t wanted = ports_[size_t(copy.from_rank)]->slots().digest(copy.from_place);
  model::ExpertSlots& slots = ports_[size_t(copy.to_rank)]->slots();
  const uint64_t got = device::digest(slots.place(copy.to_place));
  if (got != wanted) {
    return corrupt(fmt::format("an expert copied from rank {} to rank {} has digest {:x}, its source {:x}",
                               copy.from_rank, copy.to_rank, got, wanted));
  }
  slots.set_digest(copy.to_place, got);
  moves_done_ += 1;
  return Ok{};
}

void ExpertMover::stage() {
  // The rows go into the placement when every rank has them; tables of the new dispatch are built from a copy.
  experts::ExpertPlacement next = placement_;
  for (const Step& step : version_layers_) {
    const size_t row = size_t(step.layer) * size_t(next.num_slots);
    std::copy(step.step.logical_of_slot.begin(), step.step.logical_of_slot.end(),
              next.logical_of_slot.begin() + int64_t(row));
    if (next.share.empty()) next.share = all_shares(placement_);
    std::copy(step.step.share.begin(), step.step.share.end(), next.share.begin() + int64_t(row));
  }
  staged_ += 1;
  for (size_t rank = 0; rank < ports_.size(); ++rank) {
    std::vector<LayerSwitch> switches;
    for (size_t i = 0; i < version_layers_.size(); ++i) {
      const Step& step = version_layers_[i];
      LayerSwitch& change = switches.emplace_back();
      change.layer = step.layer;
      change.experts.place_of_slot = next_tables_[i][rank];
      change.experts.logical_of_slot = step.step.logical_of_slot;
      change.experts.dispatch = experts::build_dispatch(next, topology_, step.layer, int32_t(rank), dispatch_);
    }
    ports_[rank]->stage(staged_, std::move(switches));
  }
  pending_ = std::move(next);
  phase_ = Phase::kStaged;
}

bool ExpertMover::all_applied() const {
  return std::ranges::all_of(ports_, [&](const ExpertPort* port) { return port->applied() == staged_; });
}

void ExpertMover::finish_version() {
  placement_ = std::move(pending_);
  version_ = staged_;
  for (size_t i = 0; i < version_layers_.size(); ++i) {
    const size_t layer = size_t(version_layers_[i].layer);
    for (size_t rank = 0; rank < ports_.size(); ++rank) {
      std::vector<int32_t>& free = free_[rank];
      PlaceTable& now = place_of_[rank][layer];
      const PlaceTable& next = next_tables_[i][rank];
      for (const int32_t place : now) {
        if (std::ranges::find(next, place) == next.end()) free.push_back(place);
      }
      std::erase_if(free, [&](int32_t place) { return std::ranges::find(next, place) != next.end(); });
      now = next;
      CHECK(int32_t(free.size()) >= num_spares_);
    }
  }
  version_layers_.clear();
  phase_ = Phase::kIdle;
  if (!steps_.empty()) form_version();
}

void ExpertMover::give_up() {
  steps_.clear();
  version_layers_.clear();
  copies_.clear();
  phase_ = Phase::kIdle;
}

Status ExpertMover::advance(TimePoint now, int64_t& allowance) {
  if (phase_ == Phase::kIdle) return Ok{};
  const int64_t before = bytes_moved_;
  if (phase_ == Phase::kCopying) {
    if (Status copied = copy_some(allowance); !copied) {
      give_up();
      return copied;
    }
    if (copies_.empty()) {
      stage();
      progress_at_ = now;
      return Ok{};
    }
  } else if (all_applied()) {
    finish_version();
    return Ok{};
  }
  if (bytes_moved_ != before || progress_at_ == TimePoint{}) progress_at_ = now;
  if (now - progress_at_ < deadline_) return Ok{};
  progress_at_ = now;
  std::string late;
  for (size_t rank = 0; rank < ports_.size(); ++rank) {
    if (ports_[rank]->applied() != staged_) late += fmt::format("{}{}", late.empty() ? "" : ", ", rank);
  }
  const double limit = seconds(deadline_);
  if (phase_ == Phase::kCopying) {
    give_up();
    return timed_out(fmt::format("no expert was copied within {:.1f} s", limit));
  }
  // What is staged switches when the ranks come back; it cannot be taken back, and nothing else begins before.
  return timed_out(fmt::format("rank(s) {} did not switch to version {} within {:.1f} s", late, staged_, limit));
}

}  // namespace tandem::engine
