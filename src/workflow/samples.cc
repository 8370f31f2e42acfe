#include "workflow/samples.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace tandem::workflow {
namespace {

using Element = simdjson::dom::element;

// A window's rate is looked at in so many equal parts, or fewer where a part would hold only a handful of steps: then
// it would be the steps' own length that shows.
constexpr size_t kParts = 10;
constexpr uint64_t kStepsOfAPart = 8;

template <class T>
Status read_number(Element object, const char* key, T& into) {
  uint64_t value = 0;
  if (object[key].get(value)) return not_found(fmt::format("/get_server_info: wanted a count \"{}\", got none", key));
  into = T(value);
  return Ok{};
}

Result<RankSample> read_rank(Element state) {
  RankSample rank;
  RETURN_IF_ERROR(read_number(state, "running", rank.running));
  RETURN_IF_ERROR(read_number(state, "queued", rank.queued));
  RETURN_IF_ERROR(read_number(state, "prealloc", rank.prealloc));
  RETURN_IF_ERROR(read_number(state, "used_tokens", rank.used_tokens));
  RETURN_IF_ERROR(read_number(state, "total_tokens", rank.total_tokens));
  RETURN_IF_ERROR(read_number(state, "generated_tokens", rank.generated_tokens));
  RETURN_IF_ERROR(read_number(state, "prompt_tokens_computed", rank.prompt_tokens));
  RETURN_IF_ERROR(read_number(state, "forward_steps", rank.forward_steps));
  RETURN_IF_ERROR(read_number(state, "retractions", rank.retractions));
  RETURN_IF_ERROR(read_number(state, "failed_transfers", rank.failed_transfers));
  return rank;
}

Result<InstanceSample> read_instance(Element info, Role role) {
  InstanceSample instance;
  instance.role = role;
  simdjson::dom::array states;
  if (info["internal_states"].get(states)) return not_found("/get_server_info: no list \"internal_states\"");
  for (Element state : states) {
    ASSIGN_OR_RETURN(RankSample rank, read_rank(state));
    instance.ranks.push_back(rank);
    bool profiling = false;
    if (!state["profiling"].get(profiling)) instance.profiling = instance.profiling || profiling;
  }
  if (instance.ranks.empty()) return not_found("/get_server_info: \"internal_states\" is empty");
  return instance;
}

uint64_t tokens_of(const RankSample& rank, Role role) {
  return role == Role::kPrefill ? rank.prompt_tokens : rank.generated_tokens;
}

// The instances of one role in one sample, in order.
std::vector<const InstanceSample*> of_role(const Sample& sample, Role role) {
  std::vector<const InstanceSample*> found;
  for (const InstanceSample& instance : sample.instances) {
    if (instance.role == role) found.push_back(&instance);
  }
  return found;
}

uint64_t total_tokens(const Sample& sample, Role role) {
  uint64_t total = 0;
  for (const InstanceSample* instance : of_role(sample, role)) {
    for (const RankSample& rank : instance->ranks) total += tokens_of(rank, role);
  }
  return total;
}

double largest_over_mean(const std::vector<double>& values) {
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / double(values.size());
  return mean > 0 ? *std::max_element(values.begin(), values.end()) / mean - 1 : 0;
}

// Tokens handed out until `at_s`, between two samples by a straight line.
double tokens_at(std::span<const Sample> samples, Role role, double at_s) {
  size_t next = 1;
  while (next + 1 < samples.size() && samples[next].at_s < at_s) ++next;
  const Sample& low = samples[next - 1];
  const Sample& high = samples[next];
  const double from = double(total_tokens(low, role)), to = double(total_tokens(high, role));
  const double share = (at_s - low.at_s) / (high.at_s - low.at_s);
  return from + std::clamp(share, 0.0, 1.0) * (to - from);
}

uint64_t steps_of(const Sample& sample, Role role) {
  uint64_t steps = 0;
  for (const InstanceSample* instance : of_role(sample, role)) steps += instance->ranks[0].forward_steps;
  return steps;
}

double variation_of(std::span<const Sample> samples, Role role) {
  const uint64_t steps = steps_of(samples.back(), role) - steps_of(samples.front(), role);
  const size_t parts = std::clamp<size_t>(steps / kStepsOfAPart, 2, kParts);
  const double begin = samples.front().at_s, part = (samples.back().at_s - begin) / double(parts);
  std::vector<double> rates;
  for (size_t i = 0; i < parts; ++i) {
    const double from = begin + double(i) * part;
    rates.push_back(tokens_at(samples, role, from + part) - tokens_at(samples, role, from));
  }
  const double mean = std::accumulate(rates.begin(), rates.end(), 0.0) / double(parts);
  double square = 0;
  for (double rate : rates) square += (rate - mean) * (rate - mean);
  return mean > 0 ? std::sqrt(square / double(parts)) / mean : 0;
}

// The same instances with the same ranks in all samples, none of whose counters went back.
Status check_same(std::span<const Sample> samples, Role role) {
  for (size_t i = 1; i < samples.size(); ++i) {
    const auto before = of_role(samples[i - 1], role), now = of_role(samples[i], role);
    if (before.size() != now.size()) {
      return peer_lost(fmt::format("{} {} instances became {} at {:.1f} s", before.size(), role_name(role), now.size(),
                                   samples[i].at_s));
    }
    for (size_t k = 0; k < now.size(); ++k) {
      const bool same = before[k]->ranks.size() == now[k]->ranks.size() &&
                        now[k]->ranks[0].forward_steps >= before[k]->ranks[0].forward_steps;
      if (!same) {
        return peer_lost(fmt::format("{} instance {} restarted at {:.1f} s", role_name(role), k, samples[i].at_s));
      }
    }
    if (samples[i].at_s <= samples[i - 1].at_s) return invalid_input("samples are not in the order of time");
  }
  return Ok{};
}

// Fills what is summed over samples.
void add_levels(std::span<const Sample> samples, WindowFigures& figures) {
  figures.running.assign(size_t(figures.num_ranks), 0);
  figures.starved.assign(size_t(figures.num_ranks), 0);
  for (const Sample& sample : samples) {
    size_t at = 0;
    for (const InstanceSample* instance : of_role(sample, figures.role)) {
      for (const RankSample& rank : instance->ranks) {
        figures.running[at] += double(rank.running) / double(samples.size());
        if (figures.role == Role::kDecode) figures.starved[at] += double(rank.prealloc) / double(samples.size());
        ++at;
        if (rank.total_tokens <= 0) continue;
        figures.pool_peak = std::max(figures.pool_peak, double(rank.used_tokens) / double(rank.total_tokens));
      }
    }
    for (const InstanceSample& instance : sample.instances) {
      figures.profiled = figures.profiled || instance.profiling;
    }
  }
}

}  // namespace

const char* role_name(Role role) {
  switch (role) {
    case Role::kPrefill: return "prefill";
    case Role::kDecode: return "decode";
    case Role::kCombined: return "combined";
  }
  return "combined";
}

Result<Sample> read_sample(Element info, double at_s) {
  Sample sample;
  sample.at_s = at_s;
  for (Role role : {Role::kPrefill, Role::kDecode}) {
    simdjson::dom::array list;
    if (info[role_name(role)].get(list)) continue;
    for (Element server : list) {
      ASSIGN_OR_RETURN(InstanceSample instance, read_instance(server, role));
      sample.instances.push_back(std::move(instance));
    }
  }
  if (!sample.instances.empty()) return sample;
  std::string_view mode;
  Role role = Role::kCombined;
  if (!info["disaggregation_mode"].get(mode)) {
    role = mode == "prefill" ? Role::kPrefill : mode == "decode" ? Role::kDecode : Role::kCombined;
  }
  ASSIGN_OR_RETURN(InstanceSample instance, read_instance(info, role));
  sample.instances.push_back(std::move(instance));
  return sample;
}

double WindowFigures::disagreement() const {
  return per_rank_by_counters > 0 ? std::abs(per_rank_by_steps / per_rank_by_counters - 1) : 0;
}

Result<WindowFigures> measure(std::span<const Sample> samples, Role role) {
  if (samples.size() <= kParts) {
    return invalid_input(fmt::format("wanted at least {} samples of a window, got {}", kParts + 1, samples.size()));
  }
  RETURN_IF_ERROR(check_same(samples, role));
  const auto first = of_role(samples.front(), role), last = of_role(samples.back(), role);
  if (first.empty()) return not_found(fmt::format("no {} instance is there", role_name(role)));

  WindowFigures figures;
  figures.role = role;
  figures.begin_s = samples.front().at_s;
  figures.end_s = samples.back().at_s;
  for (const InstanceSample* instance : first) figures.num_ranks += int32_t(instance->ranks.size());
  add_levels(samples, figures);

  const double window_s = figures.end_s - figures.begin_s;
  size_t at = 0;
  for (size_t k = 0; k < first.size(); ++k) {
    const uint64_t steps = last[k]->ranks[0].forward_steps - first[k]->ranks[0].forward_steps;
    if (steps == 0) {  // nothing came of this instance
      figures.rank_tokens.resize(figures.rank_tokens.size() + first[k]->ranks.size());
      at += first[k]->ranks.size();
      continue;
    }
    const double step_s = window_s / double(steps);
    figures.step_ms += step_s * 1e3 / double(first.size());
    double at_once = 0;
    for (size_t r = 0; r < first[k]->ranks.size(); ++r, ++at) {
      const RankSample &from = first[k]->ranks[r], &to = last[k]->ranks[r];
      const double tokens = double(tokens_of(to, role) - tokens_of(from, role));
      figures.rank_tokens.push_back(tokens);
      at_once += role == Role::kPrefill ? tokens / double(steps) : figures.running[at];
      figures.retractions += to.retractions - from.retractions;
      figures.failed_transfers += to.failed_transfers - from.failed_transfers;
    }
    figures.per_rank_by_steps += at_once / step_s / figures.num_ranks;
  }
  figures.tokens_per_s = std::accumulate(figures.rank_tokens.begin(), figures.rank_tokens.end(), 0.0) / window_s;
  figures.per_rank_by_counters = figures.tokens_per_s / figures.num_ranks;
  figures.imbalance = largest_over_mean(role == Role::kPrefill ? figures.rank_tokens : figures.running);
  figures.variation = variation_of(samples, role);
  return figures;
}

}  // namespace tandem::workflow
