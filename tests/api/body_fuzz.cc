// Any bytes as the body of each parsing endpoint: a value or an error, never a crash; and what is accepted holds what
// the server relies on.
#include <cstdint>
#include <string_view>

#include "api/control.h"
#include "api/native.h"
#include "api/openai.h"

namespace {

void check(const tandem::Result<tandem::api::Call>& call) {
  if (!call || call->refusal) return;
  CHECK(!call->items.empty());
  CHECK(call->sampling.size() == 1 || call->sampling.size() == call->items.size());
  CHECK(call->n >= 1);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view body(reinterpret_cast<const char*>(data), size);
  check(tandem::api::parse_generate(body));
  check(tandem::api::parse_completion(body));
  check(tandem::api::parse_chat(body, {}));
  static_cast<void>(tandem::api::parse_abort(body));
  static_cast<void>(tandem::api::parse_tokenize(body));
  static_cast<void>(tandem::api::parse_detokenize(body));
  return 0;
}
