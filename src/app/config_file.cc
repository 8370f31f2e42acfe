#include "app/config_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <optional>
#include <set>
#include <sstream>

namespace tandem::app {
namespace {

constexpr std::string_view kSpace = " \t";
// First characters of a plain scalar that mean something else in YAML.
constexpr std::string_view kIndicators = "{}&*!|>%@`,?";

std::string_view trim(std::string_view text) {
  const size_t first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = char(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

struct Scalar {
  std::string text;
  bool quoted = false;
  bool is_null() const { return !quoted && (text.empty() || text == "~" || lower(text) == "null"); }
  // YAML 1.1's words for booleans, as PyYAML reads them.
  std::optional<bool> boolean() const {
    const std::string word = quoted ? "" : lower(text);
    if (word == "true" || word == "yes" || word == "on") return true;
    if (word == "false" || word == "no" || word == "off") return false;
    return std::nullopt;
  }
};

class ConfigReader {
 public:
  ConfigReader(std::string_view name, std::string_view text, std::span<const Flag> table)
      : name_(name), rest_(text), table_(table) {}

  Result<std::vector<std::string>> read();

 private:
  bool next_line();
  Error error(std::string_view what) const {
    return invalid_input(fmt::format("{}:{}: {}", name_, line_number_, what));
  }
  Result<const Flag*> find(std::string_view key);
  Result<Scalar> scalar(std::string_view& text, std::string_view ends) const;
  Result<std::string> quoted(std::string_view& text) const;
  Result<std::vector<Scalar>> flow_list(std::string_view text) const;
  Status member(std::string_view key, std::string_view value);
  Status block_list(const Flag& flag);
  Status add_list(const Flag& flag, const std::vector<Scalar>& items);
  Status add(const Flag& flag, const Scalar& value);

  const std::string_view name_;
  std::string_view rest_, line_;
  std::span<const Flag> table_;
  int line_number_ = 0;
  bool taken_ = true;  // line_ was used: the next one is wanted
  std::set<std::string> seen_;
  std::vector<std::string> args_;
};

std::string first_name(const Flag& flag) {
  const std::string_view names(flag.names);
  return std::string(names.substr(0, names.find(',')));
}

// The next line that holds something, without its end; comments that stand alone are skipped.
bool ConfigReader::next_line() {
  if (!taken_) return true;
  while (!rest_.empty()) {
    const size_t end = std::min(rest_.find('\n'), rest_.size());
    line_ = rest_.substr(0, end);
    rest_.remove_prefix(std::min(end + 1, rest_.size()));
    line_number_ += 1;
    if (line_.ends_with('\r')) line_.remove_suffix(1);
    const std::string_view content = trim(line_);
    const bool starts_document = content == "---" && args_.empty() && seen_.empty();
    if (content.empty() || content.front() == '#' || starts_document) continue;
    taken_ = false;
    return true;
  }
  return false;
}

Result<const Flag*> ConfigReader::find(std::string_view key) {
  std::string wanted = "--" + std::string(key);
  std::replace(wanted.begin() + 2, wanted.end(), '_', '-');
  for (const Flag& flag : table_) {
    const std::string names = "," + std::string(flag.names) + ",";
    if (names.find("," + wanted + ",") == std::string::npos) continue;
    if (first_name(flag) == "--config") return error("'config' belongs on the command line");
    if (!seen_.insert(first_name(flag)).second) return error(fmt::format("'{}' is given twice", key));
    return &flag;
  }
  return error(fmt::format("unknown flag '{}'", key));
}

// Behind the opening quote, which `text` begins with; leaves what follows the closing one.
Result<std::string> ConfigReader::quoted(std::string_view& text) const {
  const char quote = text.front();
  std::string out;
  for (size_t i = 1; i < text.size(); ++i) {
    const char c = text[i];
    const bool doubled = quote == '\'' && c == quote && i + 1 < text.size() && text[i + 1] == quote;
    if (c == quote && !doubled) {
      text.remove_prefix(i + 1);
      return out;
    }
    if (doubled) ++i;
    if (quote != '"' || c != '\\') {
      out += c;
      continue;
    }
    const char escaped = ++i < text.size() ? text[i] : '\0';
    constexpr std::string_view kEscapes = "\"\\/nt", kMeanings = "\"\\/\n\t";
    const size_t which = kEscapes.find(escaped);
    if (escaped == '\0' || which == std::string_view::npos) {
      return error("only \\\" \\\\ \\/ \\n and \\t are understood in double quotes");
    }
    out += kMeanings[which];
  }
  return error("a quoted text does not end on its line");
}

// Takes one scalar from the front of text, up to one of `ends` or a comment.
Result<Scalar> ConfigReader::scalar(std::string_view& text, std::string_view ends) const {
  text = trim(text);
  Scalar out;
  if (!text.empty() && (text.front() == '"' || text.front() == '\'')) {
    out.quoted = true;
    ASSIGN_OR_RETURN(out.text, quoted(text));
    text = trim(text);
    return out;
  }
  if (!text.empty() && kIndicators.find(text.front()) != std::string_view::npos) {
    return error(
        fmt::format("a value beginning with '{}' must be quoted; mappings, anchors and block texts are not "
                    "understood",
                    text.front()));
  }
  size_t end = 0;
  const auto is_comment = [&] { return text[end] == '#' && (end == 0 || text[end - 1] == ' '); };
  while (end < text.size() && ends.find(text[end]) == std::string_view::npos && !is_comment()) ++end;
  const std::string_view word = trim(text.substr(0, end));
  if (word.find(": ") != std::string_view::npos || word.ends_with(':'))
    return error("nested mappings are not understood");
  out.text = word;
  text = trim(text.substr(end));
  return out;
}

// text begins with '['; the list must end on the same line.
Result<std::vector<Scalar>> ConfigReader::flow_list(std::string_view text) const {
  std::vector<Scalar> items;
  text = trim(text.substr(1));
  while (!text.starts_with(']')) {
    ASSIGN_OR_RETURN(Scalar item, scalar(text, ",]["));
    if (item.text.empty() && !item.quoted) return error("a list has an empty item or does not end on its line");
    items.push_back(std::move(item));
    if (text.starts_with(']')) break;
    if (!text.starts_with(',')) return error("',' or ']' was wanted in a list");
    text = trim(text.substr(1));
  }
  text = trim(text.substr(1));
  if (!text.empty() && text.front() != '#') return error("something follows the list");
  return items;
}

Status ConfigReader::add(const Flag& flag, const Scalar& value) {
  const std::string name = first_name(flag);
  if (value.is_null()) return Ok{};  // as if it were not there
  const std::optional<bool> boolean = value.boolean();
  if (flag.kind == FlagKind::kSwitch) {
    if (!boolean) return error(fmt::format("{} wants true or false, got '{}'", name.substr(2), value.text));
    if (*boolean) args_.push_back(name);
    return Ok{};
  }
  if (boolean) return error(fmt::format("{} wants a value, got a boolean", name.substr(2)));
  args_.push_back(name + "=" + value.text);
  return Ok{};
}

Status ConfigReader::add_list(const Flag& flag, const std::vector<Scalar>& items) {
  const std::string name = first_name(flag);
  if (flag.kind != FlagKind::kIntList && flag.kind != FlagKind::kStringList) {
    return error(fmt::format("{} takes no list", name.substr(2)));
  }
  if (items.empty()) return Ok{};
  args_.push_back(name);
  for (const Scalar& item : items) {
    if (item.text.starts_with("--")) return error(fmt::format("'{}' in a list", item.text));
    args_.push_back(item.text);
  }
  return Ok{};
}

// "- item" lines below a key, at its indentation or deeper.
Status ConfigReader::block_list(const Flag& flag) {
  std::vector<Scalar> items;
  while (next_line()) {
    std::string_view content = trim(line_);
    if (!content.starts_with("- ") && content != "-") break;
    taken_ = true;
    content.remove_prefix(1);
    ASSIGN_OR_RETURN(Scalar item, scalar(content, ""));
    if (!content.empty() && content.front() != '#') return error("something follows the item");
    if (item.is_null()) return error("a list has an empty item");
    items.push_back(std::move(item));
  }
  return items.empty() ? Status(Ok{}) : add_list(flag, items);
}

Status ConfigReader::member(std::string_view key, std::string_view value) {
  ASSIGN_OR_RETURN(const Flag* flag, find(key));
  value = trim(value);
  if (value.empty() || value.front() == '#') return block_list(*flag);
  if (value.front() == '[') {
    ASSIGN_OR_RETURN(std::vector<Scalar> items, flow_list(value));
    return add_list(*flag, items);
  }
  ASSIGN_OR_RETURN(Scalar single, scalar(value, ""));
  if (!value.empty() && value.front() != '#') return error("something follows the value");
  return add(*flag, single);
}

Result<std::vector<std::string>> ConfigReader::read() {
  while (next_line()) {
    taken_ = true;
    if (kSpace.find(line_.front()) != std::string_view::npos) return error("an indented line belongs to nothing");
    const size_t colon = line_.find(':');
    const bool separated = colon != std::string_view::npos &&
                           (colon + 1 == line_.size() || kSpace.find(line_[colon + 1]) != std::string_view::npos);
    if (!separated) return error("wanted 'flag: value'");
    RETURN_IF_ERROR(member(trim(line_.substr(0, colon)), line_.substr(colon + 1)));
  }
  return std::move(args_);
}

}  // namespace

Result<std::vector<std::string>> parse_config(std::string_view name, std::string_view text,
                                              std::span<const Flag> table) {
  return ConfigReader(name, text, table).read();
}

Result<std::vector<std::string>> with_config_file(std::span<const Flag> table, std::span<const std::string> args) {
  std::vector<std::string> all;
  for (size_t i = 0; i < args.size(); ++i) {
    constexpr std::string_view kFlag = "--config";
    std::string path;
    if (args[i] == kFlag && i + 1 < args.size()) path = args[i + 1];
    if (args[i].starts_with(std::string(kFlag) + "=")) path = args[i].substr(kFlag.size() + 1);
    if (path.empty()) continue;
    std::ifstream file(path);
    std::stringstream text;
    if (!file || !(text << file.rdbuf())) return invalid_input(fmt::format("--config {}: cannot be read", path));
    ASSIGN_OR_RETURN(std::vector<std::string> from_file, parse_config(path, text.str(), table));
    all.insert(all.end(), from_file.begin(), from_file.end());
  }
  all.insert(all.end(), args.begin(), args.end());
  return all;
}

}  // namespace tandem::app
