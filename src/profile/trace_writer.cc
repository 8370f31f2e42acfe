#include "profile/trace_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <vector>

#include "base/log.h"
#include "profile/gzip.h"
#include "profile/trace_reader.h"

namespace tandem::profile {
namespace {

constexpr Duration kLook = std::chrono::milliseconds(100);

std::string stem_of(const TraceJob& job) {
  return job.prefix.empty() ? job.info.profile_id : job.prefix + "-" + job.info.profile_id;
}

// The files of the same capture (and stage) in the directory, by name.
std::vector<std::string> files_of(const TraceJob& job) {
  const std::string begin = stem_of(job) + "-TP-";
  const std::string end = (job.info.stage.empty() ? "" : "-" + job.info.stage) + ".trace.json.gz";
  std::vector<std::string> paths;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(job.directory, error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(begin) && name.ends_with(end)) paths.push_back(entry.path().string());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

}  // namespace

TraceWriter::TraceWriter(const Clock& clock, Duration merge_patience)
    : clock_(clock), merge_patience_(merge_patience), thread_([this](std::stop_token stop) { run(stop); }) {}

TraceWriter::~TraceWriter() {
  jobs_.close();
  thread_.request_stop();
  thread_.join();
}

void TraceWriter::prepare(std::string directory, std::function<void(Status)> done) {
  if (jobs_.push(PrepareJob{std::move(directory), done}) == PushResult::kPushed) return;
  done(exhausted("the writer of traces has too much to do"));
}

void TraceWriter::submit(TraceJob job) {
  const std::function<void(Status)> done = job.done;
  if (jobs_.push(std::move(job)) != PushResult::kPushed && done) {
    done(exhausted("the writer of traces has too much to do"));
  }
}

void TraceWriter::run(std::stop_token stop) {
  for (;;) {
    std::optional<Job> job = jobs_.pop(kLook);
    if (job && std::holds_alternative<TraceJob>(*job)) write(std::get<TraceJob>(std::move(*job)));
    if (job && std::holds_alternative<PrepareJob>(*job)) {
      const auto& prepare = std::get<PrepareJob>(*job);
      prepare.done(prepare_directory(prepare.directory));
    }
    const bool ends = !job && stop.stop_requested();
    try_merges(ends);
    if (ends) return;
  }
}

void TraceWriter::write(TraceJob job) {
  const std::string name = trace_file_name(job.prefix, job.info.profile_id, job.info.rank_name, job.info.stage);
  const Status written =
      write_trace(job.info, {&job.spans, &job.transfer_spans}, (std::filesystem::path(job.directory) / name).string());
  const uint64_t dropped = job.spans.dropped() + job.transfer_spans.dropped();
  if (dropped > 0) {
    log::write(log::Level::kWarning, job.log_scope,
               fmt::format("{} spans were recorded, of which the oldest {} did not fit and are not in the trace",
                           job.spans.size() + job.transfer_spans.size() + dropped, dropped));
  }
  job.spans = {};
  job.transfer_spans = {};
  if (!written || !job.merge) return finish(job, written, "");
  merges_.push_back({std::move(job), clock_.now() + merge_patience_});
}

// Ranks of this process are written by this thread; those of other nodes come when they come.
void TraceWriter::try_merges(bool at_once) {
  for (size_t i = 0; i < merges_.size();) {
    if (merge_now(merges_[i].job, at_once || clock_.now() >= merges_[i].deadline)) {
      merges_.erase(merges_.begin() + std::ptrdiff_t(i));
    } else {
      ++i;
    }
  }
}

bool TraceWriter::merge_now(const TraceJob& job, bool at_once) {
  const std::vector<std::string> paths = files_of(job);
  if (paths.size() < size_t(job.num_ranks) && !at_once) return false;
  const std::string stage = job.info.stage.empty() ? "" : "-" + job.info.stage;
  const std::string prefix = job.prefix.empty() ? "" : job.prefix + "-";
  const std::string merged = (std::filesystem::path(job.directory) /
                              fmt::format("{}merged-{}{}.trace.json.gz", prefix, job.info.profile_id, stage))
                                 .string();
  if (paths.size() < size_t(job.num_ranks)) {
    log::write(log::Level::kWarning, job.log_scope,
               fmt::format("the merged trace has {} of {} ranks: the other files are not in {}", paths.size(),
                           job.num_ranks, job.directory));
  }
  finish(job, paths.empty() ? Status(not_found("no trace to merge")) : merge_traces(paths, merged), merged);
  return true;
}

void TraceWriter::finish(const TraceJob& job, const Status& status, const std::string& merged) {
  if (status) {
    log::write(log::Level::kInfo, job.log_scope,
               fmt::format("Profiling done. Traces are saved to: {}{}", job.directory,
                           merged.empty() ? "" : " Merged trace: " + merged));
  } else {
    log::write(log::Level::kError, job.log_scope, "Profiling failed: " + status.error().message);
  }
  if (job.done) job.done(status);
}

}  // namespace tandem::profile
