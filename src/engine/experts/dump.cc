#include "engine/experts/dump.h"

#include <fmt/format.h>

#include <map>

#include "engine/experts/pass_dump.h"
#include "experts/torch_file.h"

namespace tandem::engine {

Result<std::string> dump_recording_file(const std::string& directory, double unix_time, int32_t num_layers,
                                        int32_t num_logical, std::span<const ExpertRecording> ranks,
                                        const DumpFacts& facts) {
  const size_t cells = size_t(num_layers) * size_t(num_logical);
  std::map<uint64_t, std::pair<size_t, std::vector<int64_t>>> sums;  // by step: ranks that have it, their counts
  for (const ExpertRecording& rank : ranks) {
    for (size_t i = 0; i < rank.steps.size(); ++i) {
      auto& [num_ranks, sum] = sums[rank.steps[i]];
      sum.resize(cells);
      num_ranks += 1;
      for (size_t c = 0; c < cells; ++c) sum[c] += rank.counts[i * cells + c];
    }
  }
  std::vector<int64_t> counts;
  int64_t steps = 0;
  for (const auto& [step, entry] : sums) {
    if (entry.first != ranks.size()) continue;
    counts.insert(counts.end(), entry.second.begin(), entry.second.end());
    steps += 1;
  }
  experts::TorchValue::Dict dict;
  dict.set("rank", {int64_t(0)});
  dict.set("logical_count",
           {experts::integer_tensor(experts::TorchType::kInt32, {steps, num_layers, num_logical}, counts)});
  // Old readers refuse a float and take a tensor without dimensions.
  experts::TorchValue average;
  if (facts.balancedness) average = {experts::number_tensor({}, std::span(&*facts.balancedness, 1))};
  dict.set("average_utilization_rate_over_window", std::move(average));
  dict.set("dropped_passes", {facts.dropped});
  const std::string name = fmt::format("expert_distribution_recorder_{:.6f}.pt", unix_time);
  ASSIGN_OR_RETURN(const std::string bytes, experts::format_torch_file({std::move(dict)}));
  return write_dump_file(directory, name, bytes);
}

}  // namespace tandem::engine
