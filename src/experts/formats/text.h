// Text from a file, made fit for a one-line message.
#pragma once

#include <string>
#include <string_view>

namespace tandem::experts {

// In single quotes, cut after 60 bytes; what is not printable ASCII becomes a question mark.
inline std::string in_quotes(std::string_view text) {
  constexpr size_t kMostBytes = 60;
  std::string out = "'";
  for (char c : text.substr(0, kMostBytes)) out.push_back(c >= ' ' && c <= '~' ? c : '?');
  out += text.size() > kMostBytes ? "...'" : "'";
  return out;
}

}  // namespace tandem::experts
