// Flight recordings: whatever the bytes are, they become logs or an error, and of logs there is an explanation. The
// first byte says how the rest is taken: as a file, or (nobody guesses checks and 260 KiB) as fields of the headers and
// entries of a few rings whose checks are right.
#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "base/check.h"
#include "profile/flight_explain.h"

namespace {

using namespace tandem::profile;

// A sound header; what may vary is taken from the input.
void put_header(std::string& ring, std::string_view& rest) {
  FlightHeader header;
  uint8_t fields[8] = {};
  std::memcpy(fields, rest.data(), std::min(rest.size(), sizeof(fields)));
  rest.remove_prefix(std::min(rest.size(), sizeof(fields)));
  header.num_ranks = 1 + fields[0] % 4;
  header.rank = fields[1] % header.num_ranks;
  header.attention_size = 1 + fields[2] % header.num_ranks;
  header.num_nodes = 1 + fields[3] % 2;
  header.node = fields[4] % header.num_nodes;
  header.role = fields[5] % 3;
  header.epoch = header.group = fields[6] % 4;
  header.pid = 1;
  header.observed = FlightProcess(fields[7] % 4);
  header.is_closed = fields[7] >> 7;
  header.observed_unix_ns = int64_t(fields[7]) << 32;
  std::memcpy(ring.data(), &header, sizeof(header));
}

std::string build_ring(std::string_view& rest) {
  std::string ring(kFlightFileBytes, '\0');
  put_header(ring, rest);
  const size_t num_entries = rest.empty() ? 0 : uint8_t(rest[0]) % 32;
  for (size_t i = 0; i < num_entries && rest.size() >= kFlightEntryBytes; ++i) {
    FlightWords words;
    std::memcpy(words.data(), rest.data(), sizeof(words));
    rest.remove_prefix(sizeof(words));
    words[0] = words[0] % 1024 + 1;
    words[kFlightCheckWord] = (words[kFlightCheckWord] & 0xffffff00ull) | words[kFlightCheckWord] % 17;
    words[kFlightCheckWord] = (words[kFlightCheckWord] & 0xffffffffull) | uint64_t(flight_check(words)) << 32;
    std::memcpy(ring.data() + kFlightHeaderBytes + i * kFlightEntryBytes, words.data(), sizeof(words));
  }
  return ring;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  if (rest.empty()) return 0;
  const bool is_raw = rest[0] % 2 == 0;
  rest.remove_prefix(1);
  std::string rings;
  if (is_raw) {
    rings = rest;
  } else {
    for (int i = 0; i < 3 && !rest.empty(); ++i) rings += build_ring(rest);
  }
  const auto logs = parse_flight_logs(rings, "input");
  CHECK(is_raw || logs.has_value());
  if (!logs) return 0;
  const Explanation explanation = explain(*logs);
  static_cast<void>(explanation_text(explanation));
  static_cast<void>(explanation_json(explanation));
  return 0;
}
