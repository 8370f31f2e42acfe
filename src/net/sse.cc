#include "net/sse.h"

namespace tandem::net {

std::string sse_event(std::string_view payload) {
  std::string event;
  event.reserve(payload.size() + 8);
  event.append("data: ").append(payload).append("\n\n");
  return event;
}

bool SseParser::feed(std::string_view bytes, const std::function<void(std::string_view data)>& on_event) {
  if (overflow_) return false;
  while (!bytes.empty()) {
    size_t newline = bytes.find('\n');
    std::string_view piece = bytes.substr(0, newline);
    if (line_.size() + data_.size() + piece.size() > max_event_bytes_) {
      overflow_ = true;
      line_ = {};
      data_ = {};
      return false;
    }
    if (newline == std::string_view::npos) {
      line_.append(piece);
      return true;
    }
    bytes.remove_prefix(newline + 1);
    if (line_.empty()) {
      end_line(piece, on_event);
    } else {
      line_.append(piece);
      end_line(line_, on_event);
      line_.clear();
    }
  }
  return true;
}

void SseParser::end_line(std::string_view line, const std::function<void(std::string_view data)>& on_event) {
  if (line.ends_with('\r')) line.remove_suffix(1);
  if (line.empty()) {
    if (has_data_) on_event(data_);
    data_.clear();
    has_data_ = false;
    return;
  }
  if (!line.starts_with("data")) return;  // comments and other fields
  line.remove_prefix(4);
  if (!line.empty()) {
    if (line[0] != ':') return;
    line.remove_prefix(1);
    if (line.starts_with(' ')) line.remove_prefix(1);
  }
  if (has_data_) data_.push_back('\n');
  data_.append(line);
  has_data_ = true;
}

}  // namespace tandem::net
