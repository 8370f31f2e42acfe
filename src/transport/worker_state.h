// Private: what a Worker keeps of its connections; worker.cc moves messages, worker_greeting.cc lets connections begin.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "transport/greeting/greeting.h"
#include "transport/ucx.h"

namespace tandem::transport {

inline constexpr unsigned kMessageId = 1, kGreetingId = 2;  // UCX's active message numbers
inline constexpr Duration kLinger = std::chrono::seconds(1);
inline constexpr Duration kGreetingTime = std::chrono::seconds(10);  // for a caller, from being accepted

struct Endpoint {
  EndpointId id;
  ucp_ep_h ucp = nullptr;
  ucp_rkey_h key = nullptr;
  uint64_t remote_base = 0, remote_bytes = 0;
  size_t queued_bytes = 0;  // of sends that UCX has not completed
  size_t requests = 0;      // sends and gets under way
  bool failed = false;      // UCX reported an error; close it
  bool forgotten = false;   // the owner called close(): no more events
  std::string reason;
  void* close_request = nullptr;
  bool closing = false;            // UCX's handle is gone or going
  std::optional<Duration> linger;  // of a soft close: how long to wait for the other side to close
  std::optional<TimePoint> linger_until;
  // The greeting; empty once it is done. Until then the owner of an inbound endpoint does not know of it, and what an
  // outbound one's says waits in `early`.
  std::unique_ptr<Greeting> greeting;
  bool outbound = false;
  std::string address;  // of the caller
  TimePoint greet_by{};
  uint64_t peer_epoch = 0;
  std::vector<std::string> early;
};

// One send or get under way; given to UCX as user data.
struct Operation {
  Worker::State* worker = nullptr;
  Endpoint* endpoint = nullptr;
  std::string bytes;    // of a send: lives until UCX is done with it
  uint64_t get_id = 0;  // of a get
  uint64_t get_bytes = 0;
  bool is_get = false;
};

struct Worker::State {
  explicit State(Context& context) : context(context) {}
  ~State();

  Endpoint* find(EndpointId id) {
    const auto it = endpoints.find(id.value);
    return it == endpoints.end() || it->second->forgotten || it->second->failed ? nullptr : it->second.get();
  }
  Result<EndpointId> add_endpoint(ucp_ep_params_t& params, Side side);
  void greet(Endpoint& endpoint, std::string_view bytes);
  void turn_away(Endpoint& endpoint, const std::string& reason);
  void close_silent();
  void send(Endpoint& endpoint, unsigned id, std::string bytes);
  void accept_requests();
  void mark_failed(Endpoint& endpoint, ucs_status_t status);
  void start_close(Endpoint& endpoint);
  bool close_finished(Endpoint& endpoint);
  bool sweep(TimePoint now);
  void finish(Operation* operation, ucs_status_t status);

  Context& context;
  ucp_worker_h ucp = nullptr;
  ucp_listener_h listener = nullptr;
  int wait_fd = -1;  // readable when there is something to do; of contexts that can wait
  uint64_t next_endpoint = 1;
  std::unordered_map<uint64_t, std::unique_ptr<Endpoint>> endpoints;
  std::unordered_map<ucp_ep_h, Endpoint*> by_handle;  // open ones
  std::deque<ucp_conn_request_h> requests;            // not accepted yet
  std::vector<Event> arrived;                         // filled by UCX's callbacks, in order
  bool dirty = false;                                 // some endpoint failed, closes or flushes
  TimePoint now{};                                    // of the last progress()
  size_t num_strangers = 0;                           // inbound and not greeted
  TimePoint next_look{};
  std::map<std::string, TimePoint, std::less<>> said;  // refusals in the log, and until when each is not said again
};

}  // namespace tandem::transport
