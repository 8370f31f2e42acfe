#include "workflow/trace_figures.h"

#include <algorithm>
#include <map>

namespace tandem::workflow {
namespace {

using profile::Trace;
using profile::TraceEvent;

constexpr size_t kMostParts = 16;

bool is_step(const TraceEvent& event) { return event.phase == 'X' && event.category == "step" && event.name == "step"; }

// The steps of the first rank that has any, in the order of time.
std::vector<const TraceEvent*> steps_of(const Trace& trace, Role role) {
  const std::string_view kind = role == Role::kPrefill ? "extend" : "decode";
  std::vector<const TraceEvent*> steps;
  for (const TraceEvent& event : trace.events) {
    if (is_step(event) && event.text("kind") == kind) steps.push_back(&event);
  }
  if (steps.empty()) return steps;
  const int64_t pid =
      std::min_element(steps.begin(), steps.end(), [](auto* a, auto* b) { return a->pid < b->pid; })[0]->pid;
  std::erase_if(steps, [pid](const TraceEvent* step) { return step->pid != pid; });
  std::sort(steps.begin(), steps.end(), [](auto* a, auto* b) { return a->begin_us < b->begin_us; });
  return steps;
}

bool is_within(const TraceEvent& event, const std::vector<const TraceEvent*>& steps) {
  const auto after = std::upper_bound(steps.begin(), steps.end(), event.begin_us,
                                      [](double at, const TraceEvent* step) { return at < step->begin_us; });
  return after != steps.begin() && event.begin_us < after[-1]->begin_us + after[-1]->duration_us;
}

}  // namespace

TraceFigures trace_figures(const Trace& trace, Role role) {
  const std::vector<const TraceEvent*> steps = steps_of(trace, role);
  TraceFigures figures;
  figures.num_steps = int64_t(steps.size());
  if (steps.size() >= 2) {
    figures.step_ms = (steps.back()->begin_us - steps.front()->begin_us) / double(steps.size() - 1) / 1e3;
  } else if (steps.size() == 1) {
    figures.step_ms = steps[0]->duration_us / 1e3;
  }
  return figures;
}

std::vector<StepPart> step_breakdown(const Trace& trace, Role role) {
  const std::vector<const TraceEvent*> steps = steps_of(trace, role);
  if (steps.empty()) return {};
  std::map<std::string, StepPart> parts;
  double rest_us = 0;
  for (const TraceEvent* step : steps) rest_us += step->duration_us;
  for (const TraceEvent& event : trace.events) {
    const bool is_part = event.category == "cpu_op" || event.category == "kernel" || event.name.ends_with(" wait");
    if (event.phase != 'X' || !is_part || event.pid != steps[0]->pid || !is_within(event, steps)) continue;
    StepPart& part = parts[event.name];
    part.name = event.name;
    part.count += 1;
    part.ms_per_step += event.duration_us / 1e3 / double(steps.size());
    rest_us -= event.duration_us;
  }
  std::vector<StepPart> sorted;
  for (auto& [name, part] : parts) sorted.push_back(std::move(part));
  std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.ms_per_step > b.ms_per_step; });
  for (size_t i = kMostParts; i < sorted.size(); ++i) rest_us += sorted[i].ms_per_step * 1e3 * double(steps.size());
  if (sorted.size() > kMostParts) sorted.resize(kMostParts);
  sorted.push_back({"everything else", 0, std::max(0.0, rest_us) / 1e3 / double(steps.size())});
  return sorted;
}

}  // namespace tandem::workflow
