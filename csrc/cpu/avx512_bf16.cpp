// For AVX-512 with products of bf16 pairs.
#define STEER_VECTOR 64
#define STEER_BF16_DOT
#include "table.h"

namespace steer::cpu {

extern const Kernels k_avx512_bf16;
constinit const Kernels k_avx512_bf16 = table("avx512_bf16");

}  // namespace steer::cpu
