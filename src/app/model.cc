#include <fmt/format.h>

#include "app/commands.h"
#include "app/embedded_model.h"
#include "app/flags.h"
#include "model/model.h"

namespace tandem::app {
namespace {

constexpr Flag kFlags[] = {
    {"--json-model-override-args", FlagKind::kString, "{}", nullptr, FlagSupport::kWorks,
     "JSON object whose keys replace config.json's"},
};

}  // namespace

int run_model(Args args) {
  if (args.empty() || args[0] != "show") {
    fmt::print(stderr, "usage: tandem model show [DIR] [--json-model-override-args JSON]\n");
    return args.empty() || (args[0] != "--help" && args[0] != "-h") ? 2 : 0;
  }
  args = args.subspan(1);
  std::string directory;
  if (!args.empty() && args[0].rfind("--", 0) != 0) {
    directory = args[0];
    args = args.subspan(1);
  }
  Result<ParseOutcome> parsed =
      parse_flags("model show [DIR]", "Shapes, bytes and parameters of a checkpoint.", kFlags, args);
  if (parsed && parsed->help_shown) return 0;
  if (parsed && directory.empty()) {
    Result<std::string> found = embedded_model_directory();
    if (!found) {
      fmt::print(stderr, "tandem model: error: {}\n", found.error().message);
      return 2;
    }
    directory = *found;
  }
  Result<std::string> text =
      parsed ? model::describe_checkpoint(directory, parsed->values.text("json_model_override_args"))
             : Result<std::string>(parsed.error());
  if (!text) {
    fmt::print(stderr, "tandem model: error: {}\n", text.error().message);
    return 2;
  }
  fmt::print("{}", *text);
  return 0;
}

}  // namespace tandem::app
