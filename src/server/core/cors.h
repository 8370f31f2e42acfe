// Cross-origin requests: everything is allowed, as with SGLang. Any thread.
#pragma once

#include <memory>

#include "net/http_server.h"

namespace tandem::server {

// The writer itself, or, for a request with an Origin, one that adds the headers.
std::shared_ptr<net::ResponseWriter> with_cors(const net::HttpRequest& request,
                                               std::shared_ptr<net::ResponseWriter> writer);
bool is_preflight(const net::HttpRequest& request);
net::HttpResponse preflight_response(const net::HttpRequest& request);

}  // namespace tandem::server
