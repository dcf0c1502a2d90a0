// Where memory comes from when it is short: the progress rule.
//
// A lane takes, in turn: its own free blocks, the fullest slab first; free slabs; its own cache,
// least recently used; the other lane's slabs that hold only cache and that no tick in flight uses;
// then KV that no sequence will go back to. Last, a sequence takes KV of the newest one after it in
// the order that is not in flight there. That one is suspended: it stops on both models, keeps the
// KV that no other needs, and waits until the arena is likely to hold it to its end
// (admission.cpp). A sequence with none after it waits.
//
// Only the leader, the first in the order that waits for no answer, may also take KV of a model
// that a sequence is not using, its own included: that KV is computed again at the next handoff. So
// it can take everything but its own KV of the model that it runs, and that of sequences before it
// that wait for an answer; add() made sure that the arena holds it. Once the answers before it have
// come it always moves on.
#include <algorithm>
#include <map>
#include <tuple>

#include "schedule/scheduler.h"

namespace steer {

// Gives `sequence` blocks for its next `span` rows; returns the rows that it has blocks for.
std::int32_t Scheduler::reserve(Sequence& sequence, int lane, std::int32_t span) {
  return kv_.extend(sequence, lane, sequence.computed[lane], span,
                    [&] { return find_block(sequence, lane); });
}

// A block for `sequence`, if need be taken from others. After the first shortage of a plan no
// sequence gets any more: freed memory is not for those that come later in the order.
std::optional<BlockId> Scheduler::find_block(const Sequence& sequence, int lane) {
  Plan& plan = filling(lane);
  while (!plan.short_of_memory) {
    if (const auto block = kv_.take_block(lane, plan)) return block;
    plan.short_of_memory = make_room(sequence, lane) != Found::now;
  }
  return std::nullopt;
}

// Whether `requester` may take a block of `model` that `from` holds.
bool Scheduler::may_take(const Sequence& from, int model, const Sequence& requester) const {
  if (from.end_pending != Finish::none || from.is_done_with(model)) return true;
  if (goes_before(requester, from) && partner_of(requester) != &from) return true;
  return from.active != model && &requester == leader();
}

// The KV to take first has the greatest place: KV that will not be missed, then that of suspended
// sequences, then that of others; among equals the newest.
std::size_t Scheduler::place_of(const Sequence& sequence, int model) const {
  const std::size_t count = running_.size();
  if (sequence.end_pending != Finish::none || sequence.is_done_with(model)) return 2 * count;
  const auto place =
      static_cast<std::size_t>(std::ranges::find(running_, &sequence) - running_.begin());
  return stands_still(sequence) ? count + place : place;
}

Scheduler::Found Scheduler::make_room(const Sequence& requester, int lane) {
  if (pool().awaits_reserved(lane)) return Found::later;
  std::vector<Victim> victims = own_tails(requester, lane);
  const std::vector<Victim> slabs = other_slabs(requester, lane);
  victims.insert(victims.end(), slabs.begin(), slabs.end());
  const auto best = std::ranges::min_element(victims, {}, [](const Victim& victim) {
    return std::tuple(-static_cast<std::ptrdiff_t>(victim.place), victim.in_flight, victim.cost);
  });
  if (best == victims.end()) return Found::nothing;
  evacuate(*best, requester, lane);
  return pool().available(lane) + pool().reclaimable(lane) > 0 ? Found::now : Found::later;
}

// The running sequences that hold `block` of lane `lane` at index `index` of their table: a shared
// block has the same index in all of them.
std::vector<Sequence*> Scheduler::holders(int lane, BlockId block, std::size_t index) const {
  std::vector<Sequence*> found;
  for (Sequence* sequence : running_) {
    const auto& blocks = sequence->blocks[lane];
    if (blocks.size() > index && blocks[index] == block) found.push_back(sequence);
  }
  return found;
}

// For each sequence the last block that may be taken, with all blocks after it. A block that
// several sequences share is taken from all of them. Blocks after it that an earlier sequence
// shares only lose a reference: so every block that the first sequence does not hold can be taken.
std::vector<Scheduler::Victim> Scheduler::own_tails(const Sequence& requester, int lane) const {
  std::vector<Victim> tails;
  for (const Sequence* from : running_) {
    const auto& blocks = from->blocks[lane];
    if (from == &requester || from->in_flight[lane] > 0 || !may_take(*from, lane, requester))
      continue;
    for (std::size_t index = blocks.size(); index-- > 0;) {
      if (!pool().open_to(pool().slab_of(lane, blocks[index]), lane)) continue;
      const auto kept = static_cast<std::int32_t>(index) * config_.block_tokens;
      Victim victim{
          pool().slab_of(lane, blocks[index]), from, index, false, 0, 2 * running_.size()};
      bool takeable = true;
      for (const Sequence* holder : holders(lane, blocks[index], index)) {
        takeable &= holder != &requester && holder->in_flight[lane] == 0 &&
                    may_take(*holder, lane, requester);
        victim.cost += (holder->computed[lane] - kept) * config_.recompute_cost[lane];
        victim.place = std::min(victim.place, place_of(*holder, lane));
      }
      if (!takeable) continue;
      tails.push_back(victim);
      break;
    }
  }
  return tails;
}

// The other model's slabs in which every block may be taken.
std::vector<Scheduler::Victim> Scheduler::other_slabs(const Sequence& requester, int lane) const {
  const int other = 1 - lane;
  const double unit = config_.recompute_cost[other] / pool().slots(lane);
  std::map<SlabId, Victim> slabs;
  std::vector<char> closed(pool().slab_count(), 0);
  for (const Sequence* from : running_) {
    const bool takeable = may_take(*from, other, requester);
    const std::size_t place = place_of(*from, other);
    const auto& blocks = from->blocks[other];
    std::map<SlabId, std::size_t> first;  // lowest block index of this sequence in each slab
    for (std::size_t i = 0; i < blocks.size(); ++i)
      first.try_emplace(pool().slab_of(other, blocks[i]), i);
    for (const auto& [slab, index] : first) {
      if (!takeable || !pool().open_to(slab, lane)) closed[slab] = 1;
      const auto kept = static_cast<std::int32_t>(index) * config_.block_tokens;
      const Victim none{slab, nullptr, 0, false, 0, 2 * running_.size()};
      Victim& victim = slabs.try_emplace(slab, none).first->second;
      victim.in_flight |= from->in_flight[other] + from->ahead[other].rows > 0;
      const std::int32_t rows = from->computed[other] + from->in_flight[other];
      victim.cost += std::max(0, rows - kept) * unit;
      victim.place = std::min(victim.place, place);
    }
  }
  std::vector<Victim> open;
  for (const auto& [slab, victim] : slabs)
    if (!closed[slab]) open.push_back(victim);
  return open;
}

// Can the small lane have a slab of the large model at once when the sequences that hold its blocks
// give them up? Not if one is in flight, or a copy holds a block.
bool Scheduler::is_at_rest(SlabId slab) const {
  const BlockId first = slab * pool().slots(kLarge), last = first + pool().slots(kLarge);
  std::int64_t references = 0;
  for (BlockId block = first; block < last; ++block)
    references += std::max(0, pool().references(kLarge, block));
  for (const Sequence* from : running_) {
    const auto& blocks = from->blocks[kLarge];
    const auto held = std::ranges::count_if(
        blocks, [&](BlockId block) { return pool().slab_of(kLarge, block) == slab; });
    if (held > 0 && (from->in_flight[kLarge] + from->ahead[kLarge].rows > 0 ||
                     from->last_tick[kLarge] > pool().retired(kLarge)))
      return false;
    references -= held;
  }
  return references <= 0;
}

void Scheduler::evacuate(const Victim& victim, const Sequence& requester, int lane) {
  if (victim.tail_of != nullptr) {
    const auto& blocks = victim.tail_of->blocks[lane];
    const auto kept = static_cast<std::int32_t>(victim.index) * config_.block_tokens;
    for (Sequence* holder : holders(lane, blocks[victim.index], victim.index))
      give_up(*holder, lane, kept, requester);
    return;
  }
  const int other = 1 - lane;
  if (lane == kSmall && config_.host_blocks > 0 && is_at_rest(victim.slab))
    kv_.save_slab(victim.slab, lane, filling(lane));
  kv_.close_slab(victim.slab, lane);
  for (Sequence* from : running_) {
    const auto& blocks = from->blocks[other];
    const auto found = std::find_if(blocks.begin(), blocks.end(), [&](BlockId block) {
      return pool().slab_of(other, block) == victim.slab;
    });
    if (found == blocks.end()) continue;
    const auto kept = static_cast<std::int32_t>(found - blocks.begin()) * config_.block_tokens;
    give_up(*from, other, kept, requester);
  }
  kv_.empty_slab(victim.slab, other);
}

// Takes from one sequence the KV past the first `rows` rows. If it will miss that KV and comes
// after the requester, it is suspended.
void Scheduler::give_up(Sequence& from, int model, std::int32_t rows, const Sequence& requester) {
  if (from.end_pending == Finish::none && !from.is_done_with(model)) {
    guard_.lost(std::max(0, from.computed[model] + from.in_flight[model] - rows));
    if (goes_before(requester, from) && partner_of(requester) != &from) suspend(from);
  }
  take_rows(from, model, rows);
}

}  // namespace steer
