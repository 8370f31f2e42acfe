#include "transport/greeting/proof.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include <string>

#include "base/bytes.h"
#include "base/check.h"
#include "base/constant_time.h"

namespace tandem::transport {
namespace {

constexpr std::string_view kPurpose = "tandem greeting 1";

std::string_view view(const std::array<uint8_t, 32>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

Proof prove(std::string_view secret, Side by, const ProofInput& input) {
  ByteWriter message;
  message.raw(kPurpose);
  message.number(by);
  message.number(input.caller_epoch);
  message.number(input.listener_epoch);
  message.raw(view(input.caller_nonce));
  message.raw(view(input.listener_nonce));
  const std::string bytes = message.take();
  Proof proof{};
  unsigned size = 0;
  const auto* data = reinterpret_cast<const unsigned char*>(bytes.data());
  const auto* made = HMAC(EVP_sha256(), secret.data(), int(secret.size()), data, bytes.size(), proof.data(), &size);
  CHECK(made != nullptr);
  CHECK(size == proof.size());
  return proof;
}

bool same_proof(const Proof& a, const Proof& b) { return same_in_constant_time(view(a), view(b)); }

Result<Nonce> draw_nonce() {
  Nonce nonce{};
  if (RAND_bytes(nonce.data(), int(nonce.size())) != 1) return exhausted("no random bytes for a greeting");
  return nonce;
}

}  // namespace tandem::transport
