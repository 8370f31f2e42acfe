// Workload: the prompts, lengths and arrival times of a run. Pure and seeded: same config, same workload.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "loadgen/bench_config.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace tandem::loadgen {

struct WorkItem {
  std::string text;          // empty when ids are sent
  std::vector<int32_t> ids;  // with tokenize_prompt
  int32_t input_len = 0;     // tokens of the prompt as the data set counts them
  int32_t output_len = 0;    // tokens to ask for
};

struct Workload {
  std::vector<WorkItem> items;
  std::vector<std::string> notes;  // one line each: what the user should know about the data
};

// config: validated. chat_template: needed with apply_chat_template only. Reads dataset_path where the data set has
// one. Errors name the file and the fault.
Result<Workload> make_workload(const BenchConfig& config, const text::Tokenizer& tokenizer,
                               const text::ChatTemplate* chat_template);

// Offsets from the start: the first at 0, then exponential gaps with mean 1 / rate; all 0 for an infinite rate.
std::vector<Duration> arrival_times(size_t count, double rate, uint64_t seed);

}  // namespace tandem::loadgen
