// A whole log, piece by piece, as sums per rank: what batches there were, how fast, and in which profile. Memory does
// not grow with the log: batches are summed up by size, and a rank has at most kMaxProfiles profiles.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "loadgen/throughput.h"
#include "loadgen/throughput/log_line.h"

namespace tandem::loadgen {

inline constexpr size_t kMaxLogRanks = 65536;
inline constexpr size_t kMaxProfiles = 64;

// Batches of about the same size.
struct BatchSum {
  uint64_t lines = 0;
  double size = 0;    // sum over the lines: requests of decode, new tokens of prefill
  double tokens = 0;  // sum over the lines: per step; accept lengths counted in
  // Of the lines with a rate: tokens of a step, and the time that they took at that rate.
  uint64_t timed_lines = 0;
  double timed_tokens = 0, time_s = 0;
  double first_s = 0, last_s = 0;  // stamps

  void add(const BatchSum& other);
};

// Keyed by size, coarsely where it is large.
class BatchSums {
 public:
  void add(double size, const BatchSum& batch);
  bool empty() const { return sums_.empty(); }
  BatchSum all() const { return from(0); }
  // Sizes of at least this share of the largest.
  BatchSum steady(double share) const { return from(share * largest_); }

 private:
  BatchSum from(double size) const;
  std::map<int64_t, BatchSum> sums_;
  double largest_ = 0;
};

struct PhaseLines {
  BatchSums undisturbed;
  std::vector<std::pair<std::string, BatchSums>> profiles;  // by id, in order; lines written while it ran
};

struct RankLines {
  PhaseLines decode, prefill;
  uint64_t in_profile = 0;                      // lines that give batch sizes only
  uint64_t after_profile = 0, after_sleep = 0;  // lines whose rate is left out: a stall is in it
  int32_t tp_rank = -1;
};

struct LogSummary {
  std::string path;
  std::map<int32_t, RankLines> ranks;  // by data-parallel rank; 0 where lines do not say
  uint64_t lines = 0, garbled = 0;
  std::string first_garbled;  // which line, and what was expected
  uint64_t before_ready = 0;  // batch lines dropped as warm-up
};

// Times within which lines count.
struct LogWindow {
  // Absent: from the first, to the last. Relative ones count from the log's first stamp; a time of day alone holds for
  // every day.
  enum class Kind : uint8_t { kNone, kStamp, kClock, kRelative };
  struct Edge {
    Kind kind = Kind::kNone;
    double seconds = 0;  // since 1970, of the day, or since the log's first stamp
  };
  Edge begin, end;

  static Result<LogWindow> parse(const std::string& begin, const std::string& end);
  bool given() const { return begin.kind != Kind::kNone || end.kind != Kind::kNone; }
  bool holds(double stamp_s, double first_stamp_s) const;
};

// Thread: one. feed() the pieces in order, then finish().
class LogReader {
 public:
  LogReader(std::string path, LogWindow window);
  void feed(std::string_view bytes);
  LogSummary finish();

 private:
  struct RankState {
    bool profiling = false;
    bool disturbed = false, asleep = false;  // the next line's rate has a stall in it
    std::string profile_id;
    double prefill_tokens = 0;  // of the last prefill batch
  };
  void take_line(std::string_view text);
  void take_batch(const LogLine& line, int32_t number, RankState& state);
  void reset();

  LogWindow window_;
  LogSummary summary_;
  std::map<int32_t, RankState> states_;
  std::string partial_;  // a line whose end is still to come; its first kMaxLineBytes
  bool has_stamp_ = false;
  double first_stamp_s_ = 0, stamp_s_ = 0;
  uint64_t batch_lines_ = 0;
};

// The file through a LogReader.
Result<LogSummary> read_log(const std::string& path, const LogWindow& window);

// Adds what the log knows of measure.phase. Batch sizes are those of the profile that one of the traces belongs to (by
// its id in the file's name), else of the last profile, else of the lines outside; rates are of lines outside only.
// min_share: lines whose batch has at least this share of the rank's largest count. Where measure has no step time yet,
// the one behind the rates is taken.
void add_log(const LogSummary& log, const std::vector<std::string>& traces, double min_share, PhaseMeasure& measure);

}  // namespace tandem::loadgen
