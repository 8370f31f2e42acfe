#define TANDEM_LEAF_NAMESPACE avx2
#define TANDEM_LEAF_TABLE kLeafAvx2
#include "kernels/cpu/leaf_table.inc"
