// How a worker's connections begin: accepted, greeted, or turned away with a reason.
#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>

#include <utility>

#include "base/log.h"
#include "transport/worker_state.h"

namespace tandem::transport {
namespace {

constexpr Duration kLookForSilence = std::chrono::milliseconds(250);
// A flood of strangers does not fill the log: each reason once in this time, and so many reasons at most.
constexpr Duration kLogInterval = std::chrono::seconds(1);
constexpr size_t kReasonsAtOnce = 16;

std::string caller_of(ucp_conn_request_h request) {
  ucp_conn_request_attr_t attributes{};
  attributes.field_mask = UCP_CONN_REQUEST_ATTR_FIELD_CLIENT_ADDR;
  if (ucp_conn_request_query(request, &attributes) != UCS_OK) return "somewhere";
  const auto* address = reinterpret_cast<const sockaddr*>(&attributes.client_address);
  char text[INET6_ADDRSTRLEN] = {};
  const bool is_v6 = address->sa_family == AF_INET6;
  const void* number = is_v6 ? static_cast<const void*>(&reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr)
                             : &reinterpret_cast<const sockaddr_in*>(address)->sin_addr;
  if (inet_ntop(address->sa_family, number, text, sizeof(text)) == nullptr) return "somewhere";
  // sin_port and sin6_port lie at the same place.
  const uint16_t port = ntohs(reinterpret_cast<const sockaddr_in*>(address)->sin_port);
  return fmt::format(fmt::runtime(is_v6 ? "[{}]:{}" : "{}:{}"), text, port);
}

}  // namespace

void Worker::State::accept_requests() {
  while (!requests.empty()) {
    ucp_ep_params_t params{};
    params.field_mask = UCP_EP_PARAM_FIELD_CONN_REQUEST;
    params.conn_request = requests.front();
    requests.pop_front();
    const std::string address = caller_of(params.conn_request);
    const auto id = add_endpoint(params, Side::kListener);
    if (!id) continue;  // the caller is gone
    endpoints[id->value]->address = address;
    ++num_strangers;
  }
}

// The next frame of the other side's greeting.
void Worker::State::greet(Endpoint& endpoint, std::string_view bytes) {
  if (endpoint.greeting == nullptr) return mark_failed(endpoint, UCS_ERR_INVALID_PARAM);  // it is long done
  std::string reply = endpoint.greeting->take(bytes);
  if (!reply.empty()) send(endpoint, kGreetingId, std::move(reply));
  if (endpoint.failed || endpoint.greeting->state() == Greeting::State::kGoesOn) return;
  if (endpoint.greeting->state() == Greeting::State::kRefused) {
    const std::string reason = endpoint.greeting->reason();
    return turn_away(endpoint, reason);
  }
  endpoint.peer_epoch = endpoint.greeting->peer_epoch();
  endpoint.greeting.reset();
  if (!endpoint.outbound) {
    --num_strangers;
    arrived.emplace_back(EndpointAccepted{endpoint.id});  // g++ 12 warns wrongly of push_back here
    return;
  }
  for (std::string& message : std::exchange(endpoint.early, {})) {
    endpoint.queued_bytes -= message.size();
    send(endpoint, kMessageId, std::move(message));
  }
}

// Says why where it is seen first: here for callers, whom the owner never hears of.
void Worker::State::turn_away(Endpoint& endpoint, const std::string& reason) {
  if (endpoint.outbound) {
    arrived.emplace_back(EndpointFailed{endpoint.id, reason, true});
  } else {
    --num_strangers;
    std::erase_if(said, [this](const auto& entry) { return entry.second <= now; });
    if (!said.contains(reason) && said.size() < kReasonsAtOnce) {
      log::warning("a connection from {} was refused: {}", endpoint.address, reason);
      said.emplace(reason, now + kLogInterval);
    }
  }
  endpoint.forgotten = true;
  endpoint.linger = kLinger;
  dirty = true;
}

void Worker::State::close_silent() {
  if (num_strangers == 0 || now < next_look) return;
  next_look = now + kLookForSilence;
  for (auto& [id, endpoint] : endpoints) {
    const bool is_stranger = endpoint->greeting != nullptr && !endpoint->outbound;
    if (!is_stranger || endpoint->failed || endpoint->forgotten || now < endpoint->greet_by) continue;
    turn_away(*endpoint, fmt::format("it did not greet within {:.0f} s", seconds(kGreetingTime)));
  }
}

}  // namespace tandem::transport
