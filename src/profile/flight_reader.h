// Reads flight files (flight.h): from a directory, where several nodes' files may lie together, from a server's answer
// of several rings one behind the other, or from a recorder of this process. Bytes from outside: every fault is an
// error. Values; any thread.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "profile/flight.h"
#include "profile/flight_recorder.h"

namespace tandem::profile {

struct FlightLog {
  std::string source;  // file or URL, for messages
  FlightHeader header;
  std::string host;  // the header's
  FlightProcess process = FlightProcess::kUnknown;
  int64_t observed_unix_ns = 0;      // when the process was seen as it is; 0: it was not
  std::vector<FlightEntry> entries;  // in the order in which they were written; time_ns is the wall clock's, since 1970
  uint64_t num_torn = 0;             // were being written
};

// Several rings one behind the other. name: for messages. Errors: kCorrupt, saying what is wrong with which one.
Result<std::vector<FlightLog>> parse_flight_logs(std::string_view bytes, std::string_view name);

struct FlightDirectory {
  std::vector<FlightLog> logs;
  std::vector<std::string> faults;  // files that could not be read, a line each
};
// All files *.flight in the directory and below. Processes of this host are looked up. Errors: no such directory; no
// file that can be read.
Result<FlightDirectory> read_flight_directory(const std::string& directory, const Clock& clock);

// What recorders of this process have written so far, as logs and as parse_flight_logs() takes them.
std::vector<FlightLog> read_flights(std::span<const FlightRecorder* const> recorders);
std::string copy_flights(std::span<const FlightRecorder* const> recorders);

// The address and epoch of a handover's entry, the text of a kText entry.
uint64_t flight_epoch(const FlightEntry& entry);
std::string flight_address(const FlightEntry& entry);
std::string flight_text(const FlightEntry& entry);

// When a process of this machine began, in clock ticks since the machine's start; 0: there is none.
uint64_t process_start_ticks(int32_t pid);
std::string own_host_name();

}  // namespace tandem::profile
