// How the nodes of a group find each other: node 0 listens and compares, the others call until it answers. Blocks the
// caller's thread, with a deadline.
#pragma once

#include <functional>
#include <vector>

#include "parallel/ucx/link.h"

namespace tandem::parallel {

struct Met {
  NodeWelcome welcome;
  std::vector<transport::EndpointId> endpoint_of;  // by node; on the others only node 0's is set
};

// The first difference by name and both values; nothing if there is none.
std::optional<std::string> difference(const NodeHello& first, const NodeHello& other);

struct MeetingParts {
  Link& link;
  const MeetingOptions& options;
  const NodeHello& own;
  const Clock& clock;
  const std::function<bool()>& stopped;
  TimePoint deadline;
};
Result<Met> meet_as_first(const MeetingParts& parts);
Result<Met> meet_as_other(const MeetingParts& parts);

}  // namespace tandem::parallel
