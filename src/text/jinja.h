// A chat template as a program: the part of Jinja2 that chat templates are written in, with the whitespace rules that
// transformers sets (trim_blocks, lstrip_blocks). Compiling refuses by name what is not understood; running is bounded
// in steps and bytes. Not HTML, no includes, no macros. Immutable after compile; any thread. Source: the Jinja2 3.1
// template designer documentation; oracle: jinja2 itself (tools/check_chat_template.py).
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/result.h"

namespace tandem::text::jinja {

struct Value;
struct Undefined {};
struct None {};
using Text = std::shared_ptr<const std::string>;  // shared: messages are large, values are copied
using List = std::shared_ptr<const std::vector<Value>>;
using Fields = std::map<std::string, Value, std::less<>>;
using Object = std::shared_ptr<Fields>;  // shared: namespace() objects are changed through every name they have

struct Value {
  std::variant<Undefined, None, bool, int64_t, Text, List, Object> data;

  Value() = default;
  template <class T>
  Value(T value) : data(std::move(value)) {}
  static Value text(std::string bytes) { return Text(std::make_shared<const std::string>(std::move(bytes))); }
  template <class T>
  const T* get() const {
    return std::get_if<T>(&data);
  }
};

struct Block;

class Program {
 public:
  // Errors say what was found and in which line of the template.
  static Result<Program> compile(std::string_view source);
  // Errors: raise_exception() of the template, an operation that its values do not allow, limits.
  Result<std::string> run(Fields variables) const;

 private:
  std::shared_ptr<const Block> body_;  // shared by copies of the program; immutable
};

}  // namespace tandem::text::jinja
