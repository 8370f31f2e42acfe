// ExpertMover: carries a placement out, version by version. A version is a few layers' changes: its incoming experts
// are copied into spare places and compared by digest, then all ranks get their new tables at once. Copies wait for an
// allowance, so the caller sets the pace. One owner thread: the balancer's.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <vector>

#include "base/clock.h"
#include "engine/expert_balancer.h"
#include "experts/moves.h"

namespace tandem::engine {

class ExpertMover {
 public:
  ExpertMover(const ExpertBalancerConfig& config, std::vector<ExpertPort*> ports, experts::ExpertPlacement placement,
              CopyFn copy);

  const experts::ExpertPlacement& placement() const { return placement_; }
  uint32_t version() const { return version_; }  // carried out on all ranks
  bool is_busy() const { return phase_ != Phase::kIdle; }
  int32_t layers_left() const { return int32_t(steps_.size() + version_layers_.size()); }
  int64_t moves_done() const { return moves_done_; }
  int64_t bytes_moved() const { return bytes_moved_; }

  // Plans the way to `target`. Returns how many experts will be copied. REQUIRES !is_busy() and a valid placement.
  int64_t begin(const experts::ExpertPlacement& target);
  // Bounded work: copies while `allowance` (bytes; reduced by what was copied) is positive, stages, or takes note that
  // all ranks have switched. Error: a copy that failed or differs, or no progress within the deadline; what was not
  // staged is given up and the mover is idle.
  Status advance(TimePoint now, int64_t& allowance);
  // Waits for nothing but the ranks.
  bool is_staged() const { return phase_ == Phase::kStaged; }

 private:
  enum class Phase : uint8_t { kIdle, kCopying, kStaged };
  struct Step {
    int32_t layer = 0;
    experts::LayerStep step;
  };
  struct Copy {
    int32_t from_rank = 0, from_place = 0, to_rank = 0, to_place = 0;
    int64_t done = 0;  // bytes
  };
  using PlaceTable = std::vector<int32_t>;  // [slots_per_rank]

  void form_version();
  bool fits(const Step& step, const std::vector<size_t>& taken) const;
  void add_step(const Step& step, std::vector<size_t>& taken);
  Status copy_some(int64_t& allowance);
  Status finish_copy(const Copy& copy);
  void stage();
  bool all_applied() const;
  void finish_version();
  void give_up();
  int32_t rank_of(int32_t slot) const { return slot / topology_.slots_per_rank; }

  const experts::EpTopology topology_;
  const experts::DispatchAlgorithm dispatch_;
  const int32_t layers_per_version_;
  const Duration deadline_;
  const std::vector<ExpertPort*> ports_;
  const CopyFn copy_;
  experts::ExpertPlacement placement_;             // what serves now
  std::vector<std::vector<PlaceTable>> place_of_;  // [rank][layer]: the engines' tables, mirrored
  std::vector<std::vector<int32_t>> free_;         // [rank]: places that no table names
  int32_t num_spares_ = 0;

  Phase phase_ = Phase::kIdle;
  std::deque<Step> steps_;             // not begun
  uint32_t staged_ = 0, version_ = 0;  // newest that was staged, and that all ranks switched to
  // Of the version in work.
  std::vector<Step> version_layers_;
  std::vector<std::vector<PlaceTable>> next_tables_;  // [index in version_layers_][rank]
  experts::ExpertPlacement pending_;                  // placement_ with this version's rows
  std::deque<Copy> copies_;
  TimePoint progress_at_{};
  int64_t moves_done_ = 0, bytes_moved_ = 0;
};

}  // namespace tandem::engine
