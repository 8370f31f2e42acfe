// What this machine offers, asked once at start.
#pragma once

#include <cstdint>

namespace tandem::app {

int num_usable_cpus();             // of this process's affinity mask
int64_t available_memory_bytes();  // MemAvailable, or less under a cgroup limit
// A connection takes a descriptor, and the usual soft limit is 1,024: up to the hard one, 1,048,576 at most.
void raise_open_files_limit();

}  // namespace tandem::app
