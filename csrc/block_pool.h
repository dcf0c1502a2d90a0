// The block pool: bookkeeping of one arena that two models share.
//
// The arena is an array of equal slabs. A slab belongs to nobody or to one model, and is cut into
// that model's blocks: `slots` of them, which need not fill the slab. Block ids are
// `slab * slots + slot`. The pool moves numbers only; it never touches the arena's memory.
//
// Lending: a slab without live blocks belongs to nobody and goes to whichever model asks next.
// Fences: a block that lane L planned in tick t may still be read or written until L retires t.
// Lane L itself may reuse it at once (its ticks run in order); another model gets the slab only
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
  // Throws std::invalid_argument unless slabs > 0 and every slot count > 0.
  BlockPool(SlabId slabs, std::array<std::int32_t, kModels> slots);

  // One block with one reference, or nothing. Taken from the model's fullest open slab, else from
  // a free slab. The caller owns the reference and gives it back with release().
  std::optional<BlockId> allocate(int model);
  // One more reference to a live block. Throws std::logic_error if the block is not live.
  void retain(int model, BlockId block);
  // One reference less; the last one frees the block and, with its last block, the slab.
  void release(int model, BlockId block);

  // Lane `model` plans to use `block` in `tick`.
  void fence(int model, BlockId block, Tick tick);
  // Lane `model` has retired `tick` and all before it.
  void retire(int model, Tick tick);

  // Close `slab` to everyone but `model`, until unreserve(model).
  void reserve(SlabId slab, int model);
  void unreserve(int model);
  // Is a slab reserved for `model` still live or fenced? Then waiting will bring memory.
  bool awaits_reserved(int model) const;

  SlabId slab_of(int model, BlockId block) const { return block / slots_[model]; }
  int owner(SlabId slab) const { return slabs_.at(slab).owner; }
  bool open_to(SlabId slab, int model) const;
  std::int32_t references(int model, BlockId block) const;
  std::int32_t slots(int model) const { return slots_[model]; }
  SlabId slab_count() const { return static_cast<SlabId>(slabs_.size()); }

  // Blocks that allocate(model) could return now, one after the other.
  std::int64_t available(int model) const;
  std::int64_t live(int model) const { return live_.at(model); }
  SlabId owned(int model) const { return owned_.at(model); }
  SlabId free_slabs() const { return static_cast<SlabId>(free_.size()); }
  // Slabs that changed hands from one model to the other.
  std::int64_t lent() const { return lent_; }

  // Proves the books: free + live == total, per model and jointly. Throws std::logic_error.
  void check_integrity() const;

 private:
  struct Slab {
    int owner = kNobody;
    int last_owner = kNobody;
    int reserved_for = kNobody;
    std::int32_t live = 0;
    Tick fence = -1;
    std::vector<std::int32_t> references;  // by slot, while owned
    std::vector<std::int32_t> free_slots;  // by slot, while owned
    std::int32_t bucket_index = -1;        // where it stands in its bucket; -1: in none
  };

  bool drained(const Slab& slab, int model) const;
  void enter_bucket(SlabId slab);
  void leave_bucket(SlabId slab);
  std::optional<SlabId> fullest_slab(int model) const;
  std::optional<SlabId> take_free_slab(int model);
  void free_slab(SlabId slab);

  std::array<std::int32_t, kModels> slots_;
  std::vector<Slab> slabs_;
  std::vector<SlabId> free_;
  // buckets_[model][n]: open slabs of the model with n live blocks and at least one free slot.
  std::array<std::vector<std::vector<SlabId>>, kModels> buckets_;
  std::array<Tick, kModels> retired_{-1, -1};
  std::array<std::int64_t, kModels> live_{};
  std::array<SlabId, kModels> owned_{};
  std::array<SlabId, kModels> reserved_{};
  std::int64_t lent_ = 0;
};

}  // namespace steer
