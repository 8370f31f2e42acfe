#include "engine/experts/recorder.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"
#include "base/log.h"
#include "engine/experts/dump.h"
#include "engine/experts/pass_dump.h"

namespace tandem::engine {
namespace {

constexpr const char* kModeNames[] = {"stat", "per_pass", "per_token"};

}  // namespace

ExpertRecorder::ExpertRecorder(const ExpertBalancerConfig& config, std::vector<ExpertPort*> ports,
                               profile::Metrics& metrics)
    : config_(config), ports_(std::move(ports)) {
  if (config_.logs_balancedness) {
    const PassMeterConfig meter{config_.topology.num_ranks, ports_[0]->num_layers(), config_.heatmap_interval,
                                config_.model_name};
    meter_.emplace(meter, metrics);
  }
  if (keeps_passes() || meter_) {
    const PassRecorderConfig passes{config_.recorder_mode, meter_.has_value(), config_.topology.num_ranks,
                                    config_.experts_per_token};
    for (ExpertPort* port : ports_) port->open_passes(passes);
  }
  if (config_.records_at_start) start();
}

int64_t ExpertRecorder::row_bytes() const {
  if (keeps_passes()) return ports_[0]->passes()->record_bytes(0, 0);
  return int64_t(ports_[0]->num_layers()) * ports_[0]->num_logical() * int64_t(sizeof(int32_t));
}

int64_t ExpertRecorder::passes_to_keep() const {
  const int64_t most = std::max<int64_t>(1, config_.recorder_bytes / row_bytes());
  return config_.recorder_steps < 0 ? most : std::min(config_.recorder_steps, most);
}

void ExpertRecorder::start() {
  if (is_recording_) log::warning("an expert recording runs already: it begins anew");
  is_recording_ = true;
  if (meter_) meter_->clear();
  const int64_t passes = passes_to_keep();
  const bool by_token = config_.recorder_mode == RecorderMode::kPerToken;
  for (ExpertPort* port : ports_) {
    if (keeps_passes()) {
      port->passes()->start(passes, config_.recorder_bytes);
    } else {
      port->start_recording(passes);
    }
  }
  log::info("Expert recording starts: mode={} passes<={} memory<={:.1f} MiB per rank; the oldest passes make room",
            kModeNames[size_t(config_.recorder_mode)], passes,
            double(by_token ? config_.recorder_bytes : passes * row_bytes()) / (1 << 20));
}

void ExpertRecorder::stop() {
  if (!is_recording_) log::warning("no expert recording runs");
  is_recording_ = false;
  for (ExpertPort* port : ports_) {
    if (keeps_passes()) {
      port->passes()->stop();
    } else {
      port->stop_recording();
    }
  }
}

Result<std::string> ExpertRecorder::dump(double unix_time, const experts::ExpertPlacement& serving,
                                         std::vector<ExpertRecording> others) {
  CHECK(others.empty() || !keeps_passes());
  Result<std::string> paths =
      keeps_passes() ? dump_passes(unix_time, serving) : dump_steps(unix_time, std::move(others));
  if (meter_) meter_->clear();
  return paths;
}

Result<std::string> ExpertRecorder::dump_steps(double unix_time, std::vector<ExpertRecording> others) {
  std::vector<ExpertRecording> recordings = std::move(others);
  DumpFacts facts;
  if (meter_) facts.balancedness = meter_->average();
  size_t kept = 0;
  for (ExpertPort* port : ports_) {
    recordings.push_back(port->take_recording());
    facts.dropped = std::max(facts.dropped, recordings.back().dropped);
    kept = std::max(kept, recordings.back().steps.size());
  }
  ASSIGN_OR_RETURN(std::string path, dump_recording_file(config_.dump_directory, unix_time, ports_[0]->num_layers(),
                                                         ports_[0]->num_logical(), recordings, facts));
  log::info("Write expert distribution to {}: {} passes, {} older ones dropped", path, kept, facts.dropped);
  return path;
}

Result<std::string> ExpertRecorder::dump_passes(double unix_time, const experts::ExpertPlacement& serving) {
  std::vector<PassRecording> recordings;
  for (ExpertPort* port : ports_) recordings.push_back(port->passes()->take());
  std::vector<std::pair<size_t, int64_t>> figures;
  for (const PassRecording& recording : recordings) figures.emplace_back(recording.passes.size(), recording.dropped);
  ASSIGN_OR_RETURN(const std::vector<std::string> paths,
                   dump_pass_files(config_.dump_directory, unix_time, config_.recorder_mode, serving,
                                   config_.first_rank, recordings));
  std::string text;
  for (size_t i = 0; i < paths.size(); ++i) {
    log::info("Write expert distribution to {}: {} passes, {} older ones dropped", paths[i], figures[i].first,
              figures[i].second);
    text += (i > 0 ? "\n" : "") + paths[i];
  }
  return text;
}

void ExpertRecorder::tick() {
  if (!meter_) return;
  for (ExpertPort* port : ports_) {
    for (const std::string& line : meter_->add(port->passes()->take_loads(), int32_t(ports_.size()))) {
      log::info("{}", line);
    }
  }
}

}  // namespace tandem::engine
