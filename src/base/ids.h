// One-field identities, so that they cannot be swapped by accident. Values.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>

namespace tandem {

// A request inside one process. Given by the server (counter), never reused.
struct RequestId {
  uint64_t value = 0;
  auto operator<=>(const RequestId&) const = default;
};

// A physical KV block of one rank's pool: an index in [0, num_blocks).
struct BlockId {
  int32_t value = -1;
  auto operator<=>(const BlockId&) const = default;
};

// A rank of one group: an index in [0, num_ranks).
struct Rank {
  int32_t value = 0;
  auto operator<=>(const Rank&) const = default;
};

// A connection to another process, as numbered by the transfer side of this process. Never reused.
struct PeerId {
  uint64_t value = 0;
  auto operator<=>(const PeerId&) const = default;
};

}  // namespace tandem

template <>
struct std::hash<tandem::RequestId> {
  size_t operator()(tandem::RequestId id) const { return std::hash<uint64_t>()(id.value); }
};
template <>
struct std::hash<tandem::PeerId> {
  size_t operator()(tandem::PeerId id) const { return std::hash<uint64_t>()(id.value); }
};
