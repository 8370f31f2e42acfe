// What the process gives back to the system of what it has freed. Any thread.
#pragma once

namespace tandem {

// At the start of a process: blocks of 4 MiB and more lie apart from the heap and go back when they are freed. By
// default the allocator moves that border up to the largest block that was ever freed, and one large body would make
// the next one's blocks stay for good. Smaller ones, such as the frames of KV transfers, are used again.
void keep_large_blocks_apart();

// Free pages of all heaps go back now. Takes a millisecond or a few for each hundred megabytes: for the end of
// something large, never for a step.
void give_back_free_memory();

}  // namespace tandem
