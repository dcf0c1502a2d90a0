#include "kv/block_pool.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace steer {

namespace {

void expect(bool holds, const char* what) {
  if (!holds) throw std::logic_error(std::string("block pool: ") + what);
}

}  // namespace

BlockPool::BlockPool(SlabId slabs, std::array<std::int32_t, kModels> slots) : slots_(slots) {
  if (slabs <= 0) throw std::invalid_argument("the arena needs at least one slab");
  for (int model = 0; model < kModels; ++model) {
    if (slots[model] <= 0) throw std::invalid_argument("a slab must hold a block of each model");
    buckets_[model].resize(slots[model]);
  }
  slabs_.resize(slabs);
  for (SlabId slab = slabs; slab-- > 0;) free_.push_back(slab);  // the lowest is taken first
}

bool BlockPool::open_to(SlabId slab, int model) const {
  const int reserved = slabs_[slab].reserved_for;
  return reserved == kNobody || reserved == model;
}

bool BlockPool::drained(SlabId slab, int model) const {
  return slabs_.at(slab).fences[1 - model] <= retired_[1 - model];
}

void BlockPool::enter_bucket(SlabId id) {
  Slab& slab = slabs_[id];
  if (!open_to(id, slab.owner) || slab.free_slots.empty()) return;
  auto& bucket = buckets_[slab.owner][slab.held];
  slab.bucket_index = static_cast<std::int32_t>(bucket.size());
  bucket.push_back(id);
}

void BlockPool::leave_bucket(SlabId id) {
  Slab& slab = slabs_[id];
  if (slab.bucket_index < 0) return;
  auto& bucket = buckets_[slab.owner][slab.held];
  bucket[slab.bucket_index] = bucket.back();
  slabs_[bucket.back()].bucket_index = slab.bucket_index;
  bucket.pop_back();
  slab.bucket_index = -1;
}

std::optional<SlabId> BlockPool::fullest_slab(int model) const {
  const auto& buckets = buckets_.at(model);
  for (auto bucket = buckets.rbegin(); bucket != buckets.rend(); ++bucket)
    if (!bucket->empty()) return bucket->back();
  return std::nullopt;
}

std::optional<SlabId> BlockPool::take_free_slab(int model) {
  for (auto it = free_.rbegin(); it != free_.rend(); ++it) {
    const SlabId id = *it;
    Slab& slab = slabs_[id];
    if (!open_to(id, model) || !drained(id, model)) continue;
    free_.erase(std::next(it).base());
    if (slab.last_owner == 1 - model) ++lent_;
    slab.owner = slab.last_owner = model;
    if (slab.reserved_for == model) {  // the reservation is served
      slab.reserved_for = kNobody;
      --reserved_[model];
    }
    slab.references.assign(slots_[model], 0);
    slab.free_slots.clear();
    for (std::int32_t slot = slots_[model]; slot-- > 0;) slab.free_slots.push_back(slot);
    ++owned_[model];
    enter_bucket(id);
    return id;
  }
  return std::nullopt;
}

std::optional<BlockId> BlockPool::allocate(int model) {
  std::optional<SlabId> id = fullest_slab(model);
  if (!id) id = take_free_slab(model);
  if (!id) return std::nullopt;
  Slab& slab = slabs_[*id];
  leave_bucket(*id);
  const std::int32_t slot = slab.free_slots.back();
  slab.free_slots.pop_back();
  slab.references[slot] = 1;
  ++slab.held;
  ++live_[model];
  enter_bucket(*id);
  return *id * slots_[model] + slot;
}

std::int32_t BlockPool::references(int model, BlockId block) const {
  const SlabId id = block / slots_.at(model);
  if (block < 0 || id >= slab_count() || slabs_[id].owner != model) return 0;
  return slabs_[id].references[block % slots_[model]];
}

void BlockPool::retain(int model, BlockId block) {
  expect(references(model, block) > 0, "retain of a block that is not live");
  ++slabs_[slab_of(model, block)].references[block % slots_[model]];
}

std::int32_t& BlockPool::count_of(int model, BlockId block) {
  return slabs_[slab_of(model, block)].references[block % slots_[model]];
}

void BlockPool::release(int model, BlockId block, bool keep) {
  expect(references(model, block) > 0, "release of a block that is not live");
  std::int32_t& count = count_of(model, block);
  if (--count > 0) return;
  --live_[model];
  if (keep) {
    count = kCached;
    ++slabs_[slab_of(model, block)].cached;
    ++cached_[model];
  } else {
    free_block(slab_of(model, block), model, block % slots_[model]);
  }
}

void BlockPool::revive(int model, BlockId block) {
  expect(references(model, block) == kCached, "revival of a block that is not cached");
  count_of(model, block) = 1;
  --slabs_[slab_of(model, block)].cached;
  --cached_[model];
  ++live_[model];
}

void BlockPool::drop(int model, BlockId block) {
  expect(references(model, block) == kCached, "drop of a block that is not cached");
  count_of(model, block) = 0;
  --slabs_[slab_of(model, block)].cached;
  --cached_[model];
  free_block(slab_of(model, block), model, block % slots_[model]);
}

void BlockPool::free_block(SlabId id, int model, std::int32_t slot) {
  Slab& slab = slabs_[id];
  leave_bucket(id);
  slab.free_slots.push_back(slot);
  --slab.held;
  if (slab.held == 0) {
    expect(slab.owner == model, "a slab is freed by its owner");
    free_slab(id);
  } else {
    enter_bucket(id);
  }
}

std::vector<BlockId> BlockPool::cached_blocks(SlabId id) const {
  const Slab& slab = slabs_.at(id);
  std::vector<BlockId> blocks;
  for (std::size_t slot = 0; slot < slab.references.size(); ++slot)
    if (slab.references[slot] == kCached)
      blocks.push_back(id * slots_[slab.owner] + static_cast<BlockId>(slot));
  return blocks;
}

void BlockPool::free_slab(SlabId id) {
  Slab& slab = slabs_[id];
  --owned_[slab.owner];
  slab.owner = kNobody;
  slab.references.clear();
  slab.free_slots.clear();
  free_.push_back(id);
}

void BlockPool::fence(int model, BlockId block, Tick tick) {
  expect(references(model, block) > 0, "fence on a block that is not live");
  fence_slab(model, slab_of(model, block), tick);
}

void BlockPool::fence_slab(int lane, SlabId slab, Tick tick) {
  Tick& fence = slabs_.at(slab).fences.at(lane);
  fence = std::max(fence, tick);
}

void BlockPool::retire(int model, Tick tick) {
  expect(tick > retired_.at(model), "ticks of a lane retire in order");
  retired_[model] = tick;
}

void BlockPool::reserve(SlabId id, int model) {
  Slab& slab = slabs_.at(id);
  expect(model == kSmall || model == kLarge, "there are two models");
  expect(open_to(id, model), "slab is reserved for the other model");
  if (slab.owner != kNobody && slab.owner != model) leave_bucket(id);
  if (slab.reserved_for == kNobody) ++reserved_[model];
  slab.reserved_for = model;
}

void BlockPool::unreserve(int model) {
  if (reserved_.at(model) == 0) return;
  reserved_[model] = 0;
  for (SlabId id = 0; id < slab_count(); ++id) {
    Slab& slab = slabs_[id];
    if (slab.reserved_for != model) continue;
    slab.reserved_for = kNobody;
    if (slab.owner != kNobody && slab.bucket_index < 0) enter_bucket(id);
  }
}

bool BlockPool::awaits_reserved(int model) const {
  if (reserved_.at(model) == 0) return false;
  for (SlabId id = 0; id < slab_count(); ++id) {
    const Slab& slab = slabs_[id];
    if (slab.reserved_for == model && slab.owner != model && (slab.held > 0 || !drained(id, model)))
      return true;
  }
  return false;
}

std::int64_t BlockPool::available(int model) const {
  std::int64_t blocks = 0;
  for (std::int32_t held = 0; held < slots_.at(model); ++held)
    blocks += static_cast<std::int64_t>(buckets_[model][held].size()) * (slots_[model] - held);
  for (const SlabId id : free_)
    if (open_to(id, model) && drained(id, model)) blocks += slots_[model];
  return blocks;
}

std::int64_t BlockPool::reclaimable(int model) const {
  std::int64_t blocks = cached_.at(model);
  if (cached_[1 - model] == 0) return blocks;
  for (SlabId id = 0; id < slab_count(); ++id)
    if (slabs_[id].owner == 1 - model && lendable(id, model)) blocks += slots_[model];
  return blocks;
}

void BlockPool::check_integrity() const {
  std::array<std::int64_t, kModels> live{}, cached{}, free_blocks{}, bucketed{};
  std::array<SlabId, kModels> owned{}, reserved{};
  std::vector<std::int32_t> listed_free(slabs_.size());
  for (const SlabId id : free_) ++listed_free.at(id);
  for (SlabId id = 0; id < slab_count(); ++id) {
    const Slab& slab = slabs_[id];
    if (slab.reserved_for != kNobody) ++reserved[slab.reserved_for];
    if (slab.owner == kNobody) {
      expect(slab.held == 0 && slab.bucket_index < 0, "a free slab holds blocks");
      expect(listed_free[id] == 1, "a free slab is not listed once");
      continue;
    }
    const int model = slab.owner;
    const auto dead = std::count(slab.references.begin(), slab.references.end(), 0);
    expect(static_cast<std::int32_t>(slab.references.size()) == slots_[model], "slot count");
    const auto kept = std::count(slab.references.begin(), slab.references.end(), kCached);
    expect(slab.held == slots_[model] - dead, "held blocks of a slab");
    expect(slab.cached == kept, "cached blocks of a slab");
    expect(slab.held > 0, "an owned slab holds no block");
    expect(static_cast<std::int64_t>(slab.free_slots.size()) == dead, "free slots of a slab");
    for (const auto slot : slab.free_slots)
      expect(slab.references[slot] == 0, "a free slot has references");
    const bool open = open_to(id, model) && dead > 0;
    expect(open == (slab.bucket_index >= 0), "a slab is in the wrong bucket");
    if (open) {
      const auto& bucket = buckets_[model][slab.held];
      expect(bucket.at(slab.bucket_index) == id, "a slab is not where its bucket says");
      ++bucketed[model];
    }
    ++owned[model];
    live[model] += slab.held - slab.cached;
    cached[model] += slab.cached;
    free_blocks[model] += dead;
  }
  for (int model = 0; model < kModels; ++model) {
    std::int64_t listed = 0;
    for (const auto& bucket : buckets_[model]) listed += static_cast<std::int64_t>(bucket.size());
    expect(listed == bucketed[model], "a bucket lists a slab twice");
    expect(live[model] == live_[model], "live blocks of a model");
    expect(owned[model] == owned_[model], "owned slabs of a model");
    expect(reserved[model] == reserved_[model], "reserved slabs of a model");
    expect(cached[model] == cached_[model], "cached blocks of a model");
    expect(live[model] + cached[model] + free_blocks[model] ==
               static_cast<std::int64_t>(owned[model]) * slots_[model],
           "free + cached + live == total of a model");
  }
  expect(owned[0] + owned[1] + free_slabs() == slab_count(), "free + owned == total of slabs");
}

}  // namespace steer
