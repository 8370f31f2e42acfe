// PassRecorder: what one rank keeps of single forward passes beyond the logical counts: hits per slot (recorder mode
// per_pass), the slots that each token went to (per_token), and what each rank was asked for (balancedness lines).
//   engine:    before_forward() --forward fills the arrays--> after_forward()
//   balancer:  start(), stop(), take(), take_loads()
// Of a full buffer the oldest pass is dropped and its memory used again. A pass says under which version of the
// placement it ran, so that its slots mean the right experts whatever was moved later.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "model/expert_slots.h"

namespace tandem::model {
struct ForwardBatch;
}

namespace tandem::engine {

enum class RecorderMode : uint8_t { kStat, kPerPass, kPerToken };  // kStat: logical counts by step, kept by ExpertPort

struct PassRecorderConfig {
  RecorderMode mode = RecorderMode::kStat;
  bool measures = false;  // keeps each pass's load of the ranks until take_loads()
  int32_t num_ranks = 1, top_k = 0;
};

struct PassSizes {
  int32_t num_layers = 0, num_slots = 0, top_k = 0;  // num_slots: of all ranks
};

// Numbers of SGLang's ForwardMode.
enum class PassKind : int32_t { kExtend = 1, kDecode = 2, kIdle = 4 };

struct PassRecord {
  uint64_t pass_id = 0;  // the group's step: the same on all ranks
  uint32_t version = 0;  // of the placement
  PassKind kind = PassKind::kIdle;
  int32_t num_tokens = 0, num_sequences = 0;
  // counts [num_layers, num_slots]; of per_token then tokens [T], positions [T], lengths [S], choices [num_layers, T,
  // top_k]: slots, -1 in layers without experts.
  std::vector<int32_t> values;

  std::span<const int32_t> counts(const PassSizes& sizes) const {
    return {values.data(), size_t(sizes.num_layers) * size_t(sizes.num_slots)};
  }
  std::span<const int32_t> token_ids(const PassSizes& s) const { return part(s, 0, num_tokens); }
  std::span<const int32_t> positions(const PassSizes& s) const { return part(s, num_tokens, num_tokens); }
  std::span<const int32_t> lengths(const PassSizes& s) const { return part(s, 2 * num_tokens, num_sequences); }
  std::span<const int32_t> choices(const PassSizes& s) const {
    return part(s, 2 * num_tokens + num_sequences, int64_t(s.num_layers) * num_tokens * s.top_k);
  }

 private:
  std::span<const int32_t> part(const PassSizes& s, int64_t begin, int64_t size) const {
    return std::span(values).subspan(size_t(s.num_layers) * size_t(s.num_slots) + size_t(begin), size_t(size));
  }
};

struct PassRecording {
  PassSizes sizes;
  std::deque<PassRecord> passes;                  // oldest first
  std::map<uint32_t, std::vector<int32_t>> maps;  // by version: [num_layers, num_slots] experts; -1: layer has none
  int64_t dropped = 0;                            // older passes that did not fit
};

// What a rank asked of all ranks in one pass.
struct PassLoad {
  uint64_t pass_id = 0;
  std::vector<int32_t> pairs;  // [num_layers, num_ranks] (token, choice) pairs
};

class PassRecorder {
 public:
  // REQUIRES slots with a placement in at least one layer.
  PassRecorder(const PassRecorderConfig& config, const model::ExpertSlots& slots);

  // Engine thread. Points the batch's outputs to this rank's arrays where this pass wants them; then keeps them.
  void before_forward(model::ForwardBatch& forward);
  void after_forward(uint64_t step, uint32_t version, const model::ForwardBatch& forward);

  // Balancer thread. Clears, and keeps passes from the next one on: the last max_passes, and of them what takes
  // max_bytes at most. stop: keeps what there is. take: takes out what was kept; recording goes on.
  void start(int64_t max_passes, int64_t max_bytes);
  void stop();
  PassRecording take();
  // Oldest first; passes that nobody took in time are missing.
  std::vector<PassLoad> take_loads();

  const PassSizes& sizes() const { return sizes_; }
  // Of a pass of so many tokens and sequences on this rank.
  int64_t record_bytes(int64_t tokens, int64_t sequences) const;

 private:
  bool keeps_passes() const { return config_.mode != RecorderMode::kStat; }
  int64_t num_counts() const { return int64_t(sizes_.num_layers) * sizes_.num_slots; }
  std::vector<int32_t> make_room(size_t values);
  void keep(uint64_t step, uint32_t version, const model::ForwardBatch& forward);
  void note_map(uint32_t version);
  void measure(uint64_t step);
  void drop_oldest();

  const PassRecorderConfig config_;
  const model::ExpertSlots& slots_;
  PassSizes sizes_;
  // Engine thread.
  std::vector<int32_t> counts_, choices_;
  bool wants_pass_ = false;  // of the pass under way

  std::mutex mutex_;
  // Guarded by mutex_.
  bool is_recording_ = false;
  int64_t max_passes_ = 0, max_bytes_ = 0, kept_bytes_ = 0;
  PassRecording kept_;
  std::vector<int32_t> spare_;  // of a pass that was dropped
  std::deque<PassLoad> loads_;
};

}  // namespace tandem::engine
