// Where a request's time went: what goes into meta_info and into the Req Time Stats line. Pure; the engine thread.
#pragma once

#include <string>

#include "engine/step/request.h"

namespace tandem::engine {

// Seconds from one state to another; absent unless the request has been in both, in this order.
std::optional<double> between(const scheduler::Lifecycle& life, scheduler::RequestState from,
                              scheduler::RequestState to);

// queue_time is the last to be known: once it is there, so are the others as far as they apply.
api::RequestTimes times_of(const Request& request);

// "Req Time Stats(rid=.., bootstrap_room=.., input len=.., output len=.., type=..): ..", durations in milliseconds,
// 0.00 for a state that the request never reached. now_unix_s: the wall clock at `now`; the line's start= is the
// request's arrival in unix seconds.
std::string time_stats_line(const Request& request, TimePoint now, double now_unix_s);

}  // namespace tandem::engine
