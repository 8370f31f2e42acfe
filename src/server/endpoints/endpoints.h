// All endpoints: functions of the table in routes.cc. Each answers `writer` exactly once, now or later. Loop's thread.
#pragma once

#include "server/core/core.h"

namespace tandem::server {

using Endpoint = void (*)(Core& core, net::HttpRequest request, const Writer& writer);

// generate.cc
void post_generate(Core& core, net::HttpRequest request, const Writer& writer);
void post_completions(Core& core, net::HttpRequest request, const Writer& writer);
void post_chat_completions(Core& core, net::HttpRequest request, const Writer& writer);

// models.cc
void get_models(Core& core, net::HttpRequest request, const Writer& writer);
void get_model(Core& core, net::HttpRequest request, const Writer& writer);
void get_model_info(Core& core, net::HttpRequest request, const Writer& writer);
void get_weight_version(Core& core, net::HttpRequest request, const Writer& writer);

// tokenize.cc
void post_tokenize(Core& core, net::HttpRequest request, const Writer& writer);
void post_detokenize(Core& core, net::HttpRequest request, const Writer& writer);

// health.cc
void get_health(Core& core, net::HttpRequest request, const Writer& writer);
void get_health_generate(Core& core, net::HttpRequest request, const Writer& writer);
void get_ping(Core& core, net::HttpRequest request, const Writer& writer);

// info.cc
void get_server_info(Core& core, net::HttpRequest request, const Writer& writer);
void get_load(Core& core, net::HttpRequest request, const Writer& writer);
void get_metrics(Core& core, net::HttpRequest request, const Writer& writer);

// experts.cc
void start_expert_recording(Core& core, net::HttpRequest request, const Writer& writer);
void stop_expert_recording(Core& core, net::HttpRequest request, const Writer& writer);
void dump_expert_recording(Core& core, net::HttpRequest request, const Writer& writer);
void post_rebalance(Core& core, net::HttpRequest request, const Writer& writer);
void get_expert_placement(Core& core, net::HttpRequest request, const Writer& writer);

// profile.cc
void start_profile(Core& core, net::HttpRequest request, const Writer& writer);
void stop_profile(Core& core, net::HttpRequest request, const Writer& writer);

// control.cc
void flush_cache(Core& core, net::HttpRequest request, const Writer& writer);
void post_abort_request(Core& core, net::HttpRequest request, const Writer& writer);

// flight.cc
void get_flight_recorder(Core& core, net::HttpRequest request, const Writer& writer);

// pace.cc
void slow_down(Core& core, net::HttpRequest request, const Writer& writer);
void post_hold_admission(Core& core, net::HttpRequest request, const Writer& writer);

}  // namespace tandem::server
