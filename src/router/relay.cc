#include "router/relay.h"

#include <fmt/format.h>

#include <algorithm>

#include "api/error.h"
#include "base/log.h"
#include "router/retry.h"

namespace tandem::router {

namespace {

constexpr size_t kKeptOfPrefill = 64 << 10;  // enough for any error
constexpr Duration kDrainTime = std::chrono::seconds(10);

// An instance is to blame for lost connections and its own 5xx, not for what a client got wrong or for being full.
Outcome outcome_of(bool complete, bool lost, int status) {
  if (lost || status >= 500) return Outcome::kFailure;
  return complete && status < 400 ? Outcome::kSuccess : Outcome::kNeutral;
}

// What a proxy passes on of an answer's headers; framing and connection are each hop's own.
net::Headers end_to_end_headers(const net::Headers& headers) {
  net::Headers out;
  for (const auto& [name, value] : headers) {
    bool own = false;
    for (const char* hop : {"connection", "keep-alive", "proxy-authenticate", "te", "trailer", "transfer-encoding",
                            "upgrade", "content-length", "content-type"}) {
      own = own || net::equals_ignoring_case(name, hop);
    }
    if (!own) out.emplace_back(name, value);
  }
  return out;
}

}  // namespace

Relay::Relay(std::shared_ptr<Fleet> fleet, RelayRequest request, std::shared_ptr<net::ResponseWriter> writer,
             std::function<void()> on_over)
    : fleet_(std::move(fleet)),
      request_(std::move(request)),
      writer_(std::move(writer)),
      on_over_(std::move(on_over)),
      started_(fleet_->clock.now()),
      merges_(fleet_->config.disaggregated && request_.kind == api::BodyKind::kGenerate &&
              request_.routed.has_return_logprob) {
  fleet_->relays.insert(this);
}

Relay::~Relay() {
  fleet_->relays.erase(this);
  shut_down();
}

void Relay::shut_down() {
  over_ = true;
  ++generation_;
  end_leg(prefill_, Outcome::kNeutral);
  end_leg(decode_, Outcome::kNeutral);
  deadline_.reset();
  pause_.reset();
  writer_.reset();
  on_over_ = nullptr;
}

void Relay::start() {
  writer_->on_closed([self = shared_from_this()] { self->hung_up(); });
  writer_->on_drained([weak = weak_from_this()] {
    auto self = weak.lock();
    if (self && self->paused_ && self->decode_.call) {
      self->paused_ = false;
      self->decode_.call->resume();
    }
  });
  deadline_ = fleet_->loop.after(fleet_->config.request_timeout, [weak = weak_from_this()] {
    if (auto self = weak.lock()) self->expired();
  });
  attempt();
}

void Relay::attempt() {
  ++attempts_;
  ++generation_;
  prefill_ = {};
  decode_ = {};
  held_.clear();
  merger_.reset();
  const Pair pair = fleet_->pick({request_.routed.text, request_.routed.prompt_bytes}, avoid_);
  if (!pair.decode) {
    fleet_->metrics.errors("no_available_servers").add();
    const char* wanted = fleet_->config.disaggregated ? "a healthy prefill and a healthy decode server are wanted"
                                                      : "a healthy server is wanted";
    return attempt_failed(
        {503, "application/json", error_body(fmt::format("No available servers: {}", wanted), 503), retry_after()});
  }
  prefill_.instance = pair.prefill;
  decode_.instance = pair.decode;
  const std::string tail = tail_of_attempt();
  for (Leg* leg : {&prefill_, &decode_}) {
    if (!leg->instance) continue;
    ++leg->instance->in_flight;
    leg->trial = leg->instance->breaker.begin(fleet_->clock.now());
    fleet_->metrics.processed(*leg->instance).add();
    auto url = net::parse_url(leg->instance->address.url);
    CHECK(url.has_value());  // it was made by parse_url
    net::ClientRequest request{.method = "POST", .url = std::move(url).value(), .headers = request_.headers};
    request.url.path = request_.path;
    request.body = request_.body;
    request.body_tail = tail;
    request.connect_timeout = fleet_->config.connect_timeout;
    leg->call = fleet_->client->start(std::move(request), handlers(leg == &decode_));
  }
}

// What follows the client's fields: the rooms, or the rank of a plain server. With --dp-aware the decode side's ranks
// are chosen here; a prefill server's ranks follow from the rooms.
std::string Relay::tail_of_attempt() {
  RankLoads& ranks = decode_.instance->ranks;
  const bool chooses = ranks.num_ranks() > 1;
  if (!has_prefill()) {
    if (!chooses) return "}";
    decode_.ranks.push_back(ranks.take());
    return fmt::format("{}\"data_parallel_rank\":{}}}", request_.routed.is_empty_object ? "" : ",",
                       decode_.ranks.back());
  }
  std::vector<uint64_t> rooms = draw_rooms(fleet_->random, request_.routed.batch_size.value_or(1));
  for (uint64_t& room : rooms) {
    if (!chooses) break;
    decode_.ranks.push_back(ranks.take());
    room = room_of_rank(room, decode_.ranks.back(), ranks.num_ranks());
  }
  const Instance& prefill = *prefill_.instance;
  return api::bootstrap_tail(request_.routed, prefill.host, prefill.address.bootstrap_port, rooms);
}

net::ClientHandlers Relay::handlers(bool is_decode) {
  net::ClientHandlers handlers;
  auto current = [self = shared_from_this(), generation = generation_] { return generation == self->generation_; };
  handlers.on_headers = [self = shared_from_this(), current, is_decode](int status, const net::Headers& headers) {
    if (current()) self->on_headers(is_decode ? self->decode_ : self->prefill_, status, headers);
  };
  handlers.on_body = [self = shared_from_this(), current, is_decode](std::string_view bytes) {
    if (!current()) return;
    is_decode ? self->on_decode_body(bytes) : self->on_prefill_body(bytes);
  };
  handlers.on_done = [self = shared_from_this(), current, is_decode](Status status) {
    if (!current()) return;
    Leg& leg = is_decode ? self->decode_ : self->prefill_;
    leg.complete = true;
    if (!status) {
      leg.failure = status.error().message;
      // Whether it is gone should be known soon, not at the next calm check.
      leg.instance->next_check = self->fleet_->clock.now();
    }
    is_decode ? self->on_decode_done() : self->on_prefill_done();
  };
  return handlers;
}

void Relay::on_headers(Leg& leg, int status, const net::Headers& headers) {
  leg.status = status;
  leg.headers = headers;
  // Full or leaving: which of the two should be known soon, not at the next calm check.
  if (status == 503) leg.instance->next_check = fleet_->clock.now();
  for (const auto& [name, value] : headers) {
    if (net::equals_ignoring_case(name, "content-type")) leg.content_type = value;
  }
}

void Relay::on_prefill_body(std::string_view bytes) {
  const size_t limit = merges_ ? fleet_->config.max_buffered_answer : kKeptOfPrefill;
  prefill_.body.append(bytes.substr(0, limit - std::min(limit, prefill_.body.size())));
}

// On a stream the server has said 200 before it knew better: the refusal is the first event.
bool Relay::prefill_refused_in_stream() const {
  return request_.routed.stream &&
         (prefill_.body.starts_with("data: {\"error\"") || prefill_.body.starts_with("data: {\"object\":\"error\""));
}

void Relay::on_prefill_done() {
  const bool ok = prefill_.ok();
  end_leg(prefill_, outcome_of(true, !prefill_.failure.empty(), prefill_.status));
  if (over_) {
    pause_.reset();  // it was what the drain waited for
    return;
  }
  if (!ok) return leg_failed(prefill_);
  if (!streaming_ && prefill_refused_in_stream()) {
    // Cancelling the decode leg frees its blocks at once; it would wait for this prefill until a deadline.
    fleet_->metrics.errors("prefill_refused").add();
    return answer({200, prefill_.content_type, std::move(prefill_.body), {}});
  }
  if (!merges_) return;
  if (request_.routed.stream) {
    merger_.emplace();
    net::SseParser events;
    events.feed(prefill_.body, [this](std::string_view data) {
      if (data != "[DONE]") merger_->add_prefill_event(data);
    });
    flush_held();
  } else if (decode_.complete) {
    on_decode_done();
  }
}

// A decode server that leaves, or whose prefill is gone, gives back what it has not begun. On a stream it has said 200
// before: the first event says so. Its status; 0: it is an answer.
int Relay::failed_in_stream(std::string_view first_event) const {
  if (streaming_ || merges_) return 0;
  const bool is_error = first_event.starts_with("data: {\"error\":{\"object\":\"error\"");
  // In a JSON string the quotes would be escaped, so these are keys.
  const std::string_view key = is_error ? "\"code\":" : "\"status_code\":";
  const size_t at = first_event.find(key);
  if (at == std::string_view::npos) return 0;
  int status = 0;
  for (const char digit : first_event.substr(at + key.size(), 3)) status = 10 * status + (digit - '0');
  return status >= 500 && is_retryable(status) ? status : 0;
}

void Relay::on_decode_body(std::string_view bytes) {
  if (over_) return;
  if (!request_.routed.stream || decode_.status < 200 || decode_.status > 299) {
    if (decode_.body.size() + bytes.size() > fleet_->config.max_buffered_answer) {
      decode_.failure = "its answer is too large to be kept";
      return leg_failed(decode_);
    }
    decode_.body.append(bytes);
    return;
  }
  if (const int status = failed_in_stream(bytes); status != 0) {
    decode_.status = status;
    decode_.content_type = "application/json";
    decode_.body = bytes.substr(std::string_view("data: ").size());
    decode_.body.erase(std::min(decode_.body.find('\n'), decode_.body.size()));
    return leg_failed(decode_);
  }
  if (!merges_) return pass(std::string(bytes));
  if (merger_) return merge_and_pass(bytes);
  held_.append(bytes);
  if (held_.size() > fleet_->config.stream_high_water && !paused_) {
    paused_ = true;
    decode_.call->pause();
  }
}

void Relay::flush_held() {
  std::string held = std::move(held_);
  held_.clear();
  if (!held.empty()) merge_and_pass(held);
  if (paused_ && !over_ && decode_.call) {
    paused_ = false;
    decode_.call->resume();
  }
  if (decode_.complete && !over_) on_decode_done();
}

void Relay::merge_and_pass(std::string_view bytes) {
  std::string out;
  const bool fits = decode_events_.feed(bytes, [&](std::string_view data) {
    out += net::sse_event(data == "[DONE]" ? std::string(data) : merger_->merge(data));
  });
  if (!fits) {
    decode_.failure = "an event of its stream is too large";
    return leg_failed(decode_);
  }
  if (!out.empty()) pass(std::move(out));
}

void Relay::on_decode_done() {
  // The prefill's part has to come first; on_prefill_done comes back here.
  if (decode_.ok() && merges_ && !merger_ && !prefill_.complete) return;
  const bool ok = decode_.ok();
  end_leg(decode_, outcome_of(true, !decode_.failure.empty(), decode_.status));
  if (over_) return;
  if (!ok) return leg_failed(decode_);
  if (!request_.routed.stream) return answer_whole();
  begin_stream();
  writer_->end();
  finish();
}

void Relay::leg_failed(Leg& leg) {
  const bool is_decode = &leg == &decode_;
  const char* name = is_decode ? (has_prefill() ? "Decode" : "Worker") : "Prefill";
  std::string url = leg.instance->address.url;
  if (std::find(avoid_.begin(), avoid_.end(), leg.instance->id) == avoid_.end()) avoid_.push_back(leg.instance->id);
  const bool clients_fault = leg.failure.empty() && leg.status < 500 && !is_retryable(leg.status);
  fleet_->metrics.errors(clients_fault ? "client_error" : is_decode ? "decode_failed" : "prefill_failed").add();
  Verdict verdict;
  std::string why = leg.failure;
  if (leg.failure.empty()) {
    verdict.status = leg.status;
    why = fmt::format("HTTP {}", leg.status);
    // What a server says about the client's fault is already in the client's dialect.
    if (!leg.body.empty() && (leg.status < 500 || is_decode)) {
      verdict.content_type = leg.content_type;
      verdict.body = std::move(leg.body);
      verdict.headers = end_to_end_headers(leg.headers);
    } else {
      why = fmt::format("({}): {}", leg.status, leg.body);
    }
  }
  if (!clients_fault) {
    log::warning("request={} attempt={} {}={} failed: {}", request_.path, attempts_, is_decode ? "decode" : "prefill",
                 url, why.substr(0, 500));
  }
  if (verdict.body.empty()) {
    verdict.body = error_body(fmt::format("{} server error {}", name, why), verdict.status);
    if (verdict.status == 503) verdict.headers = retry_after();
  }
  if (!streaming_) return attempt_failed(std::move(verdict));
  if (!is_decode) return;  // the decode server has what it needs
  // Bytes are out already: the client is told in the stream.
  const bool at_border = last_bytes_[0] == '\n' && last_bytes_[1] == '\n';
  writer_->write((at_border ? "" : "\n\n") +
                 net::sse_event(api::native_error_body(fmt::format("{} server error: {}", name, why))) +
                 net::sse_event("[DONE]"));
  writer_->end();
  finish();
}

void Relay::begin_stream() {
  if (streaming_) return;
  streaming_ = true;
  fleet_->metrics.first_byte.observe(seconds(fleet_->clock.now() - started_));
  writer_->begin(decode_.status, decode_.content_type.empty() ? "text/event-stream" : decode_.content_type,
                 end_to_end_headers(decode_.headers));
}

void Relay::pass(std::string bytes) {
  if (bytes.empty()) return;
  begin_stream();
  for (size_t i = bytes.size() - std::min<size_t>(2, bytes.size()); i < bytes.size(); ++i) {
    last_bytes_[0] = last_bytes_[1];
    last_bytes_[1] = bytes[i];
  }
  if (!writer_->write(std::move(bytes))) return hung_up();
  if (!paused_ && decode_.call && writer_->backlog() > fleet_->config.stream_high_water) {
    paused_ = true;
    decode_.call->pause();
  }
}

void Relay::answer_whole() {
  Verdict verdict{decode_.status, decode_.content_type, std::move(decode_.body), end_to_end_headers(decode_.headers)};
  if (merges_) {
    auto merged = merge_input_logprobs(prefill_.body, verdict.body);
    if (!merged) {
      log::error("request={} log-probabilities cannot be merged: {}", request_.path, merged.error().message);
      return answer({502, "application/json", error_body(merged.error().message, 502), {}});
    }
    verdict.body = std::move(merged).value();
  }
  answer(std::move(verdict));
}

// Before the first byte of an answer: again with another pair and other rooms, or the client is told.
void Relay::attempt_failed(Verdict verdict) {
  end_leg(prefill_, Outcome::kNeutral);
  end_leg(decode_, Outcome::kNeutral);
  ++generation_;
  const RetryConfig& retry = fleet_->config.retry;
  if (!retry.enabled || attempts_ >= retry.max_attempts || !is_retryable(verdict.status)) {
    return answer(std::move(verdict));
  }
  fleet_->metrics.retries.add();
  const Duration wait = backoff(retry, attempts_ + 1, fleet_->random);
  // Holds the relay: nothing else may, between two attempts, but a client that could hang up.
  pause_ = fleet_->loop.after(wait, [self = shared_from_this()] {
    if (!self->over_) self->attempt();
  });
}

void Relay::answer(Verdict verdict) {
  if (over_) return;
  fleet_->metrics.first_byte.observe(seconds(fleet_->clock.now() - started_));
  net::HttpResponse response;
  response.status = verdict.status;
  response.content_type = std::move(verdict.content_type);
  response.body = std::move(verdict.body);
  response.headers = std::move(verdict.headers);
  writer_->send(std::move(response));
  finish();
}

void Relay::expired() {
  if (over_) return;
  fleet_->metrics.errors("timeout").add();
  const std::string message =
      fmt::format("no complete answer within {:.0f} s", seconds(fleet_->config.request_timeout));
  if (!streaming_) return answer({504, "application/json", error_body(message, 504), {}});
  writer_->write(net::sse_event(api::native_error_body(message)) + net::sse_event("[DONE]"));
  writer_->end();
  finish();
}

void Relay::hung_up() {
  if (over_) return;
  fleet_->metrics.hang_ups.add();
  end_leg(prefill_, Outcome::kNeutral);
  finish();
}

void Relay::end_leg(Leg& leg, Outcome outcome) {
  if (!leg.instance || !leg.call) return;
  leg.call->cancel();
  leg.call.reset();
  --leg.instance->in_flight;
  for (const size_t rank : leg.ranks) leg.instance->ranks.give_back(rank);
  leg.instance->breaker.end(leg.trial, outcome, fleet_->clock.now());
}

void Relay::finish() {
  if (over_) return;
  over_ = true;
  fleet_->metrics.duration.observe(seconds(fleet_->clock.now() - started_));
  deadline_.reset();
  end_leg(decode_, Outcome::kNeutral);
  // A prefill that is about to say that it is done is let finish: a hang-up would look like an abort to it.
  if (prefill_.call && decode_.ok() && decode_.complete) {
    pause_ = fleet_->loop.after(kDrainTime,
                                [self = shared_from_this()] { self->end_leg(self->prefill_, Outcome::kNeutral); });
  } else {
    end_leg(prefill_, Outcome::kNeutral);
    pause_.reset();
  }
  writer_.reset();
  if (auto on_over = std::move(on_over_)) on_over();
}

std::string Relay::error_body(std::string_view message, int status) const {
  return request_.kind == api::BodyKind::kGenerate ? api::native_error_body(message)
                                                   : api::openai_error_body(message, status);
}

}  // namespace tandem::router
