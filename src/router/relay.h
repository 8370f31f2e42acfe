// Relay: one generation request on its way through a router. Both legs get the same body bytes and one room per prompt;
// the decode leg's bytes are passed on untouched, the prefill leg's answer is drained and watched for a failure.
//
//   attempt --both legs sent--> waiting --decode's first byte--> streaming --decode's end--> over
//      ^----- backoff <-- a leg failed and no byte of an answer is out (new pair, new rooms)
//
// Whatever ends it (answer, failure, hang-up, deadline) passes through finish(), which cancels both legs and gives the
// instances back. The loop's thread.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "api/bootstrap.h"
#include "net/http_client.h"
#include "net/http_server.h"
#include "net/sse.h"
#include "router/fleet.h"
#include "router/merge_logprobs.h"

namespace tandem::router {

struct RelayRequest {
  api::BodyKind kind = api::BodyKind::kGenerate;
  std::string path;                         // "/generate", with its query
  net::Headers headers;                     // those that are passed on
  std::shared_ptr<const std::string> body;  // prepared by prepare_routed_body; shared by both legs and all attempts
  api::RoutedBody routed;                   // borrows from body
};

class Relay : public std::enable_shared_from_this<Relay> {
 public:
  // on_over: called once, when the client's part is done (the prefill leg may still be drained).
  Relay(std::shared_ptr<Fleet> fleet, RelayRequest request, std::shared_ptr<net::ResponseWriter> writer,
        std::function<void()> on_over);
  ~Relay();
  void start();
  // The router goes: the client gets a 500 or a cut stream.
  void shut_down();

 private:
  struct Leg {
    std::shared_ptr<Instance> instance;
    std::shared_ptr<net::ClientCall> call;
    std::vector<size_t> ranks;  // of the instance, one per sequence placed by this router (--dp-aware)
    bool trial = false;
    bool complete = false;
    int status = 0;
    net::Headers headers;
    std::string content_type;
    std::string body;     // bounded; what is kept of the answer
    std::string failure;  // why the connection ended early; empty: it did not
    bool ok() const { return failure.empty() && status >= 200 && status < 300; }
  };
  // How a request ended for its client.
  struct Verdict {
    int status = 502;
    std::string content_type = "application/json";
    std::string body;
    net::Headers headers = {};
  };

  void attempt();
  std::string tail_of_attempt();
  net::ClientHandlers handlers(bool is_decode);
  void on_headers(Leg& leg, int status, const net::Headers& headers);
  void on_prefill_body(std::string_view bytes);
  void on_prefill_done();
  void on_decode_body(std::string_view bytes);
  void on_decode_done();
  void leg_failed(Leg& leg);
  bool prefill_refused_in_stream() const;
  int failed_in_stream(std::string_view first_event) const;

  void begin_stream();
  void pass(std::string bytes);
  void merge_and_pass(std::string_view bytes);
  void flush_held();
  void answer_whole();
  void attempt_failed(Verdict verdict);
  void answer(Verdict verdict);
  void expired();
  void hung_up();
  void end_leg(Leg& leg, Outcome outcome);
  void finish();
  std::string error_body(std::string_view message, int status) const;
  bool has_prefill() const { return prefill_.instance != nullptr; }

  std::shared_ptr<Fleet> fleet_;  // shared with the router, which may go first
  RelayRequest request_;
  std::shared_ptr<net::ResponseWriter> writer_;
  std::function<void()> on_over_;
  const TimePoint started_;
  std::shared_ptr<net::EventLoop::Timer> deadline_, pause_;

  int attempts_ = 0;
  uint64_t generation_ = 0;  // of the attempt; callbacks of an earlier one are ignored
  std::vector<InstanceId> avoid_;
  Leg prefill_, decode_;
  bool over_ = false, streaming_ = false, paused_ = false;
  const bool merges_;
  std::optional<EventLogprobMerger> merger_;  // set when the prefill's events are all there
  net::SseParser decode_events_;
  std::string held_;  // decode bytes that wait for the prefill's end, when merging
  char last_bytes_[2] = {'\n', '\n'};
};

}  // namespace tandem::router
