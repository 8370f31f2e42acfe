// What the nodes of one server say to each other about requests: commands from node 0 to the rank that owns a request,
// events and figures back, and what is agreed before the ranks start. Fixed binary encoding, little-endian;
// docs/protocol.md has every byte. Pure values; any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "api/generate.h"
#include "api/handover.h"
#include "api/profile.h"
#include "base/result.h"

namespace tandem::api {

inline constexpr uint16_t kNodeMessageVersion = 3;

// Node 0 to the node of the rank. rank: of the whole group.
struct NodeSubmit {
  uint32_t rank = 0;
  EngineRequest request;
};
struct NodeCancel {
  uint32_t rank = 0;
  RequestId id;
  uint8_t reason = 0;  // engine::CancelReason
  std::string matched_text;
};
struct NodeFlush {
  uint32_t rank = 0;
  uint64_t flush_id = 0;  // node 0's own number
};
struct NodeDrain {
  uint32_t rank = 0;
};
// Back to node 0.
struct NodeFlushed {
  uint32_t rank = 0;
  uint64_t flush_id = 0;
  bool flushed = false;
};
struct NodeEvent {
  uint32_t rank = 0;
  EngineEvent event;
};
// engine::EngineSnapshot, with an age where that has a time: clocks of two machines have nothing in common.
struct RankFigures {
  uint64_t forward_steps = 0, progress_age_us = 0;
  int32_t running = 0, queued = 0, prealloc = 0, transferring = 0, retracted = 0, inflight = 0;
  int64_t used_tokens = 0, cached_tokens = 0, total_tokens = 0, waiting_tokens = 0;
  int64_t free_blocks = 0, leased_blocks = 0, cached_blocks = 0, total_blocks = 0;
  double last_gen_throughput = 0;
  uint64_t prompt_tokens_computed = 0, handover_bytes = 0, handovers = 0;
  uint64_t decode_steps = 0, prefill_steps = 0, generated_tokens = 0, decode_step_us = 0, prefill_step_us = 0;
  bool has_progress = false, draining = false, lost = false;
  uint32_t sleep_ms = 0;
  bool asleep = false;
  int32_t held_for = 0;
  uint64_t retractions = 0, failed_transfers = 0;
  bool profiling = false;
  bool operator==(const RankFigures&) const = default;
};
struct NodeFigures {
  std::vector<RankFigures> ranks;  // of the sending node, in order
};
// Each node to node 0, once its model is there; node 0 answers all with NodeGo.
struct NodeLoaded {
  uint64_t model_fingerprint = 0;
  std::vector<RankAddress> kv_ports;      // of its ranks; prefill servers only
  std::vector<RankAddress> expert_ports;  // of its ranks, where their experts may be read; empty: nowhere
};
struct NodeGo {
  std::vector<RankAddress> kv_ports;  // of all ranks
  std::vector<RankAddress> expert_ports;
};
struct NodeStop {};       // node 0: end; its ranks leave with all others
struct NodeWantsStop {};  // to node 0: somebody asked this node to end
// Node 0 to the node of the rank.
struct NodeSlowDown {
  uint32_t rank = 0;
  uint32_t sleep_ms = 0;
};
struct NodeHold {  // engine::HoldCommand
  uint32_t rank = 0;
  uint8_t version = 0;
  int32_t running_requests = 0;
  uint32_t timeout_ms = 0;
};
// Between the balancers of two nodes: an api::NodeExpertMessage, encoded.
struct NodeExperts {
  std::string bytes;
};
// Node 0 to the node of the rank, and its answer.
struct NodeProfile {
  uint32_t rank = 0;
  uint64_t order_id = 0;  // node 0's own number
  uint8_t kind = 0;       // engine::ProfileCommand::Kind
  uint32_t version = 0;
  ProfileCall call;
};
struct NodeProfiled {
  uint32_t rank = 0;
  uint64_t order_id = 0;
  uint8_t code = 0;  // 0: done; else 1 + ErrorCode
  std::string message;
};
// A message's number on the wire is its place here, from 1.
using NodeMessage =
    std::variant<NodeSubmit, NodeCancel, NodeFlush, NodeDrain, NodeFlushed, NodeEvent, NodeFigures, NodeLoaded, NodeGo,
                 NodeStop, NodeWantsStop, NodeSlowDown, NodeHold, NodeExperts, NodeProfile, NodeProfiled>;

std::string encode_node_message(const NodeMessage& message);
// Errors: kInvalidInput for another version; kCorrupt for everything else that is not exactly one message.
Result<NodeMessage> decode_node_message(std::string_view bytes);

}  // namespace tandem::api
