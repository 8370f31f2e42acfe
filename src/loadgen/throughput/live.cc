#include "loadgen/throughput/live.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "base/json.h"
#include "loadgen/target.h"

namespace tandem::loadgen {
namespace {

using Element = simdjson::dom::element;

// What a phase's counters did between two samples.
struct Progress {
  double steps = 0, tokens = 0, step_s = 0;
};

Progress progress(const RankCounters& first, const RankCounters& last, ServingPhase phase) {
  const bool decode = phase == ServingPhase::kDecode;
  const auto grown = [](uint64_t before, uint64_t after) { return after > before ? double(after - before) : 0.0; };
  return {
      decode ? grown(first.decode_steps, last.decode_steps) : grown(first.prefill_steps, last.prefill_steps),
      decode ? grown(first.decode_tokens, last.decode_tokens) : grown(first.prefill_tokens, last.prefill_tokens),
      (decode ? grown(first.decode_step_us, last.decode_step_us) : grown(first.prefill_step_us, last.prefill_step_us)) *
          1e-6};
}

struct ServerProgress {
  double most_steps = 0;  // of a rank
  double steps = 0, step_s = 0;
  double busy_s = 0;  // in which the busiest rank had something to do
};

double busy_seconds(const RankCounters& first, const RankCounters& last) {
  return progress(first, last, ServingPhase::kDecode).step_s + progress(first, last, ServingPhase::kPrefill).step_s;
}

bool restarted(const RankCounters& first, const RankCounters& last) {
  return last.decode_steps < first.decode_steps || last.prefill_steps < first.prefill_steps;
}

Status add_states(Element server, const std::string& source, std::vector<RankCounters>& out) {
  simdjson::dom::array states;
  if (server["internal_states"].get(states)) return invalid_input(source + ": expected internal_states, one per rank");
  std::string_view mode;
  const bool has_mode = !server["disaggregation_mode"].get(mode);
  double tp_size = 1, dp_size = 1;
  if (server["tp_size"].get(tp_size) || server["dp_size"].get(dp_size) || dp_size < 1) tp_size = dp_size = 1;
  int32_t rank = 0;
  for (const Element state : states) {
    RankCounters counters;
    counters.source = source;
    counters.rank = rank++;
    counters.combined = !has_mode || (mode != "prefill" && mode != "decode");
    counters.main_phase = mode == "prefill" ? ServingPhase::kPrefill : ServingPhase::kDecode;
    counters.gpus = tp_size / dp_size;
    for (const auto& [key, value] : {std::pair("decode_steps", &counters.decode_steps),
                                     {"generated_tokens", &counters.decode_tokens},
                                     {"decode_step_us", &counters.decode_step_us},
                                     {"prefill_steps", &counters.prefill_steps},
                                     {"prompt_tokens_computed", &counters.prefill_tokens},
                                     {"prefill_step_us", &counters.prefill_step_us}}) {
      if (!state[key].get(*value)) continue;
      return invalid_input(
          fmt::format("{}: expected a counter {} of rank {} in internal_states (a server of this "
                      "version); for other servers give --log and --trace",
                      source, key, counters.rank));
    }
    out.push_back(std::move(counters));
  }
  return Ok{};
}

}  // namespace

Result<std::vector<RankCounters>> parse_server_counters(std::string_view body, const std::string& source) {
  ASSIGN_OR_RETURN(const json::Document document, json::Document::parse(body, source));
  const Element root = document.root();
  std::vector<RankCounters> out;
  bool is_router = false;
  for (const std::string_view role : {"prefill", "decode"}) {
    simdjson::dom::array servers;
    if (!root.is_object() || root[role].get(servers)) continue;
    is_router = true;
    size_t index = 0;
    for (const Element server : servers) {
      if (!server.is_object()) return invalid_input(source + ": expected an object per server");
      RETURN_IF_ERROR(add_states(server, fmt::format("{} {}[{}]", source, role, index++), out));
    }
  }
  if (is_router) return out;
  if (!root.is_object()) return invalid_input(source + ": expected an object");
  RETURN_IF_ERROR(add_states(root, source, out));
  return out;
}

Result<LiveSample> sample_servers(const std::vector<std::string>& urls, const std::string& authorization,
                                  const Clock& clock) {
  LiveSample sample;
  sample.at = clock.now();
  for (const std::string& url : urls) {
    ASSIGN_OR_RETURN(const Target target, Target::create(url, authorization));
    auto info = target.server_info();
    if (!info) return Error{info.error().code, fmt::format("{}: {}", url, info.error().message)};
    ASSIGN_OR_RETURN(std::vector<RankCounters> ranks, parse_server_counters(simdjson::minify(info->root()), url));
    std::move(ranks.begin(), ranks.end(), std::back_inserter(sample.ranks));
  }
  return sample;
}

void add_live(const LiveSample& first, const LiveSample& last, PhaseMeasure& measure) {
  const double elapsed = seconds(last.at - first.at);
  if (first.ranks.size() != last.ranks.size() || elapsed <= 0) {
    measure.findings.push_back({Doubt::kUnequalWindows, "the two samples are not of the same ranks"});
    return;
  }
  std::vector<Progress> all(first.ranks.size());
  std::map<std::string, ServerProgress> servers;
  const auto counts = [&](size_t i) { return first.ranks[i].combined || first.ranks[i].main_phase == measure.phase; };
  for (size_t i = 0; i < all.size(); ++i) {
    if (!counts(i)) continue;
    all[i] = progress(first.ranks[i], last.ranks[i], measure.phase);
    if (restarted(first.ranks[i], last.ranks[i])) {
      measure.findings.push_back({Doubt::kUnequalWindows, first.ranks[i].source + " was started anew in the window"});
    }
    ServerProgress& server = servers[first.ranks[i].source];
    server.most_steps = std::max(server.most_steps, all[i].steps);
    server.steps += all[i].steps;
    server.step_s += all[i].step_s;
    server.busy_s = std::max(server.busy_s, busy_seconds(first.ranks[i], last.ranks[i]));
  }
  if (servers.empty()) return;
  for (size_t i = 0; i < all.size(); ++i) {
    if (!counts(i)) continue;
    RankThroughput rank{.source = first.ranks[i].source, .rank = first.ranks[i].rank};
    // A rank without requests has no steps of its own while the others have theirs.
    const double steps = servers[rank.source].most_steps;
    if (steps > 0) rank.tokens_per_step = all[i].tokens / steps;
    rank.tokens_per_s = all[i].tokens / elapsed;
    rank.window_s = std::pair(seconds(first.at.time_since_epoch()), seconds(last.at.time_since_epoch()));
    measure.ranks.push_back(std::move(rank));
  }
  ServerProgress sum;
  for (const auto& [source, server] : servers) {
    sum.steps += server.steps;
    sum.step_s += server.step_s;
    sum.busy_s += server.busy_s;
  }
  if (sum.steps == 0 || measure.step) return;
  measure.step =
      StepTime{.seconds = sum.step_s / sum.steps, .how = "servers' counters, time in steps over their number"};
  measure.step->busy_share = std::min(1.0, sum.busy_s / elapsed / double(servers.size()));
}

}  // namespace tandem::loadgen
