// ResponseMeter: turns one answer's bytes and their arrival times into a RequestResult. No sockets, no clock: times are
// passed in. One owner thread (the load client's loop).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/json.h"
#include "base/result.h"
#include "loadgen/bench_config.h"
#include "net/sse.h"

namespace tandem::loadgen {

struct RequestResult {
  bool success = false;
  std::string error;                     // empty on success
  int32_t input_len = 0;                 // of the data set
  int32_t output_len = 0;                // tokens generated; where the server does not say: tokens asked for
  double start_s = 0;                    // dispatch, after waiting for a free place; from the run's start
  double latency_s = 0;                  // to the last event, [DONE] included
  std::optional<double> ttft_s;          // to the first event with text; absent: no event had a token
  std::vector<double> itls_s;            // inter-token latencies, by the backend's rule
  std::vector<uint32_t> itl_text_bytes;  // OpenAI dialects: bytes of generated_text behind each of itls_s
  std::string generated_text;
};

// What a request was asked for, as far as judging its answer needs it.
struct Expectation {
  Dialect dialect = Dialect::kNative;
  bool stream = true;
  int32_t output_len = 0;
  bool full_length = true;                 // fewer tokens than asked for are a failure
  bool count_failures_as_success = false;  // SGLang's counting: HTTP 200 is a success, whatever the stream says
};

class ResponseMeter {
 public:
  ResponseMeter(Expectation expectation, TimePoint start);

  void on_headers(int status);
  // Bytes of the body as they arrive. parser: scratch of the caller's thread.
  void on_body(std::string_view bytes, TimePoint now, simdjson::dom::parser& parser);
  // The exchange ended; a cut answer carries its error. Call once.
  RequestResult finish(Status end, TimePoint now, simdjson::dom::parser& parser);

 private:
  using Element = simdjson::dom::element;
  void on_event(std::string_view data, TimePoint now, simdjson::dom::parser& parser);
  void on_native(Element event, TimePoint now);
  void on_openai(Element event, TimePoint now);
  void note_completion(int64_t tokens, TimePoint now);
  void fail(std::string error);
  std::string judge(const Status& end) const;
  double since_start(TimePoint now) const { return seconds(now - start_); }

  Expectation expectation_;
  TimePoint start_;
  int status_ = 0;
  net::SseParser sse_;
  std::string body_;  // not streamed, or not a 200: the whole or its first bytes
  RequestResult result_;
  std::string failure_;                  // the first thing that went wrong
  std::optional<double> first_token_s_;  // first event that counts a token, with or without text
  TimePoint last_text_{};
  int64_t last_text_tokens_ = 0;  // completion tokens at the last event with text
  std::optional<int64_t> completion_tokens_;
  bool finished_ = false;  // a finish reason came
};

// The message inside an error body of the known forms ({"error": {"message"}}, {"error": "..."}, {"message"},
// {"detail"}), otherwise the body itself; one line, shortened.
std::string describe_error_body(std::string_view body);

}  // namespace tandem::loadgen
