// What a router must know of a generation request, and how it adds the bootstrap fields that pair a prefill with a
// decode server. The body is scanned in one pass without a document tree and without memory of its own (a structural
// index of simdjson takes up to four bytes per byte of body); only the top level is understood, the servers judge the
// rest. Pure; any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace tandem::api {

enum class BodyKind {
  kGenerate,     // /generate: a list of texts or of id lists is a batch
  kCompletions,  // /v1/completions: a list of prompts is a batch
  kChat,         // /v1/chat/completions: n > 1 counts as a batch of n
};

// An object like the client's without its closing brace, ready for bootstrap_tail().
struct RoutedBody {
  std::optional<size_t> batch_size;  // absent: one prompt, scalar fields
  bool stream = false;
  bool has_return_logprob = false;  // the key is there with another value than false or null
  bool is_empty_object = false;     // the tail needs no comma
  size_t prompt_bytes = 0;          // of the value that holds the prompt or prompts, or the messages
  std::string_view text;  // borrowed from body: what prefix-aware routing looks at, JSON escapes left as they are
};

constexpr size_t kMaxRoutedBatch = 65536;

// Scans and trims `body` in place: its closing brace goes, and bootstrap_host, bootstrap_port and bootstrap_room that a
// client sent are blanked out, since the router's own replace them. Errors name what is wrong with the JSON.
Result<RoutedBody> prepare_routed_body(BodyKind kind, std::string& body);

// What follows a prepared body on the wire, closing brace included:
//   ,"bootstrap_host":"h","bootstrap_port":8998,"bootstrap_room":123}
// For a batch each field is an array of rooms.size() entries. An absent port is null: the server's default.
std::string bootstrap_tail(const RoutedBody& body, std::string_view host, std::optional<uint16_t> port,
                           std::span<const uint64_t> rooms);

}  // namespace tandem::api
