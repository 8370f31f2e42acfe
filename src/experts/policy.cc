#include "experts/policy.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "base/check.h"
#include "experts/moves.h"
#include "experts/repair.h"

namespace tandem::experts {
namespace {

// The rank that reads most decides how long the moves take.
double moving_seconds(const ExpertPlacement& from, const ExpertPlacement& to, const EpTopology& topology,
                      const RebalanceConfig& config) {
  std::vector<int64_t> incoming(size_t(topology.num_ranks), 0);
  SentExperts sent(size_t(topology.num_ranks), 0);
  for (int32_t layer = 0; layer < from.num_layers; ++layer) {
    for (const ExpertMove& move : plan_moves(from, to, topology, layer, sent)) {
      incoming[size_t(topology.rank_of(move.to_slot))] += move.path != MovePath::kRename;
    }
  }
  const int64_t most = *std::max_element(incoming.begin(), incoming.end());
  return double(most) * double(config.expert_bytes) / double(config.bytes_per_second);
}

RebalanceDecision keep(const RebalanceInput& input, std::string_view reason) {
  RebalanceDecision decision;
  decision.reason = reason;
  decision.placement = input.current;
  decision.balance_now = balancedness(input.load, input.current, input.topology).mean;
  decision.balance_reshared = decision.balance_planned = decision.balance_now;
  return decision;
}

// Looks at repair on top of the reshared placement in `decision`.
void consider_repair(const RebalanceInput& input, const RebalanceConfig& config, RebalanceDecision& decision) {
  const RepairLimits limits{config.repair_target, config.max_changed_per_layer};
  ExpertPlacement repaired = repair(input.load, input.current, input.topology, limits);
  const int64_t changed = changed_slots(input.current, repaired);
  const double balance = balancedness(input.load, repaired, input.topology).mean;
  if (changed == 0 || balance <= decision.balance_reshared) return;
  const double saved = config.moe_share_of_step * (1 - decision.balance_reshared / balance);
  decision.gain_seconds = saved * std::chrono::duration<double>(input.next_interval).count();
  decision.cost_seconds =
      config.slowdown_while_moving * moving_seconds(input.current, repaired, input.topology, config);
  const bool is_unbalanced = decision.balance_reshared < config.balance_threshold;
  if (!is_unbalanced && decision.gain_seconds <= decision.cost_seconds) return;
  decision.action = RebalanceAction::kRepair;
  decision.reason = is_unbalanced ? "balance under the threshold" : "gain exceeds cost";
  decision.placement = std::move(repaired);
  decision.balance_planned = balance;
  decision.changed_slots = changed;
}

}  // namespace

LoadWindow::LoadWindow(int32_t num_layers, int32_t num_logical, int32_t keep)
    : sum_{num_layers, num_logical, std::vector<int64_t>(size_t(num_layers) * size_t(num_logical), 0)},
      new_pairs_(size_t(num_layers), 0),
      keep_(keep) {
  CHECK(keep >= 0 && keep <= kShareUnit);
}

void LoadWindow::add(const ExpertLoad& counts) {
  CHECK(counts.num_layers == sum_.num_layers && counts.num_logical == sum_.num_logical);
  for (int32_t layer = 0; layer < sum_.num_layers; ++layer) {
    const std::span<const int64_t> tokens = counts.layer(layer);
    for (size_t expert = 0; expert < tokens.size(); ++expert) {
      sum_.tokens[size_t(layer) * tokens.size() + expert] += tokens[expert];
    }
    new_pairs_[size_t(layer)] += std::accumulate(tokens.begin(), tokens.end(), int64_t(0));
  }
}

void LoadWindow::begin_window() {
  for (int64_t& count : sum_.tokens) count = count / kShareUnit * keep_ + count % kShareUnit * keep_ / kShareUnit;
  std::fill(new_pairs_.begin(), new_pairs_.end(), 0);
}

int64_t LoadWindow::new_pairs() const {
  return new_pairs_.empty() ? 0 : *std::max_element(new_pairs_.begin(), new_pairs_.end());
}

Status RebalanceConfig::validate() const {
  struct Fraction {
    std::string_view name;
    double value;
  };
  for (const Fraction& each :
       {Fraction{"balance_threshold", balance_threshold}, Fraction{"repair_target", repair_target},
        Fraction{"min_share_gain", min_share_gain}, Fraction{"moe_share_of_step", moe_share_of_step},
        Fraction{"slowdown_while_moving", slowdown_while_moving}}) {
    if (!(each.value >= 0 && each.value <= 1)) {
      return invalid_input(fmt::format("{} is {}, it must be in [0, 1]", each.name, each.value));
    }
  }
  if (repair_target <= 0) return invalid_input("repair_target is 0, it must be above");
  if (min_interval.count() < 0) return invalid_input("min_interval is negative");
  if (min_pairs < 0) return invalid_input("min_pairs is negative");
  if (max_changed_per_layer < 0) return invalid_input("max_changed_per_layer is negative");
  if (expert_bytes < 0) return invalid_input("expert_bytes is negative");
  if (bytes_per_second < 1) return invalid_input("bytes_per_second must be at least 1");
  if (max_backoff_doublings < 0 || max_backoff_doublings > 20) {
    return invalid_input(fmt::format("max_backoff_doublings is {}, it must be in [0, 20]", max_backoff_doublings));
  }
  return Ok{};
}

std::chrono::milliseconds RebalanceState::interval(const RebalanceConfig& config) const {
  return config.min_interval * (int64_t(1) << std::min(failures, config.max_backoff_doublings));
}

RebalanceState after_failure(RebalanceState state) {
  state.failures = std::min(state.failures + 1, 1 << 20);
  return state;
}

RebalanceState after_success(RebalanceState) { return {}; }

RebalanceDecision decide(const RebalanceInput& input, const RebalanceConfig& config, const RebalanceState& state) {
  if (input.new_pairs < config.min_pairs) return keep(input, "too few tokens");
  if (input.since_last < state.interval(config)) return keep(input, "too early");
  RebalanceDecision decision = keep(input, "balanced");
  ExpertPlacement reshared = reshare(input.load, input.current, input.topology);
  decision.balance_reshared = balancedness(input.load, reshared, input.topology).mean;
  if (decision.balance_reshared >= decision.balance_now + config.min_share_gain) {
    decision.action = RebalanceAction::kReshare;
    decision.reason = "new shares";
    decision.balance_planned = decision.balance_reshared;
    decision.placement = std::move(reshared);
  }
  consider_repair(input, config, decision);
  return decision;
}

}  // namespace tandem::experts
