// The two ends of a rank that lies in another process. On node 0 a RemoteRank stands for it in the EngineGroup; on its
// own node a RankHost gives the commands to its engine and the events back. Between them go api::NodeMessages; who
// carries them is not their business.
//
//   EngineGroup --submit--> RemoteRank --NodeSubmit--> ... --> RankHost --submit--> Engine
//                rank_sink <-- RemoteRank <--NodeEvent-- ... <-- RankHost::sink <-- event
#pragma once

#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "api/node.h"
#include "engine/engine.h"

namespace tandem::engine {

using SendNodeMessage = std::function<PushResult(const api::NodeMessage&)>;

// Any thread.
class RemoteRank final : public EngineDoor {
 public:
  // send: to the rank's node. sink: of the group.
  RemoteRank(uint32_t rank, const Clock& clock, SendNodeMessage send, std::function<void(api::EngineEvent)> sink);

  PushResult submit(Command command) override;
  std::vector<EngineSnapshot> snapshots() const override;

  // What came from the rank's node.
  void on_event(api::EngineEvent event);
  void on_flushed(uint64_t flush_id, bool flushed);
  void on_profiled(const api::NodeProfiled& answer);
  void on_figures(const api::RankFigures& figures);
  // The node is gone: everything that it owes an answer ends with this one, and so does what is submitted from now on.
  void fail(const std::string& reason);

 private:
  PushResult submit_request(SubmitCommand command);
  PushResult flush(FlushCacheCommand command);
  PushResult profile(ProfileCommand command);
  void abort(RequestId id, int32_t prompt_tokens, const std::string& reason);

  const uint32_t rank_;
  const Clock& clock_;
  const SendNodeMessage send_;
  const std::function<void(api::EngineEvent)> sink_;
  mutable std::mutex mutex_;
  // Guarded by mutex_.
  std::unordered_map<RequestId, int32_t> open_;  // without a last event; prompt tokens
  std::unordered_map<uint64_t, std::function<void(bool)>> flushes_;
  uint64_t next_flush_ = 1;
  std::unordered_map<uint64_t, std::function<void(Status)>> profiles_;
  uint64_t next_profile_ = 1;
  EngineSnapshot snapshot_;
  std::string lost_;  // why; empty: not lost
};

// The ranks of a node other than 0. take() and figures() from the link's thread.
class RankHost {
 public:
  // engines: in rank order from first_rank; borrowed. send: to node 0.
  RankHost(uint32_t first_rank, std::vector<EngineDoor*> engines, const Clock& clock, SendNodeMessage send);

  // For the engine of a rank; called on its thread.
  static std::function<void(api::EngineEvent)> sink(uint32_t rank, SendNodeMessage send);

  // A command for one of the ranks. Errors: kCorrupt where it is for none of them, or no command.
  Status take(api::NodeMessage message);
  // Commands that an engine's queue had no room for are tried again; and what the ranks look like.
  void retry();
  api::NodeFigures figures() const;

 private:
  void give(size_t index, Command command);

  const uint32_t first_rank_;
  const std::vector<EngineDoor*> engines_;
  const Clock& clock_;
  const SendNodeMessage send_;
  std::vector<std::deque<Command>> waiting_;  // by engine; cancels, flushes and drains only
};

}  // namespace tandem::engine
