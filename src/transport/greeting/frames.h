// What the two ends of a fresh connection say before anything else, as bytes and as values: docs/protocol.md,
// "Greeting". All integers are little-endian. Pure; any thread.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <variant>

#include "base/result.h"

namespace tandem::transport {

inline constexpr uint32_t kGreetingMagic = 0x54474454;  // the bytes "TDGT"
inline constexpr uint16_t kGreetingVersion = 1;
inline constexpr size_t kMaxRefusalBytes = 512;

using Nonce = std::array<uint8_t, 32>;
using Proof = std::array<uint8_t, 32>;  // HMAC-SHA256, see proof.h

struct Knock {  // the caller's first word
  uint64_t epoch = 0;
  bool has_secret = false;
  Nonce nonce = {};
};
struct Challenge {  // the listener asks for a proof
  uint64_t epoch = 0;
  Nonce nonce = {};
};
struct Answer {  // the caller proves that it has the secret
  Proof proof = {};
};
struct Welcome {  // the listener opens the connection; with a secret it proves that it has it, too
  uint64_t epoch = 0;
  bool has_proof = false;
  Proof proof = {};  // zeros without
};
struct Refusal {  // either side's last word
  std::string reason;
};
using GreetingFrame = std::variant<Knock, Challenge, Answer, Welcome, Refusal>;

std::string encode_greeting(const GreetingFrame& frame);
// kInvalidInput for another version, naming both; kCorrupt for everything else that is not exactly one frame.
Result<GreetingFrame> decode_greeting(std::string_view bytes);

}  // namespace tandem::transport
