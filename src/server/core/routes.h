// Routes: finds the endpoint of a request, after the API key and CORS. Private to the server. Loop's thread.
#pragma once

#include "net/http_server.h"

namespace tandem::server {

class Core;
void dispatch(Core& core, net::HttpRequest request, std::shared_ptr<net::ResponseWriter> writer);

}  // namespace tandem::server
