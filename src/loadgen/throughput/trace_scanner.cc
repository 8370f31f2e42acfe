#include "loadgen/throughput/trace_scanner.h"

#include <fmt/format.h>

namespace tandem::loadgen {
namespace {

// An event with stacks and shapes has some kilobytes.
constexpr size_t kMaxEventBytes = 4 << 20;
constexpr size_t kMaxNameBytes = 64;

bool is_space(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }

}  // namespace

TraceScanner::TraceScanner(std::function<Status(std::string_view)> on_event) : on_event_(std::move(on_event)) {}

Error TraceScanner::fault(std::string_view expected) const {
  return corrupt(fmt::format("expected {} at byte {}", expected, offset_));
}

Status TraceScanner::feed(std::string_view bytes) {
  while (!bytes.empty()) {
    if (in_string_) {
      const size_t used = skip_string(bytes);
      bytes.remove_prefix(used);
      offset_ += used;
      if (event_.size() > kMaxEventBytes) return fault("an event of at most 4 MiB");
      continue;
    }
    RETURN_IF_ERROR(take(bytes.front()));
    bytes.remove_prefix(1);
    offset_ += 1;
  }
  return Ok{};
}

// Up to the string's end, or the end of the bytes.
size_t TraceScanner::skip_string(std::string_view bytes) {
  size_t at = 0;
  while (at < bytes.size() && in_string_) {
    const char c = bytes[at++];
    if (escaped_) {
      escaped_ = false;
    } else if (c == '\\') {
      escaped_ = true;
    } else if (c == '"') {
      in_string_ = false;
    }
  }
  if (in_event_) event_.append(bytes.substr(0, at));
  if (depth_ == 1 && root_ == Root::kObject && last_string_.size() < kMaxNameBytes) {
    last_string_.append(bytes.substr(0, at - (in_string_ ? 0 : 1)));
  }
  return at;
}

Status TraceScanner::take(char c) {
  if (root_ == Root::kNone || root_ == Root::kDone) {
    if (is_space(c)) return Ok{};
    if (root_ == Root::kDone) return fault("nothing behind the trace");
    if (c != '{' && c != '[') return fault("a Chrome trace, {\"traceEvents\": [...]} or [...],");
    root_ = c == '{' ? Root::kObject : Root::kArray;
    seen_events_ = in_events_ = c == '[';
    depth_ = 1;
    return Ok{};
  }
  if (c == '{' || c == '[') return open(c);
  if (in_event_) event_ += c;
  if (c == '}' || c == ']') return close(c);
  if (c == '"') {
    in_string_ = true;
    last_string_.clear();
  }
  if (event_.size() > kMaxEventBytes) return fault("an event of at most 4 MiB");
  return Ok{};
}

Status TraceScanner::open(char c) {
  const int64_t event_depth = root_ == Root::kArray ? 1 : 2;
  if (root_ == Root::kObject && depth_ == 1 && c == '[' && last_string_ == "traceEvents") {
    seen_events_ = in_events_ = true;
  } else if (in_events_ && !in_event_ && depth_ == event_depth) {
    if (c != '{') return fault("an object as event");
    in_event_ = true;
    event_.clear();
  }
  if (in_event_) event_ += c;
  depth_ += 1;
  return Ok{};
}

Status TraceScanner::close(char) {
  const int64_t event_depth = root_ == Root::kArray ? 1 : 2;
  depth_ -= 1;
  if (in_event_ && depth_ == event_depth) {
    in_event_ = false;
    return on_event_(event_);
  }
  if (in_events_ && !in_event_ && depth_ < event_depth) in_events_ = false;
  if (depth_ == 0) root_ = Root::kDone;
  return Ok{};
}

Status TraceScanner::finish() const {
  if (root_ == Root::kNone) return fault("a Chrome trace, {\"traceEvents\": [...]} or [...],");
  const bool open_array = root_ == Root::kArray && !in_event_;
  if (root_ != Root::kDone && !open_array) return fault("the rest of the trace: it is cut");
  if (!seen_events_) return fault("a member \"traceEvents\"");
  return Ok{};
}

}  // namespace tandem::loadgen
