// Binary messages between processes: integers little-endian and packed, texts and lists behind a u32 count. A writer
// and a reader of the same verbs, so that one list of fields serves both directions. Values; any thread.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

namespace tandem {

static_assert(std::endian::native == std::endian::little, "the wire is little-endian");

class ByteWriter {
 public:
  static constexpr bool kReads = false;

  template <class T>
  void number(const T& value) {
    static_assert(std::is_arithmetic_v<T> || std::is_enum_v<T>);
    char bytes[sizeof(T)];
    std::memcpy(bytes, &value, sizeof(T));
    out_.append(bytes, sizeof(T));
  }
  // Cut at the limit that the reader has.
  void text(std::string_view value, size_t limit) {
    value = value.substr(0, limit);
    number(uint32_t(value.size()));
    out_.append(value);
  }
  void flag(bool value) { number(uint8_t(value ? 1 : 0)); }
  void raw(std::string_view bytes) { out_.append(bytes); }

  size_t size() const { return out_.size(); }
  std::string take() { return std::exchange(out_, {}); }

 private:
  std::string out_;
};

// Reads until something does not fit; from then on everything is zero or empty, and fault() says why.
class ByteReader {
 public:
  static constexpr bool kReads = true;

  explicit ByteReader(std::string_view bytes) : rest_(bytes) {}

  template <class T>
  void number(T& value) {
    static_assert(std::is_arithmetic_v<T> && !std::is_same_v<T, bool>);
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
  void text(std::string& value, size_t limit) { value.assign(raw(count(1, limit))); }
  // A count of elements of at least this size that are really there: what may size an allocation.
  size_t count(size_t element_bytes, size_t limit) {
    uint32_t value = 0;
    number(value);
    if (value > limit || value > rest_.size() / element_bytes) {
      fail("a list is longer than the message or than allowed");
      return 0;
    }
    return value;
  }
  std::string_view raw(size_t bytes) {
    if (bytes > rest_.size()) {
      fail("it ends early");
      return {};
    }
    const std::string_view taken = rest_.substr(0, bytes);
    rest_.remove_prefix(bytes);
    return taken;
  }
  void fail(const char* why) {
    if (fault_ == nullptr) fault_ = why;
    rest_ = {};
  }

  const char* fault() const { return fault_; }  // null: none
  bool at_end() const { return rest_.empty(); }
  size_t rest_bytes() const { return rest_.size(); }

 private:
  std::string_view rest_;
  const char* fault_ = nullptr;
};

}  // namespace tandem
