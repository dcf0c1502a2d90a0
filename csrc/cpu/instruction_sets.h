// Which kernels this machine can run.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace steer::cpu {

// Names of the instruction sets that this machine has kernels for, the fastest first.
std::vector<std::string> instruction_sets();

// The kernels of one of them. Throws std::invalid_argument if this machine cannot run it.
const Kernels& kernels(const std::string& name);

}  // namespace steer::cpu
