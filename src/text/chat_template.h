// ChatTemplate: renders messages as tokenizer_config.json's chat_template would. Understands the DeepSeek form; a
// template that is not understood is an error at load.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "base/result.h"

namespace tandem::text {

struct ChatMessage {
  std::string role;  // "system", "user", "assistant"; others are refused by render()
  std::string content;
};

class ChatTemplate {
 public:
  // directory: of tokenizer_config.json (and chat_template.jinja where a model ships one).
  static Result<ChatTemplate> load(const std::string& directory);

  // Text for the tokenizer, begin-of-sentence included: encode it with add_bos = false.
  // continue_final_message: leave the last assistant message open instead of starting a new one.
  Result<std::string> render(std::span<const ChatMessage> messages, bool add_generation_prompt,
                             bool continue_final_message) const;

 private:
  std::string bos_;
  std::string user_, assistant_, end_;
};

}  // namespace tandem::text
