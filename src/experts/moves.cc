#include "experts/moves.h"

#include <algorithm>

#include "base/check.h"

namespace tandem::experts {
namespace {

// The moves of one expert in one layer.
class ExpertMoves {
 public:
  // before, after: the slots of the expert, ascending.
  ExpertMoves(std::span<const int32_t> before, std::span<const int32_t> after, const EpTopology& topology,
              SentExperts& sent)
      : before_(before), after_(after), topology_(topology), sent_(sent) {}

  void append(ExpertMove base, std::vector<ExpertMove>& moves) {
    base_ = base;
    moves_ = &moves;
    for (size_t i = 0; i < after_.size(); ++i) {
      if (i == 0 || rank(after_[i - 1]) != rank(after_[i])) serve_rank(rank(after_[i]));
    }
    serve_receivers();
  }

 private:
  int32_t rank(int32_t slot) const { return topology_.rank_of(slot); }

  void add(int32_t to_slot, int32_t from_slot, MovePath path, int32_t stage) {
    ExpertMove move = base_;
    move.to_slot = to_slot;
    move.from_slot = from_slot;
    move.path = path;
    move.stage = stage;
    moves_->push_back(move);
  }

  bool is_new(int32_t slot) const { return !std::binary_search(before_.begin(), before_.end(), slot); }

  // What the rank can do with what it has; otherwise its first new slot becomes a receiver and the others copy it.
  void serve_rank(int32_t of_rank) {
    std::vector<int32_t> had, given_up, added;
    for (int32_t slot : before_) {
      if (rank(slot) != of_rank) continue;
      had.push_back(slot);
      if (!std::binary_search(after_.begin(), after_.end(), slot)) given_up.push_back(slot);
    }
    for (int32_t slot : after_) {
      if (rank(slot) == of_rank && is_new(slot)) added.push_back(slot);
    }
    if (had.empty()) {
      receivers_.push_back(std::move(added));
      return;
    }
    for (size_t i = 0; i < added.size(); ++i) {
      if (i < given_up.size())
        add(added[i], given_up[i], MovePath::kRename, 0);
      else
        add(added[i], had.front(), MovePath::kSameRank, 0);
    }
  }

  // The source that has sent least, of the slots that `fits`; -1 if none.
  template <class Fits>
  int32_t least_busy(Fits fits) const {
    int32_t best = -1;
    for (int32_t slot : before_) {
      if (fits(slot) && (best < 0 || sent_[size_t(rank(slot))] < sent_[size_t(rank(best))])) best = slot;
    }
    return best;
  }

  void serve_receivers() {
    int32_t fetched_slot = -1;  // by the node of the last receiver without a source on its node
    for (const std::vector<int32_t>& added : receivers_) {
      const int32_t node = topology_.node_of(added[0]);
      int32_t source = least_busy([&](int32_t slot) { return topology_.node_of(slot) == node; });
      MovePath path = MovePath::kSameNode;
      int32_t stage = 0;
      if (source < 0 && fetched_slot >= 0 && topology_.node_of(fetched_slot) == node) {
        source = fetched_slot;
        stage = 1;
      } else if (source < 0) {
        source = least_busy([](int32_t) { return true; });
        path = MovePath::kCrossNode;
        fetched_slot = added[0];
      }
      sent_[size_t(rank(source))] += 1;
      add(added[0], source, path, stage);
      for (size_t i = 1; i < added.size(); ++i) add(added[i], added[0], MovePath::kSameRank, stage + 1);
    }
  }

  std::span<const int32_t> before_, after_;
  const EpTopology& topology_;
  SentExperts& sent_;
  std::vector<std::vector<int32_t>> receivers_;  // per rank without the expert: its new slots
  ExpertMove base_;
  std::vector<ExpertMove>* moves_ = nullptr;
};

// Builds the steps of one layer.
class Splitter {
 public:
  Splitter(std::span<const int32_t> from, std::span<const int32_t> to, const EpTopology& topology, int32_t num_logical,
           int32_t max_incoming)
      : before_(from.begin(), from.end()),
        now_(before_),
        to_(to),
        topology_(topology),
        num_logical_(num_logical),
        max_incoming_(max_incoming) {}

  bool done() const { return std::equal(to_.begin(), to_.end(), before_.begin()); }

  // The rows after one more step.
  const std::vector<int32_t>& next() {
    start_step();
    bool changed = false;
    for (int32_t slot = 0; slot < topology_.num_slots(); ++slot) {
      if (now_[size_t(slot)] != to_[size_t(slot)]) changed = try_change(slot) || changed;
    }
    if (!changed) exchange();
    before_ = now_;
    return before_;
  }

 private:
  size_t cell(int32_t slot, int32_t expert) const {
    return size_t(topology_.rank_of(slot)) * size_t(num_logical_) + size_t(expert);
  }

  void start_step() {
    const size_t cells = size_t(topology_.num_ranks) * size_t(num_logical_);
    rank_count_.assign(cells, 0);
    count_.assign(size_t(num_logical_), 0);
    incoming_.assign(size_t(topology_.num_ranks), 0);
    for (int32_t slot = 0; slot < topology_.num_slots(); ++slot) {
      rank_count_[cell(slot, now_[size_t(slot)])] += 1;
      count_[size_t(now_[size_t(slot)])] += 1;
    }
    old_rank_count_ = rank_count_;
  }

  // Keeps count of the spare places that the rank needs: what it has more of than before the step.
  void set(int32_t slot, int32_t expert) {
    const int32_t rank = topology_.rank_of(slot), dropped = now_[size_t(slot)];
    int32_t& fewer = rank_count_[cell(slot, dropped)];
    if (fewer-- > old_rank_count_[cell(slot, dropped)]) incoming_[size_t(rank)] -= 1;
    int32_t& more = rank_count_[cell(slot, expert)];
    if (++more > old_rank_count_[cell(slot, expert)]) incoming_[size_t(rank)] += 1;
    count_[size_t(dropped)] -= 1;
    count_[size_t(expert)] += 1;
    now_[size_t(slot)] = expert;
  }

  // A slot that is to hold the expert and does not yet.
  int32_t slot_waiting_for(int32_t expert) const {
    for (int32_t slot = 0; slot < topology_.num_slots(); ++slot) {
      if (to_[size_t(slot)] == expert && now_[size_t(slot)] != expert) return slot;
    }
    return -1;
  }

  // Gives the slot its new expert. If that was the last slot of the old one, this moves on in the same step, and so
  // forth. False, and nothing changed, where a rank would need too many spare places.
  bool try_change(int32_t slot) {
    std::vector<std::pair<int32_t, int32_t>> undo;
    while (slot >= 0) {
      const int32_t dropped = now_[size_t(slot)];
      undo.push_back({slot, dropped});
      set(slot, to_[size_t(slot)]);
      slot = count_[size_t(dropped)] == 0 ? slot_waiting_for(dropped) : -1;
    }
    const bool fits = std::all_of(undo.begin(), undo.end(), [&](const auto& change) {
      return incoming_[size_t(topology_.rank_of(change.first))] <= max_incoming_;
    });
    for (size_t i = undo.size(); i-- > 0 && !fits;) set(undo[i].first, undo[i].second);
    return fits;
  }

  // Two slots exchange their experts, which puts at least one where it belongs.
  void exchange() {
    int32_t slot = 0;
    while (now_[size_t(slot)] == to_[size_t(slot)]) ++slot;
    const int32_t expert = now_[size_t(slot)], other = slot_waiting_for(expert);
    CHECK(other >= 0);
    const int32_t other_expert = now_[size_t(other)];
    set(other, expert);
    set(slot, other_expert);
  }

  std::vector<int32_t> before_, now_;
  std::span<const int32_t> to_;
  const EpTopology& topology_;
  int32_t num_logical_, max_incoming_;
  std::vector<int32_t> rank_count_, old_rank_count_;  // [num_ranks, num_logical] slots
  std::vector<int32_t> count_;                        // [num_logical] slots
  std::vector<int32_t> incoming_;                     // [num_ranks]
};

// A placement of one layer only.
ExpertPlacement one_layer(const ExpertPlacement& placement, int32_t layer) {
  const std::span<const int32_t> row = placement.layer(layer);
  return {1, placement.num_logical, placement.num_slots, {row.begin(), row.end()}, shares_of_slots(placement, layer)};
}

// Shares of rows on the way: those of `from` or `to` for experts whose slots are the same there, else equal ones.
std::vector<int32_t> shares_on_the_way(const ExpertPlacement& now, const ExpertPlacement& from,
                                       const ExpertPlacement& to) {
  const SlotsOfExperts slots = slots_of_experts(now, 0);
  std::vector<int32_t> shares = shares_of_slots({1, now.num_logical, now.num_slots, now.logical_of_slot, {}}, 0);
  for (const ExpertPlacement* known : {&from, &to}) {
    const SlotsOfExperts known_slots = slots_of_experts(*known, 0);
    for (int32_t expert = 0; expert < now.num_logical; ++expert) {
      if (!std::ranges::equal(slots.of(expert), known_slots.of(expert))) continue;
      for (int32_t slot : slots.of(expert)) shares[size_t(slot)] = known->share[size_t(slot)];
    }
  }
  return shares;
}

void check_same_sizes(const ExpertPlacement& from, const ExpertPlacement& to, const EpTopology& topology,
                      int32_t layer) {
  CHECK(from.num_layers == to.num_layers && from.num_logical == to.num_logical && from.num_slots == to.num_slots);
  CHECK(from.num_slots == topology.num_slots());
  CHECK(layer >= 0 && layer < from.num_layers);
}

}  // namespace

std::vector<ExpertMove> plan_moves(const ExpertPlacement& from, const ExpertPlacement& to, const EpTopology& topology,
                                   int32_t layer, SentExperts& sent) {
  check_same_sizes(from, to, topology, layer);
  CHECK(sent.size() == size_t(topology.num_ranks));
  const SlotsOfExperts before = slots_of_experts(from, layer), after = slots_of_experts(to, layer);
  std::vector<ExpertMove> moves;
  for (int32_t expert = 0; expert < from.num_logical; ++expert) {
    if (std::ranges::equal(before.of(expert), after.of(expert))) continue;
    ExpertMoves(before.of(expert), after.of(expert), topology, sent).append({.layer = layer, .logical = expert}, moves);
  }
  std::sort(moves.begin(), moves.end(), [](const ExpertMove& a, const ExpertMove& b) {
    return a.stage != b.stage ? a.stage < b.stage : a.to_slot < b.to_slot;
  });
  return moves;
}

std::vector<LayerStep> plan_layer_steps(const ExpertPlacement& from, const ExpertPlacement& to,
                                        const EpTopology& topology, int32_t layer, int32_t max_incoming) {
  check_same_sizes(from, to, topology, layer);
  CHECK(max_incoming >= 1);
  const ExpertPlacement start = one_layer(from, layer), end = one_layer(to, layer);
  if (start == end) return {};
  std::vector<LayerStep> steps;
  ExpertPlacement before = start;
  SentExperts sent(size_t(topology.num_ranks), 0);
  Splitter splitter(start.logical_of_slot, end.logical_of_slot, topology, from.num_logical, max_incoming);
  while (!splitter.done()) {
    ExpertPlacement now = before;
    now.logical_of_slot = splitter.next();
    now.share = shares_on_the_way(now, start, end);
    steps.push_back({now.logical_of_slot, now.share, plan_moves(before, now, topology, 0, sent)});
    for (ExpertMove& move : steps.back().moves) move.layer = layer;
    before = std::move(now);
  }
  if (steps.empty()) steps.push_back({end.logical_of_slot, {}, {}});
  steps.back().share = end.share;
  return steps;
}

}  // namespace tandem::experts
