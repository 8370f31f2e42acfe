// PrefillQueue: requests that wait for a prefill step, in the policy's order, and the one whose prompt was cut.
// Used by combined and prefill workers. Owner: the engine thread.
#pragma once

#include <deque>

#include "engine/step/batch.h"
#include "engine/step/core.h"
#include "scheduler/prefill_plan.h"

namespace tandem::engine {

class PrefillQueue {
 public:
  explicit PrefillQueue(Core& core) : core_(core) {}

  void push(Request& request);        // state kWaiting
  void push_front(Request& request);  // retracted: it was here before
  int32_t num_cut() const { return cut_ != nullptr ? 1 : 0; }
  size_t num_waiting() const { return waiting_.size(); }
  int64_t waiting_tokens() const;
  // The one that goes first, with --enable-priority-scheduling the most urgent one; null: none waits.
  Request* first_waiting() const { return waiting_.empty() ? nullptr : waiting_.front(); }
  Request* last_waiting() const { return waiting_.empty() ? nullptr : waiting_.back(); }
  int64_t blocks_to_start(const Request& request) const;  // its prompt and its output as it is planned
  bool has_work() const { return !waiting_.empty() || cut_ != nullptr; }

  struct Formed {
    PrefillFigures figures;
    std::vector<Request*> started;  // leased their blocks just now
  };
  // Fills the batch for the next prefill step; empty batch: nothing to run or nothing fits.
  // free_slots: sequences that may start; reserved_blocks: expected growth of what runs.
  Formed form(Batch& batch, int32_t free_slots, int64_t reserved_blocks);
  void before_forward(const Batch& batch);
  // After the forward: which prompts are complete now is what the batch's entries say (samples, or max_new_tokens 0).
  void after_forward(const Batch& batch);

  void forget_ended();

 private:
  scheduler::PrefillCandidate candidate(const Request& request) const;
  std::vector<size_t> order();
  void start(Request& request, Formed& formed);
  int64_t growth_tokens(const Request& request) const;

  Core& core_;
  std::deque<Request*> waiting_;
  Request* cut_ = nullptr;  // started, prompt not complete
  uint64_t orders_ = 0;     // seeds the random policy
};

}  // namespace tandem::engine
