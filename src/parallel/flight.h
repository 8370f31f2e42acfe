// What a rank does with the other ranks, noted in its flight recorder: votes and decisions, rows and results of the
// expert exchange, rounds of its attention group, and for whom it waits where a wait takes longer than 50 ms. Wrappers
// that change nothing else; a rank without a recorder goes without them.
// Owner: the rank's engine thread. The recorder is borrowed and outlives the wrapper.
#pragma once

#include <memory>

#include "parallel/attention_group.h"
#include "parallel/communicator.h"
#include "parallel/expert_exchange.h"
#include "profile/flight_recorder.h"

namespace tandem::parallel {

std::unique_ptr<Communicator> note_flight(std::unique_ptr<Communicator> inner, profile::FlightRecorder& recorder);
std::unique_ptr<ExpertExchange> note_flight(std::unique_ptr<ExpertExchange> inner, profile::FlightRecorder& recorder);
std::unique_ptr<AttentionGroup> note_flight(std::unique_ptr<AttentionGroup> inner, profile::FlightRecorder& recorder);

}  // namespace tandem::parallel
