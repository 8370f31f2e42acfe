#include "api/node.h"

#include <optional>
#include <type_traits>

#include "base/bytes.h"

namespace tandem::api {
namespace {

constexpr size_t kMaxText = size_t(1) << 24;          // stop texts may be long
constexpr size_t kMaxExpertBytes = size_t(48) << 20;  // what a record of the link has room for
constexpr size_t kMaxList = UINT32_MAX;               // bounded by the bytes that are there

// One list of fields per value for both directions: Io is ByteWriter or ByteReader, the value const or not.
template <class Io, class T>
void field(Io& io, T& value) requires(std::is_arithmetic_v<std::remove_const_t<T>>) {
  if constexpr (std::is_same_v<std::remove_const_t<T>, bool>) {
    io.flag(value);
  } else {
    io.number(value);
  }
}
template <class Io, class T>
void field(Io& io, T& text) requires(std::is_same_v<std::remove_const_t<T>, std::string>) {
  io.text(text, kMaxText);
}
template <class Io, class T>
void field(Io& io, T& id) requires(std::is_same_v<std::remove_const_t<T>, RequestId>) {
  io.number(id.value);
}

// least_bytes: what one element takes at least, so that a count cannot ask for more memory than the message has.
template <class Io, class List, class Each>
void list(Io& io, List& values, size_t least_bytes, Each each) {
  if constexpr (Io::kReads) {
    values.resize(io.count(least_bytes, kMaxList));
  } else {
    io.number(uint32_t(values.size()));
  }
  for (auto& value : values) each(value);
}
template <class Io, class List>
void numbers(Io& io, List& values) {
  list(io, values, sizeof(values[0]), [&](auto& value) { io.number(value); });
}
template <class Io, class List>
void pairs(Io& io, List& values) {
  list(io, values, 8, [&](auto& value) {
    io.number(value.first);
    io.number(value.second);
  });
}
template <class Io, class Optional, class Each>
void optional(Io& io, Optional& value, Each each) {
  bool present = value.has_value();
  io.flag(present);
  if constexpr (Io::kReads) {
    if (present) value.emplace();
  }
  if (present) each(*value);
}
template <class Io, class Enum>
void choice(Io& io, Enum& value, [[maybe_unused]] std::remove_const_t<Enum> last) {
  uint8_t number = uint8_t(value);
  io.number(number);
  if constexpr (Io::kReads) {
    if (number > uint8_t(last)) return io.fail("an unknown choice");
    value = std::remove_const_t<Enum>(number);
  }
}

template <class Io, class M>
void sampling_fields(Io& io, M& m) {
  field(io, m.max_new_tokens);
  field(io, m.max_new_tokens_given);
  field(io, m.min_new_tokens);
  field(io, m.temperature);
  field(io, m.top_p);
  field(io, m.min_p);
  field(io, m.top_k);
  field(io, m.frequency_penalty);
  field(io, m.presence_penalty);
  field(io, m.repetition_penalty);
  list(io, m.stop, 4, [&](auto& text) { field(io, text); });
  numbers(io, m.stop_token_ids);
  list(io, m.stop_regex, 4, [&](auto& text) { field(io, text); });
  field(io, m.ignore_eos);
  field(io, m.skip_special_tokens);
  field(io, m.no_stop_trim);
  field(io, m.n);
  optional(io, m.stream_interval, [&](auto& value) { field(io, value); });
  pairs(io, m.logit_bias);
}

template <class Io, class M>
void request_fields(Io& io, M& m) {
  field(io, m.id);
  field(io, m.rid);
  numbers(io, m.input_ids);
  if constexpr (Io::kReads) {
    sampling_fields(io, m.sampling.edit());
  } else {
    sampling_fields(io, *m.sampling);
  }
  optional(io, m.seed, [&](auto& value) { field(io, value); });
  numbers(io, m.eos_token_ids);
  field(io, m.return_logprob);
  field(io, m.logprob_start_len);
  field(io, m.top_logprobs_num);
  numbers(io, m.token_ids_logprob);
  optional(io, m.bootstrap, [&](auto& bootstrap) {
    field(io, bootstrap.host);
    optional(io, bootstrap.port, [&](auto& port) { field(io, port); });
    optional(io, bootstrap.room, [&](auto& room) { field(io, room); });
  });
  optional(io, m.data_parallel_rank, [&](auto& rank) { field(io, rank); });
  optional(io, m.priority, [&](auto& priority) { field(io, priority); });
  field(io, m.is_health_check);
}

template <class Io, class M>
void logprob_fields(Io& io, M& m) {
  field(io, m.logprob);
  field(io, m.token);
  field(io, m.present);
  pairs(io, m.top);
  numbers(io, m.token_ids);
}
constexpr size_t kLeastLogprobBytes = 4 + 4 + 1 + 4 + 4;

template <class Io, class M>
void event_fields(Io& io, M& m) {
  field(io, m.id);
  numbers(io, m.tokens);
  list(io, m.logprobs, kLeastLogprobBytes, [&](auto& logprob) { logprob_fields(io, logprob); });
  list(io, m.input_logprobs, kLeastLogprobBytes, [&](auto& logprob) { logprob_fields(io, logprob); });
  field(io, m.prompt_tokens);
  field(io, m.cached_tokens);
  field(io, m.total_retractions);
  optional(io, m.times, [&](auto& times) {
    for (auto* time : {&times.queue_time, &times.prefill_launch_delay, &times.prefill_launch_latency}) {
      optional(io, *time, [&](auto& seconds) { field(io, seconds); });
    }
  });
  optional(io, m.finish, [&](auto& finish) {
    choice(io, finish.kind, FinishKind::kAbort);
    field(io, finish.matched_token);
    field(io, finish.matched_text);
    field(io, finish.length);
    field(io, finish.message);
    field(io, finish.status_code);
  });
}

template <class Io, class M>
void figures_fields(Io& io, M& m) {
  field(io, m.forward_steps);
  field(io, m.progress_age_us);
  for (auto* value : {&m.running, &m.queued, &m.prealloc, &m.transferring, &m.retracted, &m.inflight}) {
    field(io, *value);
  }
  for (auto* value : {&m.used_tokens, &m.cached_tokens, &m.total_tokens, &m.waiting_tokens, &m.free_blocks,
                      &m.leased_blocks, &m.cached_blocks, &m.total_blocks}) {
    field(io, *value);
  }
  field(io, m.last_gen_throughput);
  field(io, m.prompt_tokens_computed);
  field(io, m.handover_bytes);
  for (auto* value :
       {&m.handovers, &m.decode_steps, &m.prefill_steps, &m.generated_tokens, &m.decode_step_us, &m.prefill_step_us}) {
    field(io, *value);
  }
  field(io, m.has_progress);
  field(io, m.draining);
  field(io, m.lost);
  field(io, m.sleep_ms);
  field(io, m.asleep);
  field(io, m.held_for);
  field(io, m.retractions);
  field(io, m.failed_transfers);
  field(io, m.profiling);
}
constexpr size_t kFiguresBytes = 2 * 8 + 6 * 4 + 8 * 8 + 8 + 8 * 8 + 3 + 4 + 1 + 4 + 2 * 8 + 1;

template <class Io, class List>
void addresses(Io& io, List& values) {
  list(io, values, 4 + 2, [&](auto& address) {
    field(io, address.host);
    field(io, address.port);
  });
}

template <class Io, class M>
void profile_fields(Io& io, M& m) {
  field(io, m.output_dir);
  optional(io, m.num_steps, [&](auto& value) { field(io, value); });
  optional(io, m.start_step, [&](auto& value) { field(io, value); });
  for (auto* value : {&m.operators, &m.record_shapes, &m.by_stage, &m.wants_extend, &m.wants_decode, &m.merge}) {
    field(io, *value);
  }
  field(io, m.prefix);
  field(io, m.profile_id);
}

// The fields of each message, by its type without const.
template <class M, class T>
constexpr bool is = std::is_same_v<std::remove_const_t<M>, T>;

template <class Io, class M>
void message_fields(Io& io, M& m) {
  if constexpr (is<M, NodeSubmit>) {
    field(io, m.rank);
    request_fields(io, m.request);
  } else if constexpr (is<M, NodeCancel>) {
    field(io, m.rank);
    field(io, m.id);
    field(io, m.reason);
    field(io, m.matched_text);
  } else if constexpr (is<M, NodeFlush>) {
    field(io, m.rank);
    field(io, m.flush_id);
  } else if constexpr (is<M, NodeDrain>) {
    field(io, m.rank);
  } else if constexpr (is<M, NodeFlushed>) {
    field(io, m.rank);
    field(io, m.flush_id);
    field(io, m.flushed);
  } else if constexpr (is<M, NodeEvent>) {
    field(io, m.rank);
    event_fields(io, m.event);
  } else if constexpr (is<M, NodeFigures>) {
    list(io, m.ranks, kFiguresBytes, [&](auto& rank) { figures_fields(io, rank); });
  } else if constexpr (is<M, NodeLoaded>) {
    field(io, m.model_fingerprint);
    addresses(io, m.kv_ports);
    addresses(io, m.expert_ports);
  } else if constexpr (is<M, NodeGo>) {
    addresses(io, m.kv_ports);
    addresses(io, m.expert_ports);
  } else if constexpr (is<M, NodeSlowDown>) {
    field(io, m.rank);
    field(io, m.sleep_ms);
  } else if constexpr (is<M, NodeHold>) {
    field(io, m.rank);
    field(io, m.version);
    field(io, m.running_requests);
    field(io, m.timeout_ms);
  } else if constexpr (is<M, NodeExperts>) {
    io.text(m.bytes, kMaxExpertBytes);
  } else if constexpr (is<M, NodeProfile>) {
    field(io, m.rank);
    field(io, m.order_id);
    field(io, m.kind);
    field(io, m.version);
    profile_fields(io, m.call);
  } else if constexpr (is<M, NodeProfiled>) {
    field(io, m.rank);
    field(io, m.order_id);
    field(io, m.code);
    field(io, m.message);
  }
}

// The message's number on the wire is its place in the variant, from 1.
template <size_t I = 0>
bool read_as(uint8_t type, ByteReader& io, NodeMessage& out) {
  if constexpr (I == std::variant_size_v<NodeMessage>) {
    return false;
  } else {
    if (type != I + 1) return read_as<I + 1>(type, io, out);
    message_fields(io, out.emplace<I>());
    return true;
  }
}

Error damaged(const std::string& why) { return corrupt("message between nodes: " + why); }

}  // namespace

std::string encode_node_message(const NodeMessage& message) {
  ByteWriter out;
  out.number(kNodeMessageVersion);
  out.number(uint8_t(message.index() + 1));
  std::visit([&](const auto& m) { message_fields(out, m); }, message);
  return out.take();
}

Result<NodeMessage> decode_node_message(std::string_view bytes) {
  ByteReader in(bytes);
  uint16_t version = 0;
  uint8_t type = 0;
  in.number(version);
  in.number(type);
  if (in.fault() != nullptr) return damaged(in.fault());
  if (version != kNodeMessageVersion) {
    return invalid_input("node message version differs: theirs " + std::to_string(version) + ", ours " +
                         std::to_string(kNodeMessageVersion));
  }
  NodeMessage message;
  if (!read_as(type, in, message)) return damaged("unknown type " + std::to_string(type));
  if (in.fault() != nullptr) return damaged("type " + std::to_string(type) + ": " + in.fault());
  if (!in.at_end()) return damaged("type " + std::to_string(type) + ": bytes are left over");
  return message;
}

}  // namespace tandem::api
