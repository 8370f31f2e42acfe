#include "transport/greeting/frames.h"

#include <fmt/format.h>

#include "base/bytes.h"

namespace tandem::transport {
namespace {

// One list of fields per frame for both directions: Io is ByteWriter or ByteReader.
template <class Io, class Bytes>
void bytes_field(Io& io, Bytes& bytes) {
  for (auto& byte : bytes) io.number(byte);
}

template <class Io, class F>
void fields(Io& io, F& frame) {
  if constexpr (requires { frame.epoch; }) io.number(frame.epoch);
  if constexpr (requires { frame.has_secret; }) io.flag(frame.has_secret);
  if constexpr (requires { frame.has_proof; }) io.flag(frame.has_proof);
  if constexpr (requires { frame.nonce; }) bytes_field(io, frame.nonce);
  if constexpr (requires { frame.proof; }) bytes_field(io, frame.proof);
  if constexpr (requires { frame.reason; }) io.text(frame.reason, kMaxRefusalBytes);
}

// A frame's number on the wire is its place in the variant, from 1.
template <size_t I = 0>
bool read_as(uint8_t type, ByteReader& in, GreetingFrame& out) {
  if constexpr (I == std::variant_size_v<GreetingFrame>) {
    return false;
  } else {
    if (type != I + 1) return read_as<I + 1>(type, in, out);
    fields(in, out.emplace<I>());
    return true;
  }
}

}  // namespace

std::string encode_greeting(const GreetingFrame& frame) {
  ByteWriter out;
  out.number(kGreetingMagic);
  out.number(kGreetingVersion);
  out.number(uint8_t(frame.index() + 1));
  std::visit([&](const auto& one) { fields(out, one); }, frame);
  return out.take();
}

Result<GreetingFrame> decode_greeting(std::string_view bytes) {
  ByteReader in(bytes);
  uint32_t magic = 0;
  uint16_t version = 0;
  uint8_t type = 0;
  in.number(magic);
  in.number(version);
  in.number(type);
  if (in.fault() != nullptr || magic != kGreetingMagic) return corrupt("it does not begin with TDGT");
  if (version != kGreetingVersion) {
    return invalid_input(fmt::format("greeting version {} wanted, {} came", kGreetingVersion, version));
  }
  GreetingFrame frame;
  if (!read_as(type, in, frame)) return corrupt(fmt::format("a greeting of type {}", type));
  if (in.fault() != nullptr || !in.at_end()) return corrupt(fmt::format("a greeting of type {}: its length", type));
  return frame;
}

}  // namespace tandem::transport
