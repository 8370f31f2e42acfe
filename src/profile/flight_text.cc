// The explanation as people and as programs read it.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/json.h"
#include "profile/flight/rank_view.h"
#include "profile/flight_explain.h"

namespace tandem::profile {
namespace {

const char* process_text(const FlightRow& row) { return row.is_closed ? "ended" : to_string(row.process); }

json::Array array_of(const std::vector<int32_t>& ranks) {
  json::Array array;
  for (const int32_t rank : ranks) array.emplace_back(rank);
  return array;
}

json::Object object_of(const FlightFinding& finding) {
  json::Object object;
  object["kind"] = to_string(finding.kind);
  object["stuck"] = finding.is_stuck;
  object["server"] = finding.role;
  object["ranks"] = array_of(finding.ranks);
  object["waiting"] = array_of(finding.waiting);
  object[finding.kind == FlightFinding::Kind::kHandover ? "room" : "step"] = finding.step;
  object["operation"] = finding.operation.empty() ? json::Value(nullptr) : json::Value(finding.operation);
  object["layer"] = finding.layer < 0 ? json::Value(nullptr) : json::Value(finding.layer);
  object["seconds"] = finding.waited_s;
  object["sentence"] = finding.sentence;
  return object;
}

json::Object object_of(const FlightRow& row) {
  json::Object object;
  object["server"] = row.role;
  object["rank"] = row.rank;
  object["node"] = row.node;
  object["host"] = row.host;
  object["pid"] = row.pid;
  object["process"] = process_text(row);
  object["step"] = row.step;
  object["last_entry"] = row.last_entry;
  object["age_seconds"] = row.age_s;
  return object;
}

}  // namespace

const char* to_string(FlightFinding::Kind kind) {
  switch (kind) {
    case FlightFinding::Kind::kDecisionsDiffer: return "decisions_differ";
    case FlightFinding::Kind::kRankMissing: return "rank_missing";
    case FlightFinding::Kind::kNotDelivered: return "not_delivered";
    case FlightFinding::Kind::kRanksWaitInCircle: return "circle";
    case FlightFinding::Kind::kProcessDown: return "process_down";
    case FlightFinding::Kind::kRankSilent: return "rank_silent";
    case FlightFinding::Kind::kGaveUp: return "gave_up";
    case FlightFinding::Kind::kHandover: return "handover";
    case FlightFinding::Kind::kWorking: return "working";
    case FlightFinding::Kind::kState: return "state";
    case FlightFinding::Kind::kCount: break;
  }
  return "?";
}

std::string explanation_text(const Explanation& explanation) {
  constexpr auto kRow = "{:<9} {:>4} {:>4} {:<16} {:>8} {:<8} {:>8} {:>9}  {}\n";
  std::string text = fmt::format(fmt::runtime(kRow), "server", "rank", "node", "host", "pid", "process", "step",
                                 "age s", "last entry");
  for (const FlightRow& row : explanation.rows) {
    text += fmt::format(fmt::runtime(kRow), row.role, row.rank, row.node, row.host.substr(0, 16), row.pid,
                        process_text(row), row.step, fmt::format("{:.1f}", row.age_s), row.last_entry);
  }
  return text + "\n" + explanation_sentences(explanation);
}

std::string explanation_sentences(const Explanation& explanation) {
  std::string text = explanation.is_stuck ? "" : "nothing is stuck\n";
  for (const FlightFinding& finding : explanation.findings) {
    text += fmt::format("{}{}\n", finding.is_stuck ? "stuck: " : "", finding.sentence);
  }
  return text;
}

std::string explanation_json(const Explanation& explanation) {
  json::Object object;
  object["stuck"] = explanation.is_stuck;
  json::Array findings, ranks;
  for (const FlightFinding& finding : explanation.findings) findings.emplace_back(object_of(finding));
  for (const FlightRow& row : explanation.rows) ranks.emplace_back(object_of(row));
  object["findings"] = std::move(findings);
  object["ranks"] = std::move(ranks);
  return json::dump(object);
}

}  // namespace tandem::profile
