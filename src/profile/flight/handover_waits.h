// What a rank's log says of its handovers: which of them wait for a word of the other side. Values.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "profile/flight_reader.h"

namespace tandem::profile {

// Rooms that wait for the same thing from the same process.
struct HandoverWait {
  std::string awaited;  // "'source'"
  uint64_t epoch = 0;   // of the other process; 0: it has not answered yet
  std::string address;
  uint64_t room = 0;      // the one that waits longest; 0: the connection itself
  int32_t num_rooms = 0;  // all of them
  int64_t since_ns = 0;
  int64_t heard_ns = 0;  // when anything last came from that process; 0: never
};

std::vector<HandoverWait> handover_waits(const FlightLog& log);

}  // namespace tandem::profile
