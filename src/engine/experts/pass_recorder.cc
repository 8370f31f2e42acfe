#include "engine/experts/pass_recorder.h"

#include <algorithm>

#include "base/check.h"
#include "model/model.h"

namespace tandem::engine {
namespace {

// Loads of passes that wait for the balancer, which comes some fifty times per second.
constexpr size_t kMaxWaitingLoads = 1024;
constexpr int64_t kRecordBytes = int64_t(sizeof(PassRecord));

int64_t bytes_of(const PassRecord& record) {
  return kRecordBytes + int64_t(record.values.capacity() * sizeof(int32_t));
}

PassSizes sizes_of(const model::ExpertSlots& slots, int32_t top_k) {
  PassSizes sizes;
  sizes.num_layers = slots.shape().num_layers;
  sizes.top_k = top_k;
  for (int32_t layer = 0; layer < sizes.num_layers; ++layer) {
    sizes.num_slots = std::max(sizes.num_slots, int32_t(slots.layer(layer).logical_of_slot.size()));
  }
  return sizes;
}

}  // namespace

PassRecorder::PassRecorder(const PassRecorderConfig& config, const model::ExpertSlots& slots)
    : config_(config), slots_(slots), sizes_(sizes_of(slots, config.top_k)) {
  CHECK(sizes_.num_slots > 0);
  CHECK(sizes_.num_slots % config_.num_ranks == 0);
  kept_.sizes = sizes_;
  if (keeps_passes() || config_.measures) counts_.resize(size_t(num_counts()));
}

int64_t PassRecorder::record_bytes(int64_t tokens, int64_t sequences) const {
  int64_t values = num_counts();
  if (config_.mode == RecorderMode::kPerToken)
    values += 2 * tokens + sequences + tokens * sizes_.num_layers * sizes_.top_k;
  return kRecordBytes + values * int64_t(sizeof(int32_t));
}

void PassRecorder::before_forward(model::ForwardBatch& forward) {
  if (counts_.empty()) return;
  {
    std::lock_guard lock(mutex_);
    wants_pass_ = is_recording_;
  }
  if (!wants_pass_ && !config_.measures) return;
  std::fill(counts_.begin(), counts_.end(), 0);
  forward.slot_counts = counts_.data();
  if (!wants_pass_ || config_.mode != RecorderMode::kPerToken) return;
  const size_t choices = size_t(sizes_.num_layers) * forward.token_ids.size() * size_t(sizes_.top_k);
  choices_.assign(choices, -1);
  forward.chosen_slots = choices_.data();
}

void PassRecorder::after_forward(uint64_t step, uint32_t version, const model::ForwardBatch& forward) {
  if (forward.slot_counts == nullptr) return;
  std::lock_guard lock(mutex_);
  if (config_.measures) measure(step);
  if (wants_pass_ && is_recording_) keep(step, version, forward);
}

// Memory for a record of so many values; the oldest passes go until it fits.
std::vector<int32_t> PassRecorder::make_room(size_t values) {
  const int64_t bytes = kRecordBytes + int64_t(values * sizeof(int32_t));
  while (!kept_.passes.empty() && (int64_t(kept_.passes.size()) >= max_passes_ || kept_bytes_ + bytes > max_bytes_)) {
    drop_oldest();
  }
  std::vector<int32_t> room = std::exchange(spare_, {});
  // A large pass's memory under a small one would be counted and not used.
  if (room.capacity() > 2 * values) room = {};
  room.clear();
  room.reserve(values);
  return room;
}

void PassRecorder::drop_oldest() {
  kept_bytes_ -= bytes_of(kept_.passes.front());
  spare_ = std::move(kept_.passes.front().values);
  kept_.passes.pop_front();
  kept_.dropped += 1;
  const uint32_t oldest = kept_.passes.empty() ? UINT32_MAX : kept_.passes.front().version;
  kept_.maps.erase(kept_.maps.begin(), kept_.maps.lower_bound(oldest));
}

void PassRecorder::keep(uint64_t step, uint32_t version, const model::ForwardBatch& forward) {
  const bool by_token = config_.mode == RecorderMode::kPerToken;
  PassRecord record;
  record.pass_id = step;
  record.version = version;
  record.num_tokens = int32_t(forward.token_ids.size());
  record.num_sequences = int32_t(forward.sequences.size());
  const bool extends = forward.phase == model::Phase::kPrefill;
  record.kind = record.num_tokens == 0 ? PassKind::kIdle : extends ? PassKind::kExtend : PassKind::kDecode;
  const size_t size = counts_.size() + (by_token ? forward.token_ids.size() * 2 + forward.sequences.size() : 0) +
                      (by_token ? choices_.size() : 0);
  if (record_bytes(record.num_tokens, record.num_sequences) > max_bytes_) {
    kept_.dropped += 1;  // alone too large
    return;
  }
  record.values = make_room(size);
  const auto append = [&](std::span<const int32_t> part) {
    record.values.insert(record.values.end(), part.begin(), part.end());
  };
  append(counts_);
  if (by_token) {
    append(forward.token_ids);
    append(forward.positions);
    for (const kernels::SequenceSpan& sequence : forward.sequences) record.values.push_back(sequence.num_rows);
    append(choices_);
  }
  CHECK(record.values.size() == size);
  note_map(version);
  kept_bytes_ += bytes_of(record);
  kept_.passes.push_back(std::move(record));
}

void PassRecorder::note_map(uint32_t version) {
  if (kept_.maps.contains(version)) return;
  std::vector<int32_t>& map = kept_.maps[version];
  map.reserve(size_t(num_counts()));
  for (int32_t layer = 0; layer < sizes_.num_layers; ++layer) {
    const std::vector<int32_t>& row = slots_.layer(layer).logical_of_slot;
    map.insert(map.end(), row.begin(), row.end());
    if (row.empty()) map.insert(map.end(), size_t(sizes_.num_slots), -1);
  }
}

void PassRecorder::measure(uint64_t step) {
  if (loads_.size() >= kMaxWaitingLoads) loads_.pop_front();
  PassLoad& load = loads_.emplace_back();
  load.pass_id = step;
  load.pairs.reserve(size_t(sizes_.num_layers) * size_t(config_.num_ranks));
  const int32_t slots_per_rank = sizes_.num_slots / config_.num_ranks;
  for (auto at = counts_.begin(); at != counts_.end(); at += slots_per_rank) {
    int32_t sum = 0;
    for (int32_t i = 0; i < slots_per_rank; ++i) sum += at[i];
    load.pairs.push_back(sum);
  }
}

void PassRecorder::start(int64_t max_passes, int64_t max_bytes) {
  CHECK(max_passes > 0);
  std::lock_guard lock(mutex_);
  is_recording_ = true;
  max_passes_ = max_passes;
  max_bytes_ = max_bytes;
  kept_bytes_ = 0;
  kept_ = {sizes_, {}, {}, 0};
}

void PassRecorder::stop() {
  std::lock_guard lock(mutex_);
  is_recording_ = false;
}

PassRecording PassRecorder::take() {
  std::lock_guard lock(mutex_);
  kept_bytes_ = 0;
  return std::exchange(kept_, PassRecording{sizes_, {}, {}, 0});
}

std::vector<PassLoad> PassRecorder::take_loads() {
  std::lock_guard lock(mutex_);
  std::vector<PassLoad> taken(std::make_move_iterator(loads_.begin()), std::make_move_iterator(loads_.end()));
  loads_.clear();
  return taken;
}

}  // namespace tandem::engine
