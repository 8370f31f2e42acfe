// ExpertRecorder: recordings of all ranks of this process behind one door: starts, stops and dumps them in the mode
// that the server was started with, and shows each pass's balancedness. Owner: the balancer's thread.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "engine/expert_balancer.h"
#include "engine/experts/pass_meter.h"

namespace tandem::engine {

class ExpertRecorder {
 public:
  // Opens the ports' recorders, so before their engines run. Starts at once where the configuration says so.
  ExpertRecorder(const ExpertBalancerConfig& config, std::vector<ExpertPort*> ports, profile::Metrics& metrics);

  bool is_recording() const { return is_recording_; }
  // Clears and starts, and says in the log what will be kept at most.
  void start();
  void stop();
  int64_t passes_to_keep() const;  // of each rank, at most
  // Writes what was kept and clears it; recording goes on. serving: the placement now. others: of other nodes, mode
  // kStat only. The paths, one a line.
  Result<std::string> dump(double unix_time, const experts::ExpertPlacement& serving,
                           std::vector<ExpertRecording> others);
  // Lines of passes that are complete.
  void tick();

 private:
  bool keeps_passes() const { return config_.recorder_mode != RecorderMode::kStat; }
  int64_t row_bytes() const;
  Result<std::string> dump_steps(double unix_time, std::vector<ExpertRecording> others);
  Result<std::string> dump_passes(double unix_time, const experts::ExpertPlacement& serving);

  const ExpertBalancerConfig config_;
  const std::vector<ExpertPort*> ports_;
  std::optional<PassMeter> meter_;
  bool is_recording_ = false;
};

}  // namespace tandem::engine
