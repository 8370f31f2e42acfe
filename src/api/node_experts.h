// What the nodes of one server say to each other about experts: node 0's balancer asks for counts and recordings, hands
// out plans and says when their parts are staged; the others answer and report. Carried by api::NodeExperts. Fixed
// binary encoding, little-endian; docs/protocol.md has every byte. Pure values; any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/result.h"

namespace tandem::api {

inline constexpr uint16_t kExpertMessageVersion = 1;

// Node 0 to the others, each answered by one NodeExpertAnswer with the same number.
struct NodeExpertAsk {
  enum class What : uint8_t { kCounts = 0, kStartRecording, kStopRecording, kTakeRecording, kMoreRecording, kCount };
  uint64_t ask = 0;
  What what = What::kCounts;
  int64_t amount = 0;  // kStartRecording: steps to keep
};
// A placement to go to. The bytes of the experts that are missing are read from the ranks that hold them.
struct NodeExpertPlan {
  uint64_t plan = 0;          // node 0's number; never used twice
  uint32_t base_version = 0;  // switches that the placement in use has seen
  uint64_t base_digest = 0;   // of the placement in use
  uint64_t digest = 0;        // of the one below
  int32_t num_layers = 0, num_logical = 0, num_slots = 0;
  std::vector<int32_t> logical_of_slot;  // [num_layers, num_slots]
  std::vector<int32_t> share;            // the same, or empty: equal ones
};
// Every node has copied this version of the plan: its ranks may vote for it.
struct NodeExpertStage {
  uint64_t plan = 0;
  uint32_t version = 0;
};
// What is not staged of the plan is given up.
struct NodeExpertAbort {
  uint64_t plan = 0;
  std::string reason;
};

// Back to node 0.
struct NodeExpertAnswer {
  uint64_t ask = 0;
  std::string error;            // empty: done
  std::vector<int64_t> tokens;  // kCounts: [num_layers, num_logical] since the last answer, of the node's ranks
  std::vector<uint64_t> steps;  // recordings: a part of the steps, ascending; the last of them come first
  std::vector<int32_t> counts;  // [steps, num_layers, num_logical], summed over the node's ranks
  uint64_t steps_left = 0;      // that kMoreRecording gives
};
// When a version is copied, and now and then while it is.
struct NodeExpertProgress {
  uint64_t plan = 0;
  uint32_t version = 0;
  bool copied = false;
  uint64_t digest = 0;           // of the placement after the switch; copied only
  int64_t moves = 0, bytes = 0;  // of this node since its start
};
// The plan cannot go on here; what was not staged is given up here already.
struct NodeExpertFailed {
  uint64_t plan = 0;
  std::string reason;
};
using NodeExpertMessage = std::variant<NodeExpertAsk, NodeExpertPlan, NodeExpertStage, NodeExpertAbort,
                                       NodeExpertAnswer, NodeExpertProgress, NodeExpertFailed>;

std::string encode_expert_message(const NodeExpertMessage& message);
// Errors: kInvalidInput for another version; kCorrupt for everything else that is not exactly one message. Sizes of
// lists fit the message; whether they fit the model is for the receiver to check.
Result<NodeExpertMessage> decode_expert_message(std::string_view bytes);

}  // namespace tandem::api
