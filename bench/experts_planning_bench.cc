// Planning of expert placements: time on one thread, balance, what dispatch makes of it, and what a change of traffic
// costs in moved experts. Seeded synthetic loads of 58 layers x 256 experts and the trained model's routing trace.
//   build/release/bench/experts_planning_bench [repetitions, default 5] [part of the cases' names]
// One JSON object per line, fields as in the room's names:
//   plan   ms: median processor time. balance: mean over layers by load. bound: what no placement passes. worst:
//   the worst layer. served_*: balance
//   after
//          dispatch with equal traffic per source rank; nearest is SGLang's nearest-first table on the same slots.
//   drift  a chain of windows: each plan is made on window t and judged on t ("balance") and on t + 1 ("next").
//          moved: slots per layer that get another expert, mean over layers and windows; moved_max: the worst layer.
//          fresh_next: `next` of a fresh plan of the same window. relabelled is the fresh plan with ranks renumbered.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <map>
#include <numeric>

#include "base/check.h"
#include "base/json.h"
#include "experts/balance.h"
#include "experts/dispatch.h"
#include "experts/repair.h"
#include "tests/experts/synthetic_loads.h"

namespace tandem::experts {
namespace {

struct Shape {
  const char* name;
  EpTopology topology;
};
const Shape kShapes[] = {{"288/32", {4, 32, 9}}, {"288/72", {9, 72, 4}}, {"320/64", {8, 64, 5}}};

constexpr LoadKind kPlanKinds[] = {LoadKind::kZipf, LoadKind::kLogNormal, LoadKind::kWideLogNormal, LoadKind::kFewHot,
                                   LoadKind::kGrouped};
constexpr int32_t kWindows = 6;
// By how much an expert's load moves from one window to the next: the standard deviation of its logarithm.
struct Drift {
  const char* name;
  double step;
};
constexpr Drift kDrifts[] = {{"slow (5 %)", 0.05}, {"fast (20 %)", 0.2}, {"very fast (35 %)", 0.35}};

double processor_ms() {
  timespec time{};
  CHECK(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time) == 0);
  return double(time.tv_sec) * 1e3 + double(time.tv_nsec) / 1e6;
}

// Median over the repetitions; the value of the last one.
template <class Work>
auto timed(int32_t repetitions, double& median_ms, Work work) {
  std::vector<double> times;
  auto result = work();
  for (int32_t i = 0; i < repetitions; ++i) {
    const double start = processor_ms();
    result = work();
    times.push_back(processor_ms() - start);
  }
  std::sort(times.begin(), times.end());
  median_ms = times[times.size() / 2];
  return result;
}

// SGLang's static table on a placement: the own rank's first slot, else the node's first, else an even deal of the
// ranks left over at random. For comparison only. Returns the balance with equal traffic per source rank.
double served_by_nearest(const ExpertLoad& load, const ExpertPlacement& placement, const EpTopology& topology) {
  std::vector<double> ranks(size_t(load.num_layers) * size_t(topology.num_ranks), 0);
  Random random(42);
  for (int32_t layer = 0; layer < load.num_layers; ++layer) {
    const SlotsOfExperts inverse = slots_of_experts(placement, layer);
    double* loads = ranks.data() + size_t(layer) * size_t(topology.num_ranks);
    for (int32_t expert = 0; expert < load.num_logical; ++expert) {
      const std::span<const int32_t> slots = inverse.of(expert);
      const double part = double(load.layer(layer)[size_t(expert)]) / topology.num_ranks;
      int32_t undecided = 0;
      for (int32_t rank = 0; rank < topology.num_ranks; ++rank) {
        const auto on = [&](auto fits) { return std::find_if(slots.begin(), slots.end(), fits); };
        auto near = slots.size() == 1 ? slots.begin() : on([&](int32_t s) { return topology.rank_of(s) == rank; });
        if (near == slots.end()) {
          near = on([&](int32_t s) { return topology.node_of(s) == topology.node_of_rank(rank); });
        }
        if (near == slots.end())
          undecided += 1;
        else
          loads[topology.rank_of(*near)] += part;
      }
      std::vector<int32_t> order(slots.begin(), slots.end());
      for (int32_t i = int32_t(order.size()) - 1; i > 0; --i) {
        std::swap(order[size_t(i)], order[size_t(random.below(i + 1))]);
      }
      for (int32_t i = 0; i < undecided; ++i) loads[topology.rank_of(order[size_t(i) % order.size()])] += part;
    }
  }
  return balancedness_of_ranks(ranks, topology.num_ranks).mean;
}

std::string_view wanted;  // part of the names of the cases that run

// No placement of one layer has a rank with less load than this at its busiest. With f experts set aside as hot, slots
// of theirs lie on at most f + (slots - experts) ranks; the other ranks carry, slot for slot, no more than the largest
// of the rest, so those must carry what is left. f is chosen so that this says most. tokens: descending.
double least_peak(std::span<const double> tokens, const EpTopology& topology) {
  const double total = std::accumulate(tokens.begin(), tokens.end(), 0.0);
  const int64_t extra = topology.num_slots() - int64_t(tokens.size());
  double least = total / topology.num_ranks;
  for (int64_t hot = 1; hot + extra < topology.num_ranks; ++hot) {
    const int64_t others = topology.num_ranks - hot - extra;
    const int64_t end = std::min(int64_t(tokens.size()), hot + others * topology.slots_per_rank);
    const double carried = std::accumulate(tokens.begin() + hot, tokens.begin() + end, 0.0);
    least = std::max(least, (total - carried) / double(topology.num_ranks - others));
  }
  return least;
}

// No placement has a higher balancedness, weighed over layers as Balancedness::mean is.
double balance_bound(const ExpertLoad& load, const EpTopology& topology) {
  double means = 0, peaks = 0;
  for (int32_t layer = 0; layer < load.num_layers; ++layer) {
    std::vector<double> tokens(load.layer(layer).begin(), load.layer(layer).end());
    std::sort(tokens.rbegin(), tokens.rend());
    means += std::accumulate(tokens.begin(), tokens.end(), 0.0) / topology.num_ranks;
    peaks += least_peak(tokens, topology);
  }
  return means / peaks;
}

struct Case {
  std::string name;
  EpTopology topology;
  int32_t num_groups;
};

ExpertPlacement plan(std::string_view algorithm, const ExpertLoad& load, const Case& c) {
  return plan_experts(find_balance_algorithm(algorithm).value(), {{&load, 1}, c.topology, c.num_groups}).value();
}

void bench_plans(const Case& c, const ExpertLoad& load, int32_t repetitions) {
  if (c.name.find(wanted) == std::string::npos) return;
  const double bound = balance_bound(load, c.topology);
  const auto report = [&](std::string_view planner, double ms, const ExpertPlacement& placement) {
    CHECK(validate(placement, c.topology).has_value());
    const Balancedness balance = balancedness(load, placement, c.topology);
    const double served_static = served_balance(load, placement, c.topology, DispatchAlgorithm::kStatic).mean;
    const double served_weighted = served_balance(load, placement, c.topology, DispatchAlgorithm::kWeighted).mean;
    fmt::print(
        "{{\"case\": \"experts/plan/{}\", \"planner\": \"{}\", \"ms\": {:.2f}, \"balance\": {:.4f}, \"bound\": {:.4f}, "
        "\"worst\": {:.4f}, \"served_nearest\": {:.4f}, \"served_static\": {:.4f}, \"served_weighted\": {:.4f}}}\n",
        c.name, planner, ms, balance.mean, bound, balance.worst, served_by_nearest(load, placement, c.topology),
        served_static, served_weighted);
    std::fflush(stdout);
  };
  for (const BalanceAlgorithm& row : balance_algorithms()) {
    if (row.name == "auto" || row.name == "elasticity_aware") continue;  // these are other rows under another name
    const BalanceProblem problem{{&load, 1}, c.topology, c.num_groups};
    if (!plan_experts(row, problem)) continue;  // the groups do not divide over the nodes
    double ms = 0;
    const ExpertPlacement placement = timed(repetitions, ms, [&] { return plan_experts(row, problem).value(); });
    report(row.name, ms, placement);
    if (row.name != "deepseek" && row.name != "tandem") continue;
    const ExpertPlacement reshared = timed(repetitions, ms, [&] { return reshare(load, placement, c.topology); });
    if (row.name == "deepseek") report("deepseek, then reshare", ms, reshared);
    const ExpertPlacement whole =
        timed(repetitions, ms, [&] { return reshare(load, placement, c.topology, ShareGrain::kWholeRanks); });
    report(std::string(row.name) + ", shares in whole ranks", ms, whole);
  }
}

// What one way of following the traffic did over a chain of windows.
struct Follower {
  std::string name;
  ExpertPlacement placement;
  double ms = 0, balance = 0, next = 0, moved = 0;
  int64_t moved_max = 0;
};

int64_t most_changed_in_a_layer(const ExpertPlacement& from, const ExpertPlacement& to) {
  int64_t most = 0;
  for (int32_t layer = 0; layer < from.num_layers; ++layer) {
    int64_t changed = 0;
    for (size_t slot = 0; slot < from.layer(layer).size(); ++slot) {
      changed += from.layer(layer)[slot] != to.layer(layer)[slot];
    }
    most = std::max(most, changed);
  }
  return most;
}

template <class Step>
void follow(Follower& follower, std::span<const ExpertLoad> windows, const Case& c, Step step) {
  const double steps = double(windows.size() - 2), layers = double(windows[0].num_layers);
  for (size_t t = 1; t + 1 < windows.size(); ++t) {
    double ms = 0;
    const ExpertPlacement now = timed(1, ms, [&] { return step(windows[t], follower.placement); });
    CHECK(validate(now, c.topology).has_value());
    follower.ms += ms / steps;
    follower.moved += double(changed_slots(follower.placement, now)) / layers / steps;
    follower.moved_max = std::max(follower.moved_max, most_changed_in_a_layer(follower.placement, now));
    follower.balance += balancedness(windows[t], now, c.topology).mean / steps;
    follower.next += balancedness(windows[t + 1], now, c.topology).mean / steps;
    follower.placement = now;
  }
}

void bench_drift(const Case& c, std::span<const ExpertLoad> windows) {
  if (c.name.find(wanted) == std::string::npos) return;
  const ExpertPlacement start = plan("tandem", windows[0], c);
  const auto run = [&](std::string name, auto step) {
    Follower follower{std::move(name), start};
    follow(follower, windows, c, step);
    return follower;
  };
  std::vector<Follower> all;
  all.push_back(
      run("deepseek", [&](const ExpertLoad& load, const ExpertPlacement&) { return plan("deepseek", load, c); }));
  all.push_back(run("tandem", [&](const ExpertLoad& load, const ExpertPlacement&) { return plan("tandem", load, c); }));
  const double fresh_next = all.back().next;
  all.push_back(run("tandem, relabelled", [&](const ExpertLoad& load, const ExpertPlacement& current) {
    return relabel(plan("tandem", load, c), current, c.topology, RelabelScope::kAnyRank);
  }));
  all.push_back(run("nothing", [&](const ExpertLoad&, const ExpertPlacement& current) { return current; }));
  all.push_back(run("reshare", [&](const ExpertLoad& load, const ExpertPlacement& current) {
    return reshare(load, current, c.topology);
  }));
  for (double target : {0.95, 0.97, 0.98}) {
    all.push_back(run(fmt::format("repair to {}", target), [&](const ExpertLoad& load, const ExpertPlacement& current) {
      return repair(load, current, c.topology, {.target = target, .max_changed_per_layer = 64});
    }));
  }
  for (const Follower& each : all) {
    fmt::print(
        "{{\"case\": \"experts/drift/{}\", \"planner\": \"{}\", \"ms\": {:.2f}, \"moved\": {:.1f}, \"moved_max\": "
        "{}, \"balance\": {:.4f}, \"next\": {:.4f}, \"fresh_next\": {:.4f}}}\n",
        c.name, each.name, each.ms, each.moved, each.moved_max, each.balance, each.next, fresh_next);
  }
  std::fflush(stdout);
}

// The trained model's trace: counts per domain, 12 steps of 512 tokens summed to a window.
std::map<std::string, std::vector<ExpertLoad>> trace_windows() {
  const auto document = json::Document::load(std::string(TANDEM_SOURCE_DIR) + "/tests/data/tiny/routing-trace.json");
  CHECK(document.has_value());
  std::map<std::string, std::vector<ExpertLoad>> result;
  const simdjson::dom::object domains = document->root()["domains"].get_object().value();
  for (const auto& domain : domains) {
    std::vector<ExpertLoad>& windows = result[std::string(domain.key)];
    int32_t steps = 0;
    const simdjson::dom::array all_steps = domain.value.get_array().value();
    for (const simdjson::dom::element step : all_steps) {
      ExpertLoad load{0, 32, {}};
      const simdjson::dom::array layers = step.get_array().value();
      for (const simdjson::dom::element layer : layers) {
        load.num_layers += 1;
        const simdjson::dom::array counts = layer.get_array().value();
        for (const simdjson::dom::element count : counts) load.tokens.push_back(count.get_int64().value());
      }
      if (steps++ % 12 == 0)
        windows.push_back(load);
      else
        windows.back() = sum_of(std::vector<ExpertLoad>{windows.back(), load});
    }
  }
  return result;
}

void bench_trace(int32_t repetitions) {
  const auto windows = trace_windows();
  for (const EpTopology& topology : {EpTopology{1, 4, 10}, EpTopology{2, 8, 5}, EpTopology{2, 8, 6}}) {
    const std::string shape = fmt::format("{}/{}", topology.num_slots(), topology.num_ranks);
    std::vector<ExpertLoad> changing;
    for (const auto& [domain, loads] : windows) {
      bench_plans({fmt::format("{}/trace {}", shape, domain), topology, 8}, sum_of(loads), repetitions);
      if (loads.size() > 2) bench_drift({fmt::format("{}/trace within {}", shape, domain), topology, 8}, loads);
      changing.push_back(loads[0]);
    }
    bench_drift({fmt::format("{}/trace, another domain each window", shape), topology, 8}, changing);
  }
}

int run(int32_t repetitions) {
  for (const Shape& shape : kShapes) {
    for (LoadKind kind : kPlanKinds) {
      bench_plans({fmt::format("{}/{}", shape.name, name_of(kind)), shape.topology, 8}, synthetic_load(kind, {}, 1),
                  repetitions);
    }
    for (LoadKind kind : {LoadKind::kLogNormal, LoadKind::kWideLogNormal, LoadKind::kGrouped}) {
      for (const Drift& drift : kDrifts) {
        bench_drift({fmt::format("{}/{} {}", shape.name, drift.name, name_of(kind)), shape.topology, 8},
                    drifting_loads(kind, {}, kWindows, drift.step, 7));
      }
    }
  }
  bench_trace(repetitions);
  return 0;
}

}  // namespace
}  // namespace tandem::experts

int main(int argc, char** argv) {
  if (argc > 2) tandem::experts::wanted = argv[2];
  return tandem::experts::run(argc > 1 ? std::max(1, std::atoi(argv[1])) : 5);
}
