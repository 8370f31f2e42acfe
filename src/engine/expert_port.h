// ExpertPort: what one rank's engine thread and the balancer's thread share about experts. The engine counts and
// switches; the balancer fills spare places and says what is ready.
//
//   engine:   forward adds to counts() --> step_done()              vote staged() --> decision --> switch_staged()
//   balancer:                        take_load(), take_recording()  stage()                        applied()
//
// Who may touch what is in the comment of each group; a version is staged once at a time, and rises.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "engine/experts/pass_recorder.h"
#include "experts/placement.h"
#include "model/expert_slots.h"

namespace tandem::engine {

struct LayerSwitch {
  int32_t layer = 0;
  model::LayerExperts experts;  // what the layer gets; afterwards what it had
};

// Logical counts of single steps, oldest first.
struct ExpertRecording {
  std::vector<uint64_t> steps;
  std::vector<int32_t> counts;  // [steps, num_layers, num_logical]
  int64_t dropped = 0;          // older ones that were not kept
};

class ExpertPort {
 public:
  ExpertPort(int32_t num_layers, int32_t num_logical, model::ExpertSlots& slots);

  int32_t num_layers() const { return num_layers_; }
  int32_t num_logical() const { return num_logical_; }
  // The balancer writes spare places and digests only; the table is the engine's.
  model::ExpertSlots& slots() const { return slots_; }
  // Before the first step: single passes are recorded in more detail than logical counts, or measured.
  void open_passes(const PassRecorderConfig& config) { passes_ = std::make_unique<PassRecorder>(config, slots_); }
  PassRecorder* passes() const { return passes_.get(); }  // null: not opened

  // Engine thread. counts: [num_layers, num_logical], zero at the beginning of a step.
  int32_t* counts() { return counts_.data(); }
  void step_done(uint64_t step);
  // The same around a forward: points its outputs to where this rank counts.
  void before_forward(model::ForwardBatch& forward);
  void after_forward(const model::ForwardBatch& forward);
  uint32_t staged() const { return staged_.load(std::memory_order_acquire); }
  // Before a step that the whole group agreed on: the layers of that version change their tables.
  void switch_staged(uint32_t version);

  // Balancer thread. stage: REQUIRES applied() == the version before.
  void stage(uint32_t version, std::vector<LayerSwitch> switches);
  uint32_t applied() const { return applied_.load(std::memory_order_acquire); }
  // Counts since the last call, and the steps they are of.
  std::pair<experts::ExpertLoad, int64_t> take_load();
  // Keeps single steps from now on, the last max_steps of them; clears what was kept. stop: keeps what there is.
  void start_recording(int64_t max_steps);
  void stop_recording();
  // Takes out what was kept; recording goes on.
  ExpertRecording take_recording();

 private:
  int64_t cells() const { return int64_t(num_layers_) * num_logical_; }

  const int32_t num_layers_, num_logical_;
  model::ExpertSlots& slots_;
  std::vector<int32_t> counts_;  // engine thread
  std::unique_ptr<PassRecorder> passes_;
  // Written by the balancer before `staged_` rises, by the engine before `applied_` follows.
  std::vector<LayerSwitch> switches_;
  std::atomic<uint32_t> staged_ = 0, applied_ = 0;

  std::mutex mutex_;
  // Guarded by mutex_.
  experts::ExpertLoad load_;
  int64_t num_steps_ = 0;
  bool is_recording_ = false;
  int64_t max_recorded_ = 0, dropped_ = 0;
  std::vector<uint64_t> recorded_steps_;
  std::vector<int32_t> recorded_;  // ring of rows; row of recorded_steps_[i] is i
  size_t next_row_ = 0;            // where the next goes once the ring is full
};

}  // namespace tandem::engine
