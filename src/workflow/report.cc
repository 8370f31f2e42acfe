#include "workflow/report.h"

#include <fmt/format.h>

namespace tandem::workflow {
namespace {

json::Object spread_json(const loadgen::Spread& spread) {
  json::Object out;
  out["mean"] = spread.mean;
  out["median"] = spread.median;
  out["p95"] = spread.p95;
  out["p99"] = spread.p99;
  out["max"] = spread.max;
  return out;
}

template <class T>
json::Array list_json(const std::vector<T>& values) {
  json::Array out;
  for (const T& value : values) out.emplace_back(value);
  return out;
}

json::Array reasons_json(const std::vector<Reason>& reasons) {
  json::Array out;
  for (const Reason& reason : reasons) {
    json::Object entry;
    entry["code"] = reason.code;
    entry["detail"] = reason.detail;
    out.push_back(std::move(entry));
  }
  return out;
}

json::Object window_json(const WindowFigures& window) {
  json::Object out;
  out["begin_s"] = window.begin_s;
  out["end_s"] = window.end_s;
  out["num_gpus"] = window.num_ranks;
  out["tokens_per_s"] = window.tokens_per_s;
  out["tokens_per_s_per_gpu_by_counters"] = window.per_rank_by_counters;
  out["tokens_per_s_per_gpu_by_steps"] = window.per_rank_by_steps;
  out["disagreement"] = window.disagreement();
  out["step_ms"] = window.step_ms;
  out["variation"] = window.variation;
  out["running"] = list_json(window.running);
  out["starved"] = list_json(window.starved);
  out["rank_tokens"] = list_json(window.rank_tokens);
  out["imbalance"] = window.imbalance;
  out["kv_pool_peak"] = window.pool_peak;
  out["retractions"] = window.retractions;
  out["failed_transfers"] = window.failed_transfers;
  return out;
}

json::Object measurement_json(const Measurement& measurement) {
  json::Object out = window_json(measurement.evidence.window);
  const LoadFigures& load = measurement.evidence.load;
  out["requests_completed"] = load.completed;
  out["requests_failed"] = load.failed;
  out["output_tokens"] = load.output_tokens;
  out["ttft_ms"] = spread_json(measurement.ttft);
  out["itl_ms"] = spread_json(measurement.itl);
  if (measurement.evidence.trace) {
    json::Object trace;
    trace["file"] = measurement.trace_file;
    trace["num_steps"] = measurement.evidence.trace->num_steps;
    trace["step_ms"] = measurement.evidence.trace->step_ms;
    json::Array parts;
    for (const StepPart& part : measurement.breakdown) {
      json::Object entry;
      entry["name"] = part.name;
      entry["count"] = part.count;
      entry["ms_per_step"] = part.ms_per_step;
      parts.push_back(std::move(entry));
    }
    trace["parts"] = std::move(parts);
    out["trace"] = std::move(trace);
  }
  if (measurement.experts) {
    json::Object experts;
    experts["balancedness"] = measurement.experts->balancedness;
    experts["num_layers"] = measurement.experts->num_layers;
    experts["num_ranks"] = measurement.experts->num_ranks;
    experts["rank_loads"] = list_json(measurement.experts->rank_loads);
    out["experts"] = std::move(experts);
  }
  out["reasons"] = reasons_json(measurement.reasons);
  return out;
}

json::Object half_json(const HalfReport& half) {
  json::Object out;
  out["name"] = half.name;
  out["split"] = half.split;
  out["load"] = half.load;
  json::Array stages;
  for (const StageRecord& stage : half.stages) {
    json::Object entry;
    entry["name"] = stage.name;
    entry["begin_s"] = stage.begin_s;
    entry["end_s"] = stage.end_s;
    entry["note"] = stage.note;
    entry["failed"] = stage.failed;
    stages.push_back(std::move(entry));
  }
  out["stages"] = std::move(stages);
  if (half.before) out["before"] = measurement_json(*half.before);
  if (half.after) out["after"] = measurement_json(*half.after);
  return out;
}

void add_reasons(const std::string& where, const Measurement& measurement, std::vector<Reason>& reasons) {
  for (const Reason& reason : measurement.reasons) reasons.push_back({reason.code, where + ": " + reason.detail});
}

}  // namespace

bool ReproduceReport::valid() const { return reasons().empty(); }

std::vector<Reason> ReproduceReport::reasons() const {
  std::vector<Reason> all;
  for (const std::string& fault : faults) all.push_back({"stage_failed", fault});
  for (const HalfReport& half : halves) {
    if (half.before) add_reasons(half.name, *half.before, all);
    if (half.after) add_reasons(half.name + ", rebalanced", *half.after, all);
    if (half.before) continue;
    all.push_back({"not_measured", half.name + ": no window was measured"});
    for (const StageRecord& stage : half.stages) {
      if (stage.failed) all.push_back({"stage_failed", fmt::format("{}, {}: {}", half.name, stage.name, stage.note)});
    }
  }
  if (halves.empty()) all.push_back({"not_measured", "nothing was measured"});
  return all;
}

json::Value report_json(const ReproduceReport& report) {
  json::Object out;
  out["verdict"] = report.valid() ? "valid" : "invalid";
  out["reasons"] = reasons_json(report.reasons());
  out["version"] = report.version;
  out["host"] = report.host;
  out["started_utc"] = report.started_utc;
  out["seconds"] = report.seconds;
  out["commands"] = list_json(report.commands);
  json::Object configuration;
  for (const auto& [name, value] : report.configuration) configuration[name] = value;
  out["configuration"] = std::move(configuration);
  json::Array halves;
  for (const HalfReport& half : report.halves) halves.push_back(half_json(half));
  out["halves"] = std::move(halves);
  return out;
}

}  // namespace tandem::workflow
