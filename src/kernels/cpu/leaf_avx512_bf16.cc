#define TANDEM_LEAF_NAMESPACE avx512_bf16
#define TANDEM_LEAF_TABLE kLeafAvx512Bf16
#include "kernels/cpu/leaf_table.inc"
