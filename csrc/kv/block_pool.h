// The block pool: bookkeeping of one arena that two models share.
//
// The arena is an array of equal slabs. A slab belongs to one model or to none, and is cut into
// that model's blocks: `slots` of them, which need not fill the slab. Block ids are
// `slab * slots + slot`. The pool moves numbers only; it never touches the arena's memory.
//
// A block is free, live (with references) or cached: kept for its content, without references.
// Lending: a slab without live and cached blocks belongs to no model and goes to the next one that
// asks. Fences: a block that lane L planned in tick t may still be read or written until L retires
// t. Lane L itself may reuse it at once (its ticks run in order); another model gets the slab only
// after every fence of the slab has passed.
// Reservation: a slab that is being emptied for a model is closed to all others.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "types.h"

namespace steer {

class BlockPool {
 public:
  static constexpr std::int32_t kCached = -1;

  // Throws std::invalid_argument unless slabs > 0 and every slot count > 0.
  BlockPool(SlabId slabs, std::array<std::int32_t, kModels> slots);

  // One block with one reference, or nothing. Taken from the model's fullest open slab, else from
  // a free slab. The caller owns the reference and gives it back with release().
  std::optional<BlockId> allocate(int model);
  // One more reference to a live block. Throws std::logic_error if the block is not live.
  void retain(int model, BlockId block);
  // Drops one reference. The last one frees the block and, with its last block, the slab; or, with
  // `keep`, leaves the block cached.
  void release(int model, BlockId block, bool keep = false);
  // A cached block becomes live again, with one reference.
  void revive(int model, BlockId block);
  // A cached block becomes free.
  void drop(int model, BlockId block);
  // The cached blocks of a slab, and whether it holds nothing else.
  std::vector<BlockId> cached_blocks(SlabId slab) const;
  bool only_cache(SlabId slab) const {
    return slabs_.at(slab).held > 0 && slabs_[slab].held == slabs_[slab].cached;
  }
  // Can lane `model` have a slab of the other model at once, if its cached blocks are dropped?
  bool lendable(SlabId slab, int model) const {
    return only_cache(slab) && open_to(slab, model) && drained(slab, model);
  }

  // Lane `model` plans to use `block` in `tick`.
  void fence(int model, BlockId block, Tick tick);
  // Lane `lane` plans to read or write a slab in `tick`, whichever model's blocks it holds.
  void fence_slab(int lane, SlabId slab, Tick tick);
  // Has every tick of the other lane that uses the slab retired?
  bool drained(SlabId slab, int model) const;
  // Lane `model` has retired `tick` and all before it.
  void retire(int model, Tick tick);
  Tick retired(int model) const { return retired_.at(model); }

  // Closes `slab` to the other model until unreserve(model).
  void reserve(SlabId slab, int model);
  void unreserve(int model);
  // Is a slab reserved for `model` still live or fenced? Then waiting will bring memory.
  bool awaits_reserved(int model) const;

  SlabId slab_of(int model, BlockId block) const { return block / slots_[model]; }
  int owner(SlabId slab) const { return slabs_.at(slab).owner; }
  bool open_to(SlabId slab, int model) const;
  // 0 if the block is free or not the model's, kCached if it is cached.
  std::int32_t references(int model, BlockId block) const;
  std::int32_t slots(int model) const { return slots_[model]; }
  SlabId slab_count() const { return static_cast<SlabId>(slabs_.size()); }

  // Blocks that allocate(model) could return now, one after the other.
  std::int64_t available(int model) const;
  // Further blocks that it could return once cached blocks are dropped: the model's own, and those
  // of the other model's slabs that hold only cache and are in no tick in flight.
  std::int64_t reclaimable(int model) const;
  std::int64_t cached(int model) const { return cached_.at(model); }
  std::int64_t live(int model) const { return live_.at(model); }
  SlabId owned(int model) const { return owned_.at(model); }
  SlabId free_slabs() const { return static_cast<SlabId>(free_.size()); }
  // Slabs that changed hands from one model to the other.
  std::int64_t lent() const { return lent_; }

  // Checks that free + cached + live == total, per model and jointly. Throws
  // std::logic_error.
  void check_integrity() const;

 private:
  struct Slab {
    int owner = kNobody;
    int last_owner = kNobody;
    int reserved_for = kNobody;
    std::int32_t held = 0;                     // blocks that are live or cached
    std::int32_t cached = 0;                   // of these, cached
    std::array<Tick, kModels> fences{-1, -1};  // by lane: the last tick that uses it
    std::vector<std::int32_t> references;      // by slot, while owned; kCached for a cached block
    std::vector<std::int32_t> free_slots;      // by slot, while owned
    std::int32_t bucket_index = -1;            // its place in its bucket; -1: in none
  };

  void enter_bucket(SlabId slab);
  void leave_bucket(SlabId slab);
  std::optional<SlabId> fullest_slab(int model) const;
  std::optional<SlabId> take_free_slab(int model);
  void free_slab(SlabId slab);

  std::array<std::int32_t, kModels> slots_;
  std::vector<Slab> slabs_;
  std::vector<SlabId> free_;
  std::int32_t& count_of(int model, BlockId block);
  void free_block(SlabId id, int model, std::int32_t slot);

  // buckets_[model][n]: open slabs of the model with n held blocks and at least one free slot.
  std::array<std::vector<std::vector<SlabId>>, kModels> buckets_;
  std::array<Tick, kModels> retired_{-1, -1};
  std::array<std::int64_t, kModels> live_{};
  std::array<std::int64_t, kModels> cached_{};
  std::array<SlabId, kModels> owned_{};
  std::array<SlabId, kModels> reserved_{};
  std::int64_t lent_ = 0;
};

}  // namespace steer
