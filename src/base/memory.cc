#include "base/memory.h"

#include <malloc.h>

namespace tandem {

void keep_large_blocks_apart() {
  mallopt(M_MMAP_THRESHOLD, 4 << 20);
  mallopt(M_TRIM_THRESHOLD, 8 << 20);  // as it was, the heap's end would go back and forth with each small answer
}

void give_back_free_memory() { malloc_trim(0); }

}  // namespace tandem
