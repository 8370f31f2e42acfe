// What `tandem doctor` asks this machine. Blocking; changes nothing but that it binds a port for a moment.
#pragma once

#include "app/doctor_checks.h"
#include "base/clock.h"

namespace tandem::app {

MachineFacts machine_facts();

// Whether a server could listen there now. Errors: the reason.
Status try_bind(const std::string& host, uint16_t port);

// The interface that carries what goes to a host. Asks a name server where the host is a name.
RouteFact route_to(const std::string& host);

// /health and the Date header of a running instance.
Result<InstanceFact> ask_instance(const std::string& url, Duration timeout);

// "Wed, 25 Nov 2026 08:00:00 GMT" as seconds since 1970; none: not such a date. Pure.
std::optional<int64_t> parse_http_date(const std::string& text);

}  // namespace tandem::app
