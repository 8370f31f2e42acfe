// /generate, /v1/completions, /v1/chat/completions.
#include "server/endpoints/endpoints.h"

namespace tandem::server {

void post_generate(Core& core, net::HttpRequest request, const Writer& writer) {
  core.generate(api::Dialect::kNative, std::move(request), writer);
}

void post_completions(Core& core, net::HttpRequest request, const Writer& writer) {
  core.generate(api::Dialect::kCompletion, std::move(request), writer);
}

void post_chat_completions(Core& core, net::HttpRequest request, const Writer& writer) {
  core.generate(api::Dialect::kChat, std::move(request), writer);
}

}  // namespace tandem::server
