// For x86-64-v4: AVX-512 F, BW, DQ, VL.
#define STEER_VECTOR 64
#include "table.h"

namespace steer::cpu {

extern const Kernels k_avx512;
constinit const Kernels k_avx512 = table("avx512");

}  // namespace steer::cpu
