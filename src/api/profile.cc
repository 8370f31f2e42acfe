#include "api/profile.h"

#include <fmt/format.h>

#include <vector>

#include "api/parse/cursor.h"
#include "api/parse/values.h"

namespace tandem::api {
namespace {

constexpr int64_t kMostSteps = int64_t(1) << 40;
constexpr size_t kLongestText = 4096;  // of a path on Linux

Result<std::string> short_text(Element value, const std::string& key) {
  ASSIGN_OR_RETURN(std::string text, to_string(value, key));
  if (text.size() > kLongestText) return corrupt(fmt::format("{}: longer than {} bytes", key, kLongestText));
  if (text.find('\0') != std::string::npos) return corrupt(fmt::format("{}: has a zero byte", key));
  return text;
}

Status read_activities(Element value, ProfileCall& call) {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, to_strings(value, "activities"));
  call.operators = false;
  for (const std::string& name : names) {
    if (name != "CPU" && name != "GPU") {
      return corrupt(fmt::format("activities: '{}' is not offered; there are CPU and GPU", shown(name)));
    }
    call.operators = call.operators || name == "CPU";
  }
  if (names.empty()) return corrupt("activities: is empty");
  return Ok{};
}

Status read_stages(Element value, ProfileCall& call) {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, to_strings(value, "profile_stages"));
  call.wants_extend = call.wants_decode = false;
  for (const std::string& name : names) {
    if (name != "prefill" && name != "decode") {
      return corrupt(fmt::format("profile_stages: '{}' is unknown; there are prefill and decode", shown(name)));
    }
    (name == "prefill" ? call.wants_extend : call.wants_decode) = true;
  }
  if (names.empty()) return corrupt("profile_stages: is empty");
  return Ok{};
}

Status read_field(const std::string& key, Element value, ProfileCall& call) {
  if (key == "output_dir") {
    ASSIGN_OR_RETURN(call.output_dir, short_text(value, key));
  } else if (key == "num_steps") {
    ASSIGN_OR_RETURN(call.num_steps, to_int(value, key, 1, kMostSteps));
  } else if (key == "start_step") {
    ASSIGN_OR_RETURN(call.start_step, to_int(value, key, 0, kMostSteps));
  } else if (key == "activities") {
    return read_activities(value, call);
  } else if (key == "record_shapes") {
    ASSIGN_OR_RETURN(call.record_shapes, to_bool(value, key));
  } else if (key == "with_stack") {  // there are no Python frames to show
    ASSIGN_OR_RETURN([[maybe_unused]] const bool with_stack, to_bool(value, key));
  } else if (key == "profile_by_stage") {
    ASSIGN_OR_RETURN(call.by_stage, to_bool(value, key));
  } else if (key == "profile_stages") {
    return read_stages(value, call);
  } else if (key == "merge_profiles") {
    ASSIGN_OR_RETURN(call.merge, to_bool(value, key));
  } else if (key == "profile_prefix") {
    ASSIGN_OR_RETURN(call.prefix, short_text(value, key));
    if (call.prefix.find('/') != std::string::npos) return corrupt("profile_prefix: has a '/'");
    if (call.prefix.size() > 128) return corrupt("profile_prefix: longer than 128 bytes");
  }
  return Ok{};
}

}  // namespace

Result<ProfileCall> parse_start_profile(std::string_view body) {
  ProfileCall call;
  if (body.empty()) return call;
  RETURN_IF_ERROR(parse_body(body, [&](const std::string& key, Cursor& at) -> Status {
    ASSIGN_OR_RETURN(Element value, at.value(key));
    return value.is_null() ? Status(Ok{}) : read_field(key, value, call);
  }));
  if (call.by_stage && !call.num_steps) return corrupt("profile_by_stage: needs num_steps");
  return call;
}

}  // namespace tandem::api
