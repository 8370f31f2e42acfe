// /tokenize, /detokenize: the tokenizer by itself.
#include "api/control.h"
#include "api/error.h"
#include "server/endpoints/endpoints.h"

namespace tandem::server {
namespace {

using TokenizerRef = std::shared_ptr<const text::Tokenizer>;

net::HttpResponse refused(const Error& error) {
  net::HttpResponse response;
  response.status = api::http_status(error.code);
  response.body = api::validation_error_body(error.message);
  return response;
}

net::HttpResponse no_tokenizer() {
  return error_response(api::Dialect::kCompletion, 400, "This server has no tokenizer (skip_tokenizer_init is on).");
}

net::HttpResponse tokenize(const TokenizerRef& tokenizer, int32_t max_model_len, const std::string& body) {
  auto call = api::parse_tokenize(body);
  if (!call) return refused(call.error());
  std::vector<std::vector<int32_t>> tokens;
  for (const std::string& prompt : call->prompts) tokens.push_back(tokenizer->encode(prompt, call->add_special_tokens));
  net::HttpResponse response;
  response.body = api::format_tokenize(*call, tokens, max_model_len);
  return response;
}

net::HttpResponse detokenize(const TokenizerRef& tokenizer, const std::string& body) {
  auto call = api::parse_detokenize(body);
  if (!call) return refused(call.error());
  std::vector<std::string> texts;
  for (const auto& ids : call->tokens) texts.push_back(tokenizer->decode(ids, call->skip_special_tokens));
  net::HttpResponse response;
  response.body = api::format_detokenize(*call, texts);
  return response;
}

}  // namespace

void post_tokenize(Core& core, net::HttpRequest request, const Writer& writer) {
  TokenizerRef tokenizer = core.parts().tokenizer;
  if (!tokenizer) return writer->send(no_tokenizer());
  auto body = std::make_shared<std::string>(std::move(request.body));
  core.compute_then_reply(body->size(), writer, [tokenizer, body, length = core.config().context_length] {
    return tokenize(tokenizer, length, *body);
  });
}

void post_detokenize(Core& core, net::HttpRequest request, const Writer& writer) {
  TokenizerRef tokenizer = core.parts().tokenizer;
  if (!tokenizer) return writer->send(no_tokenizer());
  auto body = std::make_shared<std::string>(std::move(request.body));
  core.compute_then_reply(body->size(), writer, [tokenizer, body] { return detokenize(tokenizer, *body); });
}

}  // namespace tandem::server
