// What --disaggregation-ib-device says: one list of network devices for everything that talks between processes.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace tandem::app {

// "mlx5_0,mlx5_1", a JSON object from a rank's number to such a list, or the path of a .json file with one. A process
// talks for all its ranks, so the lists of an object are joined, each name once.
Result<std::vector<std::string>> parse_devices(std::string_view text);

}  // namespace tandem::app
