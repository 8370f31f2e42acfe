#include "api/handover.h"

#include "base/bytes.h"

namespace tandem::api {
namespace {

// One list of fields per message, read by both directions: T is ByteWriter or ByteReader, M the message, const or not.
template <class T, class M>
void identity_fields(T& io, M& m) {
  io.number(m.model_fingerprint);
  io.number(m.dtype);
  io.number(m.num_layers);
  io.number(m.row_width);
  io.number(m.block_tokens);
  io.number(m.layout);
}

void logprob_fields(ByteWriter& io, const TokenLogprob& m) {
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

void logprob_fields(ByteReader& io, TokenLogprob& m) {
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

void write(ByteWriter& io, const HandoverHello& m) { identity_fields(io, m.identity); }
void read(ByteReader& io, HandoverHello& m) { identity_fields(io, m.identity); }

void write(ByteWriter& io, const HandoverHelloReply& m) {
  io.flag(m.accepted);
  io.text(m.reason, kMaxHandoverText);
  identity_fields(io, m.identity);
  io.number(m.num_blocks);
  io.number(uint32_t(m.ranks.size()));
  for (const RankAddress& rank : m.ranks) {
    io.text(rank.host, kMaxHandoverText);
    io.number(rank.port);
  }
}
void read(ByteReader& io, HandoverHelloReply& m) {
  io.flag(m.accepted);
  io.text(m.reason, kMaxHandoverText);
  identity_fields(io, m.identity);
  io.number(m.num_blocks);
  constexpr size_t kLeastBytes = sizeof(uint32_t) + sizeof(uint16_t);
  m.ranks.resize(io.count(kLeastBytes, kMaxHandoverRanks));
  for (RankAddress& rank : m.ranks) {
    io.text(rank.host, kMaxHandoverText);
    io.number(rank.port);
  }
}

template <class T, class M>
void want_fields(T& io, M& m) {
  room_fields(io, m);
  io.number(m.prompt_tokens);
  io.number(m.prompt_digest);
}
void write(ByteWriter& io, const HandoverWant& m) { want_fields(io, m); }
void read(ByteReader& io, HandoverWant& m) { want_fields(io, m); }

void write(ByteWriter& io, const HandoverSource& m) {
  room_fields(io, m);
  io.number(m.generation);
  io.number(uint32_t(m.blocks.size()));
  for (const int32_t block : m.blocks) io.number(block);
}
void read(ByteReader& io, HandoverSource& m) {
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
void write(ByteWriter& io, const HandoverAnnounce& m) { announce_fields(io, m); }
void read(ByteReader& io, HandoverAnnounce& m) { announce_fields(io, m); }

template <class T, class M>
void confirm_fields(T& io, M& m) {
  room_fields(io, m);
  io.number(m.generation);
  io.flag(m.wants_digest);
}
void write(ByteWriter& io, const HandoverConfirm& m) { confirm_fields(io, m); }
void read(ByteReader& io, HandoverConfirm& m) { confirm_fields(io, m); }

void write(ByteWriter& io, const HandoverConfirmed& m) {
  room_fields(io, m);
  io.number(m.generation);
  io.number(m.first_token);
  io.number(m.cached_tokens);
  io.flag(m.digest.has_value());
  io.number(m.digest.value_or(0));
  io.flag(m.logprob.has_value());
  if (m.logprob) logprob_fields(io, *m.logprob);
}
void read(ByteReader& io, HandoverConfirmed& m) {
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

void write(ByteWriter& io, const HandoverAck& m) { room_fields(io, m); }
void read(ByteReader& io, HandoverAck& m) { room_fields(io, m); }

void write(ByteWriter& io, const HandoverAbort& m) {
  room_fields(io, m);
  io.text(m.reason, kMaxHandoverText);
}
void read(ByteReader& io, HandoverAbort& m) {
  room_fields(io, m);
  io.text(m.reason, kMaxHandoverText);
}

void write(ByteWriter& io, const HandoverQueued& m) {
  io.number(uint32_t(m.rooms.size()));
  for (const uint64_t room : m.rooms) io.number(room);
}
void read(ByteReader& io, HandoverQueued& m) {
  m.rooms.resize(io.count(8, kMaxHandoverRooms));
  for (uint64_t& room : m.rooms) io.number(room);
}

// The message's number on the wire is its place in the variant, from 1.
template <size_t I = 0>
bool read_as(uint16_t type, ByteReader& io, HandoverMessage& out) {
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
  ByteWriter body;
  std::visit([&](const auto& m) { write(body, m); }, message);
  ByteWriter out;
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
  ByteReader header(bytes.substr(0, kHandoverHeaderBytes));
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
  ByteReader body(bytes.substr(kHandoverHeaderBytes));
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
