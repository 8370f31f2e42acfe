// ExpertMover: carries a placement out, version by version. A version is a few layers' changes: its incoming experts
// are copied into spare places and compared by digest, then all ranks get their new tables at once. Copies wait for an
// allowance, so the caller sets the pace. One owner thread: the balancer's.
//
//   idle --begin()--> copying --[other nodes have copied too: stage()]--> staged --own ranks have switched--> next
//
// In a server of several nodes each node has one, which keeps the books of all ranks and does the work of its own: from
// the same placements the same steps, places and versions follow everywhere. A rank switches when all have staged, so
// whoever sees its own ranks switched knows that every node has read what it needed for that version.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "base/clock.h"
#include "engine/expert_balancer.h"
#include "engine/slab_reads.h"
#include "experts/moves.h"

namespace tandem::engine {

// Bytes that may be copied now.
struct CopyPace {
  int64_t bytes_per_step = 0;  // 0: no bound
  int64_t allowance = 0;

  // An idle group has no steps to disturb.
  void grant(int64_t new_steps);
};
// The part of config.bytes_per_step that belongs to a node with so many of the ranks.
CopyPace node_pace(const ExpertBalancerConfig& config, size_t num_ranks);

class ExpertMover {
 public:
  struct Parts {
    std::vector<ExpertPort*> ports;  // of this node's ranks, in rank order
    int32_t first_rank = 0;
    experts::ExpertPlacement placement;
    CopyFn copy;                                    // empty: memcpy
    SlabReads* reads = nullptr;                     // from the ranks of other nodes; null: all ranks are here
    std::shared_ptr<PlaceCopies> copies = nullptr;  // null: in memory, by `copy`
  };
  ExpertMover(const ExpertBalancerConfig& config, Parts parts);

  const experts::ExpertPlacement& placement() const { return placement_; }
  uint32_t version() const { return version_; }  // carried out on this node's ranks
  uint32_t working_on() const { return staged_ + (phase_ == Phase::kStaged ? 0 : 1); }  // while busy
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
  // Whether advance() would copy at once, without anything having to arrive first.
  bool can_copy(int64_t allowance) const;
  bool is_staged() const { return phase_ == Phase::kStaged; }  // waits for nothing but the ranks
  // With several nodes a version waits here until the others have copied it too.
  bool is_copied() const { return phase_ == Phase::kCopied; }
  const experts::ExpertPlacement& pending() const { return pending_; }  // the placement after it
  void stage();                                                         // REQUIRES is_copied()
  // Drops what is not staged; a staged version is carried out all the same.
  void give_up();

 private:
  enum class Phase : uint8_t { kIdle, kCopying, kCopied, kStaged };
  struct Step {
    int32_t layer = 0;
    experts::LayerStep step;
  };
  struct Copy {
    int32_t from_rank = 0, from_place = 0, to_rank = 0, to_place = 0;
    int64_t asked = 0, done = 0;  // bytes; asked: of another node
    bool is_digested = false;     // all bytes are on their way, and the digest behind them
  };
  struct Reading {
    uint64_t read = 0;
    int64_t bytes = 0;
  };
  using PlaceTable = std::vector<int32_t>;  // [slots_per_rank]

  void form_version();
  bool fits(const Step& step, const std::vector<size_t>& taken) const;
  void add_step(const Step& step, std::vector<size_t>& taken);
  Status copy_some(TimePoint now, int64_t& allowance);
  Status copy_piece(Copy& copy, int64_t& allowance);
  Status take_reads(Copy& copy);
  void ask_for_more(Copy& copy, TimePoint now, int64_t& allowance);
  // Whether the copy is there and right.
  Result<bool> finish_copy(Copy& copy);
  void prepare();
  bool all_applied() const;
  void finish_version();
  void drop_copies();
  std::string late_ranks() const;
  int32_t rank_of(int32_t slot) const { return slot / topology_.slots_per_rank; }
  bool is_here(int32_t rank) const { return port_of_[size_t(rank)] != nullptr; }
  model::ExpertSlots& slots_of(int32_t rank) const { return port_of_[size_t(rank)]->slots(); }

  const experts::EpTopology topology_;
  const experts::DispatchAlgorithm dispatch_;
  const int32_t layers_per_version_;
  const Duration deadline_;
  std::vector<ExpertPort*> port_of_;  // by rank; null: on another node
  const std::shared_ptr<PlaceCopies> copies_by_;
  SlabReads* const reads_;
  int64_t place_bytes_ = 0;
  experts::ExpertPlacement placement_;             // what serves now
  std::vector<std::vector<PlaceTable>> place_of_;  // [rank][layer]: the engines' tables, mirrored
  std::vector<std::vector<int32_t>> free_;         // [rank]: places that no table names
  int32_t num_spares_ = 0;

  Phase phase_ = Phase::kIdle;
  std::deque<Step> steps_;             // not begun
  uint32_t staged_ = 0, version_ = 0;  // newest that was staged, and that the ranks switched to
  // Of the version in work.
  std::vector<Step> version_layers_;
  std::vector<std::vector<PlaceTable>> next_tables_;  // [index in version_layers_][rank]
  experts::ExpertPlacement pending_;                  // placement_ with this version's rows
  std::deque<Copy> copies_;                           // into ranks of this node
  std::deque<Reading> reading_;                       // of the first of them
  TimePoint progress_at_{};
  int64_t moves_done_ = 0, bytes_moved_ = 0;
};

}  // namespace tandem::engine
