#include "api/bootstrap.h"

#include <fmt/format.h>

#include <bit>
#include <cctype>
#include <charconv>
#include <cstring>
#include <iterator>

#include "base/json.h"

namespace tandem::api {

namespace {

constexpr size_t kMaxDepth = 512;
constexpr size_t kMaxRoutingText = 256 << 10;  // bytes; a longer prompt is known by its beginning

// One JSON value inside the body, as far as routing cares.
struct Seen {
  std::string_view raw;
  size_t elements = 0;  // of an array
  char first = 0;       // the first byte of its first element; 0: empty
};

class Scanner {
 public:
  explicit Scanner(std::string_view text) : begin_(text.data()), p_(begin_), end_(begin_ + text.size()) {}

  Error error(std::string_view what) const {
    return invalid_input(fmt::format("the body is not valid JSON: {} at byte {}", what, p_ - begin_));
  }
  bool at_end() {
    skip_space();
    return p_ == end_;
  }
  bool take(char c) {
    skip_space();
    if (p_ == end_ || *p_ != c) return false;
    ++p_;
    return true;
  }
  const char* position() const { return p_; }

  // The characters between the quotes, escapes as they are.
  Result<std::string_view> string() {
    if (!take('"')) return error("a string was wanted");
    const char* start = p_;
    RETURN_IF_ERROR(finish_string());
    return std::string_view(start, p_ - 1 - start);
  }

  Result<Seen> value() {
    skip_space();
    Seen seen;
    const char* start = p_;
    if (p_ == end_) return error("a value was wanted");
    if (*p_ == '"') {
      ++p_;
      RETURN_IF_ERROR(finish_string());
    } else if (*p_ == '[' || *p_ == '{') {
      RETURN_IF_ERROR(nested(seen));
    } else {
      RETURN_IF_ERROR(scalar());
    }
    seen.raw = {start, static_cast<size_t>(p_ - start)};
    return seen;
  }

 private:
  void skip_space() {
    while (p_ != end_ && (*p_ == ' ' || *p_ == '\n' || *p_ == '\r' || *p_ == '\t')) ++p_;
  }

  // Eight bytes a step, for prompts of hundreds of megabytes: the high bit of each byte of `eight` that is c.
  static uint64_t equal_bytes(uint64_t eight, char c) {
    constexpr uint64_t kOnes = 0x0101010101010101u, kLows = 0x7f7f7f7f7f7f7f7fu;
    const uint64_t x = eight ^ (kOnes * static_cast<unsigned char>(c));
    return ~(((x & kLows) + kLows) | x | kLows);
  }

  // Over numbers, commas and spaces to where a bracket or quote is near; the commas on the way, if they are wanted.
  size_t skip_plain(bool count) {
    constexpr uint64_t kCase = 0x2020202020202020u;  // makes '[' a '{' and ']' a '}'
    size_t commas = 0;
    while (end_ - p_ >= 8) {
      uint64_t eight;
      std::memcpy(&eight, p_, 8);
      if (equal_bytes(eight | kCase, '{') | equal_bytes(eight | kCase, '}') | equal_bytes(eight, '"')) break;
      if (count) commas += static_cast<size_t>(std::popcount(equal_bytes(eight, ',')));
      p_ += 8;
    }
    return commas;
  }

  // Behind the opening quote.
  Status finish_string() {
    for (;;) {
      while (end_ - p_ >= 8) {
        uint64_t eight;
        std::memcpy(&eight, p_, 8);
        if (equal_bytes(eight, '"') | equal_bytes(eight, '\\')) break;
        p_ += 8;
      }
      while (p_ != end_ && *p_ != '"' && *p_ != '\\') ++p_;
      if (p_ == end_) return error("a string does not end");
      if (*p_++ == '"') return Ok{};
      if (p_ == end_) return error("a string does not end");
      ++p_;
    }
  }

  Status scalar() {
    const char* start = p_;
    while (p_ != end_ && (std::isalnum(static_cast<unsigned char>(*p_)) || *p_ == '-' || *p_ == '+' || *p_ == '.')) {
      ++p_;
    }
    std::string_view token(start, p_ - start);
    if (token == "true" || token == "false" || token == "null") return Ok{};
    // from_chars also knows "nan" and "inf", which JSON does not.
    const size_t first_digit = token.starts_with('-') ? 1 : 0;
    const bool digits = first_digit < token.size() && token[first_digit] >= '0' && token[first_digit] <= '9';
    double number;
    auto [end, failed] = std::from_chars(token.data(), token.data() + token.size(), number);
    const bool parsed = failed == std::errc() || failed == std::errc::result_out_of_range;
    if (digits && parsed && end == token.data() + token.size()) return Ok{};
    p_ = start;
    return error("a value was wanted");
  }

  // Brackets must match and strings must end; what is between them is for the servers.
  Status nested(Seen& seen) {
    std::string open;
    const bool is_array = *p_ == '[';
    size_t commas = 0;
    for (;; ++p_) {
      if (seen.first != 0) commas += skip_plain(open.size() == 1);
      if (p_ == end_) return error("an array or object does not end");
      const char c = *p_;
      if (c == ' ' || c == '\n' || c == '\r' || c == '\t') continue;
      if (open.size() == 1 && seen.first == 0 && c != ']') seen.first = c;
      switch (c) {
        case '[':
        case '{':
          if (open.size() == kMaxDepth) return error("nested too deeply");
          open.push_back(c == '[' ? ']' : '}');
          break;
        case ']':
        case '}':
          if (open.back() != c) return error("brackets do not match");
          open.pop_back();
          if (open.empty()) {
            ++p_;
            seen.elements = is_array && seen.first != 0 ? commas + 1 : 0;
            return Ok{};
          }
          break;
        case '"':
          ++p_;
          RETURN_IF_ERROR(finish_string());
          --p_;
          break;
        case ',': commas += open.size() == 1; break;
        default: break;
      }
    }
  }

  const char* const begin_;
  const char* p_;
  const char* const end_;
};

// An escaped key, such as "bootstrap\u005froom", must not slip past.
Result<std::string> plain_key(std::string_view raw) {
  if (raw.find('\\') == std::string_view::npos) return std::string(raw);
  ASSIGN_OR_RETURN(auto document, json::Document::parse(fmt::format("\"{}\"", raw), "a key of the body"));
  std::string_view text;
  if (document.root().get_string().get(text)) return invalid_input("a key of the body is not a string");
  return std::string(text);
}

std::string_view inside_quotes(std::string_view raw) { return raw.substr(1, raw.size() - 2); }

// What one request's top level says; a later value of the same key replaces an earlier one, as in the servers.
struct TopLevel {
  std::optional<Seen> text, input_ids, prompt, messages, n;
  bool stream = false, return_logprob = false;
  size_t members = 0;
};

void note(TopLevel& top, std::string_view key, const Seen& value) {
  auto given = [&]() -> std::optional<Seen> {
    if (value.raw == "null") return std::nullopt;
    return value;
  };
  if (key == "text") top.text = given();
  if (key == "input_ids") top.input_ids = given();
  if (key == "prompt") top.prompt = given();
  if (key == "messages") top.messages = given();
  if (key == "n") top.n = given();
  if (key == "stream") top.stream = value.raw == "true";
  if (key == "return_logprob") top.return_logprob = value.raw != "false" && value.raw != "null";
}

// Overwrites `"key": value` and one comma beside it with spaces.
void blank_member(std::string& body, const char* start, const char* end) {
  char* first = body.data() + (start - body.data());
  char* last = body.data() + (end - body.data());
  char* next = last;
  auto is_space = [](char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; };
  while (is_space(*next)) ++next;
  if (*next == ',') {
    last = next + 1;
  } else {
    char* before = first - 1;
    while (is_space(*before)) --before;
    if (*before == ',') first = before;
  }
  std::memset(first, ' ', last - first);
}

Result<TopLevel> scan(std::string& body, const char*& closing) {
  TopLevel top;
  Scanner scanner(body);
  if (!scanner.take('{')) return scanner.error("an object was wanted");
  bool more = !scanner.take('}');
  while (more) {
    ASSIGN_OR_RETURN(auto raw_key, scanner.string());
    const char* start = raw_key.data() - 1;
    if (!scanner.take(':')) return scanner.error("':' was wanted");
    ASSIGN_OR_RETURN(auto value, scanner.value());
    const char* end = scanner.position();
    more = scanner.take(',');
    if (!more && !scanner.take('}')) return scanner.error("',' or '}' was wanted");
    ASSIGN_OR_RETURN(auto key, plain_key(raw_key));
    if (key == "bootstrap_host" || key == "bootstrap_port" || key == "bootstrap_room") {
      blank_member(body, start, end);
    } else {
      note(top, key, value);
      ++top.members;
    }
  }
  closing = scanner.position() - 1;
  if (!scanner.at_end()) return scanner.error("something follows the object");
  return top;
}

// Empty batches and wrong types are left to the servers, which answer 400.
void note_prompts(const std::optional<Seen>& prompts, bool numbers_are_one_prompt, RoutedBody& routed) {
  if (!prompts) return;
  const char kind = prompts->raw[0];
  routed.prompt_bytes = prompts->raw.size();
  if (kind == '"') routed.text = inside_quotes(prompts->raw);
  if (kind != '[' || prompts->elements == 0) return;
  const bool list_of_lists = prompts->first == '[';
  if (numbers_are_one_prompt && prompts->first != '"' && !list_of_lists) return;
  routed.batch_size = prompts->elements;
  if (prompts->first == '"') {
    size_t quote = prompts->raw.find('"') + 1;
    routed.text = prompts->raw.substr(quote, prompts->raw.find('"', quote) - quote);
  }
}

}  // namespace

Result<RoutedBody> prepare_routed_body(BodyKind kind, std::string& body) {
  const char* closing = nullptr;
  ASSIGN_OR_RETURN(TopLevel top, scan(body, closing));
  RoutedBody routed;
  routed.stream = top.stream;
  routed.has_return_logprob = top.return_logprob;
  routed.is_empty_object = top.members == 0;
  if (kind == BodyKind::kGenerate) {
    note_prompts(top.text ? top.text : top.input_ids, !top.text, routed);
  } else if (kind == BodyKind::kCompletions) {
    note_prompts(top.prompt, true, routed);
  } else {
    size_t n = 0;
    if (top.n) {
      std::string_view raw = top.n->raw;
      auto [end, failed] = std::from_chars(raw.data(), raw.data() + raw.size(), n);
      if (failed == std::errc::result_out_of_range) n = kMaxRoutedBatch + 1;
    }
    if (n > 1) routed.batch_size = n;
    // Turns of one conversation differ behind the closing bracket only.
    if (top.messages) routed.prompt_bytes = top.messages->raw.size();
    if (top.messages) routed.text = top.messages->raw.substr(0, top.messages->raw.size() - 1);
  }
  if (routed.batch_size.value_or(0) > kMaxRoutedBatch) {
    return invalid_input(
        fmt::format("a batch of {} prompts; at most {} are routed at once", *routed.batch_size, kMaxRoutedBatch));
  }
  routed.text = routed.text.substr(0, kMaxRoutingText);
  size_t keep = closing - body.data();
  body.resize(keep);
  return routed;
}

std::string bootstrap_tail(const RoutedBody& body, std::string_view host, std::optional<uint16_t> port,
                           std::span<const uint64_t> rooms) {
  CHECK(rooms.size() == body.batch_size.value_or(1));
  const std::string quoted_host = json::dump(json::Value(host));
  const std::string port_text = port ? std::to_string(*port) : "null";
  std::string tail = body.is_empty_object ? "" : ",";
  auto out = std::back_inserter(tail);
  if (!body.batch_size) {
    fmt::format_to(out, R"("bootstrap_host":{},"bootstrap_port":{},"bootstrap_room":{}}})", quoted_host, port_text,
                   rooms[0]);
    return tail;
  }
  auto repeat = [&](std::string_view name, auto&& entry) {
    fmt::format_to(out, R"("{}":[)", name);
    for (size_t i = 0; i < rooms.size(); ++i) {
      if (i > 0) tail.push_back(',');
      entry(i);
    }
    tail.push_back(']');
  };
  repeat("bootstrap_host", [&](size_t) { tail.append(quoted_host); });
  tail.push_back(',');
  repeat("bootstrap_port", [&](size_t) { tail.append(port_text); });
  tail.push_back(',');
  repeat("bootstrap_room", [&](size_t i) { fmt::format_to(out, "{}", rooms[i]); });
  tail.push_back('}');
  return tail;
}

}  // namespace tandem::api
