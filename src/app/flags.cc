#include "app/flags.h"

#include <fmt/format.h>

#include <charconv>
#include <cstdio>
#include <limits>
#include <map>

namespace tandem::app {
namespace {

std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= text.size();) {
    size_t end = text.find(separator, begin);
    if (end == std::string_view::npos) end = text.size();
    parts.emplace_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

bool takes_list(FlagKind kind) {
  return kind == FlagKind::kIntList || kind == FlagKind::kStringList || kind == FlagKind::kStringRows;
}

bool looks_like_flag(const std::string& token) {
  return token.size() > 2 && token.compare(0, 2, "--") == 0 && token[2] != '-';
}

Result<json::Value> convert(const Flag& flag, const std::string& name, const std::string& text) {
  if (flag.choices != nullptr) {
    for (const std::string& choice : split(flag.choices, '|')) {
      if (choice == text) return json::Value(text);
    }
    return invalid_input(fmt::format("argument {}: invalid choice: '{}' (choose from {})", name, text, flag.choices));
  }
  const char* end = text.data() + text.size();
  if (flag.kind == FlagKind::kInt || flag.kind == FlagKind::kIntList) {
    int64_t value = 0;
    auto [stop, error] = std::from_chars(text.data(), end, value);
    if (error != std::errc() || stop != end) {
      return invalid_input(fmt::format("argument {}: invalid int value: '{}'", name, text));
    }
    return json::Value(value);
  }
  if (flag.kind == FlagKind::kFloat) {
    if (text == "inf") return json::Value(std::numeric_limits<double>::infinity());
    double value = 0;
    auto [stop, error] = std::from_chars(text.data(), end, value);
    if (error != std::errc() || stop != end || value != value) {
      return invalid_input(fmt::format("argument {}: invalid float value: '{}'", name, text));
    }
    return json::Value(value);
  }
  return json::Value(text);
}

std::string help_text(std::string_view command, std::string_view about, std::span<const Flag> table) {
  std::string text = fmt::format("usage: tandem {} [flags]\n\n{}\n\n", command, about);
  for (const Flag& flag : table) {
    std::string left = "  " + std::string(flag.names);
    if (flag.choices != nullptr) left += fmt::format(" {{{}}}", flag.choices);
    text += fmt::format("{:<46} {}", left, flag.help);
    if (flag.default_text != nullptr) text += fmt::format(" (default {})", flag.default_text);
    if (flag.support == FlagSupport::kLater) text += " [not in this version]";
    text += '\n';
  }
  return text;
}

}  // namespace

std::string field_name(const Flag& flag) {
  std::string name = split(flag.names, ',').front().substr(2);
  for (char& c : name) {
    if (c == '-') c = '_';
  }
  return name;
}

struct FlagParser {
  std::span<const Flag> table;
  std::map<std::string, const Flag*> by_name;  // "--tp-size"
  FlagValues values;

  explicit FlagParser(std::span<const Flag> flags) : table(flags) {
    for (const Flag& flag : table) {
      for (const std::string& name : split(flag.names, ',')) by_name[name] = &flag;
    }
  }

  Result<const Flag*> find(const std::string& name) const {
    if (auto exact = by_name.find(name); exact != by_name.end()) return exact->second;
    const Flag* found = nullptr;
    std::string matches;
    for (auto it = by_name.lower_bound(name); it != by_name.end() && it->first.compare(0, name.size(), name) == 0;
         ++it) {
      if (found != nullptr && found != it->second) {
        return invalid_input(fmt::format("ambiguous option: {} could match {}, {}", name, matches, it->first));
      }
      found = it->second;
      matches += (matches.empty() ? "" : ", ") + it->first;
    }
    if (found == nullptr) return invalid_input(fmt::format("unrecognized arguments: {}", name));
    return found;
  }

  // Full names, no "=", only the last repetition of each flag but for kStringRows.
  Result<std::vector<std::vector<std::string>>> normalise(std::span<const std::string> args) const {
    std::vector<std::vector<std::string>> groups;
    for (size_t i = 0; i < args.size(); ++i) {
      if (!looks_like_flag(args[i])) return invalid_input(fmt::format("unrecognized arguments: {}", args[i]));
      size_t equals = args[i].find('=');
      std::string name = args[i].substr(0, equals);
      ASSIGN_OR_RETURN(const Flag* flag, find(name));
      std::vector<std::string> group = {split(flag->names, ',').front()};
      if (equals != std::string::npos) group.push_back(args[i].substr(equals + 1));
      size_t most = flag->kind == FlagKind::kSwitch ? 0 : takes_list(flag->kind) ? args.size() : 1;
      if (equals == std::string::npos) {
        while (group.size() - 1 < most && i + 1 < args.size() && !looks_like_flag(args[i + 1])) {
          group.push_back(args[++i]);
        }
      }
      if (flag->kind == FlagKind::kSwitch && group.size() > 1) {
        return invalid_input(fmt::format("argument {}: ignored explicit argument '{}'", group[0], group[1]));
      }
      if (flag->kind != FlagKind::kSwitch && group.size() == 1) {
        return invalid_input(fmt::format("argument {}: expected {} argument", group[0],
                                         takes_list(flag->kind) ? "at least one" : "one"));
      }
      if (flag->kind != FlagKind::kStringRows) {
        std::erase_if(groups, [&](const auto& earlier) { return earlier[0] == group[0]; });
      }
      groups.push_back(std::move(group));
    }
    return groups;
  }

  Status store(const std::vector<std::string>& group) {
    const Flag& flag = *by_name.at(group[0]);
    const std::string field = field_name(flag);
    bool first = values.given_.insert(field).second;
    if (flag.kind == FlagKind::kSwitch) {
      values.values_[field] = true;
      return Ok{};
    }
    json::Array list;
    for (size_t i = 1; i < group.size(); ++i) {
      ASSIGN_OR_RETURN(json::Value value, convert(flag, group[0], group[i]));
      list.push_back(std::move(value));
    }
    if (flag.kind == FlagKind::kStringRows) {
      if (first) values.values_[field] = json::Array();
      values.values_[field].as_array().push_back(std::move(list));
    } else if (takes_list(flag.kind)) {
      values.values_[field] = std::move(list);
    } else {
      values.values_[field] = std::move(list[0]);
    }
    return Ok{};
  }

  Status fill_defaults() {
    for (const Flag& flag : table) {
      const std::string field = field_name(flag);
      if (flag.kind == FlagKind::kSwitch) {
        values.values_[field] = false;
      } else if (flag.default_text == nullptr) {
        values.values_[field] = nullptr;
      } else if (takes_list(flag.kind)) {
        json::Array list;
        for (const std::string& part : split(flag.default_text, ' ')) {
          ASSIGN_OR_RETURN(json::Value value, convert(flag, field, part));
          list.push_back(std::move(value));
        }
        values.values_[field] = std::move(list);
      } else {
        ASSIGN_OR_RETURN(values.values_[field], convert(flag, field, flag.default_text));
      }
    }
    return Ok{};
  }
};

const json::Value& FlagValues::at(std::string_view field) const {
  const json::Value* value = values_.if_contains(field);
  CHECK(value != nullptr);  // a field that no table row has
  return *value;
}

double FlagValues::number(std::string_view field) const {
  const json::Value& value = at(field);
  return value.is_int64() ? double(value.as_int64()) : value.as_double();
}

std::vector<int64_t> FlagValues::integers(std::string_view field) const {
  std::vector<int64_t> list;
  if (!has(field)) return list;
  for (const json::Value& value : at(field).as_array()) list.push_back(value.as_int64());
  return list;
}

std::vector<std::string> FlagValues::texts(std::string_view field) const {
  std::vector<std::string> list;
  if (!has(field)) return list;
  for (const json::Value& value : at(field).as_array()) list.emplace_back(value.as_string());
  return list;
}

std::vector<std::vector<std::string>> FlagValues::rows(std::string_view field) const {
  std::vector<std::vector<std::string>> all;
  if (!has(field)) return all;
  for (const json::Value& row : at(field).as_array()) {
    std::vector<std::string>& list = all.emplace_back();
    for (const json::Value& value : row.as_array()) list.emplace_back(value.as_string());
  }
  return all;
}

Result<ParseOutcome> parse_flags(std::string_view command, std::string_view about, std::span<const Flag> table,
                                 std::span<const std::string> args) {
  FlagParser parser(table);
  RETURN_IF_ERROR(parser.fill_defaults());

  for (const std::string& arg : args) {
    if (arg == "--help" || arg == "-h") {
      std::fputs(help_text(command, about, table).c_str(), stdout);
      return ParseOutcome{std::move(parser.values), true};
    }
  }

  ASSIGN_OR_RETURN(auto groups, parser.normalise(args));
  for (const auto& group : groups) RETURN_IF_ERROR(parser.store(group));
  return ParseOutcome{std::move(parser.values), false};
}

}  // namespace tandem::app
