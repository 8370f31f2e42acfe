// Command-line flags as a table: a row per flag, parsed as argparse would: "--flag value", "--flag=value", unambiguous
// prefixes, space-separated lists, the last of several repetitions wins. Only `app` sees flags.
// Why not CLI11: docs/decisions/0001-flags-as-a-table.md.
#pragma once

#include <set>
#include <span>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace tandem::app {

enum class FlagKind : uint8_t { kSwitch, kInt, kFloat, kString, kIntList, kStringList, kStringRows };

// What this version does with a flag whose value is not the default.
enum class FlagSupport : uint8_t {
  kWorks,
  kLater,     // parsed and validated; starting with it is refused as "not in this version"
  kHarmless,  // has nothing to do here; named once at start
};

struct Flag {
  const char* names;  // "--tp-size,--tensor-parallel-size"; the first gives the field name tp_size
  FlagKind kind;
  const char* default_text;  // nullptr: none (null in JSON)
  const char* choices;       // "a|b|c", or nullptr
  FlagSupport support;
  const char* help;
};

// Values by field name (dashes become underscores), every row of the table present.
class FlagValues {
 public:
  const json::Value& at(std::string_view field) const;
  bool has(std::string_view field) const { return !at(field).is_null(); }
  bool given(std::string_view field) const { return given_.contains(std::string(field)); }
  int64_t integer(std::string_view field) const { return at(field).as_int64(); }
  double number(std::string_view field) const;
  bool enabled(std::string_view field) const { return at(field).as_bool(); }
  std::string text(std::string_view field) const { return std::string(at(field).as_string()); }
  std::vector<int64_t> integers(std::string_view field) const;
  std::vector<std::string> texts(std::string_view field) const;
  std::vector<std::vector<std::string>> rows(std::string_view field) const;  // kStringRows: one per repetition

  void set(std::string_view field, json::Value value) { values_[field] = std::move(value); }
  const json::Object& all() const { return values_; }

 private:
  friend struct FlagParser;
  json::Object values_;
  std::set<std::string> given_;
};

struct ParseOutcome {
  FlagValues values;
  bool help_shown = false;  // the text went to stdout; exit 0
};

// args: without program and command name. Errors: one line, as argparse words it (the caller exits with 2).
Result<ParseOutcome> parse_flags(std::string_view command, std::string_view about, std::span<const Flag> table,
                                 std::span<const std::string> args);

std::string field_name(const Flag& flag);

}  // namespace tandem::app
