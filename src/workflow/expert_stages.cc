#include "workflow/expert_stages.h"

#include <fmt/format.h>

#include <algorithm>

#include "experts/balancedness.h"
#include "experts/files.h"

namespace tandem::workflow {
namespace {

using Element = simdjson::dom::element;

constexpr Duration kControlTimeout = std::chrono::seconds(30);
constexpr Duration kPoll = std::chrono::milliseconds(200);

// The second line of the dump's answer.
Result<std::string> dumped_path(const std::string& answer) {
  const size_t first = answer.find('\n');
  std::string path = first == std::string::npos ? "" : answer.substr(first + 1);
  path.erase(std::min(path.find('\n'), path.size()));
  if (path.empty()) return not_found("the server's answer to the dump names no file");
  return path;
}

Result<json::Document> placement_of(const Deployment& deployment, const std::string& url) {
  ASSIGN_OR_RETURN(std::string body, deployment.ask(url, "GET", "/expert_placement", "", kControlTimeout));
  return json::Document::parse(body, "GET /expert_placement");
}

Status read_rows(simdjson::dom::array rows, experts::ExpertPlacement& placement) {
  for (Element row : rows) {
    simdjson::dom::array slots;
    if (row.get(slots)) return invalid_input("physical_to_logical_map: a layer is no list");
    int32_t count = 0;
    for (Element slot : slots) {
      int64_t expert = 0;
      if (slot.get(expert)) return invalid_input("physical_to_logical_map: wanted integers");
      placement.logical_of_slot.push_back(int32_t(expert));
      ++count;
    }
    if (placement.num_layers > 0 && count != placement.num_slots) {
      return invalid_input(fmt::format("physical_to_logical_map: layer {} has {} slots, the first {}",
                                       placement.num_layers, count, placement.num_slots));
    }
    placement.num_slots = count;
    placement.num_layers += 1;
  }
  return Ok{};
}

// Whether the instance is done with everything it was asked for, or why it will not be.
Result<bool> is_settled(const Deployment& deployment, const std::string& url, uint64_t failed_before) {
  ASSIGN_OR_RETURN(json::Document document, placement_of(deployment, url));
  uint64_t failed = 0;
  bool in_progress = false;
  if (document.root()["failed"].get(failed) || document.root()["in_progress"].get(in_progress)) {
    return not_found("/expert_placement: no \"failed\" or \"in_progress\"");
  }
  if (failed > failed_before) {
    std::string_view reason = "no reason given";
    if (document.root()["last_error"].get(reason)) reason = "no reason given";
    return peer_lost(fmt::format("{}: the plan failed: {}", url, reason));
  }
  return !in_progress;
}

}  // namespace

Result<experts::ExpertPlacement> parse_placement(Element answer, int32_t num_logical) {
  experts::ExpertPlacement placement;
  placement.num_logical = num_logical;
  simdjson::dom::array rows;
  if (answer["physical_to_logical_map"].get(rows)) return not_found("/expert_placement: no physical_to_logical_map");
  RETURN_IF_ERROR(read_rows(rows, placement));
  for (int32_t expert : placement.logical_of_slot) {
    if (expert >= 0 && expert < num_logical) continue;
    return invalid_input(fmt::format("physical_to_logical_map: expert {} of {}", expert, num_logical));
  }
  if (placement.num_layers == 0) return invalid_input("physical_to_logical_map is empty");
  return placement;
}

Result<ExpertFigures> record_experts(const Deployment& deployment, Role role, int32_t num_ranks, Duration length,
                                     const std::function<bool(Duration)>& wait) {
  const std::vector<Instance> instances = deployment.of_role(role);
  if (instances.empty()) return not_found(fmt::format("no {} instance", role_name(role)));
  RETURN_IF_ERROR(deployment.post(role, "/start_expert_distribution_record", "", kControlTimeout));
  if (!wait(length)) return cancelled("interrupted");
  std::vector<std::string> paths;
  for (const Instance& instance : instances) {
    RETURN_IF_ERROR(deployment.ask(instance.url, "POST", "/stop_expert_distribution_record", "", kControlTimeout));
    ASSIGN_OR_RETURN(std::string answer,
                     deployment.ask(instance.url, "POST", "/dump_expert_distribution_record", "", kControlTimeout));
    ASSIGN_OR_RETURN(std::string path, dumped_path(answer));
    paths.push_back(std::move(path));
  }
  ASSIGN_OR_RETURN(experts::LoadFile file, experts::read_load(paths, {}, experts::StepDetail::kSum));
  ASSIGN_OR_RETURN(json::Document answer, placement_of(deployment, instances[0].url));
  ASSIGN_OR_RETURN(experts::ExpertPlacement placement, parse_placement(answer.root(), file.load.num_logical));
  if (placement.num_layers != file.load.num_layers || placement.num_slots % num_ranks != 0) {
    return invalid_input(fmt::format("a placement of {} layers and {} slots for a load of {} layers and {} ranks",
                                     placement.num_layers, placement.num_slots, file.load.num_layers, num_ranks));
  }
  const experts::EpTopology topology{1, num_ranks, placement.num_slots / num_ranks};
  ExpertFigures figures;
  figures.files = paths;
  figures.num_layers = placement.num_layers;
  figures.num_ranks = num_ranks;
  figures.rank_loads = experts::rank_loads(file.load, placement, topology);
  figures.balancedness = experts::balancedness_of_ranks(figures.rank_loads, num_ranks).mean;
  return figures;
}

Result<std::string> rebalance_experts(const Deployment& deployment, Role role, const std::string& algorithm,
                                      Duration timeout, const std::function<bool(Duration)>& wait) {
  std::string note;
  json::Object call;
  if (!algorithm.empty()) call["algorithm"] = algorithm;
  for (const Instance& instance : deployment.of_role(role)) {
    ASSIGN_OR_RETURN(json::Document before, placement_of(deployment, instance.url));
    uint64_t failed = 0;
    if (before.root()["failed"].get(failed)) return not_found("/expert_placement: no \"failed\"");
    ASSIGN_OR_RETURN(std::string answer,
                     deployment.ask(instance.url, "POST", "/rebalance", json::dump(call), kControlTimeout));
    ASSIGN_OR_RETURN(json::Document reply, json::Document::parse(answer, "POST /rebalance"));
    int64_t moves = 0, layers = 0;
    double from = 0, to = 0;
    if (reply.root()["moves"].get(moves) || reply.root()["layers"].get(layers) ||
        reply.root()["balancedness"].get(from) || reply.root()["planned_balancedness"].get(to)) {
      return not_found("/rebalance: wanted moves, layers, balancedness and planned_balancedness");
    }
    note += fmt::format("{}{} experts in {} layers moved, balancedness {:.4f} to {:.4f} as planned",
                        note.empty() ? "" : "; ", moves, layers, from, to);
    for (Duration waited = Duration::zero();; waited += kPoll) {
      ASSIGN_OR_RETURN(const bool settled, is_settled(deployment, instance.url, failed));
      if (settled) break;
      if (waited >= timeout)
        return timed_out(fmt::format("{}: still moving after {:.0f} s", instance.url, seconds(waited)));
      if (!wait(kPoll)) return cancelled("interrupted");
    }
  }
  return note;
}

}  // namespace tandem::workflow
