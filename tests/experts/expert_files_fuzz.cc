// Input: a load or placement file in any of the formats. What is read is valid, and is read again from what we write.
#include <cstdint>
#include <string>

#include "base/check.h"
#include "experts/files.h"

namespace {

using namespace tandem::experts;

ExpertFile read_back(const std::string& text) {
  auto file =
      parse_expert_file({reinterpret_cast<const uint8_t*>(text.data()), text.size()}, "again", {}, StepDetail::kSum);
  CHECK(file.has_value());
  return std::move(file).value();
}

void check_load(const LoadFile& file) {
  CHECK(file.load.tokens.size() == size_t(file.load.num_layers) * size_t(file.load.num_logical));
  for (int64_t tokens : file.load.tokens) CHECK(tokens >= 0);
  const ExpertFile again = read_back(format_load_json(file));
  CHECK(std::get<LoadFile>(again).load == file.load);
}

void check_placement(const PlacementFile& file) {
  CHECK(validate(file.placement, {1, 1, file.placement.num_slots}).has_value());
  const ExpertFile again = read_back(format_placement_json(file, PlacementForm::kOpen));
  CHECK(std::get<PlacementFile>(again).placement == file.placement);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto file = parse_expert_file({data, size}, "fuzz", {}, StepDetail::kKeepSteps);
  if (!file) {
    CHECK(!file.error().message.empty());
    CHECK(file.error().message.find('\n') == std::string::npos);
    return 0;
  }
  if (const auto* load = std::get_if<LoadFile>(&*file)) check_load(*load);
  if (const auto* placement = std::get_if<PlacementFile>(&*file)) check_placement(*placement);
  return 0;
}
