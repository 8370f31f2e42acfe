// Expected failures as values. Result<T> holds a T or an Error; Status is a Result without a value.
// Whoever creates an Error says what was wanted and what came, with ids; whoever decides the outcome logs it, once.
// Any thread; values.
#pragma once

#include <string>
#include <utility>
#include <variant>

#include "base/check.h"

namespace tandem {

// Chosen by what a caller does about it; api::http_status() maps a code to an HTTP status.
enum class ErrorCode {
  kInvalidInput,  // the sender must change something: 400, or exit 2 for flags and files
  kNotFound,      // 404
  kExhausted,     // full for now, try again later: 503 or 429
  kTimeout,       // a deadline passed
  kCancelled,     // somebody asked for the end
  kPeerLost,      // the other side went away
  kCorrupt,       // bytes are not what they claim to be
};

const char* to_string(ErrorCode code);

struct Error {
  ErrorCode code;
  std::string message;
};

template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}

  bool has_value() const { return state_.index() == 0; }
  explicit operator bool() const { return has_value(); }

  T& value() & {
    CHECK(has_value());
    return *std::get_if<0>(&state_);
  }
  const T& value() const& {
    CHECK(has_value());
    return *std::get_if<0>(&state_);
  }
  T&& value() && {
    CHECK(has_value());
    return std::move(*std::get_if<0>(&state_));
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  const Error& error() const {
    CHECK(!has_value());
    return *std::get_if<1>(&state_);
  }

 private:
  std::variant<T, Error> state_;
};

struct Ok {};
using Status = Result<Ok>;

inline Error invalid_input(std::string message) { return {ErrorCode::kInvalidInput, std::move(message)}; }
inline Error not_found(std::string message) { return {ErrorCode::kNotFound, std::move(message)}; }
inline Error exhausted(std::string message) { return {ErrorCode::kExhausted, std::move(message)}; }
inline Error timed_out(std::string message) { return {ErrorCode::kTimeout, std::move(message)}; }
inline Error cancelled(std::string message) { return {ErrorCode::kCancelled, std::move(message)}; }
inline Error peer_lost(std::string message) { return {ErrorCode::kPeerLost, std::move(message)}; }
inline Error corrupt(std::string message) { return {ErrorCode::kCorrupt, std::move(message)}; }

}  // namespace tandem

#define TANDEM_CONCAT_INNER(a, b) a##b
#define TANDEM_CONCAT(a, b) TANDEM_CONCAT_INNER(a, b)

// Returns the error of a Status (or Result) expression to the caller.
#define RETURN_IF_ERROR(expr)                           \
  do {                                                  \
    auto tandem_status = (expr);                        \
    if (!tandem_status) return tandem_status.error();   \
  } while (0)

// ASSIGN_OR_RETURN(auto config, parse(text)): the value, or the error to the caller.
#define ASSIGN_OR_RETURN(decl, expr) ASSIGN_OR_RETURN_INNER(TANDEM_CONCAT(tandem_result_, __LINE__), decl, expr)
#define ASSIGN_OR_RETURN_INNER(name, decl, expr) \
  auto name = (expr);                            \
  if (!name) return name.error();                \
  decl = std::move(name).value()
