// Values, and what can be done with them: operators, methods, filters, tests. Private to the room.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "base/result.h"
#include "text/jinja.h"

namespace tandem::text::jinja {

bool is_method(std::string_view name);
bool is_filter(std::string_view name);
bool is_test(std::string_view name);
bool is_function(std::string_view name);

const char* type_name(const Value& value);
bool truthy(const Value& value);
bool equal(const Value& a, const Value& b);
// As output and `~` spell it. Errors: lists and objects, whose Python spelling no template needs.
Result<std::string> to_text(const Value& value);

// Errors name the operation and the types.
Result<Value> binary(std::string_view name, const Value& a, const Value& b);
Result<Value> field_of(const Value& value, std::string_view name);
Result<Value> index_of(const Value& value, const Value& index);
// Bounds: none or undefined mean open.
Result<Value> slice_of(const Value& value, const Value& begin, const Value& end);
Result<Value> call_method(std::string_view name, const Value& self, std::span<const Value> args);
Result<Value> apply_filter(std::string_view name, const Value& value, std::span<const Value> args);
bool apply_test(std::string_view name, const Value& value);

}  // namespace tandem::text::jinja
