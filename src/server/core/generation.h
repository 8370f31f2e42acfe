// Generation: one POST that generates, from its admission to its last byte. Owns its sequences; the registry finds them
// by id. Loop's thread.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "server/core/answer.h"
#include "server/core/engine_port.h"
#include "server/core/front_metrics.h"

namespace tandem::server {

struct GenerationParts {
  const Clock* clock = nullptr;
  EnginePort* port = nullptr;
  FrontMetrics* metrics = nullptr;   // null: not counted
  bool is_prefill = false;           // no time to first token
  std::optional<int32_t> log_level;  // --log-requests: of the line at the end of each sequence
};

class Generation {
 public:
  Generation(GenerationParts parts, Answer answer, std::vector<Sequence> sequences,
             std::shared_ptr<net::ResponseWriter> writer);

  std::vector<Sequence>& sequences() { return sequences_; }
  // The stream's header; nothing where the answer comes at once.
  void begin();
  // News of one sequence. Bytes are gathered until flush().
  void on_event(size_t sequence, api::EngineEvent event);
  // Writes what was gathered. False: the client takes no more; the caller ends this generation with abandon().
  bool flush();
  // Every sequence has its last word, and the answer is complete once flush() was called.
  bool done() const { return open_ == 0; }
  // True once between two flush() calls: for gathering the generations that have news.
  bool touch() { return !std::exchange(touched_, true); }
  // Held while this generation counts as active.
  std::shared_ptr<void> active;

  // Cancels what still runs in the engine; nothing is answered any more.
  void abandon(engine::CancelReason reason);
  // Submitting stopped before the sequence `from`: the engine does not know the rest.
  void drop_from(size_t from);
  // Ends everything by our own decision: a failure of the whole server.
  void fail(const std::string& message, int status);

 private:
  void take_tokens(Sequence& sequence, api::EngineEvent& event);
  void observe(Sequence& sequence, size_t tokens);
  void emit(Sequence& sequence);
  void close(Sequence& sequence);

  GenerationParts parts_;
  Answer answer_;
  std::vector<Sequence> sequences_;
  std::shared_ptr<net::ResponseWriter> writer_;
  size_t open_ = 0;  // sequences without their last event
  std::string out_;
  bool touched_ = false;
  bool answered_ = false;  // the last byte was given to the writer
};

}  // namespace tandem::server
