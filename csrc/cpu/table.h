// The table of one instruction set; included once by the source file that is compiled for it.
#pragma once

#include "attention.h"
#include "confidence.h"
#include "layers.h"
#include "linear.h"
#include "race.h"

namespace steer::cpu {
namespace {

template <typename T>
constexpr TypedKernels<T> typed_kernels() {
  return {&linear<T>, &rms_norm<T>, &silu_mul<T>, &rope<T>, &shift<T>, &widen<T>, &attend<T>};
}

template <typename T>
constexpr RaceKernels<T> race_kernels() {
  return {&find_top<T>, &race<T>, &count_rungs<T>, &gather<T>};
}

constexpr Kernels table(const char* name) {
  return {name,
          typed_kernels<float>(),
          typed_kernels<Bf16>(),
          race_kernels<float>(),
          race_kernels<double>(),
          &confidence};
}

}  // namespace
}  // namespace steer::cpu
