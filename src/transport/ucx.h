// Private: what the two halves of the room share of UCX.
#pragma once

#include <ucp/api/ucp.h>

#include <string>

#include "transport/transport.h"

namespace tandem::transport {

struct Context::State {
  ucp_context_h ucp = nullptr;
  ucp_mem_h memory = nullptr;
  std::span<std::byte> region;
  std::string key;
  bool can_wait = false;
  Credentials own;
};

// Of devices.cc: the names under which UCX may know a device, and what a context has chosen.
std::vector<std::string> ucx_names_of_device(const std::string& device);
std::vector<NetworkDevice> devices_of_context(ucp_context_h ucp);

inline Error ucx_error(const char* what, ucs_status_t status) {
  const ErrorCode code = status == UCS_ERR_TIMED_OUT ? ErrorCode::kTimeout : ErrorCode::kPeerLost;
  return {code, std::string(what) + ": " + ucs_status_string(status)};
}

}  // namespace tandem::transport
