// The bytes between the nodes of a group, as values: docs/protocol.md has the tables. Everything that arrives is
// checked here for shape; whether it fits the moment is checked by who takes it. Pure; any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/result.h"
#include "parallel/expert_exchange.h"
#include "parallel/node_group.h"
#include "parallel/step_protocol.h"

namespace tandem::parallel {

inline constexpr uint32_t kNodeMagic = 0x444e4454;  // the bytes "TDND"
inline constexpr uint16_t kNodeVersion = 2;
inline constexpr size_t kMaxRecordBytes = size_t(64) << 20;
inline constexpr size_t kMaxHelloBytes = size_t(1) << 20;  // of whoever has not said who it is

struct PortAddress {
  std::string host;
  uint16_t port = 0;
};

// Records of the link.
struct NodeHello {
  std::string version;
  uint32_t num_nodes = 0, node_rank = 0, ranks_per_node = 0;
  std::vector<AgreedValue> agreed;
  std::vector<int64_t> limits;
  std::vector<PortAddress> ranks;  // of this node
};
struct NodeWelcome {
  uint64_t token = 0;  // of this group; its ranks know each other by it
  std::vector<int64_t> limits;
  std::vector<PortAddress> ranks;  // of all nodes
};
struct NodeRefuse {
  bool differs = false;  // nodes are configured differently: not worth another try
  std::string reason;
};
struct NodePayload {
  std::string_view bytes;  // borrowed
};
struct NodeBye {};
struct NodeConnected {};  // to node 0: this node's ranks have their connections; from node 0: all have
struct NodeHeartbeat {};  // the sending node's link thread runs
using NodeRecord = std::variant<NodeHello, NodeWelcome, NodeRefuse, NodePayload, NodeBye, NodeConnected, NodeHeartbeat>;

// With its length in front, as it goes into the stream.
std::string encode_record(const NodeRecord& record);
// Without its length. kInvalidInput for another wire version, kCorrupt for everything else that is not one record.
Result<NodeRecord> decode_record(std::string_view bytes);

// Cuts a stream of messages into records again. Memory grows with what has come, never by what is announced.
class RecordStream {
 public:
  void feed(std::string_view bytes) { waiting_.append(bytes); }
  // The longest record that is taken; at first kMaxHelloBytes.
  void allow(size_t record_bytes) { max_bytes_ = record_bytes; }
  // The next whole record, without its length; nothing while it is not all there; kCorrupt where it is too long.
  Result<std::optional<std::string>> next();

 private:
  std::string waiting_;
  size_t taken_ = 0;
  size_t max_bytes_ = kMaxHelloBytes;
};

// Messages between two ranks; the first byte tells which.
enum class RankMessage : uint8_t { kHello = 1, kVotes = 2, kRows = 3, kResults = 4 };

struct RankHello {
  uint64_t token = 0;
  uint32_t from = 0, to = 0;
};
std::string encode(const RankHello& hello);
Result<RankHello> decode_rank_hello(std::string_view bytes);

std::string encode_votes(const std::vector<StepVote>& votes);
// Exactly this many votes, all for one step.
Result<std::vector<StepVote>> decode_votes(std::string_view bytes, size_t num_votes);

// A run of the rows that one rank dispatched to another. Per row: i32 slots[top_k] (-1: another rank's), then the row.
struct RowsHeader {
  uint32_t channel = 0, mode = 0, layer = 0;
  uint64_t step = 0, round = 0;
  uint32_t total = 0, first = 0, count = 0;  // rows
};
// A run of the results that go back, f32 rows in the order in which the pairs came.
struct ResultsHeader {
  uint32_t channel = 0;
  uint64_t round = 0;
  uint32_t total = 0, first = 0, count = 0;  // pairs
};
inline constexpr size_t kRowsHeaderBytes = 1 + 3 * 4 + 2 * 8 + 3 * 4;
inline constexpr size_t kResultsHeaderBytes = 1 + 4 + 8 + 3 * 4;
void append(std::string& out, const RowsHeader& header);
void append(std::string& out, const ResultsHeader& header);
// body: what follows the header. first + count is at most total.
Result<RowsHeader> decode_rows(std::string_view bytes, std::string_view& body);
Result<ResultsHeader> decode_results(std::string_view bytes, std::string_view& body);

}  // namespace tandem::parallel
