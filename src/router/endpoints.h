// Everything of a router's HTTP face but generation: health, information, fleet membership, what is fanned out.
#pragma once

#include <functional>
#include <memory>
#include <string_view>

#include "net/http_server.h"
#include "router/fleet.h"

namespace tandem::router {

using Writer = std::shared_ptr<net::ResponseWriter>;

// True: it is one of these endpoints and will be answered (404 and 405 included); false: a generation endpoint.
bool serve_endpoint(Fleet& fleet, net::HttpRequest& request, const Writer& writer);

// Of a client's headers, those that go on to the instances.
net::Headers forwarded_headers(const net::HttpRequest& request);

// Bearer key, where the fleet has one and the path is not public. False: 401 was sent.
bool authorized(const Fleet& fleet, const net::HttpRequest& request, const Writer& writer);

void send_json(const Writer& writer, int status, std::string body);

}  // namespace tandem::router
