#include "profile/flight_reader.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/check.h"

namespace tandem::profile {
namespace {

constexpr size_t kMostFiles = 4096;
constexpr size_t kMostRings = 4096;
constexpr int kMostDepth = 6;  // of folders below the directory

// Only what can be shown on a terminal: the bytes are somebody else's.
std::string printable(const void* from, size_t bytes) {
  std::string text(bytes, '\0');
  std::memcpy(text.data(), from, bytes);
  text.resize(std::min(text.find('\0'), text.size()));
  for (char& c : text) c = c >= ' ' && c <= '~' ? c : '?';
  return text;
}

struct ProcessStat {
  char state = 0;  // of /proc/PID/stat; 0: there is no such process
  uint64_t start_ticks = 0;
};

ProcessStat process_stat(int32_t pid) {
  std::ifstream file(fmt::format("/proc/{}/stat", pid));
  std::string line;
  if (!std::getline(file, line)) return {};
  const size_t name_end = line.rfind(')');  // the name may hold anything
  if (name_end == std::string::npos) return {};
  std::istringstream rest(line.substr(name_end + 1));
  ProcessStat stat;
  rest >> stat.state;
  constexpr int kStateField = 3, kStartField = 22;
  std::string skipped;
  for (int field = kStateField + 1; field < kStartField; ++field) rest >> skipped;
  rest >> stat.start_ticks;
  return stat;
}

FlightProcess look_up(const FlightHeader& header) {
  const ProcessStat stat = process_stat(header.pid);
  if (stat.state == 0 || stat.start_ticks != header.process_start) return FlightProcess::kGone;
  if (stat.state == 'Z' || stat.state == 'X') return FlightProcess::kGone;
  return stat.state == 'T' || stat.state == 't' ? FlightProcess::kStopped : FlightProcess::kRunning;
}

Status check_header(const FlightHeader& header, size_t bytes) {
  if (header.magic != kFlightMagic) return corrupt("no flight recording");
  if (header.version != kFlightVersion) {
    return corrupt(fmt::format("version {} of a flight recording, this is {}", header.version, kFlightVersion));
  }
  if (header.header_bytes != kFlightHeaderBytes || header.entry_bytes != kFlightEntryBytes ||
      header.num_entries != kFlightEntries) {
    return corrupt(fmt::format("a flight recording of {} entries of {} bytes behind {}, wanted {} of {} behind {}",
                               header.num_entries, header.entry_bytes, header.header_bytes, kFlightEntries,
                               kFlightEntryBytes, kFlightHeaderBytes));
  }
  if (bytes < kFlightFileBytes) return corrupt(fmt::format("{} bytes, wanted {}", bytes, kFlightFileBytes));
  constexpr int32_t kMost = 1 << 20;
  const bool ranks_fit = header.num_ranks >= 1 && header.num_ranks <= kMost && header.rank >= 0 &&
                         header.rank < header.num_ranks && header.attention_size >= 1 &&
                         header.attention_size <= header.num_ranks;
  const bool nodes_fit = header.num_nodes >= 1 && header.num_nodes <= kMost && header.node >= 0 &&
                         header.node < header.num_nodes && header.pid > 0;
  if (!ranks_fit || !nodes_fit || header.role < 0 || header.role > int32_t(FlightRole::kDecode)) {
    return corrupt(fmt::format("rank {} of {}, node {} of {}, role {}, pid {}", header.rank, header.num_ranks,
                               header.node, header.num_nodes, header.role, header.pid));
  }
  if (header.observed > FlightProcess::kGone) return corrupt("an unknown state of its process");
  return Ok{};
}

// Without overflow, whatever the file says.
int64_t wall_time(const FlightHeader& header, int64_t time_ns) {
  return int64_t(uint64_t(header.start_unix_ns) + uint64_t(time_ns) - uint64_t(header.start_ns));
}

void take_entries(std::string_view bytes, FlightLog& log) {
  for (uint32_t slot = 0; slot < kFlightEntries; ++slot) {
    FlightWords words;
    std::memcpy(words.data(), bytes.data() + kFlightHeaderBytes + size_t(slot) * kFlightEntryBytes, sizeof(words));
    auto entry = std::bit_cast<FlightEntry>(words);
    const bool is_empty = std::all_of(words.begin(), words.end(), [](uint64_t word) { return word == 0; });
    if (is_empty) continue;
    if (entry.sequence == 0 || entry.check != flight_check(words) || entry.kind == FlightKind::kNone ||
        entry.kind >= FlightKind::kCount) {
      log.num_torn += 1;
      continue;
    }
    entry.time_ns = wall_time(log.header, entry.time_ns);
    log.entries.push_back(entry);
  }
  std::ranges::stable_sort(log.entries, {}, &FlightEntry::sequence);
}

Result<FlightLog> parse_one(std::string_view bytes, std::string_view name) {
  FlightLog log;
  log.source = name;
  if (bytes.size() < sizeof(log.header)) return corrupt(fmt::format("{} bytes are no flight recording", bytes.size()));
  std::memcpy(&log.header, bytes.data(), sizeof(log.header));
  RETURN_IF_ERROR(check_header(log.header, bytes.size()));
  const auto& host = log.header.host;
  log.host = printable(host.data(), host.size());
  log.process = log.header.observed;
  log.observed_unix_ns = log.header.observed_unix_ns;
  take_entries(bytes, log);
  return log;
}

Result<std::string> read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::string bytes(kFlightFileBytes, '\0');
  file.read(bytes.data(), std::streamsize(bytes.size()));
  if (file.bad() || !file.is_open()) return not_found("cannot be read");
  bytes.resize(size_t(file.gcount()));
  return bytes;
}

void read_into(const std::filesystem::path& path, const Clock& clock, const std::string& host, FlightDirectory& to) {
  const Result<std::string> bytes = read_file(path);
  Result<FlightLog> log = bytes ? parse_one(*bytes, path.string()) : Result<FlightLog>(bytes.error());
  if (!log) {
    to.faults.push_back(fmt::format("{}: {}", path.string(), log.error().message));
    return;
  }
  if (log->host == host) {
    log->process = look_up(log->header);
    log->observed_unix_ns = log->process == FlightProcess::kGone ? 0 : int64_t(clock.unix_seconds() * 1e9);
  }
  to.logs.push_back(std::move(*log));
}

}  // namespace

Result<std::vector<FlightLog>> parse_flight_logs(std::string_view bytes, std::string_view name) {
  std::vector<FlightLog> logs;
  while (!bytes.empty()) {
    if (logs.size() >= kMostRings) return corrupt(fmt::format("{}: more than {} recordings", name, kMostRings));
    Result<FlightLog> log = parse_one(bytes, name);
    if (!log)
      return Error{log.error().code, fmt::format("{}: recording {}: {}", name, logs.size(), log.error().message)};
    logs.push_back(std::move(*log));
    bytes.remove_prefix(kFlightFileBytes);
  }
  return logs;
}

Result<FlightDirectory> read_flight_directory(const std::string& directory, const Clock& clock) {
  namespace fs = std::filesystem;
  std::error_code error;
  fs::recursive_directory_iterator it(directory, fs::directory_options::skip_permission_denied, error);
  if (error) return not_found(fmt::format("{}: {}", directory, error.message()));
  std::vector<fs::path> paths;
  for (; !error && it != fs::recursive_directory_iterator() && paths.size() < kMostFiles; it.increment(error)) {
    if (it.depth() >= kMostDepth) it.disable_recursion_pending();
    std::error_code unknown;
    if (it->path().extension() == kFlightSuffix && it->is_regular_file(unknown)) paths.push_back(it->path());
  }
  std::sort(paths.begin(), paths.end());
  FlightDirectory found;
  if (error) found.faults.push_back(fmt::format("{}: {}: what lies behind is left out", directory, error.message()));
  if (paths.size() == kMostFiles) {
    found.faults.push_back(
        fmt::format("{}: {} recordings are read, what lies behind is left out", directory, kMostFiles));
  }
  const std::string host = own_host_name();
  for (const fs::path& path : paths) read_into(path, clock, host, found);
  if (!found.logs.empty()) return found;
  if (!found.faults.empty()) return corrupt(found.faults.front());
  return not_found(fmt::format("{}: no flight recording (*{}) in it", directory, kFlightSuffix));
}

std::vector<FlightLog> read_flights(std::span<const FlightRecorder* const> recorders) {
  std::vector<FlightLog> logs;
  for (const FlightRecorder* recorder : recorders) {
    Result<FlightLog> log = parse_one(recorder->copy(), recorder->path());
    CHECK(log.has_value());
    logs.push_back(std::move(*log));
  }
  return logs;
}

std::string copy_flights(std::span<const FlightRecorder* const> recorders) {
  std::string bytes;
  bytes.reserve(recorders.size() * kFlightFileBytes);
  for (const FlightRecorder* recorder : recorders) bytes += recorder->copy();
  return bytes;
}

uint64_t flight_epoch(const FlightEntry& entry) { return uint64_t(entry.words[1]) << 32 | entry.words[0]; }

std::string flight_address(const FlightEntry& entry) {
  return printable(&entry.words[2], sizeof(entry.words) - 2 * sizeof(uint32_t));
}

std::string flight_text(const FlightEntry& entry) { return printable(entry.words.data(), sizeof(entry.words)); }

uint64_t process_start_ticks(int32_t pid) { return process_stat(pid).start_ticks; }

std::string own_host_name() {
  std::array<char, 64> name{};
  if (gethostname(name.data(), name.size() - 1) != 0) return "";
  return name.data();
}

}  // namespace tandem::profile
