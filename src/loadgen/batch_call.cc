#include "loadgen/batch_call.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "loadgen/measure.h"
#include "net/event_loop.h"

namespace tandem::loadgen {
namespace {

using Element = simdjson::dom::element;

constexpr Duration kTick = std::chrono::milliseconds(100);

class BatchRun {
 public:
  BatchRun(BatchRequest request, const Clock& clock, std::stop_token stop)
      : clock_(clock), stop_(std::move(stop)), request_(std::move(request)), client_(loop_) {}

  Result<BatchTimes> run() {
    loop_.post([this] { begin(); });
    loop_.run();
    call_.reset();
    if (!outcome_) return peer_lost("the answer ended without an event");
    return std::move(*outcome_);
  }

 private:
  void begin() {
    const TimePoint start = clock_.now();
    deadline_ = start + request_.timeout;
    meter_.emplace(request_.batch_size, start);
    net::ClientRequest request;
    request.url = request_.url;
    request.headers = request_.headers;
    request.body = std::make_shared<const std::string>(std::move(request_.body));
    request.idle_timeout = 2 * request_.timeout;
    request.keep_alive = false;
    net::ClientHandlers handlers;
    handlers.on_headers = [this](int status, const net::Headers&) { status_ = status; };
    handlers.on_body = [this](std::string_view bytes) { on_body(bytes); };
    handlers.on_done = [this](Status done) { on_done(std::move(done)); };
    call_ = client_.start(std::move(request), std::move(handlers));
    tick();
  }

  void on_body(std::string_view bytes) {
    if (status_ != 200) {
      constexpr size_t kMaxErrorBody = 4096;
      error_body_.append(bytes.substr(0, kMaxErrorBody - std::min(kMaxErrorBody, error_body_.size())));
      return;
    }
    const TimePoint now = clock_.now();
    const bool fits = sse_.feed(bytes, [&](std::string_view data) {
      if (auto good = meter_->on_event(data, now); !good) end(good.error());
    });
    if (!fits) end(corrupt("an event is too large"));
  }

  void on_done(Status done) {
    if (status_ != 0 && status_ != 200) {
      return end(peer_lost(fmt::format("HTTP {}: {}", status_, describe_error_body(error_body_))));
    }
    end(done ? meter_->finish() : Result<BatchTimes>(done.error()));
  }

  void tick() {
    if (stop_.stop_requested()) return end(cancelled("stopped"));
    if (clock_.now() >= deadline_) {
      return end(timed_out(fmt::format("no complete answer within {:.1f} s", seconds(request_.timeout))));
    }
    timer_ = loop_.after(kTick, [this] { tick(); });
  }

  void end(Result<BatchTimes> outcome) {
    if (!outcome_) outcome_ = std::move(outcome);
    loop_.stop();
  }

  const Clock& clock_;
  std::stop_token stop_;
  BatchRequest request_;
  net::EventLoop loop_;
  net::HttpClient client_;
  std::shared_ptr<net::ClientCall> call_;
  std::shared_ptr<net::EventLoop::Timer> timer_;
  TimePoint deadline_{};
  int status_ = 0;
  std::string error_body_;
  net::SseParser sse_;
  std::optional<BatchMeter> meter_;
  std::optional<Result<BatchTimes>> outcome_;
};

}  // namespace

Status BatchMeter::on_event(std::string_view data, TimePoint now) {
  times_.latency_s = seconds(now - start_);
  if (data == "[DONE]") return Ok{};
  Element event;
  if (auto error = parser_.parse(data.data(), data.size(), true).get(event)) {
    return corrupt(fmt::format("an event is not JSON: {}", simdjson::error_message(error)));
  }
  Element problem;
  if (!event["error"].get(problem) && !problem.is_null()) return peer_lost(describe_error_body(data));
  uint64_t index = 0;
  if (!event["index"].get(index) && index >= begun_.size()) {
    return corrupt(fmt::format("an event of sequence {} in a batch of {}", index, begun_.size()));
  }
  int64_t tokens = 0;
  if (!event["meta_info"]["completion_tokens"].get(tokens) && tokens == 1) {
    begun_[index] = true;
    times_.last_ttft_s = seconds(now - start_);
  }
  Element reason;
  if (event["meta_info"]["finish_reason"].get(reason) || reason.is_null()) return Ok{};
  std::string_view type;
  if (reason["type"].get(type) || type != "length") {
    return peer_lost(fmt::format("sequence {} finished with {}", index, simdjson::minify(reason)));
  }
  finished_[index] = true;
  return Ok{};
}

Result<BatchTimes> BatchMeter::finish() const {
  auto missing = [](const std::vector<bool>& done) {
    return std::find(done.begin(), done.end(), false) - done.begin();
  };
  if (const auto index = missing(finished_); index < ptrdiff_t(finished_.size())) {
    return peer_lost(fmt::format("the answer ended before sequence {} of {} finished", index, finished_.size()));
  }
  if (const auto index = missing(begun_); index < ptrdiff_t(begun_.size())) {
    return peer_lost(fmt::format("sequence {}: no event of its own for the first token, so no time to it", index));
  }
  return times_;
}

Result<BatchTimes> run_batch(BatchRequest request, const Clock& clock, std::stop_token stop) {
  return BatchRun(std::move(request), clock, std::move(stop)).run();
}

}  // namespace tandem::loadgen
