// TraceWriter: one thread per process that writes traces, so that no engine waits for a disk. Jobs are done in order.
// Any thread gives jobs; answers come on the writer's thread and must only enqueue.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <variant>

#include "base/clock.h"
#include "base/queue.h"
#include "base/result.h"
#include "profile/span.h"
#include "profile/trace.h"

namespace tandem::profile {

struct TraceJob {
  TraceInfo info;
  SpanBuffer spans, transfer_spans;
  std::string directory, prefix;
  std::string log_scope;
  int32_t num_ranks = 1;             // of the server
  bool merge = false;                // rank 0: also one file of all ranks
  std::function<void(Status)> done;  // the file is there, or why not; may be empty
};

class TraceWriter {
 public:
  // clock: for the wait for files of other nodes. merge_patience: how long rank 0's merged file waits for those.
  explicit TraceWriter(const Clock& clock, Duration merge_patience = std::chrono::seconds(30));
  ~TraceWriter();  // writes what is waiting, then joins

  // Makes the directory and says whether files can be made in it.
  void prepare(std::string directory, std::function<void(Status)> done);
  // Logs "Profiling done. Traces are saved to: ..." once the file is there, else an error line.
  void submit(TraceJob job);

 private:
  struct PrepareJob {
    std::string directory;
    std::function<void(Status)> done;
  };
  struct Merge {
    TraceJob job;  // rank 0's, without its spans
    TimePoint deadline;
  };
  using Job = std::variant<PrepareJob, TraceJob>;

  void run(std::stop_token stop);
  void write(TraceJob job);
  void try_merges(bool at_once);
  bool merge_now(const TraceJob& job, bool at_once);
  static void finish(const TraceJob& job, const Status& status, const std::string& merged);

  const Clock& clock_;
  const Duration merge_patience_;
  BoundedQueue<Job> jobs_{1024};
  std::deque<Merge> merges_;  // the thread's
  std::jthread thread_;
};

}  // namespace tandem::profile
