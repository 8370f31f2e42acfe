// Who may call what: the keys of a server or router, and whether a request shows one that suffices. Pure; any thread.
#pragma once

#include <cstdint>
#include <string>

#include "net/http_server.h"

namespace tandem::net {

// What an endpoint does: answers, or changes the server for everybody (pace, profiles, recordings, placement, caches,
// the list of instances) or shows its insides (the flight recorder's rings name hosts, processes, peers and rooms).
enum class Access : uint8_t { kNormal, kControl };

// Empty: not set. With an admin key, control wants it and nothing else; without, the API key opens everything. The
// admin key opens normal endpoints as well.
struct AccessKeys {
  std::string api, admin;
};

// Looks at Authorization: Bearer KEY, in constant time. A preflight (OPTIONS) carries no key and changes nothing.
bool is_authorized(const AccessKeys& keys, const HttpRequest& request, Access access);

}  // namespace tandem::net
