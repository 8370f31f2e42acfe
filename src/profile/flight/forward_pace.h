// Whether a rank that is silent computes: how long its forward pass under way has run, beside its earlier ones. Values.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "profile/flight/rank_view.h"

namespace tandem::profile {

struct ForwardPace {
  double running_s = 0;
  // Median of its earlier passes of the same phase and at least half as many tokens; of all of the phase where there
  // are none such. Negative: there is none at all.
  double usual_s = -1;
  double expected_s = -1;  // the same; where the earlier ones had fewer tokens, by their seconds per token

  // As long as this its earlier passes let expect it; of a first pass nobody can say.
  bool is_work() const { return expected_s >= 0 && running_s <= kSlack * expected_s; }
  // "in a forward pass for 4.0 s (earlier ones took 1.2 s)"
  std::string text() const;

  static constexpr double kSlack = 10;
};

// none: the rank is in no forward pass, or nobody has seen that its process runs.
std::optional<ForwardPace> forward_pace(const RankView& view, int64_t now_ns);

}  // namespace tandem::profile
