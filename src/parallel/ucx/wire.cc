#include "parallel/ucx/wire.h"

#include <fmt/format.h>

#include "base/bytes.h"

namespace tandem::parallel {
namespace {

constexpr size_t kMaxText = size_t(1) << 24;
constexpr size_t kMaxAgreed = 4096;
constexpr size_t kMaxLimits = 64;
constexpr size_t kMaxRanks = 65536;
constexpr size_t kLengthBytes = 4;

Error damaged(const std::string& why) { return corrupt("a message between nodes: " + why); }

// One list of fields per record for both directions: Io is ByteWriter or ByteReader.
template <class Io, class List>
void resize(Io& io, List& list, size_t element_bytes, size_t limit) {
  if constexpr (Io::kReads) {
    list.resize(io.count(element_bytes, limit));
  } else {
    io.number(uint32_t(list.size()));
  }
}
template <class Io, class Addresses>
void addresses(Io& io, Addresses& list) {
  resize(io, list, 4 + 2, kMaxRanks);
  for (auto& address : list) {
    io.text(address.host, kMaxText);
    io.number(address.port);
  }
}
template <class Io, class Limits>
void limits(Io& io, Limits& list) {
  resize(io, list, 8, kMaxLimits);
  for (auto& limit : list) io.number(limit);
}

template <class Io, class M>
void hello_fields(Io& io, M& m) {
  io.text(m.version, kMaxText);
  io.number(m.num_nodes);
  io.number(m.node_rank);
  io.number(m.ranks_per_node);
  resize(io, m.agreed, 8, kMaxAgreed);
  for (auto& agreed : m.agreed) {
    io.text(agreed.name, kMaxText);
    io.text(agreed.value, kMaxText);
  }
  limits(io, m.limits);
  addresses(io, m.ranks);
}
template <class Io, class M>
void welcome_fields(Io& io, M& m) {
  io.number(m.token);
  limits(io, m.limits);
  addresses(io, m.ranks);
}
template <class Io, class M>
void refuse_fields(Io& io, M& m) {
  io.flag(m.differs);
  io.text(m.reason, kMaxText);
}

// A record's number is its place in the variant, from 1.
struct Encoder {
  ByteWriter& out;
  void operator()(const NodeHello& m) {
    out.number(kNodeMagic);
    out.number(kNodeVersion);
    hello_fields(out, m);
  }
  void operator()(const NodeWelcome& m) { welcome_fields(out, m); }
  void operator()(const NodeRefuse& m) { refuse_fields(out, m); }
  void operator()(const NodePayload& m) { out.raw(m.bytes); }
  void operator()(const NodeBye&) {}
  void operator()(const NodeConnected&) {}
  void operator()(const NodeHeartbeat&) {}
};

Result<NodeRecord> decode_hello(ByteReader& in) {
  uint32_t magic = 0;
  uint16_t version = 0;
  in.number(magic);
  in.number(version);
  if (magic != kNodeMagic) return damaged("it does not begin with TDND");
  if (version != kNodeVersion) {
    return invalid_input(
        fmt::format("the wire version between nodes differs: theirs {}, ours {}", version, kNodeVersion));
  }
  NodeHello hello;
  hello_fields(in, hello);
  return NodeRecord(std::move(hello));
}

template <class Header>
Status check_run(const Header& header, const ByteReader& in) {
  if (in.fault() != nullptr) return damaged(in.fault());
  if (header.first > header.total || header.count > header.total - header.first) {
    return damaged(fmt::format("[{}, +{}) of {}", header.first, header.count, header.total));
  }
  return Ok{};
}

template <class Io, class H>
void rows_fields(Io& io, H& h) {
  io.number(h.channel);
  io.number(h.mode);
  io.number(h.layer);
  io.number(h.step);
  io.number(h.round);
  io.number(h.total);
  io.number(h.first);
  io.number(h.count);
}
template <class Io, class H>
void results_fields(Io& io, H& h) {
  io.number(h.channel);
  io.number(h.round);
  io.number(h.total);
  io.number(h.first);
  io.number(h.count);
}

}  // namespace

std::string encode_record(const NodeRecord& record) {
  ByteWriter body;
  body.number(uint8_t(record.index() + 1));
  std::visit(Encoder{body}, record);
  ByteWriter out;
  out.number(uint32_t(body.size()));
  return out.take() + body.take();
}

Result<NodeRecord> decode_record(std::string_view bytes) {
  ByteReader in(bytes);
  uint8_t type = 0;
  in.number(type);
  NodeRecord record;
  if (type == 1) {
    ASSIGN_OR_RETURN(record, decode_hello(in));
  } else if (type == 2) {
    welcome_fields(in, record.emplace<NodeWelcome>());
  } else if (type == 3) {
    refuse_fields(in, record.emplace<NodeRefuse>());
  } else if (type == 4) {
    record = NodePayload{in.raw(in.rest_bytes())};
  } else if (type == 5) {
    record = NodeBye{};
  } else if (type == 6) {
    record = NodeConnected{};
  } else if (type == 7) {
    record = NodeHeartbeat{};
  } else {
    return damaged(fmt::format("unknown type {}", type));
  }
  if (in.fault() != nullptr) return damaged(fmt::format("type {}: {}", type, in.fault()));
  if (!in.at_end()) return damaged(fmt::format("type {}: bytes are left over", type));
  return record;
}

Result<std::optional<std::string>> RecordStream::next() {
  if (waiting_.size() - taken_ < kLengthBytes) return std::optional<std::string>();
  uint32_t bytes = 0;
  ByteReader(std::string_view(waiting_).substr(taken_)).number(bytes);
  if (bytes > max_bytes_) return damaged(fmt::format("{} bytes, at most {}", bytes, max_bytes_));
  if (waiting_.size() - taken_ - kLengthBytes < bytes) {
    waiting_.erase(0, std::exchange(taken_, 0));
    return std::optional<std::string>();
  }
  std::string record = waiting_.substr(taken_ + kLengthBytes, bytes);
  taken_ += kLengthBytes + bytes;
  if (taken_ == waiting_.size()) {
    waiting_.clear();
    taken_ = 0;
  }
  return std::optional<std::string>(std::move(record));
}

std::string encode(const RankHello& hello) {
  ByteWriter out;
  out.number(RankMessage::kHello);
  out.number(kNodeMagic);
  out.number(kNodeVersion);
  out.number(hello.token);
  out.number(hello.from);
  out.number(hello.to);
  return out.take();
}

Result<RankHello> decode_rank_hello(std::string_view bytes) {
  ByteReader in(bytes);
  uint8_t type = 0;
  uint32_t magic = 0;
  uint16_t version = 0;
  RankHello hello;
  in.number(type);
  in.number(magic);
  in.number(version);
  in.number(hello.token);
  in.number(hello.from);
  in.number(hello.to);
  const bool right = type == uint8_t(RankMessage::kHello) && magic == kNodeMagic && version == kNodeVersion;
  if (in.fault() != nullptr || !in.at_end() || !right) return damaged("not a rank's greeting");
  return hello;
}

std::string encode_votes(const std::vector<StepVote>& votes) {
  std::string out(1, char(RankMessage::kVotes));
  out.append(reinterpret_cast<const char*>(votes.data()), votes.size() * sizeof(StepVote));
  return out;
}

Result<std::vector<StepVote>> decode_votes(std::string_view bytes, size_t num_votes) {
  if (bytes.size() != 1 + num_votes * sizeof(StepVote)) {
    return damaged(fmt::format("{} bytes, {} votes wanted", bytes.size(), num_votes));
  }
  std::vector<StepVote> votes(num_votes);
  std::memcpy(static_cast<void*>(votes.data()), bytes.data() + 1, num_votes * sizeof(StepVote));
  for (const StepVote& vote : votes) {
    if (vote.step != votes[0].step) return damaged(fmt::format("votes for steps {} and {}", votes[0].step, vote.step));
    if (vote.kind > StepKind::kExtend) return damaged(fmt::format("a vote for kind {}", int(vote.kind)));
  }
  return votes;
}

void append(std::string& out, const RowsHeader& header) {
  ByteWriter io;
  io.number(RankMessage::kRows);
  rows_fields(io, header);
  out += io.take();
}

void append(std::string& out, const ResultsHeader& header) {
  ByteWriter io;
  io.number(RankMessage::kResults);
  results_fields(io, header);
  out += io.take();
}

Result<RowsHeader> decode_rows(std::string_view bytes, std::string_view& body) {
  ByteReader in(bytes.substr(1));
  RowsHeader header;
  rows_fields(in, header);
  RETURN_IF_ERROR(check_run(header, in));
  if (header.mode > uint32_t(ExchangeMode::kLowLatency)) return damaged(fmt::format("exchange mode {}", header.mode));
  body = bytes.substr(kRowsHeaderBytes);
  return header;
}

Result<ResultsHeader> decode_results(std::string_view bytes, std::string_view& body) {
  ByteReader in(bytes.substr(1));
  ResultsHeader header;
  results_fields(in, header);
  RETURN_IF_ERROR(check_run(header, in));
  body = bytes.substr(kResultsHeaderBytes);
  return header;
}

}  // namespace tandem::parallel
