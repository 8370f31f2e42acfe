// EngineGroup: the ranks of one server behind one door. Gives each request to a data-parallel rank and remembers where
// it went until its last event. Any thread.
//
//   server --submit--> EngineGroup --rank--> Engine --event--> on_event() --> server's sink
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "engine/engine.h"

namespace tandem::engine {

// How a request without a rank of its own finds one. With prefill and decode apart the room decides (both servers must
// agree without talking): rank = room mod ranks.
enum class LoadBalance : uint8_t {
  kRoundRobin,
  kShortestQueue,  // fewest requests
  kMinimumTokens,  // fewest tokens held or waiting
};

class EngineGroup final : public EngineDoor {
 public:
  EngineGroup(LoadBalance balance, std::function<void(api::EngineEvent)> sink);

  // Before the first submit, in rank order. Borrowed; outlive the group.
  void add(EngineDoor& rank);
  // What each rank's engine is created with.
  std::function<void(api::EngineEvent)> rank_sink();

  PushResult submit(Command command) override;
  std::vector<EngineSnapshot> snapshots() const override;

 private:
  struct Given {
    size_t rank = 0;
    int64_t tokens = 0;  // prompt and output so far
  };
  struct Load {
    int64_t requests = 0, tokens = 0;
  };
  PushResult submit_request(SubmitCommand command);
  PushResult to_all(const std::function<Command()>& make);
  PushResult flush_all(FlushCacheCommand command);
  PushResult profile_all(ProfileCommand command);
  void on_event(api::EngineEvent event);
  size_t choose(const api::EngineRequest& request);
  void forget(RequestId id);

  const LoadBalance balance_;
  const std::function<void(api::EngineEvent)> sink_;
  std::vector<EngineDoor*> ranks_;  // fixed before the first submit
  std::mutex mutex_;
  // Guarded by mutex_.
  std::unordered_map<RequestId, Given> requests_;  // without a last event
  std::vector<Load> given_;                        // by rank, of those
  size_t next_ = 0;
  uint32_t profile_orders_ = 0;
};

}  // namespace tandem::engine
