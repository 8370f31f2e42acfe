// Sampler: from a step's logits to its tokens and log-probabilities, and the rules by which a request ends.
// Owner: the engine thread.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "engine/step/batch.h"
#include "kernels/sample.h"

namespace tandem::engine {

class Sampler {
 public:
  explicit Sampler(int64_t max_rows);

  // Samples every entry that samples and keeps the log-probabilities of input rows with their requests.
  void run(const kernels::Context& context, const Batch& batch);
  // The entry's draw; only for entries that sample, until the next run().
  const kernels::SampleResult& result(const BatchEntry& entry) const;

 private:
  void prepare_input_row(const Request& request, int32_t position, kernels::SampleParams& params);
  std::vector<kernels::SampleParams> params_;
  std::vector<kernels::SampleResult> results_;
  std::vector<int32_t> wanted_ids_;  // of input rows: the token that came, then token_ids_logprob
};

// Log-probabilities of a drawn token as the event carries them.
api::TokenLogprob to_logprob(const kernels::SampleResult& result);

// Whether the request, its newest token already appended, ends here; in SGLang's order: length, stop tokens.
std::optional<Ending> check_finish(const Request& request);

}  // namespace tandem::engine
