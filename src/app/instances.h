// Talking to running servers from a command: one question to one, and the servers behind a router. Blocking.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/result.h"

namespace tandem::app {

struct InstanceAccess {
  std::string api_key;  // empty: none is sent
  Duration timeout = std::chrono::seconds(30);
};

// The body of a 200 from url + path. Errors: what the server answered, or why it did not.
Result<std::string> ask_instance(const std::string& method, const std::string& url, std::string_view path,
                                 const std::string& body, const InstanceAccess& access);

// URLs of a router's decode servers; of its servers, where each does everything. Errors: also where there are none.
Result<std::vector<std::string>> decode_instances(const std::string& router_url, const InstanceAccess& access);

}  // namespace tandem::app
