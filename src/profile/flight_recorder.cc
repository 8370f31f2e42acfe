#include "profile/flight_recorder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>

#include "base/check.h"
#include "profile/flight_reader.h"

namespace tandem::profile {
namespace {

constexpr size_t kTextBytes = sizeof(FlightEntry::words);
constexpr size_t kMostTexts = 8;
constexpr size_t kEpochWords = 2;

Error system_fault(const std::string& path, const char* what, int error) {
  return Error{error == ENOSPC ? ErrorCode::kExhausted : ErrorCode::kInvalidInput,
               fmt::format("flight recorder: {}: {}: {}", path, what, std::strerror(error))};
}

void store(uint64_t& word, uint64_t value, std::memory_order order) {
  std::atomic_ref<uint64_t>(word).store(value, order);
}

}  // namespace

uint32_t flight_check(const FlightWords& words) {
  uint64_t hash = 0x9e3779b97f4a7c15ull;
  for (size_t i = 0; i < words.size(); ++i) {
    const uint64_t word = i == kFlightCheckWord ? words[i] & 0xffffffffull : words[i];
    hash = (hash ^ word) * 0xff51afd7ed558ccdull;
    hash ^= hash >> 32;
  }
  return uint32_t(hash);
}

Result<std::unique_ptr<FlightRecorder>> FlightRecorder::create(const std::string& path, const FlightIdentity& identity,
                                                               const Clock& clock) {
  const int file = open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (file < 0) return system_fault(path, "cannot be made", errno);
  void* mapped = MAP_FAILED;
  int error = posix_fallocate(file, 0, off_t(kFlightFileBytes));
  if (error == 0) {
    mapped = mmap(nullptr, kFlightFileBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, file, 0);
    if (mapped == MAP_FAILED) error = errno;
  }
  close(file);
  if (error != 0) {
    unlink(path.c_str());
    return system_fault(path, fmt::format("no room for {} bytes", kFlightFileBytes).c_str(), error);
  }
  std::unique_ptr<FlightRecorder> recorder(new FlightRecorder(path, mapped, identity, clock));
  recorder->write_header();
  return recorder;
}

FlightRecorder::~FlightRecorder() {
  FlightHeader header;
  std::memcpy(static_cast<void*>(&header), mapped_, sizeof(header));
  header.is_closed = 1;
  std::memcpy(mapped_, &header, sizeof(header));
  munmap(mapped_, kFlightFileBytes);
}

void FlightRecorder::write_header() {
  FlightHeader header;
  header.epoch = identity_.epoch;
  header.group = identity_.group;
  header.pid = getpid();
  header.role = int32_t(identity_.role);
  header.rank = identity_.rank;
  header.num_ranks = identity_.num_ranks;
  header.node = identity_.node;
  header.num_nodes = identity_.num_nodes;
  header.num_layers = identity_.num_layers;
  header.attention_size = identity_.attention_size;
  header.start_ns = clock_.now().time_since_epoch().count();
  header.start_unix_ns = int64_t(clock_.unix_seconds() * 1e9);
  header.process_start = process_start_ticks(getpid());
  const std::string host = own_host_name();
  std::copy_n(host.begin(), std::min(host.size(), header.host.size() - 1), header.host.begin());
  std::memcpy(mapped_, &header, sizeof(header));
}

void FlightRecorder::write(uint32_t slot, FlightEntry entry, TimePoint now) {
  entry.sequence = ++sequence_;
  entry.time_ns = now.time_since_epoch().count();
  entry.check = 0;
  auto words = std::bit_cast<FlightWords>(entry);
  words[kFlightCheckWord] |= uint64_t(flight_check(words)) << 32;
  uint64_t* const to = mapped_ + kFlightHeaderBytes / sizeof(uint64_t) + size_t(slot) * words.size();
  // The number goes first and comes last: an entry that a kill cut short has none. A reader of the running process may
  // see the words in another order; the check tells it.
  store(to[0], 0, std::memory_order_relaxed);
  for (size_t i = 1; i < words.size(); ++i) store(to[i], words[i], std::memory_order_relaxed);
  store(to[0], words[0], std::memory_order_release);
}

uint32_t FlightRecorder::next_slot(int lane) {
  const FlightLane& of = kFlightLanes[size_t(lane)];
  return of.begin + written_[size_t(lane)]++ % of.size;
}

void FlightRecorder::add(const FlightEntry& entry, TimePoint now) {
  const int lane = flight_lane(entry.kind);
  if (lane == 0) num_quiet_ = 0;
  write(next_slot(lane), entry, now);
}

void FlightRecorder::add_quiet(const FlightEntry& entry, TimePoint now) {
  DCHECK(flight_lane(entry.kind) == 0);
  uint32_t& slot = quiet_slots_[num_quiet_ % quiet_slots_.size()];
  if (num_quiet_ < quiet_slots_.size()) slot = next_slot(0);
  ++num_quiet_;
  write(slot, entry, now);
}

void FlightRecorder::add_end(uint64_t step, std::string_view reason) {
  FlightEntry entry;
  entry.step = step;
  entry.kind = FlightKind::kEnd;
  add(entry);
  entry.kind = FlightKind::kText;
  for (size_t i = 0; i < kMostTexts && !reason.empty(); ++i) {
    entry.words = {};
    const size_t bytes = std::min(reason.size(), kTextBytes);
    std::memcpy(entry.words.data(), reason.data(), bytes);
    reason.remove_prefix(bytes);
    add(entry);
  }
}

std::string FlightRecorder::copy() const {
  std::string bytes(kFlightFileBytes, '\0');
  FlightHeader header;
  std::memcpy(static_cast<void*>(&header), mapped_, sizeof(header));
  header.observed = FlightProcess::kRunning;
  header.observed_unix_ns = int64_t(clock_.unix_seconds() * 1e9);
  std::memcpy(bytes.data(), &header, sizeof(header));
  for (size_t at = kFlightHeaderBytes; at < bytes.size(); at += sizeof(uint64_t)) {
    const uint64_t word = std::atomic_ref<uint64_t>(mapped_[at / sizeof(uint64_t)]).load(std::memory_order_relaxed);
    std::memcpy(bytes.data() + at, &word, sizeof(word));
  }
  return bytes;
}

void set_flight_peer(FlightEntry& entry, uint64_t epoch, std::string_view address) {
  entry.words = {uint32_t(epoch), uint32_t(epoch >> 32)};
  constexpr size_t kRoom = (std::tuple_size_v<decltype(entry.words)> - kEpochWords) * sizeof(uint32_t);
  if (address.size() > kRoom) address.remove_prefix(address.size() - kRoom);
  std::memcpy(&entry.words[kEpochWords], address.data(), address.size());
}

}  // namespace tandem::profile
