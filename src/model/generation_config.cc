#include <fmt/format.h>

#include <filesystem>

#include "model/config.h"
#include "model/parse/config_reader.h"

namespace tandem::model {

Result<GenerationDefaults> load_generation_defaults(const std::string& directory) {
  const std::string path = directory + "/generation_config.json";
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return GenerationDefaults{};
  ASSIGN_OR_RETURN(const json::Document document, json::Document::load(path));
  simdjson::dom::object object;
  if (document.root().get(object) != simdjson::SUCCESS) {
    return invalid_input(fmt::format("{}: must be a JSON object", path));
  }
  ConfigReader in(path, object);
  GenerationDefaults d;
  if (in.has("temperature")) d.temperature = in.number_or("temperature", 1, 0, 1000);
  if (in.has("top_p")) d.top_p = in.number_or("top_p", 1, 1e-6, 1);
  if (in.has("min_p")) d.min_p = in.number_or("min_p", 0, 0, 1);
  if (in.has("repetition_penalty")) d.repetition_penalty = in.number_or("repetition_penalty", 1, 1e-3, 100);
  if (in.has("top_k")) {
    d.top_k = in.integer("top_k", {-1, 1 << 30});
    if (*d.top_k == 0) d.top_k = -1;  // transformers says 0 for "all"
  }
  d.eos_token_ids = in.integers("eos_token_id", {0, 1 << 24});
  RETURN_IF_ERROR(in.status());
  return d;
}

}  // namespace tandem::model
