#include "kv/transfers/read_faults.h"

#ifdef TANDEM_FAULTS

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "base/log.h"

namespace tandem::kv {
namespace {

struct Named {
  std::string_view name;
  ReadFaultPlan::Kind kind;
};
constexpr Named kKinds[] = {{"flip", ReadFaultPlan::Kind::kFlip},
                            {"other", ReadFaultPlan::Kind::kOther},
                            {"stale", ReadFaultPlan::Kind::kStale},
                            {"twice", ReadFaultPlan::Kind::kTwice}};

}  // namespace

Result<ReadFaultPlan> parse_read_faults(const std::string& text) {
  const size_t colon = text.find(':');
  const std::string_view name = std::string_view(text).substr(0, colon);
  const auto found = std::ranges::find(kKinds, name, &Named::name);
  const double rate = colon == std::string::npos ? -1 : std::strtod(text.c_str() + colon + 1, nullptr);
  if (found == std::end(kKinds) || !(rate > 0 && rate <= 1)) {
    return invalid_input(
        fmt::format("wanted flip, other, stale or twice, and a share, as in flip:0.1, got '{}'", text));
  }
  return ReadFaultPlan{found->kind, rate};
}

std::string_view ReadFaults::spoil(std::string_view bytes) {
  was_drawn_ = !bytes.empty() && plan_.kind != ReadFaultPlan::Kind::kNone &&
               std::uniform_real_distribution<double>(0, 1)(random_) < plan_.rate;
  spoiled_ = bytes;
  if (was_drawn_) {
    log::warning("fault point: {} bytes of a read spoiled", bytes.size());
    const uint64_t drawn = random_();
    if (plan_.kind == ReadFaultPlan::Kind::kFlip) spoiled_[drawn / 8 % bytes.size()] ^= char(1 << drawn % 8);
    if (plan_.kind == ReadFaultPlan::Kind::kOther && region_.size() > bytes.size()) {
      std::memcpy(spoiled_.data(), region_.data() + drawn % (region_.size() - bytes.size()), bytes.size());
    }
    if (plan_.kind == ReadFaultPlan::Kind::kStale) {
      std::memcpy(spoiled_.data(), earlier_.data(), std::min(earlier_.size(), bytes.size()));
    }
  }
  earlier_ = bytes;
  return spoiled_;
}

}  // namespace tandem::kv

#endif
