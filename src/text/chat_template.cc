#include "text/chat_template.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <vector>

#include "text/files.h"
#include "text/json_reader.h"

namespace tandem::text {
namespace {

// bos_token and its like: a string, an AddedToken object, or absent.
Result<std::string> token_text(const JsonReader& config, std::string_view key) {
  auto element = config.find(key);
  std::string_view text;
  if (element && element->get(text)) {
    ASSIGN_OR_RETURN(JsonReader object, config.child(key));
    ASSIGN_OR_RETURN(text, object.string("content"));
  }
  return std::string(text);
}

// chat_template: a string, or a list of named ones, of which "default" is meant.
Result<std::string> template_text(const JsonReader& config) {
  auto element = config.find("chat_template");
  if (!element) return not_found(fmt::format("{}: has no chat_template", config.file()));
  std::string_view text;
  if (!element->get(text)) return std::string(text);
  simdjson::dom::array list;
  if (element->get(list)) return config.wrong("chat_template", "must be a string or a list");
  for (simdjson::dom::element entry : list) {
    ASSIGN_OR_RETURN(JsonReader named, JsonReader::object(entry, config.file(), "chat_template[]"));
    ASSIGN_OR_RETURN(std::string_view name, named.string("name"));
    ASSIGN_OR_RETURN(text, named.string("template"));
    if (name == "default") return std::string(text);
  }
  return config.wrong("chat_template", "has no template named 'default'");
}

bool is_known_role(std::string_view role) { return role == "system" || role == "user" || role == "assistant"; }

jinja::Value message_value(const ChatMessage& message) {
  jinja::Fields fields;
  fields["role"] = jinja::Value::text(message.role);
  fields["content"] = jinja::Value::text(message.content);
  return jinja::Object(std::make_shared<jinja::Fields>(std::move(fields)));
}

}  // namespace

Result<ChatTemplate> ChatTemplate::load(const std::string& directory) {
  namespace fs = std::filesystem;
  fs::path config_path = fs::path(directory) / "tokenizer_config.json";
  ASSIGN_OR_RETURN(json::Document document, json::Document::load(config_path.string()));
  ASSIGN_OR_RETURN(JsonReader config, JsonReader::object(document.root(), config_path.native(), ""));
  ASSIGN_OR_RETURN(std::string bos, token_text(config, "bos_token"));
  ASSIGN_OR_RETURN(std::string eos, token_text(config, "eos_token"));
  fs::path jinja_path = fs::path(directory) / "chat_template.jinja";
  std::error_code ignored;
  if (fs::exists(jinja_path, ignored)) {
    ASSIGN_OR_RETURN(std::string source, read_file(jinja_path));
    return parse(source, std::move(bos), std::move(eos), jinja_path.native());
  }
  ASSIGN_OR_RETURN(std::string source, template_text(config));
  return parse(source, std::move(bos), std::move(eos), config_path.native());
}

Result<ChatTemplate> ChatTemplate::parse(std::string_view source, std::string bos, std::string eos,
                                         std::string_view name) {
  ChatTemplate result;
  result.bos_ = std::move(bos), result.eos_ = std::move(eos);
  auto wrong = [&](const Error& error) {
    return Error{error.code, fmt::format("{}: chat_template is not understood: {}", name, error.message)};
  };
  auto program = jinja::Program::compile(source);
  if (!program) return wrong(program.error());
  result.program_ = std::move(program).value();
  if (Status status = result.check(); !status) return wrong(status.error());
  return result;
}

// A conversation goes through, and everything said comes out in order.
Status ChatTemplate::check() const {
  const std::vector<ChatMessage> probe = {{"user", "probe-one"}, {"assistant", "probe-two"}, {"user", "probe-three"}};
  ASSIGN_OR_RETURN(std::string text, run(probe, true));
  size_t at = 0;
  for (const ChatMessage& message : probe) {
    at = text.find(message.content, at);
    if (at == text.npos) return invalid_input(fmt::format("it loses what the {} says", message.role));
  }
  if (text.ends_with("probe-three")) return invalid_input("it has no generation prompt");
  return Ok{};
}

Result<std::string> ChatTemplate::run(std::span<const ChatMessage> messages, bool add_generation_prompt) const {
  std::vector<jinja::Value> list;
  for (const ChatMessage& message : messages) list.push_back(message_value(message));
  jinja::Fields variables;
  variables["messages"] = jinja::List(std::make_shared<const std::vector<jinja::Value>>(std::move(list)));
  variables["add_generation_prompt"] = add_generation_prompt;
  // transformers passes these two as None where there are none.
  variables["tools"] = variables["documents"] = jinja::None{};
  if (!bos_.empty()) variables["bos_token"] = jinja::Value::text(bos_);
  if (!eos_.empty()) variables["eos_token"] = jinja::Value::text(eos_);
  return program_.run(std::move(variables));
}

Result<std::string> ChatTemplate::render(std::span<const ChatMessage> messages, bool add_generation_prompt,
                                         bool continue_final_message) const {
  if (messages.empty()) return invalid_input("messages: is empty, at least one message is needed");
  for (size_t i = 0; i < messages.size(); ++i) {
    if (is_known_role(messages[i].role)) continue;
    return invalid_input(
        fmt::format("messages[{}].role: '{}' is not one of system, user, assistant", i, messages[i].role));
  }
  if (!continue_final_message) return run(messages, add_generation_prompt);
  if (messages.back().role != "assistant") {
    return invalid_input(
        fmt::format("continue_final_message: the last message is the {}'s, not the assistant's", messages.back().role));
  }
  // A mark behind the last content shows where the template would close the message, whatever it does to the content.
  std::string mark = "\x02";
  auto contains_mark = [&](const ChatMessage& message) { return message.content.find(mark) != std::string::npos; };
  while (std::any_of(messages.begin(), messages.end(), contains_mark)) mark += "\x02";
  std::vector<ChatMessage> marked(messages.begin(), messages.end());
  marked.back().content += mark;
  ASSIGN_OR_RETURN(std::string text, run(marked, false));
  size_t end = text.rfind(mark);
  if (end == text.npos) return invalid_input("continue_final_message: the template does not show the last message");
  text.resize(end);
  return text;
}

}  // namespace tandem::text
