// The proof that a side has the deployment's secret: HMAC-SHA256 (RFC 2104) by OpenSSL over who proves, both epochs and
// both nonces, so that a proof is good for one connection and one direction. Pure but for the nonce; any thread.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/result.h"
#include "transport/greeting/frames.h"

namespace tandem::transport {

enum class Side : uint8_t { kCaller = 1, kListener = 2 };

struct ProofInput {
  uint64_t caller_epoch = 0, listener_epoch = 0;
  Nonce caller_nonce = {}, listener_nonce = {};
};
Proof prove(std::string_view secret, Side by, const ProofInput& input);
// In constant time.
bool same_proof(const Proof& a, const Proof& b);

// From the system's generator for keys. kExhausted: it has nothing to give.
Result<Nonce> draw_nonce();

}  // namespace tandem::transport
