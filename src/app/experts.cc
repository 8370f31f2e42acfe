#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <optional>

#include "app/commands.h"
#include "app/expert_recording.h"
#include "app/expert_text.h"
#include "app/flags.h"
#include "experts/balance.h"
#include "experts/dispatch.h"
#include "experts/files.h"
#include "experts/repair.h"

namespace tandem::app {
namespace {

using experts::BalanceAlgorithm;
using experts::EpTopology;
using experts::ExpertFile;
using experts::ExpertPlacement;
using experts::LoadFile;
using experts::PlacementFile;
using experts::StepDetail;

constexpr Flag kPlanFlags[] = {
    {"--load", FlagKind::kStringList, nullptr, nullptr, FlagSupport::kWorks,
     "files of counted loads, added up: .pt dumps, JSON, safetensors"},
    {"--slots", FlagKind::kInt, nullptr, nullptr, FlagSupport::kWorks, "slots per layer, a multiple of the ranks"},
    {"--gpus,--ranks", FlagKind::kInt, nullptr, nullptr, FlagSupport::kWorks, "ranks of the expert-parallel group"},
    {"--nodes", FlagKind::kInt, "1", nullptr, FlagSupport::kWorks, "nodes that the ranks divide over"},
    {"--groups", FlagKind::kInt, nullptr, nullptr, FlagSupport::kWorks,
     "routing groups of the model, for hierarchical algorithms (default: as the load file says, else 1)"},
    {"--algorithm", FlagKind::kString, nullptr, nullptr, FlagSupport::kWorks,
     "how to plan afresh (default tandem); with --from the ranks are renumbered so that few slots change"},
    {"--from", FlagKind::kString, nullptr, nullptr, FlagSupport::kWorks,
     "placement in use: without --algorithm it is repaired instead of planned afresh"},
    {"--target", FlagKind::kFloat, "0.97", nullptr, FlagSupport::kWorks, "repair: a layer this balanced is left alone"},
    {"--budget", FlagKind::kInt, "8", nullptr, FlagSupport::kWorks, "repair: at most so many slots of a layer change"},
    {"--sglang", FlagKind::kSwitch, nullptr, nullptr, FlagSupport::kWorks,
     "write the map alone, which SGLang reads as --init-expert-location; shares are lost"},
    {"--output", FlagKind::kString, nullptr, nullptr, FlagSupport::kWorks, "where to write the plan: .json or .pt"},
};

constexpr Flag kShowFlags[] = {
    {"--gpus,--ranks", FlagKind::kInt, nullptr, nullptr, FlagSupport::kWorks,
     "ranks to judge balancedness for (default: as the placement says)"},
    {"--nodes", FlagKind::kInt, nullptr, nullptr, FlagSupport::kWorks, "nodes that the ranks divide over (default 1)"},
    {"--placement", FlagKind::kString, nullptr, nullptr, FlagSupport::kWorks,
     "placement to judge the load by (default: the trivial one)"},
    {"--output", FlagKind::kString, nullptr, nullptr, FlagSupport::kWorks,
     "draw the load as a heat map: .html or .svg"},
};

Result<int32_t> positive(const FlagValues& flags, const char* field, const char* name) {
  if (!flags.has(field)) return invalid_input(fmt::format("argument {} is required", name));
  const int64_t value = flags.integer(field);
  constexpr int64_t kMost = 1 << 20;
  if (value < 1 || value > kMost)
    return invalid_input(fmt::format("argument {}: {} is not in [1, {}]", name, value, kMost));
  return int32_t(value);
}

Result<EpTopology> topology_of(int32_t slots, int32_t ranks, int32_t nodes) {
  if (slots % ranks != 0) return invalid_input(fmt::format("{} slots do not divide over {} ranks", slots, ranks));
  if (ranks % nodes != 0) return invalid_input(fmt::format("{} ranks do not divide over {} nodes", ranks, nodes));
  return EpTopology{nodes, ranks, slots / ranks};
}

std::string describe(const LoadFile& file) {
  int64_t pairs = 0;
  for (int64_t tokens : file.load.tokens) pairs += tokens;
  const std::string dropped =
      file.dropped_passes > 0 ? fmt::format("; {} earlier steps were not kept", workflow::grouped(file.dropped_passes))
                              : "";
  return fmt::format("{} layers of {} experts, {} {}, {} pairs{}{}", file.load.num_layers, file.load.num_logical,
                     workflow::grouped(file.num_steps), file.num_steps == 1 ? "step" : "steps",
                     workflow::grouped(pairs), file.scaled ? " (fractions, scaled)" : "", dropped);
}

struct PlanInput {
  LoadFile load;
  EpTopology topology;
  int32_t num_groups = 1;
  std::optional<BalanceAlgorithm> algorithm;  // none: repair
  std::string load_name;
  std::optional<PlacementFile> old;
  experts::RepairLimits limits;

  ExpertPlacement before() const {
    if (old) return old->placement;
    return experts::trivial_placement(load.load.num_layers, load.load.num_logical, topology.num_slots());
  }
};

Result<PlanInput> read_plan_input(const FlagValues& flags) {
  PlanInput input;
  if (!flags.has("load")) return invalid_input("argument --load is required");
  ASSIGN_OR_RETURN(const int32_t slots, positive(flags, "slots", "--slots"));
  ASSIGN_OR_RETURN(const int32_t ranks, positive(flags, "gpus", "--gpus"));
  ASSIGN_OR_RETURN(const int32_t nodes, positive(flags, "nodes", "--nodes"));
  ASSIGN_OR_RETURN(input.topology, topology_of(slots, ranks, nodes));
  if (flags.has("algorithm") || !flags.has("from")) {
    ASSIGN_OR_RETURN(input.algorithm,
                     experts::find_balance_algorithm(flags.has("algorithm") ? flags.text("algorithm") : "tandem"));
  }
  const std::vector<std::string> paths = flags.texts("load");
  // Only deepseek_vec looks at single steps; the sum of the others needs far less memory.
  const bool by_step = input.algorithm && input.algorithm->name.find("_vec") != std::string_view::npos;
  ASSIGN_OR_RETURN(input.load, experts::read_load(paths, {}, by_step ? StepDetail::kKeepSteps : StepDetail::kSum));
  if (input.load.steps.empty()) input.load.steps.push_back(input.load.load);
  input.load_name = std::filesystem::path(paths.front()).filename().string();
  if (paths.size() > 1) input.load_name += fmt::format(" and {} more", paths.size() - 1);
  input.num_groups = std::max(1, input.load.facts.num_groups);
  if (flags.has("groups")) {
    ASSIGN_OR_RETURN(input.num_groups, positive(flags, "groups", "--groups"));
  }
  if (flags.has("from")) {
    const experts::ExpertShape want{input.load.load.num_layers, input.load.load.num_logical, slots};
    ASSIGN_OR_RETURN(input.old, experts::read_placement(flags.text("from"), want));
  }
  input.limits.target = flags.number("target");
  if (!(input.limits.target > 0 && input.limits.target <= 1)) return invalid_input("argument --target: not in (0, 1]");
  ASSIGN_OR_RETURN(input.limits.max_changed_per_layer, positive(flags, "budget", "--budget"));
  RETURN_IF_ERROR(experts::check_problem({input.load.steps, input.topology, input.num_groups}));
  return input;
}

Result<ExpertPlacement> make_plan(const PlanInput& input) {
  if (!input.algorithm) return experts::repair(input.load.load, input.old->placement, input.topology, input.limits);
  ASSIGN_OR_RETURN(ExpertPlacement plan,
                   experts::plan_experts(*input.algorithm, {input.load.steps, input.topology, input.num_groups}));
  if (!input.old) return plan;
  const auto scope = input.num_groups > 1 && input.topology.num_nodes > 1 ? experts::RelabelScope::kWithinNode
                                                                          : experts::RelabelScope::kAnyRank;
  return experts::relabel(plan, input.old->placement, input.topology, scope);
}

// Of the layers that have load; the rows of dense layers mean nothing.
void print_moves(const PlanInput& input, const ExpertPlacement& before, const ExpertPlacement& after) {
  int64_t most = 0, sum = 0, slots = 0;
  for (int32_t layer = 0; layer < after.num_layers; ++layer) {
    if (layer_figures(input.load.load, layer).total == 0) continue;
    int64_t changed = 0;
    for (size_t slot = 0; slot < size_t(after.num_slots); ++slot) {
      changed += before.layer(layer)[slot] != after.layer(layer)[slot] ? 1 : 0;
    }
    most = std::max(most, changed);
    sum += changed;
    slots += after.num_slots;
  }
  fmt::print("slots moved   {} of {}, at most {} of a layer's {}\n", workflow::grouped(sum), workflow::grouped(slots),
             most, after.num_slots);
}

void print_balance(const PlanInput& input, const ExpertPlacement& after) {
  const ExpertPlacement before = input.before();
  const auto summary = [&](const ExpertPlacement& placement) {
    return summarize(input.load.load, experts::balancedness(input.load.load, placement, input.topology));
  };
  const BalanceSummary old = summary(before), fresh = summary(after);
  fmt::print("\n{:<26}{:>10}{:>10}\n", "balancedness", "before", "after");
  fmt::print("{:<26}{:>10.3f}{:>10.3f}\n", "  least balanced layer", old.min, fresh.min);
  fmt::print("{:<26}{:>10.3f}{:>10.3f}\n", "  mean", old.mean, fresh.mean);
  fmt::print("{:<26}{:>10.3f}{:>10.3f}\n", "  most balanced layer", old.max, fresh.max);
  const auto served = [&](const ExpertPlacement& placement) {
    return experts::served_balance(input.load.load, placement, input.topology, experts::DispatchAlgorithm::kStatic)
        .mean;
  };
  fmt::print("{:<26}{:>10.3f}{:>10.3f}\n\n", "  mean, static dispatch", served(before), served(after));
  print_moves(input, before, after);
}

PlacementFile as_file(const PlanInput& input, ExpertPlacement plan, std::string_view planner) {
  PlacementFile file;
  file.facts.model = input.load.facts.model;
  file.facts.phase = input.load.facts.phase;
  file.facts.planner = planner;
  file.facts.planned_from = input.load_name;
  file.facts.epoch = input.old ? input.old->facts.epoch + 1 : 0;
  file.facts.num_gpus = input.topology.num_ranks;
  file.facts.num_nodes = input.topology.num_nodes;
  file.facts.num_groups = input.num_groups > 1 ? input.num_groups : 0;
  file.facts.balancedness = experts::balancedness(input.load.load, plan, input.topology).mean;
  file.placement = std::move(plan);
  return file;
}

Status plan(const FlagValues& flags) {
  ASSIGN_OR_RETURN(const PlanInput input, read_plan_input(flags));
  const std::string_view planner = input.algorithm ? input.algorithm->name : "repair";
  fmt::print("load          {}: {}\n", input.load_name, describe(input.load));
  const auto start = std::chrono::steady_clock::now();
  ASSIGN_OR_RETURN(const ExpertPlacement after, make_plan(input));
  const std::chrono::duration<double, std::milli> elapsed = std::chrono::steady_clock::now() - start;
  fmt::print("plan          {}: {} slots on {} ranks of {} {}, planned in {:.1f} ms\n", planner,
             input.topology.num_slots(), input.topology.num_ranks, input.topology.num_nodes,
             input.topology.num_nodes == 1 ? "node" : "nodes", elapsed.count());
  fmt::print("before        {}\n", input.old ? flags.text("from") : "the trivial placement");
  print_balance(input, after);
  if (!flags.has("output")) return Ok{};
  const auto form = flags.enabled("sglang") ? experts::PlacementForm::kSglang : experts::PlacementForm::kOpen;
  RETURN_IF_ERROR(experts::write_placement(flags.text("output"), as_file(input, after, planner), form));
  fmt::print("written       {}{}\n", flags.text("output"), flags.enabled("sglang") ? ", the map alone" : "");
  return Ok{};
}

// The placement and ranks to judge a load by; none if neither is named.
Result<std::optional<Judged>> judged_by(const FlagValues& flags, const experts::ExpertLoad& load) {
  if (!flags.has("placement") && !flags.has("gpus")) return std::optional<Judged>();
  Judged judged{
      experts::trivial_placement(load.num_layers, load.num_logical, load.num_logical), {}, "trivial placement"};
  int32_t ranks = 0, nodes = 1;
  if (flags.has("placement")) {
    ASSIGN_OR_RETURN(PlacementFile file,
                     experts::read_placement(flags.text("placement"), {load.num_layers, load.num_logical, 0}));
    judged.placement = std::move(file.placement);
    judged.name = std::filesystem::path(flags.text("placement")).filename().string();
    ranks = file.facts.num_gpus;
    nodes = std::max(1, file.facts.num_nodes);
  }
  if (flags.has("gpus") || ranks == 0) {
    ASSIGN_OR_RETURN(ranks, positive(flags, "gpus", "--gpus"));
    nodes = 1;
  }
  if (flags.has("nodes")) {
    ASSIGN_OR_RETURN(nodes, positive(flags, "nodes", "--nodes"));
  }
  ASSIGN_OR_RETURN(judged.topology, topology_of(judged.placement.num_slots, ranks, nodes));
  return std::optional<Judged>(std::move(judged));
}

Status draw(const std::string& path, const workflow::HeatMap& map) {
  if (!path.ends_with(".html") && !path.ends_with(".svg")) {
    return invalid_input(fmt::format("{}: should end in .html or .svg", path));
  }
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << (path.ends_with(".svg") ? workflow::heat_map_svg(map) : workflow::heat_map_html(map));
  out.close();
  if (!out) return invalid_input(fmt::format("{}: cannot be written", path));
  fmt::print("\ndrawn         {}\n", path);
  return Ok{};
}

Status show_load(const std::string& path, const LoadFile& file, const FlagValues& flags) {
  ASSIGN_OR_RETURN(const std::optional<Judged> judged, judged_by(flags, file.load));
  fmt::print("load          {}: {}\n", path, describe(file));
  if (judged) {
    fmt::print("judged by     {}: {} slots on {} ranks of {} {}\n", judged->name, judged->placement.num_slots,
               judged->topology.num_ranks, judged->topology.num_nodes,
               judged->topology.num_nodes == 1 ? "node" : "nodes");
  }
  fmt::print("\n{}", load_table(file.load, judged ? &*judged : nullptr));
  if (judged) {
    const BalanceSummary summary =
        summarize(file.load, experts::balancedness(file.load, judged->placement, judged->topology));
    fmt::print("\nbalancedness  {:.3f} (least {:.3f} in layer {}, most {:.3f})\n", summary.mean, summary.min,
               summary.worst_layer, summary.max);
  }
  if (!flags.has("output")) return Ok{};
  return draw(flags.text("output"), load_heat_map(file, path, judged ? &*judged : nullptr));
}

Status show_placement(const std::string& path, const PlacementFile& file, const FlagValues& flags) {
  if (flags.has("output") || flags.has("placement")) {
    return invalid_input(
        fmt::format("{} is a placement; to judge or draw a load by it: show LOAD --placement {}", path, path));
  }
  const ExpertPlacement& placement = file.placement;
  // Without ranks every slot counts as one, so no rank holds an expert twice.
  int32_t ranks = file.facts.num_gpus > 0 ? file.facts.num_gpus : placement.num_slots;
  if (flags.has("gpus")) {
    ASSIGN_OR_RETURN(ranks, positive(flags, "gpus", "--gpus"));
  }
  ASSIGN_OR_RETURN(const EpTopology topology, topology_of(placement.num_slots, ranks, 1));
  fmt::print("placement     {}: {} layers of {} experts in {} slots{}\n", path, placement.num_layers,
             placement.num_logical, placement.num_slots, placement.share.empty() ? "" : ", with shares");
  if (!file.facts.planner.empty()) {
    fmt::print("planned       by {} from {}, balancedness {:.3f}, epoch {}\n", file.facts.planner,
               file.facts.planned_from, file.facts.balancedness, file.facts.epoch);
  }
  fmt::print("\n{}", placement_table(placement, topology));
  return Ok{};
}

Status show(std::span<const std::string> paths, const FlagValues& flags) {
  const std::string& path = paths.front();
  if (paths.size() > 1) {
    ASSIGN_OR_RETURN(const LoadFile sum, experts::read_load(paths, {}, StepDetail::kSum));
    return show_load(fmt::format("{} and {} more", path, paths.size() - 1), sum, flags);
  }
  ASSIGN_OR_RETURN(const ExpertFile file, experts::read_expert_file(path, {}, StepDetail::kSum));
  if (const auto* load = std::get_if<LoadFile>(&file)) return show_load(path, *load, flags);
  return show_placement(path, std::get<PlacementFile>(file), flags);
}

int finish(const Status& status) {
  if (status) return 0;
  fmt::print(stderr, "tandem experts: error: {}\n", status.error().message);
  return 2;
}

}  // namespace

int run_experts(Args args) {
  const std::string verb = args.empty() ? "" : args[0];
  if (verb == "record" || verb == "stop" || verb == "dump") return control_recording(verb, args.subspan(1));
  if (verb != "plan" && verb != "show") {
    const bool help = verb == "--help" || verb == "-h";
    fmt::print(help ? stdout : stderr,
               "usage: tandem experts plan --load FILE --slots N --gpus N [flags]   plan where experts live\n"
               "       tandem experts show FILE... [flags]                          tables and a heat map\n"
               "       tandem experts record|stop|dump --router URL [flags]         count experts' hits on servers\n");
    return help ? 0 : 2;
  }
  args = args.subspan(1);
  std::vector<std::string> files;
  while (verb == "show" && !args.empty() && !args[0].starts_with("--")) {
    files.push_back(args[0]);
    args = args.subspan(1);
  }
  Result<ParseOutcome> parsed =
      verb == "plan"
          ? parse_flags("experts plan", "Plans which slot holds which expert, from counted loads.", kPlanFlags, args)
          : parse_flags("experts show FILE...", "Tables and a heat map of a load, or of a placement.", kShowFlags,
                        args);
  if (!parsed) return finish(parsed.error());
  if (parsed->help_shown) return 0;
  if (verb == "plan") return finish(plan(parsed->values));
  if (files.empty()) return finish(invalid_input("show: which file?"));
  return finish(show(files, parsed->values));
}

}  // namespace tandem::app
