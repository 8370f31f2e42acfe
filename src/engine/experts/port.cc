#include <algorithm>

#include "base/check.h"
#include "engine/expert_port.h"
#include "model/model.h"

namespace tandem::engine {

ExpertPort::ExpertPort(int32_t num_layers, int32_t num_logical, model::ExpertSlots& slots)
    : num_layers_(num_layers), num_logical_(num_logical), slots_(slots), counts_(size_t(cells())) {
  load_ = {num_layers, num_logical, std::vector<int64_t>(size_t(cells()))};
}

void ExpertPort::step_done(uint64_t step) {
  std::lock_guard lock(mutex_);
  num_steps_ += 1;
  for (size_t i = 0; i < counts_.size(); ++i) load_.tokens[i] += counts_[i];
  if (is_recording_) {
    if (int64_t(recorded_steps_.size()) < max_recorded_) {
      recorded_steps_.push_back(step);
      recorded_.insert(recorded_.end(), counts_.begin(), counts_.end());
    } else {
      dropped_ += 1;
      recorded_steps_[next_row_] = step;
      std::copy(counts_.begin(), counts_.end(), recorded_.begin() + int64_t(next_row_) * cells());
      next_row_ = (next_row_ + 1) % recorded_steps_.size();
    }
  }
  std::fill(counts_.begin(), counts_.end(), 0);
}

void ExpertPort::before_forward(model::ForwardBatch& forward) {
  forward.expert_counts = counts_.data();
  if (passes_) passes_->before_forward(forward);
}

void ExpertPort::after_forward(const model::ForwardBatch& forward) {
  if (passes_) passes_->after_forward(forward.step, applied_.load(std::memory_order_relaxed), forward);
  step_done(forward.step);
}

void ExpertPort::switch_staged(uint32_t version) {
  const uint32_t before = applied_.load(std::memory_order_relaxed);
  if (version == before) return;
  CHECK(version == staged());
  CHECK(version == before + 1);
  for (LayerSwitch& change : switches_) slots_.switch_layer(change.layer, change.experts);
  applied_.store(version, std::memory_order_release);
}

void ExpertPort::stage(uint32_t version, std::vector<LayerSwitch> switches) {
  CHECK(version == applied() + 1);
  CHECK(version == staged() + 1);
  switches_ = std::move(switches);
  staged_.store(version, std::memory_order_release);
}

std::pair<experts::ExpertLoad, int64_t> ExpertPort::take_load() {
  std::lock_guard lock(mutex_);
  std::pair<experts::ExpertLoad, int64_t> taken{load_, num_steps_};
  std::fill(load_.tokens.begin(), load_.tokens.end(), 0);
  num_steps_ = 0;
  return taken;
}

void ExpertPort::start_recording(int64_t max_steps) {
  CHECK(max_steps > 0);
  std::lock_guard lock(mutex_);
  is_recording_ = true;
  max_recorded_ = max_steps;
  recorded_steps_.clear();
  recorded_.clear();
  // All at once, so that no step has to move what was kept; memory is taken as it is written.
  recorded_.reserve(size_t(max_steps * cells()));
  next_row_ = 0;
  dropped_ = 0;
}

void ExpertPort::stop_recording() {
  std::lock_guard lock(mutex_);
  is_recording_ = false;
}

ExpertRecording ExpertPort::take_recording() {
  ExpertRecording taken;
  std::lock_guard lock(mutex_);
  std::rotate(recorded_steps_.begin(), recorded_steps_.begin() + int64_t(next_row_), recorded_steps_.end());
  std::rotate(recorded_.begin(), recorded_.begin() + int64_t(next_row_) * cells(), recorded_.end());
  taken.steps = std::exchange(recorded_steps_, {});
  taken.counts = std::exchange(recorded_, {});
  taken.dropped = std::exchange(dropped_, 0);
  if (is_recording_) recorded_.reserve(size_t(max_recorded_ * cells()));
  next_row_ = 0;
  return taken;
}

}  // namespace tandem::engine
