#include "text/jinja_lex.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace tandem::text::jinja {
namespace {

constexpr std::string_view kBlank = " \t\n\r\v\f";

bool is_name_start(char c) { return c == '_' || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z'); }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

Error fault(int line, std::string_view what) { return invalid_input(fmt::format("line {}: {}", line, what)); }

// Where the tag that begins at `at` ends: the closing braces outside of strings. npos: nowhere.
size_t find_close(std::string_view source, size_t at, std::string_view close) {
  char quote = 0;
  for (; at < source.size(); ++at) {
    char c = source[at];
    if (quote) {
      if (c == '\\')
        ++at;
      else if (c == quote)
        quote = 0;
    } else if (source.substr(at).starts_with(close)) {
      return at;
    } else if (c == '\'' || c == '"') {
      quote = c;
    }
  }
  return source.npos;
}

size_t find_open(std::string_view source, size_t at) {
  for (; (at = source.find('{', at)) != source.npos; ++at) {
    if (at + 1 < source.size() && std::string_view("{%#").find(source[at + 1]) != std::string_view::npos) return at;
  }
  return source.npos;
}

void trim_right(std::string& text) { text.erase(text.find_last_not_of(kBlank) + 1); }

// lstrip_blocks: the blanks between the start of the line and a block tag go.
void trim_line_start(std::string& text, bool begins_line) {
  size_t line = text.rfind('\n') + 1;  // npos + 1 is 0
  if ((line > 0 || begins_line) && text.find_first_not_of(" \t", line) == text.npos) text.erase(line);
}

class TagSplitter {
 public:
  explicit TagSplitter(std::string_view source) : source_(source) {}

  Result<std::vector<Tag>> run() {
    if (source_.ends_with('\n')) source_.remove_suffix(1);
    while (at_ < source_.size()) {
      size_t open = find_open(source_, at_);
      std::string text(source_.substr(at_, open == source_.npos ? open : open - at_));
      strip_front(text);
      if (open == source_.npos) {
        push_text(std::move(text));
        break;
      }
      line_ += static_cast<int>(std::count(source_.begin() + at_, source_.begin() + open, '\n'));
      RETURN_IF_ERROR(tag(open, std::move(text)));
    }
    return std::move(tags_);
  }

 private:
  // What the tag before asked for.
  void strip_front(std::string& text) {
    size_t count = 0;
    if (strip_all_) count = std::min(text.find_first_not_of(kBlank), text.size());
    if (strip_newline_) count = text.starts_with('\n') ? 1 : text.starts_with("\r\n") ? 2 : 0;
    begins_line_ = at_ == 0 || (count > 0 && text[count - 1] == '\n');
    text.erase(0, count);
    strip_all_ = strip_newline_ = false;
  }
  void push_text(std::string text) {
    if (!text.empty()) tags_.push_back({Tag::kText, std::move(text), line_});
  }

  Status tag(size_t open, std::string before) {
    char kind = source_[open + 1];
    std::string_view close = kind == '{' ? "}}" : kind == '%' ? "%}" : "#}";
    size_t end = kind == '#' ? source_.find(close, open + 2) : find_close(source_, open + 2, close);
    if (end == source_.npos) return fault(line_, fmt::format("'{{{}' is not closed", kind));
    std::string_view inside = source_.substr(open + 2, end - open - 2);
    if (inside.starts_with('-')) {
      trim_right(before);
    } else if (kind != '{' && !inside.starts_with('+')) {
      trim_line_start(before, begins_line_);
    }
    if (inside.starts_with('-') || inside.starts_with('+')) inside.remove_prefix(1);
    strip_all_ = inside.ends_with('-');
    bool keep_newline = inside.ends_with('+');
    strip_newline_ = kind != '{' && !strip_all_ && !keep_newline;
    if (strip_all_ || keep_newline) inside.remove_suffix(1);
    push_text(std::move(before));
    if (kind != '#') tags_.push_back({kind == '{' ? Tag::kOutput : Tag::kStatement, std::string(inside), line_});
    line_ += static_cast<int>(std::count(source_.begin() + open, source_.begin() + end, '\n'));
    at_ = end + 2;
    return Ok{};
  }

  std::string_view source_;
  size_t at_ = 0;
  int line_ = 1;
  bool strip_all_ = false, strip_newline_ = false;
  bool begins_line_ = true;  // the text before the next tag begins a line
  std::vector<Tag> tags_;
};

// source[at] is a quote. Appends the string's value; at moves behind it. The lexer knows that the string ends.
Status read_string(std::string_view source, size_t& at, int line, std::string& value) {
  constexpr std::array<std::pair<char, char>, 8> kEscapes = {
      {{'n', '\n'}, {'t', '\t'}, {'r', '\r'}, {'\\', '\\'}, {'\'', '\''}, {'"', '"'}, {'b', '\b'}, {'f', '\f'}}};
  char quote = source[at++];
  for (; at < source.size() && source[at] != quote; ++at) {
    if (source[at] != '\\') {
      value += source[at];
      continue;
    }
    char c = ++at < source.size() ? source[at] : '\0';
    auto found = std::find_if(kEscapes.begin(), kEscapes.end(), [&](const auto& row) { return row.first == c; });
    if (found == kEscapes.end()) return fault(line, fmt::format("escape '\\{}' in a string is not understood", c));
    value += found->second;
  }
  if (at >= source.size()) return fault(line, "a string is not closed");
  ++at;
  return Ok{};
}

}  // namespace

Result<std::vector<Tag>> split_tags(std::string_view source) { return TagSplitter(source).run(); }

Result<std::vector<Token>> split_tokens(const Tag& tag) {
  std::string_view source = tag.text;
  std::vector<Token> tokens;
  int line = tag.line;
  for (size_t at = 0; at < source.size();) {
    char c = source[at];
    size_t begin = at;
    if (kBlank.find(c) != kBlank.npos) {
      line += c == '\n';
      ++at;
    } else if (c == '\'' || c == '"') {
      Token token{Token::kString, "", line};
      RETURN_IF_ERROR(read_string(source, at, line, token.text));
      tokens.push_back(std::move(token));
    } else if (is_name_start(c)) {
      while (at < source.size() && (is_name_start(source[at]) || is_digit(source[at]))) ++at;
      tokens.push_back({Token::kName, std::string(source.substr(begin, at - begin)), line});
    } else if (is_digit(c)) {
      while (at < source.size() && is_digit(source[at])) ++at;
      if (at - begin > 15) return fault(line, "a number is too large");
      tokens.push_back({Token::kNumber, std::string(source.substr(begin, at - begin)), line});
    } else {
      std::string_view two = source.substr(at, 2);
      bool pair = two == "==" || two == "!=" || two == "<=" || two == ">=" || two == "//";
      if (!pair && std::string_view("+-~*%<>=.,:|()[]").find(c) == std::string_view::npos) {
        return fault(line, fmt::format("'{}' is not understood", c));
      }
      at += pair ? 2 : 1;
      tokens.push_back({Token::kOperator, std::string(source.substr(begin, at - begin)), line});
    }
  }
  tokens.push_back({Token::kEnd, "", line});
  return tokens;
}

}  // namespace tandem::text::jinja
