#include "instruction_sets.h"

#include <stdexcept>

namespace steer::cpu {

extern const Kernels k_plain;
#ifdef __x86_64__
extern const Kernels k_avx2, k_avx512, k_avx512_bf16;
#endif

namespace {

std::vector<const Kernels*> usable() {
  std::vector<const Kernels*> found;
#ifdef __x86_64__
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (wide && __builtin_cpu_supports("avx512bf16")) found.push_back(&k_avx512_bf16);
  if (wide) found.push_back(&k_avx512);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&k_avx2);
#endif
  found.push_back(&k_plain);
  return found;
}

}  // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels* one : usable()) names.push_back(one->name);
  return names;
}

const Kernels& kernels(const std::string& name) {
  for (const Kernels* one : usable())
    if (name == one->name) return *one;
  throw std::invalid_argument("this machine has no instruction set " + name);
}

}  // namespace steer::cpu
