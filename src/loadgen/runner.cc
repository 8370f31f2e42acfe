#include "loadgen/runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_map>

#include "base/check.h"
#include "net/event_loop.h"

namespace tandem::loadgen {
namespace {

constexpr Duration kTick = std::chrono::milliseconds(100);
constexpr Duration kConnectTimeout = std::chrono::seconds(60);  // a burst of thousands fills a server's backlog
constexpr int kDispatchesPerTurn = 32;  // then the loop gets to read answers, whose arrival is being measured

// One run. Everything happens on the loop's thread, which is the thread that calls run().
class LoadRun {
 public:
  LoadRun(const LoadPlan& plan, const Clock& clock, std::stop_token stop)
      : plan_(plan), clock_(clock), stop_(std::move(stop)), client_(loop_) {
    results_.resize(plan.arrivals.size());
  }

  Result<LoadOutcome> run() {
    loop_.post([this] { begin(); });
    loop_.run();
    active_.clear();  // hangs up what a stop left
    if (stopped_) return cancelled(fmt::format("stopped with {} of {} requests done", done_, results_.size()));
    results_.resize(dispatched_);
    return LoadOutcome{start_, std::move(results_)};
  }

 private:
  struct Active {
    ResponseMeter meter;
    TimePoint deadline;
    std::shared_ptr<net::ClientCall> call;
  };

  void begin() {
    start_ = clock_.now();
    tick();
    admit();
  }

  // Dispatches what is due and has a place; sets the timer for the next arrival.
  void admit() {
    arrival_timer_.reset();
    ended_.clear();
    const TimePoint now = clock_.now();
    if (plan_.stop_dispatch.stop_requested()) {
      if (done_ == dispatched_) loop_.stop();
      return;
    }
    while (arrived_ < plan_.arrivals.size() && start_ + plan_.arrivals[arrived_] <= now) ++arrived_;
    const size_t limit = plan_.max_concurrency ? size_t(*plan_.max_concurrency) : plan_.arrivals.size();
    for (int i = 0; i < kDispatchesPerTurn && dispatched_ < arrived_ && active_.size() < limit; ++i) {
      dispatch(dispatched_++);
    }
    if (dispatched_ < arrived_ && active_.size() < limit) admit_later();
    if (arrived_ < plan_.arrivals.size()) {
      arrival_timer_ = loop_.after(start_ + plan_.arrivals[arrived_] - clock_.now(), [this] { admit(); });
    }
    if (done_ == results_.size()) loop_.stop();
  }

  void dispatch(size_t index) {
    net::ClientRequest request;
    request.url = plan_.url;
    request.headers = plan_.headers;
    request.body = std::make_shared<const std::string>(plan_.body(index));
    request.connect_timeout = kConnectTimeout;
    request.idle_timeout = 2 * plan_.request_timeout;  // the whole request's deadline is kept by tick()
    request.keep_alive = false;                        // one connection a request, as SGLang's client
    const TimePoint now = clock_.now();
    results_[index].start_s = seconds(now - start_);
    auto [place, added] = active_.try_emplace(
        index, Active{ResponseMeter(plan_.expectation(index), now), now + plan_.request_timeout, nullptr});
    CHECK(added);
    net::ClientHandlers handlers;
    handlers.on_headers = [this, index](int status, const net::Headers&) {
      if (Active* active = find(index)) active->meter.on_headers(status);
    };
    handlers.on_body = [this, index](std::string_view bytes) {
      if (Active* active = find(index)) active->meter.on_body(bytes, clock_.now(), parser_);
    };
    handlers.on_done = [this, index](Status end) { finish(index, std::move(end)); };
    auto call = client_.start(std::move(request), std::move(handlers));
    if (Active* active = find(index)) active->call = std::move(call);
  }

  Active* find(size_t index) {
    auto found = active_.find(index);
    return found == active_.end() ? nullptr : &found->second;
  }

  void finish(size_t index, Status end) {
    auto found = active_.find(index);
    if (found == active_.end()) return;
    const double start_s = results_[index].start_s;
    results_[index] = found->second.meter.finish(std::move(end), clock_.now(), parser_);
    results_[index].start_s = start_s;
    ended_.push_back(std::move(found->second.call));
    active_.erase(found);
    ++done_;
    if (!results_[index].success) ++failed_;
    admit_later();
  }

  void admit_later() {
    if (admit_posted_) return;
    admit_posted_ = true;
    loop_.post([this] {
      admit_posted_ = false;
      if (plan_.progress) plan_.progress(done_, failed_, clock_.now());
      admit();
    });
  }

  void tick() {
    const TimePoint now = clock_.now();
    if (stop_.stop_requested()) {
      stopped_ = true;
      loop_.stop();
      return;
    }
    std::vector<size_t> late;
    for (const auto& [index, active] : active_) {
      if (now >= active.deadline) late.push_back(index);
    }
    for (size_t index : late) {
      if (Active* active = find(index); active && active->call) active->call->cancel();
      finish(index, timed_out(fmt::format("no complete answer within {:.1f} s", seconds(plan_.request_timeout))));
    }
    if (plan_.progress) plan_.progress(done_, failed_, now);
    if (plan_.stop_dispatch.stop_requested()) admit_later();
    tick_timer_ = loop_.after(kTick, [this] { tick(); });
  }

  const LoadPlan& plan_;
  const Clock& clock_;
  std::stop_token stop_;
  net::EventLoop loop_;
  net::HttpClient client_;
  simdjson::dom::parser parser_;
  TimePoint start_{};
  size_t arrived_ = 0, dispatched_ = 0, done_ = 0, failed_ = 0;
  bool admit_posted_ = false, stopped_ = false;
  std::vector<RequestResult> results_;
  std::unordered_map<size_t, Active> active_;
  std::vector<std::shared_ptr<net::ClientCall>> ended_;  // each may be the caller of finish(): they go a turn later
  std::shared_ptr<net::EventLoop::Timer> arrival_timer_, tick_timer_;
};

}  // namespace

Result<LoadOutcome> run_load(const LoadPlan& plan, const Clock& clock, std::stop_token stop) {
  CHECK(plan.body);
  CHECK(plan.expectation);
  CHECK(!plan.arrivals.empty());
  CHECK(std::is_sorted(plan.arrivals.begin(), plan.arrivals.end()));
  LoadRun run(plan, clock, std::move(stop));
  return run.run();
}

}  // namespace tandem::loadgen
