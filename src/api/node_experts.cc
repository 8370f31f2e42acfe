#include "api/node_experts.h"

#include "base/bytes.h"

namespace tandem::api {
namespace {

constexpr size_t kMaxReason = size_t(1) << 16;
constexpr size_t kMaxNumbers = UINT32_MAX;  // bounded by the bytes that are there

// One list of fields per value for both directions: Io is ByteWriter or ByteReader, the value const or not.
template <class Io, class List>
void number_list(Io& io, List& values) {
  using Number = typename std::remove_const_t<List>::value_type;
  if constexpr (Io::kReads) {
    values.resize(io.count(sizeof(Number), kMaxNumbers));
    const std::string_view bytes = io.raw(values.size() * sizeof(Number));
    if (!bytes.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  } else {
    io.number(uint32_t(values.size()));
    io.raw({reinterpret_cast<const char*>(values.data()), values.size() * sizeof(Number)});
  }
}

template <class M, class T>
constexpr bool is_a = std::is_same_v<std::remove_const_t<M>, T>;

template <class Io, class M>
void ask_fields(Io& io, M& m) {
  io.number(m.ask);
  auto what = uint8_t(m.what);
  io.number(what);
  if constexpr (Io::kReads) {
    if (what >= uint8_t(NodeExpertAsk::What::kCount)) return io.fail("an unknown question");
    m.what = NodeExpertAsk::What(what);
  }
  io.number(m.amount);
}

template <class Io, class M>
void plan_fields(Io& io, M& m) {
  io.number(m.plan);
  io.number(m.base_version);
  io.number(m.base_digest);
  io.number(m.digest);
  io.number(m.num_layers);
  io.number(m.num_logical);
  io.number(m.num_slots);
  number_list(io, m.logical_of_slot);
  number_list(io, m.share);
}

template <class Io, class M>
void answer_fields(Io& io, M& m) {
  io.number(m.ask);
  io.text(m.error, kMaxReason);
  number_list(io, m.tokens);
  number_list(io, m.steps);
  number_list(io, m.counts);
  io.number(m.steps_left);
}

template <class Io, class M>
void progress_fields(Io& io, M& m) {
  io.number(m.plan);
  io.number(m.version);
  io.flag(m.copied);
  io.number(m.digest);
  io.number(m.moves);
  io.number(m.bytes);
}

template <class Io, class M>
void message_fields(Io& io, M& m) {
  if constexpr (is_a<M, NodeExpertAsk>) {
    ask_fields(io, m);
  } else if constexpr (is_a<M, NodeExpertPlan>) {
    plan_fields(io, m);
  } else if constexpr (is_a<M, NodeExpertStage>) {
    io.number(m.plan);
    io.number(m.version);
  } else if constexpr (is_a<M, NodeExpertAnswer>) {
    answer_fields(io, m);
  } else if constexpr (is_a<M, NodeExpertProgress>) {
    progress_fields(io, m);
  } else {  // abort, failed
    io.number(m.plan);
    io.text(m.reason, kMaxReason);
  }
}

// The message's number on the wire is its place in the variant, from 1.
template <size_t I = 0>
bool read_as(uint8_t type, ByteReader& io, NodeExpertMessage& out) {
  if constexpr (I == std::variant_size_v<NodeExpertMessage>) {
    return false;
  } else {
    if (type != I + 1) return read_as<I + 1>(type, io, out);
    message_fields(io, out.emplace<I>());
    return true;
  }
}

Error damaged(const std::string& why) { return corrupt("message about experts: " + why); }

}  // namespace

std::string encode_expert_message(const NodeExpertMessage& message) {
  ByteWriter out;
  out.number(kExpertMessageVersion);
  out.number(uint8_t(message.index() + 1));
  std::visit([&](const auto& m) { message_fields(out, m); }, message);
  return out.take();
}

Result<NodeExpertMessage> decode_expert_message(std::string_view bytes) {
  ByteReader in(bytes);
  uint16_t version = 0;
  uint8_t type = 0;
  in.number(version);
  in.number(type);
  if (in.fault() != nullptr) return damaged(in.fault());
  if (version != kExpertMessageVersion) {
    return invalid_input("expert message version differs: theirs " + std::to_string(version) + ", ours " +
                         std::to_string(kExpertMessageVersion));
  }
  NodeExpertMessage message;
  if (!read_as(type, in, message)) return damaged("unknown type " + std::to_string(type));
  if (in.fault() != nullptr) return damaged("type " + std::to_string(type) + ": " + in.fault());
  if (!in.at_end()) return damaged("type " + std::to_string(type) + ": bytes are left over");
  return message;
}

}  // namespace tandem::api
