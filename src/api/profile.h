// /start_profile: what is to be recorded. Values; pure.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace tandem::api {

struct ProfileCall {
  std::string output_dir;             // empty: the server's default; "~" and "~/..." as sent
  std::optional<int64_t> num_steps;   // exactly so many; absent: until /stop_profile
  std::optional<int64_t> start_step;  // the forward step with which to begin, or the next one if that is past
  bool operators = true;              // activities has CPU
  bool record_shapes = true;
  bool by_stage = false;                          // prefill and decode steps into files of their own
  bool wants_extend = true, wants_decode = true;  // of the stages
  bool merge = false;                             // also one file of all ranks
  std::string prefix;                             // of the file names
  std::string profile_id;                         // drawn by the server
  bool operator==(const ProfileCall&) const = default;
};

// An empty body asks for the defaults. Errors: kCorrupt naming the field; unknown fields are ignored.
Result<ProfileCall> parse_start_profile(std::string_view body);

}  // namespace tandem::api
