#include "workflow/half.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <thread>

#include "base/queue.h"
#include "profile/trace_reader.h"
#include "workflow/expert_stages.h"
#include "workflow/trace_figures.h"

namespace tandem::workflow {
namespace {

using std::chrono::milliseconds;

constexpr Duration kSampleEvery = milliseconds(200), kSampleOftenest = milliseconds(20);
constexpr size_t kSampleQueue = 4096;
constexpr Duration kControlTimeout = std::chrono::seconds(30);
constexpr Duration kTraceTimeout = std::chrono::seconds(60);
constexpr Duration kMoveTimeout = std::chrono::seconds(120);
constexpr Duration kDrainTimeout = std::chrono::seconds(120);

// Asks the deployment for its figures on a thread of its own.
class Sampler {
 public:
  Sampler(const Deployment& deployment, Duration every)
      : queue_(kSampleQueue), thread_([this, &deployment, every](std::stop_token stop) {
          while (!stop.stop_requested()) {
            Result<Sample> sample = deployment.sample();
            queue_.push(std::move(sample));
            pause_.pop(every);
          }
        }) {}
  ~Sampler() {
    thread_.request_stop();
    pause_.close();
  }
  // Adds what came since the last call; the last error, if any came.
  Status drain(std::vector<Sample>& samples) {
    Status status = Ok{};
    while (std::optional<Result<Sample>> sample = queue_.try_pop()) {
      if (*sample) {
        samples.push_back(std::move(**sample));
      } else {
        status = sample->error();
      }
    }
    return status;
  }

 private:
  BoundedQueue<Result<Sample>> queue_;
  BoundedQueue<int> pause_{1};  // never filled: closed to end a wait early
  std::jthread thread_;         // last: it uses the others
};

// So many samples that the time to settle holds a window of them.
Duration sample_interval(const HalfPlan& plan) {
  return std::clamp<Duration>(plan.settle / 15, kSampleOftenest, kSampleEvery);
}

class HalfRun {
 public:
  HalfRun(const HalfPlan& plan, const HalfParts& parts)
      : plan_(plan), parts_(parts), deployment_(*parts.deployment), sampler_(deployment_, sample_interval(plan)) {
    report_.name = plan.name;
    report_.role = plan.role;
    report_.split = plan.split;
    const LoadShape& load = plan.load;
    report_.load = fmt::format("{} requests at once, {} to {} tokens in, {} to {} out", load.at_once,
                               int(load.input_len * load.range_ratio), load.input_len,
                               int(load.output_len * load.range_ratio), load.output_len);
  }

  HalfReport run() {
    if (start_load() && saturate() && settle("settle")) {
      measure_once("measure", report_.before);
      const double changed_s = rebalance();
      if (report_.before && changed_s > 0 && settle("settle again")) {
        measure_once("measure again", report_.after);
        if (report_.after) record("record again", *report_.after);
      }
    }
    finish_load();
    return std::move(report_);
  }

 private:
  // A stage's name, time and outcome; work returns the note.
  template <class Work>
  bool stage(const std::string& name, Work work) {
    StageRecord record;
    record.name = name;
    record.begin_s = deployment_.seconds_now();
    const double left_s = std::max(0.0, plan_.expected_end_s - record.begin_s);
    parts_.print(fmt::format("  {:<14} {:>4.0f} s left ...", name, left_s));
    Result<std::string> note = work();
    record.end_s = deployment_.seconds_now();
    record.failed = !note;
    record.note = note ? *note : note.error().message;
    parts_.print(fmt::format(" {:5.1f} s  {}\n", record.end_s - record.begin_s, record.note));
    report_.stages.push_back(std::move(record));
    if (!note) faults_.push_back(fmt::format("{}: {}", name, note.error().message));
    return bool(note);
  }

  // Waits and takes samples in; false: asked to stop.
  bool wait(Duration length) {
    const TimePoint until = parts_.clock->now() + length;
    while (parts_.clock->now() < until) {
      const Duration left = until - parts_.clock->now();
      if (!parts_.wait(std::min<Duration>(left, kSampleEvery))) return false;
      last_sample_ = sampler_.drain(report_.samples);
    }
    return true;
  }

  bool start_load() {
    return stage("load", [&]() -> Result<std::string> {
      if (plan_.target_running > 0) {
        json::Object hold;
        hold["running_requests"] = plan_.target_running;
        hold["timeout_s"] = seconds(plan_.saturate_timeout);
        RETURN_IF_ERROR(deployment_.post(plan_.role, "/hold_admission", json::dump(hold), kControlTimeout));
      }
      ASSIGN_OR_RETURN(load_, Load::start(plan_.load, deployment_, *parts_.clock));
      return report_.load;
    });
  }

  // The least that a rank of the role runs in the newest sample.
  int32_t least_running() const {
    int32_t least = INT32_MAX;
    if (report_.samples.empty()) return 0;
    for (const InstanceSample& instance : report_.samples.back().instances) {
      if (instance.role != plan_.role) continue;
      for (const RankSample& rank : instance.ranks) least = std::min(least, rank.running);
    }
    return least == INT32_MAX ? 0 : least;
  }

  // Of the fullest rank of the role, in the newest sample.
  double pool_use() const {
    double most = 0;
    if (report_.samples.empty()) return 0;
    for (const InstanceSample& instance : report_.samples.back().instances) {
      if (instance.role != plan_.role) continue;
      for (const RankSample& rank : instance.ranks) {
        most = std::max(most, double(rank.used_tokens) / double(std::max<int64_t>(1, rank.total_tokens)));
      }
    }
    return most;
  }

  // Requests that wait for blocks on all ranks of a decode role, in the newest sample.
  int32_t starved() const {
    int32_t waiting = 0;
    if (report_.samples.empty() || plan_.role != Role::kDecode) return 0;
    for (const InstanceSample& instance : report_.samples.back().instances) {
      if (instance.role != plan_.role) continue;
      for (const RankSample& rank : instance.ranks) waiting += rank.prealloc;
    }
    return waiting;
  }

  bool saturate() {
    return stage("saturate", [&]() -> Result<std::string> {
      const int32_t wanted = std::max(1, int32_t(plan_.limits.saturation * plan_.target_running));
      for (Duration waited{}; waited < plan_.saturate_timeout; waited += kSampleEvery) {
        if (!wait(kSampleEvery)) return cancelled("interrupted");
        // Steps as well: a batch that is held back is not running yet.
        const bool busy = produces() && (plan_.target_running == 0 || least_running() >= wanted);
        if (busy && plan_.target_running > 0)
          return fmt::format("every rank runs at least {} requests", least_running());
        if (busy) return std::string("tokens flow");
      }
      RETURN_IF_ERROR(last_sample_);
      return timed_out(fmt::format(
          "a rank runs only {} of {} requests, the fullest KV pool is {:.0f} % in use, {} requests wait for blocks",
          least_running(), plan_.target_running, pool_use() * 100, starved()));
    });
  }

  // Whether a step ran between the newest two samples.
  bool produces() const {
    const std::vector<Sample>& samples = report_.samples;
    if (samples.size() < 2) return false;
    return measured_steps(samples.back()) > measured_steps(samples[samples.size() - 2]);
  }
  uint64_t measured_steps(const Sample& sample) const {
    uint64_t steps = 0;
    for (const InstanceSample& instance : sample.instances) {
      if (instance.role == plan_.role) steps += instance.ranks[0].forward_steps;
    }
    return steps;
  }

  // Until the rate of the last `settle` seconds is as steady as a valid window must be.
  bool settle(const std::string& name) {
    return stage(name, [&]() -> Result<std::string> {
      const double begin_s = deployment_.seconds_now();
      if (!wait(plan_.settle)) return cancelled("interrupted");
      for (Duration waited = plan_.settle;; waited += kSampleEvery) {
        Result<WindowFigures> figures =
            measure(since(std::max(begin_s, deployment_.seconds_now() - seconds(plan_.settle))), plan_.role);
        if (figures && figures->tokens_per_s > 0 && figures->variation <= plan_.limits.variation) {
          return fmt::format("the rate varies by {:.1f} %", figures->variation * 100);
        }
        if (waited >= plan_.settle_timeout) {
          // The window decides: what is unsteady now may be steady over a longer time.
          return figures ? fmt::format("went on with a rate that varies by {:.1f} %", figures->variation * 100)
                         : figures.error().message;
        }
        if (!wait(kSampleEvery)) return cancelled("interrupted");
      }
    });
  }

  std::span<const Sample> since(double begin_s) const {
    const auto first = std::find_if(report_.samples.begin(), report_.samples.end(),
                                    [&](const Sample& sample) { return sample.at_s >= begin_s; });
    return {first, report_.samples.end()};
  }

  void measure_once(const std::string& name, std::optional<Measurement>& into) {
    Measurement measurement;
    const bool done = stage(name, [&]() -> Result<std::string> {
      const double begin_s = deployment_.seconds_now();
      if (!wait(plan_.window)) return cancelled("interrupted");
      ASSIGN_OR_RETURN(measurement.evidence.window, measure(since(begin_s), plan_.role));
      const WindowFigures& window = measurement.evidence.window;
      return fmt::format("{:.1f} tokens/s/GPU by counters, {:.1f} by steps", window.per_rank_by_counters,
                         window.per_rank_by_steps);
    });
    if (!done) return;
    measurement.evidence.target_running = plan_.target_running;
    into = std::move(measurement);
    if (&into == &report_.before) {
      profile(*into);
      record("record", *into);
    }
  }

  void profile(Measurement& measurement) {
    if (plan_.profile_steps == 0) return;
    stage("profile", [&]() -> Result<std::string> {
      std::error_code error;
      std::filesystem::create_directories(plan_.trace_directory, error);
      const auto before = traces();
      json::Object call;
      call["output_dir"] = plan_.trace_directory;
      call["num_steps"] = plan_.profile_steps;
      call["record_shapes"] = true;
      call["profile_prefix"] = plan_.name;
      RETURN_IF_ERROR(deployment_.post(plan_.role, "/start_profile", json::dump(call), kControlTimeout));
      const auto wanted = size_t(measurement.evidence.window.num_ranks);
      std::vector<std::string> made;
      for (Duration waited{}; waited < kTraceTimeout && made.size() < wanted; waited += kSampleEvery) {
        if (!wait(kSampleEvery)) return cancelled("interrupted");
        made.clear();
        for (const std::string& path : traces()) {
          if (!std::binary_search(before.begin(), before.end(), path)) made.push_back(path);
        }
      }
      if (made.size() < wanted) {
        return timed_out(fmt::format("{} of {} traces came to {}", made.size(), wanted, plan_.trace_directory));
      }
      ASSIGN_OR_RETURN(profile::Trace trace, profile::read_trace(made[0]));
      measurement.evidence.trace = trace_figures(trace, plan_.role);
      measurement.breakdown = step_breakdown(trace, plan_.role);
      measurement.trace_file = std::filesystem::path(made[0]).filename().string();
      return fmt::format("{} steps of {:.2f} ms", measurement.evidence.trace->num_steps,
                         measurement.evidence.trace->step_ms);
    });
  }

  std::vector<std::string> traces() const {
    std::vector<std::string> paths;
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(plan_.trace_directory, error)) {
      if (entry.path().string().ends_with(".trace.json.gz")) paths.push_back(entry.path().string());
    }
    std::sort(paths.begin(), paths.end());
    return paths;
  }

  void record(const std::string& name, Measurement& measurement) {
    if (plan_.record == Duration::zero()) return;
    stage(name, [&]() -> Result<std::string> {
      ASSIGN_OR_RETURN(measurement.experts,
                       record_experts(deployment_, plan_.role, measurement.evidence.window.num_ranks, plan_.record,
                                      [this](Duration length) { return wait(length); }));
      return fmt::format("balancedness {:.4f}", measurement.experts->balancedness);
    });
  }

  // When the new placement served, in seconds; 0: it does not.
  double rebalance() {
    if (!report_.before || !plan_.rebalance || plan_.record == Duration::zero()) return 0;
    const bool done = stage("rebalance", [&] {
      return rebalance_experts(deployment_, plan_.role, plan_.algorithm, kMoveTimeout,
                               [this](Duration length) { return wait(length); });
    });
    return done ? report_.stages.back().end_s : 0;
  }

  // Ends the load and gives both measurements what the client saw.
  void finish_load() {
    if (!load_) return;
    std::vector<loadgen::RequestResult> results;
    double changed_s = 1e18;
    for (const StageRecord& stage : report_.stages) {
      if (stage.name == "rebalance" && report_.after) changed_s = stage.end_s;
    }
    stage("drain", [&]() -> Result<std::string> {
      ASSIGN_OR_RETURN(results, load_->finish(kDrainTimeout));
      return fmt::format("{} requests ended", results.size());
    });
    const double zero_s = load_->begin_s();
    if (report_.before) close(*report_.before, summarize_load(results, 0, changed_s - zero_s));
    if (report_.after) close(*report_.after, summarize_load(results, changed_s - zero_s, 1e18));
  }

  void close(Measurement& measurement, LoadSummary summary) {
    measurement.evidence.load = std::move(summary.figures);
    measurement.ttft = summary.ttft;
    measurement.itl = summary.itl;
    measurement.itls_ms = std::move(summary.itls_ms);
    if (&measurement == &*report_.before) measurement.evidence.faults = faults_;
    measurement.reasons = judge(measurement.evidence, plan_.limits);
  }

  const HalfPlan& plan_;
  const HalfParts& parts_;
  const Deployment& deployment_;
  Sampler sampler_;
  std::unique_ptr<Load> load_;
  HalfReport report_;
  std::vector<std::string> faults_;
  Status last_sample_ = Ok{};
};

}  // namespace

Duration expected_time(const HalfPlan& plan) {
  Duration once = plan.settle + plan.window + plan.record;
  Duration total =
      std::chrono::seconds(8) + once + (plan.profile_steps > 0 ? std::chrono::seconds(2) : Duration::zero());
  if (plan.rebalance && plan.record > Duration::zero()) total += once + std::chrono::seconds(2);
  return total;
}

HalfReport run_half(const HalfPlan& plan, const HalfParts& parts) { return HalfRun(plan, parts).run(); }

}  // namespace tandem::workflow
