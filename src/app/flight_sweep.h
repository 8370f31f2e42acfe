// Removes the default folders of flight recordings (flight_files.h) that servers left behind which were killed or gave
// up: whoever wanted `tandem explain` of them had a day for it. Any thread.
#pragma once

#include <string>
#include <string_view>

#include "base/clock.h"

namespace tandem::app {

// Every default folder's name begins so.
inline constexpr std::string_view kFlightFolderPrefix = "tandem-flight-";

struct FlightSweep {
  Duration keep = std::chrono::hours(24);  // since the last that was recorded
  int max_folders = 256;                   // that are looked into; the rest waits for the next start
};

// Returns how many folders of `parent` it removed. A folder goes only if it is this user's own, no link, everything in
// it is a sound recording, the process of each is known to be gone from this machine, and nothing in it is younger than
// `keep`. Whatever cannot be read or removed stays without a word.
int sweep_flight_folders(const std::string& parent, const Clock& clock, const FlightSweep& options = {});

}  // namespace tandem::app
