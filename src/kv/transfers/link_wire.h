// What UCX peers say to each other below the handover's own messages: frames of a link, as bytes and as values.
// docs/protocol.md, "Link layer", is the description; all integers are little-endian. Pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/result.h"

namespace tandem::kv {

inline constexpr uint32_t kLinkMagic = 0x4b4d4454;  // "TDMK"
inline constexpr uint16_t kLinkVersion = 3;
inline constexpr size_t kMaxPeerMessageBytes = size_t(64) << 20;
inline constexpr uint32_t kMaxRequestParts = 2048;             // of one read request
inline constexpr int64_t kMaxRequestBytes = int64_t(1) << 20;  // asked for by one read request
inline constexpr size_t kMaxReasonBytes = 512;
inline constexpr size_t kMaxGpuMemoryName = 256;

struct HelloFrame {             // first in both directions; the listener answers the caller's
  uint64_t epoch = 0;           // the one that the sender has greeted with
  uint32_t heartbeat_ms = 0;    // how often the sender will say something
  uint64_t region_bytes = 0;    // of the cache that the receiver may read
  std::string gpu_memory = {};  // names it to a GPU of the same host (device::export_memory); empty: ask for its bytes
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
struct ReadRequestFrame {  // asks for these parts of the receiver's region, one behind the other
  struct Part {
    uint64_t offset;
    uint32_t bytes;
  };
  uint64_t tag = 0;  // the asker's
  std::vector<Part> parts = {};
};
struct ReadDataFrame {  // the next bytes of the answer to the request with this tag
  uint64_t tag;
  std::string_view bytes;
};
using LinkFrame = std::variant<HelloFrame, RefuseFrame, MessageFrame, ContinueFrame, HeartbeatFrame, ByeFrame,
                               ReadRequestFrame, ReadDataFrame>;

// Views point into `bytes`. kCorrupt: unknown type, wrong length; kInvalidInput: another magic or wire version.
Result<LinkFrame> decode_link_frame(std::string_view bytes);
std::string encode_link_frame(const LinkFrame& frame);

}  // namespace tandem::kv
