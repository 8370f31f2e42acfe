// One request inside an engine: what was asked, its life, its tokens and the blocks that hold them.
// Owner: the engine thread.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "api/generate.h"
#include "scheduler/block_pool.h"
#include "scheduler/lifecycle.h"
#include "scheduler/prefix_tree.h"

namespace tandem::engine {

struct SourceHandover;  // prefill's half, roles/prefill_worker.h
struct SinkHandover;    // decode's half, roles/decode_worker.h

// How a request ends: the event's words and the state they stand for.
struct Ending {
  api::FinishReason finish;
  scheduler::RequestState state = scheduler::RequestState::kFinished;
};
Ending finished_by_length(int32_t length);
Ending aborted(std::string message, int32_t status_code);
Ending failed(std::string message, int32_t status_code);

struct Request {
  api::EngineRequest input;  // its input_ids have become the first of tokens
  scheduler::Lifecycle life;
  uint64_t arrival = 0;  // arrival number: first come, first served
  uint64_t seed = 0;     // of its draws

  std::vector<int32_t> tokens;  // prompt and output; reserved to its longest with its blocks
  int32_t prompt_tokens = 0;
  int32_t max_new_tokens = 0;  // clipped to what the pool and the context can hold
  int32_t kv_tokens = 0;       // leading tokens whose rows are in the cache
  int32_t cached_tokens = 0;   // of the prompt, from the prefix cache; reported
  int32_t retractions = 0;
  TimePoint launched_at{}, computed_at{};  // its first prefill forward began, its last ended; zero: not yet
  bool times_sent = false;

  scheduler::PrefixHold prefix;      // blocks [0, prefix.num_blocks()) of the table
  scheduler::BlockLease lease;       // the blocks after them
  std::vector<int32_t> block_table;  // both, as the kernels read them; reserved to its longest

  std::vector<int32_t> stop_ids;  // end-of-sentence and stop_token_ids: they end it, or are banned at first
  std::vector<api::TokenLogprob> input_logprobs;
  bool input_logprobs_sent = false;
  bool in_step = false;                 // planned or running right now: it ends after the step
  std::unique_ptr<Ending> pending_end;  // null: none
  std::vector<char> parked;             // retracted on decode: its cache rows in host memory

  std::unique_ptr<SourceHandover> source;
  std::unique_ptr<SinkHandover> sink;

  Request();
  ~Request();
  RequestId id() const { return input.id; }
  scheduler::RequestState state() const { return life.state; }
  int32_t num_tokens() const { return int32_t(tokens.size()); }
  std::span<const int32_t> prompt() const { return std::span(tokens).first(size_t(prompt_tokens)); }
  int32_t output_tokens() const { return num_tokens() - prompt_tokens; }
  // Rows of input log-probabilities start at this prompt position; prompt_tokens: none wanted.
  int32_t first_logprob_position() const;
  bool wants_input_logprobs() const { return !input_logprobs_sent && first_logprob_position() < prompt_tokens; }
};

}  // namespace tandem::engine
