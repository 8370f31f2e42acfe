// RankPort: one rank's connections to the ranks of the other nodes, over a UCX worker of its own. Whenever the rank
// waits for anything, votes or rows, it drives this one worker, so nothing that came is left lying.
// Owner: the rank's engine thread (before it starts, whoever builds the group); wake() and GroupState from any thread.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/result.h"
#include "parallel/ucx/wire.h"
#include "transport/transport.h"

namespace tandem::parallel {

class RankPort;

// What the ranks of one node share.
class GroupState {
 public:
  GroupState(int32_t num_nodes, int32_t node_rank, int32_t ranks_per_node)
      : num_nodes(num_nodes), node_rank(node_rank), ranks_per_node(ranks_per_node) {}
  ~GroupState() { delete failure_.load(); }
  GroupState(const GroupState&) = delete;
  GroupState& operator=(const GroupState&) = delete;

  int32_t num_ranks() const { return num_nodes * ranks_per_node; }
  int32_t first_rank() const { return node_rank * ranks_per_node; }
  int32_t node_of(int32_t rank) const { return rank / ranks_per_node; }
  bool is_local(int32_t rank) const { return node_of(rank) == node_rank; }
  // "node 1 (10.0.0.2:4711)"
  std::string name(int32_t node) const;

  // The first failure stays. Any thread; wakes every rank of this node.
  void fail(Error error);
  const Error* failure() const { return failure_.load(); }  // null: none

  const int32_t num_nodes, node_rank, ranks_per_node;
  // Fixed before the engine threads start.
  std::vector<PortAddress> addresses;            // of all ranks
  std::vector<std::unique_ptr<RankPort>> ports;  // of this node's ranks

 private:
  std::atomic<const Error*> failure_{nullptr};
};

class RankPort {
 public:
  // Listens at host, on any free port.
  static Result<std::unique_ptr<RankPort>> create(GroupState& state, Rank rank, const std::string& host,
                                                  const std::vector<std::string>& devices,
                                                  const transport::Credentials& own);

  uint16_t port() const { return port_; }
  Rank rank() const { return rank_; }

  // Calls the ranks of other nodes that are higher than this one; the lower ones call. Errors: an address that does not
  // resolve.
  Status call_others(uint64_t token);
  // Every rank of the other nodes has greeted.
  bool connected() const { return num_up_ == state_.num_ranks() - state_.ranks_per_node; }
  std::string missing() const;  // the ranks that have not, "2, 3"

  // Takes what came. Losses and protocol errors fail the group.
  void progress(TimePoint now);
  void send(int32_t rank, std::string bytes);
  // UCX has taken all that was sent; what it has not is sent on by progress() alone.
  bool is_flushed() const;
  std::string unflushed() const;                                  // the ranks that have not taken it, "2, 3"
  bool wait(Duration timeout) { return worker_->wait(timeout); }  // see Worker::wait()
  void wake() { worker_->wake(); }

  // Who takes messages. An error ends the connection and the group. What comes before there is somebody to take it,
  // from a rank that was quicker, waits.
  std::function<Status(int32_t from, std::string_view bytes)> on_votes, on_rows, on_results;

 private:
  RankPort(GroupState& state, Rank rank) : state_(state), rank_(rank) {}
  void handle(const transport::Event& event);
  void on_message(transport::EndpointId endpoint, std::string_view bytes);
  Status on_hello(transport::EndpointId endpoint, std::string_view bytes);
  using Taker = std::function<Status(int32_t from, std::string_view bytes)>;
  struct Early {
    int32_t from;
    std::string bytes;
  };
  const Taker* taker_of(uint8_t type) const;  // null: there is no such type
  Status deliver(int32_t from, std::string_view bytes);
  void deliver_early();
  void lost(int32_t rank, const std::string& reason);

  GroupState& state_;
  const Rank rank_;
  std::unique_ptr<transport::Context> context_;
  std::unique_ptr<transport::Worker> worker_;
  uint16_t port_ = 0;
  uint64_t token_ = 0;
  int32_t num_up_ = 0;
  std::vector<transport::EndpointId> endpoint_of_;  // by rank; 0: none
  std::vector<bool> up_;                            // by rank: has greeted
  std::unordered_map<uint64_t, int32_t> rank_of_;   // by endpoint; of those that we called or that greeted
  std::vector<Early> early_;
  size_t early_bytes_ = 0;
  std::vector<transport::Event> events_;  // scratch
};

}  // namespace tandem::parallel
