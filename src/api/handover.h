// The messages by which a decode and a prefill server hand over a request's KV cache: decode asks, prefill names its
// source blocks and announces finished layers, decode reads them by itself, asks for confirmation, acknowledges.
//
//   decode                                   prefill
//     Hello (what my cache looks like)  -->
//                                       <--  HelloReply (accepted, or the field that differs)
//     Want (blocks are leased here)     -->
//                                       <--  Source (block ids), then Announce per layer and chunk
//     ... reads announced ranges ...
//     Confirm (all reads are done)      -->
//                                       <--  Confirmed (generation still held; first token)
//     Ack                               -->  the source is free
//     Abort                            <-->  either side gives the room up
//
// Fixed binary encoding, little-endian; docs/protocol.md has every byte. Pure values; any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "api/generate.h"
#include "base/result.h"

namespace tandem::api {

inline constexpr uint32_t kHandoverMagic = 0x4f484454;  // the bytes "TDHO"
inline constexpr uint16_t kHandoverVersion = 3;
inline constexpr size_t kHandoverHeaderBytes = 20;
// Longest texts and lists that decode_handover() takes.
inline constexpr size_t kMaxHandoverText = 4096;
inline constexpr size_t kMaxHandoverLogprobs = 65536;
inline constexpr size_t kMaxHandoverRanks = 4096;
inline constexpr size_t kMaxHandoverRooms = 4096;

// What both caches must have in common.
struct KvIdentity {
  uint64_t model_fingerprint = 0;
  uint32_t dtype = 0;  // device::DType
  uint32_t num_layers = 0;
  uint32_t row_width = 0;  // elements per token and layer
  uint32_t block_tokens = 0;
  uint32_t layout = 0;  // 0: [layer][block][token in block][row]
  bool operator==(const KvIdentity&) const = default;
};
// Names the first field that differs and both values.
Status check_compatible(const KvIdentity& prefill, const KvIdentity& decode);

struct HandoverHello {
  KvIdentity identity;
  bool operator==(const HandoverHello&) const = default;
};
// Where a data-parallel rank of a prefill server hands over.
struct RankAddress {
  std::string host;  // "": where the peer already is
  uint16_t port = 0;
  bool operator==(const RankAddress&) const = default;
};
struct HandoverHelloReply {
  bool accepted = false;
  std::string reason;  // of a refusal
  KvIdentity identity;
  uint32_t num_blocks = 0;         // of prefill's cache; offsets are computed from it
  std::vector<RankAddress> ranks;  // of a server with several data-parallel ranks: all of them, in order
  bool operator==(const HandoverHelloReply&) const = default;
};
// room: the router's, shared by both requests. tag: decode's own number for its request; it tells two decode requests
// with the same room apart.
struct HandoverWant {
  uint64_t room = 0, tag = 0;
  uint32_t prompt_tokens = 0;
  uint64_t prompt_digest = 0;  // prompt_digest() of the ids: both must have got the same prompt
  bool operator==(const HandoverWant&) const = default;
};
struct HandoverSource {
  uint64_t room = 0, tag = 0, generation = 0;
  std::vector<int32_t> blocks;  // of the whole prompt, in order
  bool operator==(const HandoverSource&) const = default;
};
struct HandoverAnnounce {  // these rows of this layer are final
  uint64_t room = 0, tag = 0, generation = 0;
  uint32_t layer_begin = 0, layer_end = 0;
  uint32_t token_begin = 0, token_end = 0;
  bool operator==(const HandoverAnnounce&) const = default;
};
struct HandoverConfirm {
  uint64_t room = 0, tag = 0, generation = 0;
  bool wants_digest = false;
  bool operator==(const HandoverConfirm&) const = default;
};
struct HandoverConfirmed {
  uint64_t room = 0, tag = 0, generation = 0;
  int32_t first_token = 0;
  uint32_t cached_tokens = 0;
  std::optional<uint64_t> digest;
  std::optional<TokenLogprob> logprob;  // of the first token
};
struct HandoverAck {
  uint64_t room = 0, tag = 0;
  bool operator==(const HandoverAck&) const = default;
};
struct HandoverAbort {
  uint64_t room = 0, tag = 0;
  std::string reason;
  bool operator==(const HandoverAbort&) const = default;
};
struct HandoverQueued {  // decode has these requests and will want them, but its own memory has no place yet
  std::vector<uint64_t> rooms;
  bool operator==(const HandoverQueued&) const = default;
};
using HandoverMessage = std::variant<HandoverHello, HandoverHelloReply, HandoverWant, HandoverSource, HandoverAnnounce,
                                     HandoverConfirm, HandoverConfirmed, HandoverAck, HandoverAbort, HandoverQueued>;

struct HandoverEnvelope {
  uint64_t epoch = 0;  // the sender's: a message of its former life is not taken for one of this
  HandoverMessage message;
};

std::string encode_handover(uint64_t epoch, const HandoverMessage& message);
// Errors: kInvalidInput for another wire version, naming both; kCorrupt for everything else that is not exactly one
// message.
Result<HandoverEnvelope> decode_handover(std::string_view bytes);

// FNV-1a over the ids, 8 bytes each step.
uint64_t prompt_digest(std::span<const int32_t> ids);

}  // namespace tandem::api
