// What this machine offers, asked once at start.
#pragma once

#include <cstdint>

namespace tandem::app {

int num_usable_cpus();             // of this process's affinity mask
int64_t available_memory_bytes();  // MemAvailable, or less under a cgroup limit

}  // namespace tandem::app
