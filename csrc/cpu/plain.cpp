// For any machine.
#define STEER_VECTOR 16
#include "table.h"

namespace steer::cpu {

extern const Kernels k_plain;
constinit const Kernels k_plain = table("plain");

}  // namespace steer::cpu
