#include <arpa/inet.h>
#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <ucs/config/global_opts.h>
#include <ucs/debug/debug.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <cstring>

#include "base/check.h"
#include "transport/ucx.h"

namespace tandem::transport {
namespace {

// Once per process, before the first context: what UCX keeps in its own globals.
void quieten_ucx() {
  static const bool done = [] {
    // UCX logs every reset as an error; ours are events, and whoever decides logs them.
    ucs_global_opts_set_value("LOG_LEVEL", "fatal");
    // Crashes belong to the application's handlers.
    for (const int signal : {SIGILL, SIGSEGV, SIGBUS, SIGFPE}) ucs_debug_disable_signal(signal);
    // SO_REUSEADDR, so that a restarted server gets its port back while old connections linger in TIME_WAIT. UCX 1.13
    // takes this one option only from the environment: ucp_config_modify() does not reach connection managers.
    setenv("UCX_TCP_CM_REUSEADDR", "y", 0);
    return true;
  }();
  static_cast<void>(done);
}

Status configure(ucp_config_t* config) {
  // Segments: gets over TCP travel as active messages, and 8 KiB ones (the default) cost a copy and a wake-up each.
  constexpr const char* kOptions[][2] = {
      {"TLS", "tcp,self"}, {"TCP_TX_SEG_SIZE", "64k"}, {"TCP_RX_SEG_SIZE", "64k"}, {"WARN_INVALID_CONFIG", "n"}};
  for (const auto& [name, value] : kOptions) {
    const ucs_status_t status = ucp_config_modify(config, name, value);
    if (status != UCS_OK) return invalid_input(fmt::format("UCX {}={}: {}", name, value, ucs_status_string(status)));
  }
  return Ok{};
}

// Names that UCX does not know are no error to it, so which ones are missing is looked up by check_devices().
Status choose_devices(ucp_config_t* config, const std::vector<std::string>& devices) {
  if (devices.empty()) {
    // The interface by which the other side was reached, and no other: with all of them, one that goes away (a veth of
    // a container that ended) would fail every later connection until this process is started again.
    const ucs_status_t status = ucp_config_modify(config, "CM_USE_ALL_DEVICES", "n");
    if (status == UCS_OK) return Ok{};
    return invalid_input(fmt::format("UCX CM_USE_ALL_DEVICES=n: {}", ucs_status_string(status)));
  }
  std::string list;
  for (const std::string& device : devices) {
    for (const std::string& name : ucx_names_of_device(device)) list += (list.empty() ? "" : ",") + name;
  }
  const ucs_status_t status = ucp_config_modify(config, "NET_DEVICES", list.c_str());
  if (status != UCS_OK) return invalid_input(fmt::format("network devices '{}': {}", list, ucs_status_string(status)));
  return Ok{};
}

Status check_devices(const Context& context, const std::vector<std::string>& devices) {
  const std::vector<NetworkDevice> chosen = devices.empty() ? std::vector<NetworkDevice>() : context.devices();
  for (const std::string& device : devices) {
    const std::vector<std::string> names = ucx_names_of_device(device);
    const auto is_it = [&](const NetworkDevice& one) {
      return std::find(names.begin(), names.end(), one.name) != names.end();
    };
    if (std::any_of(chosen.begin(), chosen.end(), is_it)) continue;
    const auto all = Context::create({});
    return invalid_input(fmt::format("network device '{}' is not one that UCX can use here; there are: {}", device,
                                     all ? list_of((*all)->devices()) : "none"));
  }
  return Ok{};
}

Status map_region(Context::State& state) {
  if (state.region.empty()) return Ok{};
  ucp_mem_map_params_t params{};
  params.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH;
  params.address = state.region.data();
  params.length = state.region.size();
  ucs_status_t status = ucp_mem_map(state.ucp, &params, &state.memory);
  if (status != UCS_OK) {
    return exhausted(fmt::format("UCX registers {} bytes: {}", state.region.size(), ucs_status_string(status)));
  }
  void* key = nullptr;
  size_t bytes = 0;
  status = ucp_rkey_pack(state.ucp, state.memory, &key, &bytes);
  if (status != UCS_OK) return ucx_error("UCX packs a memory key", status);
  state.key.assign(static_cast<const char*>(key), bytes);
  ucp_rkey_buffer_release(key);
  CHECK(state.key.size() <= kMaxKeyBytes);
  return Ok{};
}

template <class Address>
SocketAddress from_sockaddr(const Address& address) {
  SocketAddress result;
  result.bytes.resize(sizeof(address));
  std::memcpy(result.bytes.data(), &address, sizeof(address));
  return result;
}

}  // namespace

Result<std::unique_ptr<Context>> Context::create(std::span<std::byte> region, bool can_wait,
                                                 const std::vector<std::string>& devices, const Credentials& own) {
  quieten_ucx();
  ucp_config_t* config = nullptr;
  ucs_status_t status = ucp_config_read(nullptr, nullptr, &config);
  if (status != UCS_OK) return invalid_input(fmt::format("UCX reads its configuration: {}", ucs_status_string(status)));
  auto state = std::make_unique<State>();
  state->region = region;
  state->own = own;
  Status configured = configure(config);
  if (configured) configured = choose_devices(config, devices);
  if (!configured) {
    ucp_config_release(config);
    return configured.error();
  }
  ucp_params_t params{};
  params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_NAME;
  params.features = UCP_FEATURE_AM | UCP_FEATURE_RMA;
  if (can_wait) params.features |= UCP_FEATURE_WAKEUP;
  state->can_wait = can_wait;
  params.name = "tandem";
  status = ucp_init(&params, config, &state->ucp);
  ucp_config_release(config);
  if (status != UCS_OK) return exhausted(fmt::format("UCX starts: {}", ucs_status_string(status)));
  std::unique_ptr<Context> context(new Context(std::move(state)));
  RETURN_IF_ERROR(check_devices(*context, devices));
  RETURN_IF_ERROR(map_region(*context->state_));
  return context;
}

Context::Context(std::unique_ptr<State> state) : state_(std::move(state)) {}

Context::~Context() {
  if (state_->memory != nullptr) ucp_mem_unmap(state_->ucp, state_->memory);
  ucp_cleanup(state_->ucp);
}

std::span<std::byte> Context::region() const { return state_->region; }
const std::string& Context::key() const { return state_->key; }
std::vector<NetworkDevice> Context::devices() const { return devices_of_context(state_->ucp); }

Result<SocketAddress> resolve(const std::string& host, uint16_t port) {
  sockaddr_in v4{};
  v4.sin_family = AF_INET;
  v4.sin_port = htons(port);
  if (inet_pton(AF_INET, host == "localhost" ? "127.0.0.1" : host.c_str(), &v4.sin_addr) == 1) return from_sockaddr(v4);
  sockaddr_in6 v6{};
  v6.sin6_family = AF_INET6;
  v6.sin6_port = htons(port);
  const bool bracketed = host.size() > 2 && host.front() == '[' && host.back() == ']';
  if (inet_pton(AF_INET6, bracketed ? host.substr(1, host.size() - 2).c_str() : host.c_str(), &v6.sin6_addr) == 1) {
    return from_sockaddr(v6);
  }
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int failed = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (failed != 0) return not_found(fmt::format("host '{}' does not resolve: {}", host, gai_strerror(failed)));
  SocketAddress address;
  address.bytes.resize(found->ai_addrlen);
  std::memcpy(address.bytes.data(), found->ai_addr, found->ai_addrlen);
  freeaddrinfo(found);
  return address;
}

Result<std::string> local_host_towards(const SocketAddress& other) {
  const auto* address = reinterpret_cast<const sockaddr*>(other.bytes.data());
  const int probe = socket(address->sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (probe < 0) return exhausted(fmt::format("socket: {}", std::strerror(errno)));
  sockaddr_storage own{};
  socklen_t length = sizeof(own);
  const bool known = connect(probe, address, socklen_t(other.bytes.size())) == 0 &&
                     getsockname(probe, reinterpret_cast<sockaddr*>(&own), &length) == 0;
  const int reason = errno;
  close(probe);
  if (!known) return not_found(fmt::format("no route to the other machine: {}", std::strerror(reason)));
  char text[INET6_ADDRSTRLEN] = {};
  const void* number = own.ss_family == AF_INET6
                           ? static_cast<const void*>(&reinterpret_cast<const sockaddr_in6*>(&own)->sin6_addr)
                           : &reinterpret_cast<const sockaddr_in*>(&own)->sin_addr;
  inet_ntop(own.ss_family, number, text, sizeof(text));
  return std::string(text);
}

}  // namespace tandem::transport
