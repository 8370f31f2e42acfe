// ChatTemplate: renders messages as the model's chat_template does. The template runs in a small Jinja interpreter
// (jinja.h); one that it does not understand, or that loses what the user says, is an error at load.
// Immutable after load; any thread.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "base/result.h"
#include "text/jinja.h"

namespace tandem::text {

struct ChatMessage {
  std::string role;  // "system", "user", "assistant"; others are refused by render()
  std::string content;
};

class ChatTemplate {
 public:
  // directory: of tokenizer_config.json, and of chat_template.jinja, which wins where a model ships one. kNotFound: the
  // model has no template.
  static Result<ChatTemplate> load(const std::string& directory);
  // The same from text. name: for messages.
  static Result<ChatTemplate> parse(std::string_view source, std::string bos, std::string eos, std::string_view name);

  // Text for the tokenizer, begin-of-sentence included: encode it with add_bos = false.
  // continue_final_message: leave the last assistant message open instead of starting a new one; wins over
  // add_generation_prompt. Errors: a role the template cannot take (tools included), no messages, the template's
  // refusal.
  Result<std::string> render(std::span<const ChatMessage> messages, bool add_generation_prompt,
                             bool continue_final_message) const;

 private:
  ChatTemplate() = default;
  Status check() const;
  Result<std::string> run(std::span<const ChatMessage> messages, bool add_generation_prompt) const;

  std::string bos_, eos_;
  jinja::Program program_;
};

}  // namespace tandem::text
