// FlightRecorder: writes one rank's flight file (flight.h) through a shared mapping, so that what it wrote is there
// after kill -9. Always on: an entry costs some tens of nanoseconds, no system call and no allocation
// (bench/profile_flight_bench.cc); where there is no recorder, callers branch on a null pointer.
// Owner: the rank's engine thread; create(), path() and copy() from any thread.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/result.h"
#include "profile/flight.h"

namespace tandem::profile {

struct FlightIdentity {
  uint64_t epoch = 0, group = 0;
  FlightRole role = FlightRole::kCombined;
  int32_t rank = 0, num_ranks = 1, node = 0, num_nodes = 1, num_layers = 0, attention_size = 1;
};

class FlightRecorder {
 public:
  // Makes the file, which must not be there, at its full size, so that a disk that is full later cannot matter. Errors
  // name the path.
  static Result<std::unique_ptr<FlightRecorder>> create(const std::string& path, const FlightIdentity& identity,
                                                        const Clock& clock);
  ~FlightRecorder();  // the rank ended in order
  FlightRecorder(const FlightRecorder&) = delete;
  FlightRecorder& operator=(const FlightRecorder&) = delete;

  // entry: without sequence, time and check. now: of the clock.
  void add(const FlightEntry& entry, TimePoint now);
  void add(const FlightEntry& entry) { add(entry, clock_.now()); }
  // An entry like the one before it of its kind, in a rank that waits: a lane's last four quiet entries share four
  // slots, so that hours of idle rounds wash nothing out.
  void add_quiet(const FlightEntry& entry, TimePoint now);
  // Why the rank gives up: an entry of kind kEnd and the text, cut at 256 bytes.
  void add_end(uint64_t step, std::string_view reason);

  int32_t rank() const { return identity_.rank; }
  int32_t num_layers() const { return identity_.num_layers; }
  TimePoint now() const { return clock_.now(); }
  const std::string& path() const { return path_; }
  // Any thread, while the owner writes: the file's bytes, seen as those of a running process.
  std::string copy() const;

 private:
  FlightRecorder(std::string path, void* mapped, const FlightIdentity& identity, const Clock& clock)
      : path_(std::move(path)), mapped_(static_cast<uint64_t*>(mapped)), identity_(identity), clock_(clock) {}
  void write_header();
  void write(uint32_t slot, FlightEntry entry, TimePoint now);
  uint32_t next_slot(int lane);

  const std::string path_;
  uint64_t* const mapped_;  // kFlightFileBytes
  const FlightIdentity identity_;
  const Clock& clock_;
  uint64_t sequence_ = 0;
  std::array<uint32_t, kFlightLanes.size()> written_{};  // entries of each lane that took a slot of their own
  std::array<uint32_t, 4> quiet_slots_{};
  uint64_t num_quiet_ = 0;  // since the lane of steps had another entry
};

// The address as it fits into an entry's words, its end kept where it is too long.
void set_flight_peer(FlightEntry& entry, uint64_t epoch, std::string_view address);

}  // namespace tandem::profile
