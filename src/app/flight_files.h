// The flight recorders of this process's ranks and the directory that holds their files (docs/flight-recorder.md).
// Owner: the main thread; outlives the ranks, whose engine threads write.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "app/resolve.h"
#include "base/clock.h"
#include "base/result.h"
#include "profile/flight_recorder.h"

namespace tandem::app {

class FlightFiles {
 public:
  // A directory of this process in --flight-recorder-dir, or in TMPDIR, /dev/shm or /tmp, named in the log. Without
  // the flag a fault is one line of the log and nothing is recorded; with it a fault is an error. config: settled.
  static Result<std::unique_ptr<FlightFiles>> create(const ResolvedConfig& config, uint64_t group, const Clock& clock);
  ~FlightFiles();  // the default directory goes with it, unless something went wrong
  FlightFiles(const FlightFiles&) = delete;
  FlightFiles& operator=(const FlightFiles&) = delete;

  // Of this node's rank; null: nothing is recorded.
  profile::FlightRecorder* of(size_t index) const { return recorders_.empty() ? nullptr : recorders_[index].get(); }
  std::vector<const profile::FlightRecorder*> all() const;

  // Something went wrong: the files stay. Logs what they say of this process's ranks. patience: as ExplainOptions'.
  void explain_fault(Duration patience);

 private:
  FlightFiles() = default;
  Status open(const ResolvedConfig& config, uint64_t group, const Clock& clock);

  std::string directory_;  // empty: nothing is recorded
  bool keeps_ = false;
  std::vector<std::unique_ptr<profile::FlightRecorder>> recorders_;
};

// Younger waits than this are none for a watchdog of so many seconds.
Duration flight_patience(double watchdog_s);

}  // namespace tandem::app
