// Any text as a --config file and as Slurm's list of nodes: arguments of known flags, names, or an error.
#include <cstdint>
#include <string_view>

#include "app/config_file.h"
#include "app/slurm.h"
#include "base/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tandem::app;
  using enum FlagKind;
  static constexpr Flag kTable[] = {
      {"--model-path,--model", kString, nullptr, nullptr, FlagSupport::kWorks, ""},
      {"--port", kInt, "30000", nullptr, FlagSupport::kWorks, ""},
      {"--skip", kSwitch, nullptr, nullptr, FlagSupport::kWorks, ""},
      {"--sizes", kIntList, nullptr, nullptr, FlagSupport::kWorks, ""},
  };
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (const auto args = parse_config("fuzz", text, kTable)) {
    static_cast<void>(parse_flags("fuzz", "", kTable, *args));
  } else {
    CHECK(!args.error().message.empty());
  }
  if (const auto names = expand_node_list(text)) CHECK(names->size() <= 65536);
  return 0;
}
