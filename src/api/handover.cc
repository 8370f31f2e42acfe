#include "api/handover.h"

#include <bit>
#include <cstring>

namespace tandem::api {
namespace {

static_assert(std::endian::native == std::endian::little, "the wire is little-endian");

class Writer {
 public:
  template <class T>
  void number(T value) {
    static_assert(std::is_arithmetic_v<T>);
    char bytes[sizeof(T)];
    std::memcpy(bytes, &value, sizeof(T));
    out_.append(bytes, sizeof(T));
  }
  void text(std::string_view value) {
    value = value.substr(0, kMaxHandoverText);
    number(uint32_t(value.size()));
    out_.append(value);
  }
  void flag(bool value) { number(uint8_t(value ? 1 : 0)); }
  std::string take() { return std::move(out_); }
  size_t size() const { return out_.size(); }

 private:
  std::string out_;
};

// Reads until something does not fit; then everything after is zero and ok() is false.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : rest_(bytes) {}
  template <class T>
  void number(T& value) {
    value = T{};
    if (rest_.size() < sizeof(T)) return fail("it ends early");
    std::memcpy(&value, rest_.data(), sizeof(T));
    rest_.remove_prefix(sizeof(T));
  }
  void flag(bool& value) {
    uint8_t byte = 0;
    number(byte);
    if (byte > 1) fail("a flag is neither 0 nor 1");
    value = byte == 1;
  }
  void text(std::string& value) {
    const size_t size = count(1, kMaxHandoverText);
    value.assign(rest_.substr(0, size));
    rest_.remove_prefix(size);
  }
  // A count of elements of this size that are really there.
  size_t count(size_t element_bytes, size_t limit) {
    uint32_t value = 0;
    number(value);
    if (value > limit || value > rest_.size() / element_bytes) {
      fail("a list is longer than the message");
      return 0;
    }
    return value;
  }
  void fail(const char* why) {
    if (fault_ == nullptr) fault_ = why;
    rest_ = {};
  }
  const char* fault() const { return fault_; }
  bool at_end() const { return rest_.empty(); }

 private:
  std::string_view rest_;
  const char* fault_ = nullptr;
};

// One list of fields per message, read by both directions: T is Writer or Reader, M the message, const or not.
template <class T, class M>
void identity_fields(T& io, M& m) {
  io.number(m.model_fingerprint);
  io.number(m.dtype);
  io.number(m.num_layers);
  io.number(m.row_width);
  io.number(m.block_tokens);
  io.number(m.layout);
}

void logprob_fields(Writer& io, const TokenLogprob& m) {
  io.number(m.logprob);
  io.number(m.token);
  io.number(uint32_t(m.top.size()));
  for (const auto& [token, logprob] : m.top) {
    io.number(token);
    io.number(logprob);
  }
  io.number(uint32_t(m.token_ids.size()));
  for (const float logprob : m.token_ids) io.number(logprob);
}

void logprob_fields(Reader& io, TokenLogprob& m) {
  io.number(m.logprob);
  io.number(m.token);
  m.top.resize(io.count(8, kMaxHandoverLogprobs));
  for (auto& [token, logprob] : m.top) {
    io.number(token);
    io.number(logprob);
  }
  m.token_ids.resize(io.count(4, kMaxHandoverLogprobs));
  for (float& logprob : m.token_ids) io.number(logprob);
}

template <class T, class M>
void room_fields(T& io, M& m) {
  io.number(m.room);
  io.number(m.tag);
}

void write(Writer& io, const HandoverHello& m) { identity_fields(io, m.identity); }
void read(Reader& io, HandoverHello& m) { identity_fields(io, m.identity); }

void write(Writer& io, const HandoverHelloReply& m) {
  io.flag(m.accepted);
  io.text(m.reason);
  identity_fields(io, m.identity);
  io.number(m.num_blocks);
  io.number(uint32_t(m.ranks.size()));
  for (const RankAddress& rank : m.ranks) {
    io.text(rank.host);
    io.number(rank.port);
  }
}
void read(Reader& io, HandoverHelloReply& m) {
  io.flag(m.accepted);
  io.text(m.reason);
  identity_fields(io, m.identity);
  io.number(m.num_blocks);
  constexpr size_t kLeastBytes = sizeof(uint32_t) + sizeof(uint16_t);
  m.ranks.resize(io.count(kLeastBytes, kMaxHandoverRanks));
  for (RankAddress& rank : m.ranks) {
    io.text(rank.host);
    io.number(rank.port);
  }
}

template <class T, class M>
void want_fields(T& io, M& m) {
  room_fields(io, m);
  io.number(m.prompt_tokens);
  io.number(m.prompt_digest);
}
void write(Writer& io, const HandoverWant& m) { want_fields(io, m); }
void read(Reader& io, HandoverWant& m) { want_fields(io, m); }

void write(Writer& io, const HandoverSource& m) {
  room_fields(io, m);
  io.number(m.generation);
  io.number(uint32_t(m.blocks.size()));
  for (const int32_t block : m.blocks) io.number(block);
}
void read(Reader& io, HandoverSource& m) {
  room_fields(io, m);
  io.number(m.generation);
  m.blocks.resize(io.count(4, SIZE_MAX));
  for (int32_t& block : m.blocks) io.number(block);
}

template <class T, class M>
void announce_fields(T& io, M& m) {
  room_fields(io, m);
  io.number(m.generation);
  io.number(m.layer_begin);
  io.number(m.layer_end);
  io.number(m.token_begin);
  io.number(m.token_end);
}
void write(Writer& io, const HandoverAnnounce& m) { announce_fields(io, m); }
void read(Reader& io, HandoverAnnounce& m) { announce_fields(io, m); }

template <class T, class M>
void confirm_fields(T& io, M& m) {
  room_fields(io, m);
  io.number(m.generation);
  io.flag(m.wants_digest);
}
void write(Writer& io, const HandoverConfirm& m) { confirm_fields(io, m); }
void read(Reader& io, HandoverConfirm& m) { confirm_fields(io, m); }

void write(Writer& io, const HandoverConfirmed& m) {
  room_fields(io, m);
  io.number(m.generation);
  io.number(m.first_token);
  io.number(m.cached_tokens);
  io.flag(m.digest.has_value());
  io.number(m.digest.value_or(0));
  io.flag(m.logprob.has_value());
  if (m.logprob) logprob_fields(io, *m.logprob);
}
void read(Reader& io, HandoverConfirmed& m) {
  room_fields(io, m);
  io.number(m.generation);
  io.number(m.first_token);
  io.number(m.cached_tokens);
  bool has_digest = false, has_logprob = false;
  uint64_t digest = 0;
  io.flag(has_digest);
  io.number(digest);
  if (has_digest) m.digest = digest;
  io.flag(has_logprob);
  if (has_logprob) logprob_fields(io, m.logprob.emplace());
}

void write(Writer& io, const HandoverAck& m) { room_fields(io, m); }
void read(Reader& io, HandoverAck& m) { room_fields(io, m); }

void write(Writer& io, const HandoverAbort& m) {
  room_fields(io, m);
  io.text(m.reason);
}
void read(Reader& io, HandoverAbort& m) {
  room_fields(io, m);
  io.text(m.reason);
}

// The message's number on the wire is its place in the variant, from 1.
template <size_t I = 0>
bool read_as(uint16_t type, Reader& io, HandoverMessage& out) {
  if constexpr (I == std::variant_size_v<HandoverMessage>) {
    return false;
  } else {
    if (type != I + 1) return read_as<I + 1>(type, io, out);
    read(io, out.emplace<I>());
    return true;
  }
}

Error damaged(const std::string& why) { return corrupt("handover message: " + why); }

}  // namespace

std::string encode_handover(uint64_t epoch, const HandoverMessage& message) {
  Writer body;
  std::visit([&](const auto& m) { write(body, m); }, message);
  Writer out;
  out.number(kHandoverMagic);
  out.number(kHandoverVersion);
  out.number(uint16_t(message.index() + 1));
  out.number(epoch);
  out.number(uint32_t(body.size()));
  return out.take() + body.take();
}

Result<HandoverEnvelope> decode_handover(std::string_view bytes) {
  if (bytes.size() < kHandoverHeaderBytes) {
    return damaged("wanted a header of 20 bytes, got " + std::to_string(bytes.size()));
  }
  Reader header(bytes.substr(0, kHandoverHeaderBytes));
  uint32_t magic = 0, body_bytes = 0;
  uint16_t version = 0, type = 0;
  HandoverEnvelope envelope;
  header.number(magic);
  header.number(version);
  header.number(type);
  header.number(envelope.epoch);
  header.number(body_bytes);
  if (magic != kHandoverMagic) return damaged("it does not begin with TDHO");
  if (version != kHandoverVersion) {
    return invalid_input("wire version differs: theirs " + std::to_string(version) + ", ours " +
                         std::to_string(kHandoverVersion));
  }
  if (body_bytes != bytes.size() - kHandoverHeaderBytes) {
    return damaged("its header says " + std::to_string(body_bytes) + " bytes follow, " +
                   std::to_string(bytes.size() - kHandoverHeaderBytes) + " do");
  }
  Reader body(bytes.substr(kHandoverHeaderBytes));
  if (!read_as(type, body, envelope.message)) return damaged("unknown type " + std::to_string(type));
  if (body.fault() != nullptr) return damaged("type " + std::to_string(type) + ": " + body.fault());
  if (!body.at_end()) return damaged("type " + std::to_string(type) + ": bytes are left over");
  return envelope;
}

Status check_compatible(const KvIdentity& prefill, const KvIdentity& decode) {
  const auto same = [](const char* field, uint64_t p, uint64_t d) -> Status {
    if (p == d) return Ok{};
    return invalid_input(std::string(field) + " differs: prefill has " + std::to_string(p) + ", decode has " +
                         std::to_string(d));
  };
  RETURN_IF_ERROR(same("num_layers", prefill.num_layers, decode.num_layers));
  RETURN_IF_ERROR(same("kv row width", prefill.row_width, decode.row_width));
  RETURN_IF_ERROR(same("kv dtype", prefill.dtype, decode.dtype));
  RETURN_IF_ERROR(same("page size", prefill.block_tokens, decode.block_tokens));
  RETURN_IF_ERROR(same("kv layout", prefill.layout, decode.layout));
  RETURN_IF_ERROR(same("model fingerprint", prefill.model_fingerprint, decode.model_fingerprint));
  return Ok{};
}

uint64_t prompt_digest(std::span<const int32_t> ids) {
  uint64_t digest = 0xcbf29ce484222325ull;
  for (const int32_t id : ids) digest = (digest ^ uint64_t(uint32_t(id))) * 0x100000001b3ull;
  return digest ^ ids.size();
}

}  // namespace tandem::api
