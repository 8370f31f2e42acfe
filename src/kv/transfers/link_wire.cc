#include "kv/transfers/link_wire.h"

#include <fmt/format.h>

#include <bit>
#include <cstring>

#include "base/check.h"

namespace tandem::kv {
namespace {

static_assert(std::endian::native == std::endian::little, "the frames are written as they lie in memory");

enum class FrameType : uint8_t { kHello = 1, kRefuse, kMessage, kContinue, kHeartbeat, kBye, kReadRequest, kReadData };

class Writer {
 public:
  explicit Writer(FrameType type) { number(uint8_t(type)); }

  template <class T>
  void number(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  void text16(std::string_view text) {
    CHECK(text.size() <= UINT16_MAX);
    number(uint16_t(text.size()));
    bytes_.append(text);
  }
  void rest(std::string_view text) { bytes_.append(text); }
  std::string take() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

// After the first short read everything reads as zero and ok() is false.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : left_(bytes) {}

  template <class T>
  T number() {
    T value{};
    if (left_.size() < sizeof(value)) {
      fail();
    } else {
      std::memcpy(&value, left_.data(), sizeof(value));
      left_.remove_prefix(sizeof(value));
    }
    return value;
  }
  std::string text16(size_t limit) {
    const size_t size = number<uint16_t>();
    if (size > limit || size > left_.size()) {
      fail();
      return {};
    }
    std::string text(left_.substr(0, size));
    left_.remove_prefix(size);
    return text;
  }
  std::string_view rest() { return std::exchange(left_, {}); }
  // Everything read, nothing left over.
  bool done() const { return ok_ && left_.empty(); }

 private:
  void fail() {
    ok_ = false;
    left_ = {};
  }

  std::string_view left_;
  bool ok_ = true;
};

Result<LinkFrame> decode_hello(Reader& reader) {
  const uint32_t magic = reader.number<uint32_t>();
  const uint16_t version = reader.number<uint16_t>();
  if (magic != kLinkMagic) return invalid_input(fmt::format("magic {:#x} wanted, {:#x} came", kLinkMagic, magic));
  if (version != kLinkVersion) {
    return invalid_input(fmt::format("wire version {} wanted, {} came", kLinkVersion, version));
  }
  HelloFrame hello;
  hello.epoch = reader.number<uint64_t>();
  hello.heartbeat_ms = reader.number<uint32_t>();
  hello.region_bytes = reader.number<uint64_t>();
  hello.gpu_memory = reader.text16(kMaxGpuMemoryName);
  return LinkFrame(std::move(hello));
}

Result<LinkFrame> decode_read_request(Reader& reader) {
  ReadRequestFrame request;
  request.tag = reader.number<uint64_t>();
  const uint32_t count = reader.number<uint32_t>();
  if (count == 0 || count > kMaxRequestParts) return corrupt(fmt::format("a read request of {} parts", count));
  request.parts.resize(count);
  for (ReadRequestFrame::Part& part : request.parts) {
    part.offset = reader.number<uint64_t>();
    part.bytes = reader.number<uint32_t>();
  }
  return LinkFrame(std::move(request));
}

struct Encode {
  std::string operator()(const HelloFrame& hello) const {
    Writer writer(FrameType::kHello);
    writer.number(kLinkMagic);
    writer.number(kLinkVersion);
    writer.number(hello.epoch);
    writer.number(hello.heartbeat_ms);
    writer.number(hello.region_bytes);
    writer.text16(hello.gpu_memory);
    return writer.take();
  }
  std::string operator()(const RefuseFrame& refuse) const { return with_reason(FrameType::kRefuse, refuse.reason); }
  std::string operator()(const ByeFrame& bye) const { return with_reason(FrameType::kBye, bye.reason); }
  std::string operator()(const MessageFrame& message) const {
    Writer writer(FrameType::kMessage);
    writer.number(message.total_bytes);
    writer.rest(message.part);
    return writer.take();
  }
  std::string operator()(const ContinueFrame& next) const {
    Writer writer(FrameType::kContinue);
    writer.rest(next.part);
    return writer.take();
  }
  std::string operator()(const HeartbeatFrame& heartbeat) const {
    Writer writer(FrameType::kHeartbeat);
    writer.number(heartbeat.epoch);
    return writer.take();
  }
  std::string operator()(const ReadRequestFrame& request) const {
    Writer writer(FrameType::kReadRequest);
    writer.number(request.tag);
    writer.number(uint32_t(request.parts.size()));
    for (const ReadRequestFrame::Part& part : request.parts) {
      writer.number(part.offset);
      writer.number(part.bytes);
    }
    return writer.take();
  }
  std::string operator()(const ReadDataFrame& data) const {
    Writer writer(FrameType::kReadData);
    writer.number(data.tag);
    writer.rest(data.bytes);
    return writer.take();
  }
  static std::string with_reason(FrameType type, std::string_view reason) {
    Writer writer(type);
    writer.text16(reason.substr(0, kMaxReasonBytes));
    return writer.take();
  }
};

Result<LinkFrame> decode_body(FrameType type, Reader& reader) {
  switch (type) {
    case FrameType::kHello: return decode_hello(reader);
    case FrameType::kRefuse: return LinkFrame(RefuseFrame{reader.text16(kMaxReasonBytes)});
    case FrameType::kBye: return LinkFrame(ByeFrame{reader.text16(kMaxReasonBytes)});
    case FrameType::kHeartbeat: return LinkFrame(HeartbeatFrame{reader.number<uint64_t>()});
    case FrameType::kContinue: return LinkFrame(ContinueFrame{reader.rest()});
    case FrameType::kMessage: {
      const uint32_t total = reader.number<uint32_t>();
      return LinkFrame(MessageFrame{total, reader.rest()});
    }
    case FrameType::kReadRequest: return decode_read_request(reader);
    case FrameType::kReadData: {
      const uint64_t tag = reader.number<uint64_t>();
      return LinkFrame(ReadDataFrame{tag, reader.rest()});
    }
  }
  return corrupt(fmt::format("frame type {}", int(type)));
}

}  // namespace

Result<LinkFrame> decode_link_frame(std::string_view bytes) {
  Reader reader(bytes);
  const auto type = FrameType(reader.number<uint8_t>());
  auto frame = decode_body(type, reader);
  if (frame && !reader.done()) {
    return corrupt(fmt::format("frame of type {} and {} bytes is cut or too long", int(type), bytes.size()));
  }
  return frame;
}

std::string encode_link_frame(const LinkFrame& frame) { return std::visit(Encode{}, frame); }

}  // namespace tandem::kv
