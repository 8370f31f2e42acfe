#include "app/flight_sweep.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <system_error>

#include "profile/flight_reader.h"

namespace tandem::app {
namespace {

namespace fs = std::filesystem;

// When the folder itself was last changed, which its files' making was; none: it is not this user's, or no folder.
std::optional<double> changed_unix_s(const fs::path& folder) {
  struct stat status {};
  if (lstat(folder.c_str(), &status) != 0 || !S_ISDIR(status.st_mode) || status.st_uid != geteuid()) return {};
  return double(status.st_mtime);
}

// A mapping that is written leaves the file's own time as it is, so the newest entry says when the process last lived.
double last_word_unix_s(const profile::FlightLog& log) {
  int64_t last_ns = log.header.start_unix_ns;
  for (const profile::FlightEntry& entry : log.entries) last_ns = std::max(last_ns, entry.time_ns);
  return double(last_ns) / 1e9;
}

bool is_only_recordings(const fs::path& folder) {
  std::error_code error;
  fs::directory_iterator it(folder, error);
  for (; !error && it != fs::directory_iterator(); it.increment(error)) {
    if (it->path().extension() != profile::kFlightSuffix || !it->is_regular_file(error)) return false;
  }
  return !error;
}

// Recordings of which nobody lives or has lived lately. A folder without any was made by a process that died at once.
bool is_left_behind(const fs::path& folder, const Clock& clock, double oldest_unix_s) {
  if (!is_only_recordings(folder)) return false;
  std::error_code error;
  if (fs::is_empty(folder, error)) return true;
  const auto found = profile::read_flight_directory(folder.string(), clock);
  if (!found || !found->faults.empty()) return false;
  return std::ranges::all_of(found->logs, [&](const profile::FlightLog& log) {
    return log.process == profile::FlightProcess::kGone && last_word_unix_s(log) < oldest_unix_s;
  });
}

}  // namespace

int sweep_flight_folders(const std::string& parent, const Clock& clock, const FlightSweep& options) {
  const double oldest_unix_s = clock.unix_seconds() - seconds(options.keep);
  int looked_into = 0, removed = 0;
  std::error_code error;
  fs::directory_iterator it(parent, error);
  for (; !error && it != fs::directory_iterator() && looked_into < options.max_folders; it.increment(error)) {
    const fs::path folder = it->path();
    if (!folder.filename().string().starts_with(kFlightFolderPrefix)) continue;
    const std::optional<double> changed = changed_unix_s(folder);
    if (!changed || *changed >= oldest_unix_s) continue;
    ++looked_into;
    if (!is_left_behind(folder, clock, oldest_unix_s)) continue;
    std::error_code kept;
    if (fs::remove_all(folder, kept); !kept) ++removed;
  }
  return removed;
}

}  // namespace tandem::app
