// For x86-64-v3: AVX2 with FMA.
#define STEER_VECTOR 32
#include "table.h"

namespace steer::cpu {

extern const Kernels k_avx2;
constinit const Kernels k_avx2 = table("avx2");

}  // namespace steer::cpu
