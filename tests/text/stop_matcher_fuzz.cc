// Stop strings, expressions and text from anywhere. First byte: bit 0 trim, bits 1-2 the number of expressions, bits 3-7 the
// size of the pieces; then lines: expressions, one stop string, the text.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/check.h"
#include "text/stream_decoder.h"
#include "text/utf8.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  uint8_t flags = data[0];
  std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  auto line = [&] {
    size_t end = std::min(rest.find('\n'), rest.size());
    std::string text(rest.substr(0, end));
    rest.remove_prefix(std::min(end + 1, rest.size()));
    return text;
  };
  std::vector<std::string> expressions, stops;
  for (int i = flags >> 1 & 3; i > 0; --i) expressions.push_back(line());
  stops.push_back(line());
  auto matcher = tandem::text::StopMatcher::create(stops, expressions, flags & 1);
  if (!matcher) return 0;
  std::string text = tandem::text::to_valid_utf8(rest.substr(0, 4096)), sent;
  size_t piece = 1 + (flags >> 3);
  for (size_t at = 0, end = 0; at < text.size(); at = end) {
    end = std::min(text.size(), at + piece);
    while (end < text.size() && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) ++end;
    sent += matcher->append(std::string_view(text).substr(at, end - at));
  }
  sent += matcher->finish();
  // What is sent is how the text begins, all of it unless something matched.
  CHECK(text.starts_with(sent));
  CHECK(matcher->matched() || sent == text);
  return 0;
}
