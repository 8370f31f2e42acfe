// Server-sent events: "data: ...\n\n". Pure.
#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace tandem::net {

// "data: " + payload + "\n\n".
std::string sse_event(std::string_view payload);

// Incremental parser: feed any cut of the bytes, get each event's data. Multi-line data joined with \n, comments and
// other fields ignored, \r\n accepted. One event is at most max_event_bytes; feed returns false beyond that.
class SseParser {
 public:
  explicit SseParser(size_t max_event_bytes = size_t(256) << 20) : max_event_bytes_(max_event_bytes) {}
  bool feed(std::string_view bytes, const std::function<void(std::string_view data)>& on_event);

 private:
  void end_line(std::string_view line, const std::function<void(std::string_view data)>& on_event);

  size_t max_event_bytes_;
  std::string line_;
  std::string data_;
  bool has_data_ = false;
  bool overflow_ = false;
};

}  // namespace tandem::net
