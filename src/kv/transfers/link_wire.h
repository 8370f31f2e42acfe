// What UCX peers say to each other below the handover's own messages: frames of a link, as bytes and as values.
// docs/protocol.md, "Link layer", is the description; all integers are little-endian. Pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>

#include "base/result.h"

namespace tandem::kv {

inline constexpr uint32_t kLinkMagic = 0x4b4d4454;  // "TDMK"
inline constexpr uint16_t kLinkVersion = 1;
inline constexpr size_t kMaxPeerMessageBytes = size_t(64) << 20;
inline constexpr size_t kMaxSecretBytes = 256, kMaxReasonBytes = 512;

struct HelloFrame {  // first in both directions; the listener answers the caller's
  uint64_t epoch = 0;
  uint32_t heartbeat_ms = 0;  // how often the sender will say something
  uint64_t region_base = 0;   // address in the sender's memory, for get
  uint64_t region_bytes = 0;
  std::string secret = {};
  std::string key = {};  // the region's UCX key; empty with an empty region
};
struct RefuseFrame {  // what the receiver sent is not accepted; the receiver closes the connection
  std::string reason;
};
struct MessageFrame {  // begins a message of total_bytes; `part` is its beginning
  uint32_t total_bytes;
  std::string_view part;
};
struct ContinueFrame {  // the next part of the message begun before
  std::string_view part;
};
struct HeartbeatFrame {
  uint64_t epoch;
};
struct ByeFrame {  // disconnected on purpose; the receiver closes the connection
  std::string reason;
};
using LinkFrame = std::variant<HelloFrame, RefuseFrame, MessageFrame, ContinueFrame, HeartbeatFrame, ByeFrame>;

// Views point into `bytes`. kCorrupt: unknown type, wrong length; kInvalidInput: another magic or wire version.
Result<LinkFrame> decode_link_frame(std::string_view bytes);
std::string encode_link_frame(const LinkFrame& frame);

// Takes as long whether or where they differ; the lengths may show.
bool same_secret(std::string_view a, std::string_view b);

}  // namespace tandem::kv
