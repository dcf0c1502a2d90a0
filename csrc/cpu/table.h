// The table of one instruction set; included once by the source file that is compiled for it.
#pragma once

#include "attention.h"
#include "confidence.h"
#include "layers.h"
#include "linear.h"

namespace steer::cpu {
namespace {

template <typename T>
constexpr TypedKernels<T> typed_kernels() {
  return {&linear<T>, &rms_norm<T>, &silu_mul<T>, &rope<T>, &shift<T>, &widen<T>, &attend<T>};
}

constexpr Kernels table(const char* name) {
  return {name, typed_kernels<float>(), typed_kernels<Bf16>(), &confidence};
}

}  // namespace
}  // namespace steer::cpu
