// Any bytes as a request and as an answer, whole and cut in two: the same outcome, and the limits hold.
#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/check.h"
#include "net/detail/http_parser.h"

namespace {

using tandem::net::HttpParser;

constexpr size_t kMaxBody = 100, kMaxHeader = 200;

struct Outcome {
  bool done = false, fault = false;
  std::string target, body;
  size_t headers = 0;
  bool operator==(const Outcome&) const = default;
};

Outcome parse(std::string_view bytes, size_t cut, bool request) {
  auto parser = request ? HttpParser::for_request({kMaxHeader, kMaxBody})
                        : HttpParser::for_response({kMaxHeader, kMaxBody}, false);
  Outcome outcome;
  auto on_body = [&](std::string_view piece) { outcome.body.append(piece); };
  std::string pending;
  for (std::string_view piece : {bytes.substr(0, cut), bytes.substr(cut)}) {
    pending.append(piece);
    for (;;) {
      const bool header_was_done = parser->header_done();
      const size_t n = parser->feed(pending, on_body);
      CHECK(n <= pending.size());
      pending.erase(0, n);
      if (parser->fault() || parser->done()) break;
      if (n == 0 && header_was_done == parser->header_done()) break;
    }
  }
  CHECK(outcome.body.size() <= kMaxBody);
  outcome.done = parser->done();
  outcome.fault = parser->fault().has_value();
  if (outcome.fault) outcome.body.clear();  // how much was seen before the fault depends on the cut
  if (parser->header_done() && !outcome.fault) {
    outcome.target = parser->head().target;
    outcome.headers = parser->head().headers.size();
  }
  return outcome;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 2, size - 2);
  const bool request = data[0] % 2 == 0;
  const Outcome whole = parse(bytes, bytes.size(), request);
  const Outcome cut = parse(bytes, std::min<size_t>(data[1], bytes.size()), request);
  // A header just over its limit may be noticed sooner when it comes in pieces; a message is never read differently.
  CHECK(whole == cut || whole.fault || cut.fault);
  return 0;
}
