#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <poll.h>

#include <cstring>

#include "base/check.h"
#include "transport/worker_state.h"

namespace tandem::transport {
namespace {

constexpr int kRoundsPerProgress = 16;      // calls of ucp_worker_progress while it finds work
constexpr size_t kEventsPerProgress = 256;  // stop looking for more work after that
constexpr size_t kMaxAccepted = 4096;       // connections waiting in the listener or open
constexpr size_t kMaxStrangers = 1024;      // of them such that have not greeted
constexpr int kShutdownRounds = 100000;

void on_endpoint_error(void* arg, ucp_ep_h handle, ucs_status_t status) {
  auto* state = static_cast<Worker::State*>(arg);
  const auto it = state->by_handle.find(handle);
  if (it != state->by_handle.end()) state->mark_failed(*it->second, status);
}

void on_connection(ucp_conn_request_h request, void* arg) {
  auto* state = static_cast<Worker::State*>(arg);
  const size_t strangers = state->requests.size() + state->num_strangers;
  if (strangers >= kMaxStrangers || state->requests.size() + state->endpoints.size() >= kMaxAccepted) {
    ucp_listener_reject(state->listener, request);
  } else {
    state->requests.push_back(request);
  }
}

// Whose message it is; null: nobody's who may still say something.
Endpoint* sender_of(Worker::State& state, size_t length, const ucp_am_recv_param_t& param) {
  const bool named = (param.recv_attr & UCP_AM_RECV_ATTR_FIELD_REPLY_EP) != 0;
  const auto it = named ? state.by_handle.find(param.reply_ep) : state.by_handle.end();
  if (it == state.by_handle.end() || it->second->failed || it->second->forgotten) return nullptr;
  if ((param.recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) == 0 && length <= kMaxMessageBytes) return it->second;
  state.mark_failed(*it->second, UCS_ERR_MESSAGE_TRUNCATED);  // no peer of ours sends such
  return nullptr;
}

ucs_status_t on_message(void* arg, const void*, size_t, void* data, size_t length, const ucp_am_recv_param_t* param) {
  auto* state = static_cast<Worker::State*>(arg);
  Endpoint* endpoint = sender_of(*state, length, *param);
  if (endpoint == nullptr) return UCS_OK;
  if (endpoint->greeting != nullptr) {
    state->turn_away(*endpoint, "it said something before the greeting was done");
    return UCS_OK;
  }
  state->arrived.push_back(MessageArrived{endpoint->id, std::string(static_cast<const char*>(data), length)});
  return UCS_OK;
}

ucs_status_t on_greeting(void* arg, const void*, size_t, void* data, size_t length, const ucp_am_recv_param_t* param) {
  auto* state = static_cast<Worker::State*>(arg);
  Endpoint* endpoint = sender_of(*state, length, *param);
  if (endpoint != nullptr) state->greet(*endpoint, {static_cast<const char*>(data), length});
  return UCS_OK;
}

void on_operation_done(void* request, ucs_status_t status, void* user_data) {
  auto* operation = static_cast<Operation*>(user_data);
  operation->worker->finish(operation, status);
  ucp_request_free(request);
}

}  // namespace

void Worker::State::finish(Operation* operation, ucs_status_t status) {
  const std::unique_ptr<Operation> owned(operation);
  Endpoint& endpoint = *operation->endpoint;
  --endpoint.requests;
  if (operation->is_get) {
    arrived.push_back(GetFinished{operation->get_id, operation->get_bytes,
                                  status == UCS_OK ? Status(Ok{}) : ucx_error("read", status)});
    return;
  }
  endpoint.queued_bytes -= operation->bytes.size();
  if (status != UCS_OK) mark_failed(endpoint, status);
}

void Worker::State::mark_failed(Endpoint& endpoint, ucs_status_t status) {
  if (endpoint.failed) return;
  endpoint.failed = true;
  endpoint.reason = ucs_status_string(status);
  dirty = true;
  const bool is_known = endpoint.outbound || endpoint.greeting == nullptr;
  if (!endpoint.forgotten && is_known) arrived.push_back(EndpointFailed{endpoint.id, endpoint.reason});
  if (!endpoint.forgotten && !is_known) --num_strangers;
}

Result<EndpointId> Worker::State::add_endpoint(ucp_ep_params_t& params, Side side) {
  ASSIGN_OR_RETURN(const Nonce nonce, draw_nonce());
  params.field_mask |= UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler.cb = on_endpoint_error;
  params.err_handler.arg = this;
  auto endpoint = std::make_unique<Endpoint>();
  const ucs_status_t status = ucp_ep_create(ucp, &params, &endpoint->ucp);
  if (status != UCS_OK) return ucx_error("connect", status);
  endpoint->id = EndpointId{next_endpoint++};
  endpoint->outbound = side == Side::kCaller;
  endpoint->greeting = std::make_unique<Greeting>(side, context.state().own, nonce);
  endpoint->greet_by = now + kGreetingTime;
  by_handle[endpoint->ucp] = endpoint.get();
  const EndpointId id = endpoint->id;
  Endpoint& added = *(endpoints[id.value] = std::move(endpoint));
  if (added.outbound) send(added, kGreetingId, added.greeting->begin());
  return id;
}

// Forced: what is queued is dropped, the requests under way complete with an error, the sockets close.
void Worker::State::start_close(Endpoint& endpoint) {
  endpoint.closing = true;
  by_handle.erase(endpoint.ucp);
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
  param.flags = UCP_EP_CLOSE_FLAG_FORCE;
  const ucs_status_ptr_t request = ucp_ep_close_nbx(endpoint.ucp, &param);
  if (UCS_PTR_IS_PTR(request)) endpoint.close_request = request;
}

bool Worker::State::close_finished(Endpoint& endpoint) {
  if (endpoint.close_request != nullptr) {
    if (ucp_request_check_status(endpoint.close_request) == UCS_INPROGRESS) return false;
    ucp_request_free(endpoint.close_request);
    endpoint.close_request = nullptr;
  }
  if (endpoint.requests > 0) return false;
  if (endpoint.key != nullptr) ucp_rkey_destroy(endpoint.key);
  endpoint.key = nullptr;
  return true;
}

// Closes what failed or was given up, and drops what UCX has let go of. UCX calls a send done when it lies in its own
// buffer, which a forced close drops: hence the lingering.
bool Worker::State::sweep(TimePoint now) {
  if (!dirty) return false;
  bool waiting = false, any = false;
  for (auto it = endpoints.begin(); it != endpoints.end();) {
    Endpoint& endpoint = *it->second;
    if (!endpoint.failed && !endpoint.forgotten) {
      ++it;
      continue;
    }
    if (endpoint.linger && !endpoint.linger_until) endpoint.linger_until = now + *endpoint.linger;
    const bool lingering = !endpoint.failed && endpoint.linger && now < *endpoint.linger_until;
    if (!endpoint.closing && !lingering) start_close(endpoint);
    if (endpoint.closing && close_finished(endpoint)) {
      it = endpoints.erase(it);
      any = true;
    } else {
      waiting = true;
      ++it;
    }
  }
  dirty = waiting;
  return any;
}

Worker::State::~State() {
  if (listener != nullptr) {
    while (!requests.empty()) {
      ucp_listener_reject(listener, requests.front());
      requests.pop_front();
    }
    ucp_listener_destroy(listener);
  }
  for (auto& [id, endpoint] : endpoints) {
    endpoint->forgotten = true;
    endpoint->linger.reset();
  }
  dirty = true;
  for (int i = 0; i < kShutdownRounds && !endpoints.empty(); ++i) {
    if (ucp != nullptr) ucp_worker_progress(ucp);
    sweep(TimePoint{});
    arrived.clear();
  }
  for (auto& [id, endpoint] : endpoints) {
    if (endpoint->key != nullptr) ucp_rkey_destroy(endpoint->key);
  }
  if (ucp != nullptr) ucp_worker_destroy(ucp);  // completes what is still under way; endpoints live until here
}

Worker::Worker(std::unique_ptr<State> state) : state_(std::move(state)) {}
Worker::~Worker() = default;

Result<std::unique_ptr<Worker>> Worker::create(Context& context) {
  auto state = std::make_unique<State>(context);
  ucp_worker_params_t params{};
  params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  params.thread_mode = UCS_THREAD_MODE_SINGLE;
  ucs_status_t status = ucp_worker_create(context.state().ucp, &params, &state->ucp);
  if (status != UCS_OK) return exhausted(fmt::format("UCX makes a worker: {}", ucs_status_string(status)));
  ucp_am_handler_param_t handler{};
  handler.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG;
  handler.arg = state.get();
  for (const auto& [id, callback] : {std::pair(kMessageId, &on_message), std::pair(kGreetingId, &on_greeting)}) {
    handler.id = id;
    handler.cb = callback;
    status = ucp_worker_set_am_recv_handler(state->ucp, &handler);
    CHECK(status == UCS_OK);
  }
  if (context.state().can_wait) {
    status = ucp_worker_get_efd(state->ucp, &state->wait_fd);
    if (status != UCS_OK) return exhausted(fmt::format("UCX gives no descriptor: {}", ucs_status_string(status)));
  }
  return std::unique_ptr<Worker>(new Worker(std::move(state)));
}

Result<uint16_t> Worker::listen(const std::string& host, uint16_t port) {
  CHECK(state_->listener == nullptr);
  ASSIGN_OR_RETURN(const SocketAddress address, resolve(host, port));
  ucp_listener_params_t params{};
  params.field_mask = UCP_LISTENER_PARAM_FIELD_SOCK_ADDR | UCP_LISTENER_PARAM_FIELD_CONN_HANDLER;
  params.sockaddr.addr = reinterpret_cast<const sockaddr*>(address.bytes.data());
  params.sockaddr.addrlen = socklen_t(address.bytes.size());
  params.conn_handler.cb = on_connection;
  params.conn_handler.arg = state_.get();
  ucs_status_t status = ucp_listener_create(state_->ucp, &params, &state_->listener);
  if (status != UCS_OK) {
    state_->listener = nullptr;
    return exhausted(fmt::format("listen on {}:{}: {}", host, port, ucs_status_string(status)));
  }
  ucp_listener_attr_t attributes{};
  attributes.field_mask = UCP_LISTENER_ATTR_FIELD_SOCKADDR;
  status = ucp_listener_query(state_->listener, &attributes);
  CHECK(status == UCS_OK);
  // sin_port and sin6_port lie at the same place.
  return uint16_t(ntohs(reinterpret_cast<const sockaddr_in*>(&attributes.sockaddr)->sin_port));
}

Result<EndpointId> Worker::connect(const SocketAddress& address) {
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_FLAGS | UCP_EP_PARAM_FIELD_SOCK_ADDR;
  params.flags = UCP_EP_PARAMS_FLAGS_CLIENT_SERVER;
  params.sockaddr.addr = reinterpret_cast<const sockaddr*>(address.bytes.data());
  params.sockaddr.addrlen = socklen_t(address.bytes.size());
  return state_->add_endpoint(params, Side::kCaller);
}

void Worker::close(EndpointId id, bool linger) {
  Endpoint* endpoint = state_->find(id);
  if (endpoint == nullptr) return;
  endpoint->forgotten = true;
  if (linger) endpoint->linger = kLinger;
  state_->dirty = true;
}

void Worker::send(EndpointId id, std::string bytes) {
  CHECK(bytes.size() <= kMaxMessageBytes);
  Endpoint* endpoint = state_->find(id);
  if (endpoint == nullptr) return;
  if (endpoint->greeting == nullptr) return state_->send(*endpoint, kMessageId, std::move(bytes));
  endpoint->queued_bytes += bytes.size();
  endpoint->early.push_back(std::move(bytes));
}

void Worker::State::send(Endpoint& endpoint, unsigned id, std::string bytes) {
  auto operation = std::make_unique<Operation>();
  operation->worker = this;
  operation->endpoint = &endpoint;
  operation->bytes = std::move(bytes);
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_USER_DATA;
  param.flags = UCP_AM_SEND_FLAG_EAGER | UCP_AM_SEND_FLAG_REPLY;
  param.cb.send = on_operation_done;
  param.user_data = operation.get();
  const std::string& data = operation->bytes;
  const ucs_status_ptr_t request = ucp_am_send_nbx(endpoint.ucp, id, nullptr, 0, data.data(), data.size(), &param);
  if (request == nullptr) return;  // already out
  if (UCS_PTR_IS_ERR(request)) return mark_failed(endpoint, UCS_PTR_STATUS(request));
  endpoint.queued_bytes += data.size();
  ++endpoint.requests;
  static_cast<void>(operation.release());  // finish() takes it
}

uint64_t Worker::peer_epoch(EndpointId id) const {
  const Endpoint* endpoint = state_->find(id);
  return endpoint == nullptr ? 0 : endpoint->peer_epoch;
}

size_t Worker::queued_bytes(EndpointId id) const {
  const Endpoint* endpoint = state_->find(id);
  return endpoint == nullptr ? 0 : endpoint->queued_bytes;
}

Status Worker::import_region(EndpointId id, uint64_t base, uint64_t bytes, std::string_view key) {
  Endpoint* endpoint = state_->find(id);
  if (endpoint == nullptr) return peer_lost(fmt::format("endpoint {} is not connected", id.value));
  CHECK(endpoint->key == nullptr);
  if (key.empty() || key.size() > kMaxKeyBytes || base + bytes < base) {
    return invalid_input(fmt::format("memory key of {} bytes for {} bytes of memory", key.size(), bytes));
  }
  // UCX is not told how long the key is: behind a cut one it finds zeros.
  std::vector<char> padded(2 * kMaxKeyBytes);
  std::memcpy(padded.data(), key.data(), key.size());
  const ucs_status_t status = ucp_ep_rkey_unpack(endpoint->ucp, padded.data(), &endpoint->key);
  if (status != UCS_OK) {
    endpoint->key = nullptr;
    return invalid_input(fmt::format("memory key of {} bytes: {}", key.size(), ucs_status_string(status)));
  }
  endpoint->remote_base = base;
  endpoint->remote_bytes = bytes;
  return Ok{};
}

Status Worker::get(uint64_t get_id, EndpointId id, uint64_t remote_offset, std::span<std::byte> local) {
  Endpoint* endpoint = state_->find(id);
  if (endpoint == nullptr || endpoint->key == nullptr) {
    return peer_lost(fmt::format("endpoint {} is not connected", id.value));
  }
  if (local.empty() || local.size() > endpoint->remote_bytes || remote_offset > endpoint->remote_bytes - local.size()) {
    return invalid_input(fmt::format("read of [{}, +{}) from a region of {} bytes", remote_offset, local.size(),
                                     endpoint->remote_bytes));
  }
  auto operation = std::make_unique<Operation>();
  operation->worker = state_.get();
  operation->endpoint = endpoint;
  operation->get_id = get_id;
  operation->get_bytes = local.size();
  operation->is_get = true;
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.cb.send = on_operation_done;
  param.user_data = operation.get();
  const ucs_status_ptr_t request = ucp_get_nbx(endpoint->ucp, local.data(), local.size(),
                                               endpoint->remote_base + remote_offset, endpoint->key, &param);
  if (UCS_PTR_IS_ERR(request)) return ucx_error("read", UCS_PTR_STATUS(request));
  if (request == nullptr) {
    state_->arrived.push_back(GetFinished{get_id, local.size(), Ok{}});
    return Ok{};
  }
  ++endpoint->requests;
  static_cast<void>(operation.release());  // finish() takes it
  return Ok{};
}

bool Worker::progress(TimePoint now, std::vector<Event>& events) {
  state_->now = now;
  bool any = false;
  for (int i = 0; i < kRoundsPerProgress && state_->arrived.size() < kEventsPerProgress; ++i) {
    if (ucp_worker_progress(state_->ucp) == 0) break;
    any = true;
  }
  state_->accept_requests();
  state_->close_silent();
  any |= state_->sweep(now);
  any |= !state_->arrived.empty();
  for (Event& event : state_->arrived) events.push_back(std::move(event));
  state_->arrived.clear();
  return any;
}

bool Worker::wait(Duration timeout) {
  CHECK(state_->wait_fd >= 0);
  if (!state_->arrived.empty() || !state_->requests.empty()) return true;
  // Busy: something came since the last progress(); the descriptor would not tell.
  if (ucp_worker_arm(state_->ucp) != UCS_OK) return true;
  const auto whole = std::chrono::duration_cast<std::chrono::seconds>(timeout);
  const timespec longest{time_t(whole.count()), long((timeout - whole).count())};
  pollfd waited{state_->wait_fd, POLLIN, 0};
  return ppoll(&waited, 1, &longest, nullptr) != 0;
}

void Worker::wake() { ucp_worker_signal(state_->ucp); }

}  // namespace tandem::transport
