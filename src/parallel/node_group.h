// NodeGroup: a group whose ranks lie in several processes, one process per node. The nodes meet once, at start: node 0
// listens, the others call, what must be the same everywhere is compared, and every rank gets a connection to each rank
// of the other nodes. Then there are two ways between nodes:
//   - the ranks' own, for votes and expert rows: each engine thread has a UCX worker that only it touches;
//   - the link, for everything else (requests, events, figures): node 0 to each other node, on a thread of its own.
// Wire: docs/protocol.md, "Between the nodes of a group".
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/queue.h"
#include "base/result.h"
#include "parallel/communicator.h"
#include "parallel/expert_exchange.h"
#include "transport/transport.h"

namespace tandem::parallel {

// What must be the same on all nodes, by the name that an error shows.
struct AgreedValue {
  std::string name, value;
};

struct MeetingOptions {
  int32_t num_nodes = 2, node_rank = 0, ranks_per_node = 1;
  std::string host;  // where node 0 listens
  uint16_t port = 0;
  Duration timeout = std::chrono::seconds(300);  // for all nodes to be there and connected
  Duration silence = std::chrono::seconds(12);   // of a node's link, after which the node is lost
  std::string version;                           // of the program
  std::vector<AgreedValue> agreed;               // the same names in the same order on all nodes
  std::vector<int64_t> limits;                   // of these every node gets the least of all nodes
  std::vector<std::string> devices;              // network devices of all connections, as of transport::Context
  transport::Credentials credentials;            // of all connections
};

// Called on the link's thread; must only enqueue.
struct LinkHandlers {
  std::function<void(int32_t node, std::string message)> on_message;
  std::function<void(int32_t node, const std::string& reason)> on_lost;  // at most once a node; the reason names it
  std::function<void()> on_tick;                                         // every 50 ms or so
};

class NodeGroup {
 public:
  // Blocks until all nodes are there. Errors, on every node that came: kInvalidInput where nodes differ (naming what
  // and both values), kTimeout naming who is missing, kPeerLost, kCancelled when stopped() says so.
  static Result<std::shared_ptr<NodeGroup>> meet(const MeetingOptions& options, const Clock& clock,
                                                 const std::function<bool()>& stopped);
  virtual ~NodeGroup() = default;

  virtual int32_t num_nodes() const = 0;
  virtual int32_t node_rank() const = 0;
  virtual int32_t num_ranks() const = 0;  // of all nodes
  virtual Rank first_rank() const = 0;    // of this node; the others follow
  virtual uint64_t token() const = 0;     // drawn by node 0, the same on all nodes, another for every group
  virtual const std::vector<int64_t>& limits() const = 0;
  virtual const std::string& own_host() const = 0;  // from which this node talks to node 0
  virtual std::string node_name(int32_t node) const = 0;

  // One per rank of this node, as make_local_communicators() and make_local_exchanges() give them for one process: the
  // same decisions, the same rows in the same order. Once each. Errors: a row longer than a message.
  virtual std::vector<std::unique_ptr<Communicator>> communicators(Duration deadline) = 0;
  virtual Result<std::vector<std::unique_ptr<ExpertExchange>>> exchanges(const ExchangeShape& shape, Duration deadline,
                                                                         int32_t spins) = 0;

  // Starts the link's thread.
  virtual void start(LinkHandlers handlers) = 0;
  // Any thread: a message to node 0, or from it to any node. Ordered per node. kFull: the other side does not take
  // what is sent. kClosed: the node is lost.
  virtual PushResult send(int32_t node, std::string message) = 0;
  // Every rank of the group ends with this error, here and, through its silence or the closed connections, elsewhere.
  virtual void fail(const Error& error) = 0;
  // Any thread: why the group ended; null while it goes on.
  virtual const Error* failure() const = 0;
  // At the end, when the ranks of this node have left: waits until those of all nodes have, two seconds at most, so
  // that nobody loses the last votes; then ends the link's thread. No loss is reported from the call on.
  virtual void leave() = 0;
};

// Memory of one rank's exchange in a group of this many nodes, beyond exchange_bytes().
int64_t node_exchange_bytes(const ExchangeShape& shape, int32_t num_nodes);

}  // namespace tandem::parallel
