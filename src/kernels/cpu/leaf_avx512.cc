#define TANDEM_LEAF_NAMESPACE avx512
#define TANDEM_LEAF_TABLE kLeafAvx512
#include "kernels/cpu/leaf_table.inc"
