#include "engine/experts/mover.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "base/check.h"
#include "device/digest.h"

namespace tandem::engine {
namespace {

// One piece of a copy: some 20 us, after which the allowance is looked at again.
constexpr int64_t kPieceBytes = 256 << 10;
// From another node: one read, and how much may be on its way.
constexpr int64_t kReadBytes = 1 << 20;
constexpr int64_t kMaxReading = 4 << 20;
// Copied by one call: some milliseconds, after which other nodes' reads are served and requests answered.
constexpr int64_t kTurnBytes = 32 << 20;

std::vector<int32_t> all_shares(const experts::ExpertPlacement& placement) {
  std::vector<int32_t> shares;
  for (int32_t layer = 0; layer < placement.num_layers; ++layer) {
    const std::vector<int32_t> row = shares_of_slots(placement, layer);
    shares.insert(shares.end(), row.begin(), row.end());
  }
  return shares;
}

class MemoryCopies final : public PlaceCopies {
 public:
  explicit MemoryCopies(CopyFn copy) : copy_(std::move(copy)) {}

  Status copy(int32_t, std::span<const std::byte> from, std::span<std::byte> to) override {
    if (copy_) return copy_(from, to);
    std::memcpy(to.data(), from.data(), from.size());
    return Ok{};
  }
  void begin_digest(int32_t, std::span<const std::byte> place) override { digest_ = device::digest(place); }
  std::optional<uint64_t> take_digest(int32_t) override { return digest_; }

 private:
  const CopyFn copy_;
  uint64_t digest_ = 0;
};

}  // namespace

void CopyPace::grant(int64_t new_steps) {
  allowance = bytes_per_step == 0
                  ? INT64_MAX
                  : std::min(allowance + bytes_per_step * std::max<int64_t>(1, new_steps), 2 * bytes_per_step);
}

CopyPace node_pace(const ExpertBalancerConfig& config, size_t num_ranks) {
  if (config.bytes_per_step == 0) return {};
  return {std::max<int64_t>(1, config.bytes_per_step * int64_t(num_ranks) / config.topology.num_ranks)};
}

ExpertMover::ExpertMover(const ExpertBalancerConfig& config, Parts parts)
    : topology_(config.topology),
      dispatch_(config.dispatch),
      layers_per_version_(config.layers_per_version),
      deadline_(config.progress_deadline),
      copies_by_(parts.copies ? std::move(parts.copies) : std::make_shared<MemoryCopies>(std::move(parts.copy))),
      reads_(parts.reads),
      placement_(std::move(parts.placement)) {
  CHECK(parts.first_rank >= 0);
  CHECK(parts.first_rank + int32_t(parts.ports.size()) <= topology_.num_ranks);
  port_of_.resize(size_t(topology_.num_ranks), nullptr);
  std::copy(parts.ports.begin(), parts.ports.end(), port_of_.begin() + parts.first_rank);
  CHECK((reads_ == nullptr) == (int32_t(parts.ports.size()) == topology_.num_ranks));
  // All ranks begin with the same tables.
  const model::ExpertSlots& slots = parts.ports[0]->slots();
  num_spares_ = slots.shape().num_spares;
  place_bytes_ = slots.place_bytes();
  std::vector<PlaceTable> tables;
  for (int32_t layer = 0; layer < slots.shape().num_layers; ++layer) {
    tables.push_back(slots.layer(layer).place_of_slot);
  }
  std::vector<int32_t> free;
  for (int32_t place = slots.num_places() - num_spares_; place < slots.num_places(); ++place) free.push_back(place);
  place_of_.assign(port_of_.size(), tables);
  free_.assign(port_of_.size(), free);
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
  std::vector<size_t> taken(port_of_.size(), 0);
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
    if (is_here(to_rank)) copies_.push_back({rank_of(move.from_slot), from_place, to_rank, to_place});
    at(tables, move.to_slot) = to_place;
  }
  next_tables_.push_back(std::move(tables));
}

bool ExpertMover::can_copy(int64_t allowance) const {
  if (phase_ != Phase::kCopying) return false;
  if (copies_.empty()) return true;
  const Copy& next = copies_.front();
  return allowance > 0 && is_here(next.from_rank) && !next.is_digested;
}

// In order: a copy may read what one before it has brought to this node.
Status ExpertMover::copy_some(TimePoint now, int64_t& allowance) {
  const int64_t end = bytes_moved_ + kTurnBytes;
  while (!copies_.empty() && bytes_moved_ < end) {
    Copy& copy = copies_.front();
    const bool is_local = is_here(copy.from_rank);
    if (is_local && copy.done < place_bytes_) {
      if (allowance <= 0) break;
      RETURN_IF_ERROR(copy_piece(copy, allowance));
    } else if (!is_local) {
      RETURN_IF_ERROR(take_reads(copy));
      ask_for_more(copy, now, allowance);
    }
    if (copy.done == place_bytes_) {
      ASSIGN_OR_RETURN(const bool is_there, finish_copy(copy));
      if (!is_there) break;
      copies_.pop_front();
    } else if (!is_local) {
      break;
    }
  }
  return Ok{};
}

Status ExpertMover::copy_piece(Copy& copy, int64_t& allowance) {
  const std::span<const std::byte> from = slots_of(copy.from_rank).place(copy.from_place);
  const std::span<std::byte> to = slots_of(copy.to_rank).place(copy.to_place);
  const int64_t piece = std::min({kPieceBytes, place_bytes_ - copy.done, allowance});
  RETURN_IF_ERROR(copies_by_->copy(copy.to_rank, from.subspan(size_t(copy.done), size_t(piece)),
                                   to.subspan(size_t(copy.done), size_t(piece))));
  copy.done += piece;
  allowance -= piece;
  bytes_moved_ += piece;
  return Ok{};
}

Status ExpertMover::take_reads(Copy& copy) {
  while (!reading_.empty()) {
    const std::optional<Status> end = reads_->take_end(reading_.front().read);
    if (!end) break;
    const int64_t bytes = reading_.front().bytes;
    reading_.pop_front();
    if (!*end) {
      return Error{end->error().code, fmt::format("an expert of rank {} could not be read for rank {}: {}",
                                                  copy.from_rank, copy.to_rank, end->error().message)};
    }
    copy.done += bytes;
    bytes_moved_ += bytes;
  }
  return Ok{};
}

// The last read also brings the owner's digest, into the digest of the place that is read into.
void ExpertMover::ask_for_more(Copy& copy, TimePoint now, int64_t& allowance) {
  const model::ExpertSlots& slots = slots_of(copy.to_rank);
  while (copy.asked < place_bytes_ && copy.asked - copy.done < kMaxReading && allowance > 0) {
    const int64_t piece = std::min({kReadBytes, place_bytes_ - copy.asked, allowance});
    std::vector<kv::CopyRange> ranges = {
        {slots.place_offset(copy.from_place) + copy.asked, slots.place_offset(copy.to_place) + copy.asked, piece}};
    if (copy.asked + piece == place_bytes_) {
      ranges.push_back(
          {slots.digest_offset(copy.from_place), slots.digest_offset(copy.to_place), int64_t(sizeof(uint64_t))});
    }
    reading_.push_back({reads_->post(copy.to_rank, copy.from_rank, std::move(ranges), now), piece});
    copy.asked += piece;
    allowance -= piece;
  }
}

Result<bool> ExpertMover::finish_copy(Copy& copy) {
  model::ExpertSlots& slots = slots_of(copy.to_rank);
  const bool is_local = is_here(copy.from_rank);
  const uint64_t wanted = is_local ? slots_of(copy.from_rank).digest(copy.from_place) : slots.digest(copy.to_place);
  if (!copy.is_digested) copies_by_->begin_digest(copy.to_rank, slots.place(copy.to_place));
  copy.is_digested = true;
  const std::optional<uint64_t> digest = copies_by_->take_digest(copy.to_rank);
  if (!digest) return false;
  const uint64_t got = *digest;
  if (got != wanted) {
    return corrupt(fmt::format("an expert copied from rank {} to rank {} has digest {:x}, its source {:x}",
                               copy.from_rank, copy.to_rank, got, wanted));
  }
  slots.set_digest(copy.to_place, got);
  moves_done_ += 1;
  return true;
}

// The placement after the version; tables of the new dispatch are built from it.
void ExpertMover::prepare() {
  pending_ = placement_;
  for (const Step& step : version_layers_) {
    const size_t row = size_t(step.layer) * size_t(pending_.num_slots);
    std::copy(step.step.logical_of_slot.begin(), step.step.logical_of_slot.end(),
              pending_.logical_of_slot.begin() + int64_t(row));
    if (pending_.share.empty()) pending_.share = all_shares(placement_);
    std::copy(step.step.share.begin(), step.step.share.end(), pending_.share.begin() + int64_t(row));
  }
  phase_ = Phase::kCopied;
}

void ExpertMover::stage() {
  CHECK(phase_ == Phase::kCopied);
  staged_ += 1;
  for (size_t rank = 0; rank < port_of_.size(); ++rank) {
    if (port_of_[rank] == nullptr) continue;
    std::vector<LayerSwitch> switches;
    for (size_t i = 0; i < version_layers_.size(); ++i) {
      const Step& step = version_layers_[i];
      LayerSwitch& change = switches.emplace_back();
      change.layer = step.layer;
      change.experts.place_of_slot = next_tables_[i][rank];
      change.experts.logical_of_slot = step.step.logical_of_slot;
      change.experts.dispatch = experts::build_dispatch(pending_, topology_, step.layer, int32_t(rank), dispatch_);
    }
    port_of_[rank]->stage(staged_, std::move(switches));
  }
  phase_ = Phase::kStaged;
  progress_at_ = TimePoint{};
}

bool ExpertMover::all_applied() const {
  return std::ranges::all_of(port_of_,
                             [&](const ExpertPort* port) { return port == nullptr || port->applied() == staged_; });
}

void ExpertMover::finish_version() {
  placement_ = std::move(pending_);
  version_ = staged_;
  for (size_t i = 0; i < version_layers_.size(); ++i) {
    const size_t layer = size_t(version_layers_[i].layer);
    for (size_t rank = 0; rank < port_of_.size(); ++rank) {
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

void ExpertMover::drop_copies() {
  for (const Reading& reading : reading_) reads_->cancel(reading.read);
  reading_.clear();
  copies_.clear();
}

void ExpertMover::give_up() {
  steps_.clear();
  if (phase_ == Phase::kStaged) return;
  drop_copies();
  version_layers_.clear();
  phase_ = Phase::kIdle;
}

Status ExpertMover::advance(TimePoint now, int64_t& allowance) {
  if (phase_ == Phase::kIdle || phase_ == Phase::kCopied) return Ok{};
  const int64_t before = bytes_moved_;
  if (phase_ == Phase::kCopying) {
    if (Status copied = copy_some(now, allowance); !copied) {
      give_up();
      return copied;
    }
    if (copies_.empty()) {
      prepare();
      if (reads_ == nullptr) stage();
      return Ok{};
    }
  } else if (all_applied()) {
    finish_version();
    return Ok{};
  }
  if (bytes_moved_ != before || progress_at_ == TimePoint{}) progress_at_ = now;
  if (now - progress_at_ < deadline_) return Ok{};
  progress_at_ = now;
  const double limit = seconds(deadline_);
  if (phase_ == Phase::kCopying) {
    give_up();
    return timed_out(fmt::format("no expert was copied within {:.1f} s", limit));
  }
  // What is staged switches when the ranks come back; it cannot be taken back, and nothing else begins before.
  return timed_out(
      fmt::format("rank(s) {} did not switch to version {} within {:.1f} s", late_ranks(), staged_, limit));
}

std::string ExpertMover::late_ranks() const {
  std::string late;
  for (size_t rank = 0; rank < port_of_.size(); ++rank) {
    if (port_of_[rank] == nullptr || port_of_[rank]->applied() == staged_) continue;
    late += fmt::format("{}{}", late.empty() ? "" : ", ", rank);
  }
  return late;
}

}  // namespace tandem::engine
