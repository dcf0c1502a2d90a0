#include "kv/kv_plan.h"

namespace steer {

namespace {

void put(std::vector<std::int32_t>& pairs, std::int32_t& count, std::int32_t from,
         std::int32_t to) {
  pairs[2 * count] = from;
  pairs[2 * count + 1] = to;
  ++count;
}

}  // namespace

KvPlan::KvPlan(std::int32_t max_sequences, std::int32_t host_slots)
    : copies(2 * static_cast<std::size_t>(max_sequences)),
      saves(2 * static_cast<std::size_t>(host_slots)),
      restores(2 * static_cast<std::size_t>(host_slots)) {}

void KvPlan::clear(Tick next) {
  tick = next;
  copied = saved = restored = 0;
  short_of_memory = false;
}

void KvPlan::add_copy(BlockId from, BlockId to) { put(copies, copied, from, to); }

BlockId KvPlan::origin(BlockId block) const {
  for (std::int32_t i = 0; i < copied; ++i)
    if (copies[2 * i + 1] == block) return copies[2 * i];
  return block;
}

void KvPlan::add_save(BlockId from, std::int32_t slot) { put(saves, saved, from, slot); }

void KvPlan::add_restore(std::int32_t slot, BlockId to) { put(restores, restored, slot, to); }

}  // namespace steer
