// Finds the events of a Chrome trace while its bytes stream by: {"traceEvents": [...], ...} or a bare array. Only one
// event is held at a time. What is inside an event is for the caller to parse.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace tandem::loadgen {

class TraceScanner {
 public:
  // on_event: the text of one event's object, braces included; borrowed until it returns.
  explicit TraceScanner(std::function<Status(std::string_view)> on_event);

  // Errors: kCorrupt with the position and what was expected; on_event's own.
  Status feed(std::string_view bytes);
  // A bare array may lack its end, as the format allows. Errors: kCorrupt if the trace is cut or was none.
  Status finish() const;

 private:
  enum class Root : uint8_t { kNone, kObject, kArray, kDone };
  Status take(char c);
  Status open(char c);
  Status close(char c);
  size_t skip_string(std::string_view bytes);
  Error fault(std::string_view expected) const;

  std::function<Status(std::string_view)> on_event_;
  Root root_ = Root::kNone;
  bool seen_events_ = false, in_events_ = false;
  bool in_string_ = false, escaped_ = false, in_event_ = false;
  int64_t depth_ = 0;
  uint64_t offset_ = 0;      // of the byte at hand
  std::string last_string_;  // at depth 1: a member's name
  std::string event_;
};

}  // namespace tandem::loadgen
