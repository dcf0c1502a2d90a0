#include "kv/prefix_cache.h"

#include <algorithm>

namespace steer {

std::uint64_t PrefixCache::hash(int model, Node parent, std::span<const Token> tokens) {
  // splitmix64's finaliser, chained.
  const auto mix = [](std::uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
    return x ^ (x >> 31);
  };
  std::uint64_t key = mix(2 * static_cast<std::uint64_t>(parent) + static_cast<unsigned>(model));
  for (const Token token : tokens)
    key = mix(key + 0x9E3779B97F4A7C15ULL + static_cast<std::uint32_t>(token));
  return key;
}

PrefixCache::Entries::const_iterator PrefixCache::match(int model, Node parent,
                                                        std::span<const Token> tokens) const {
  const auto found = by_key_.find(hash(model, parent, tokens));
  if (found == by_key_.end()) return entries_.end();
  const auto entry = entries_.find(found->second);
  // The key is a hash: what counts is the model, the parent and the tokens.
  const bool same = entry->second.model == model && entry->second.parent == parent &&
                    std::ranges::equal(entry->second.tokens, tokens);
  return same ? entry : entries_.end();
}

std::optional<PrefixCache::Hit> PrefixCache::find(int model, Node parent,
                                                  std::span<const Token> tokens) const {
  const auto entry = match(model, parent, tokens);
  if (entry == entries_.end() || entry->second.block == kNowhere) return std::nullopt;
  return Hit{entry->first, entry->second.block};
}

std::optional<PrefixCache::HostHit> PrefixCache::find_on_host(int model, Node parent,
                                                              std::span<const Token> tokens) const {
  const auto entry = match(model, parent, tokens);
  if (entry == entries_.end() || entry->second.slot == kNowhere) return std::nullopt;
  return HostHit{entry->first, entry->second.slot};
}

PrefixCache::Node PrefixCache::insert(int model, Node parent, std::span<const Token> tokens,
                                      BlockId block) {
  const auto known = match(model, parent, tokens);
  const bool elsewhere = known != entries_.end() && known->second.block != kNowhere;
  if (elsewhere) return known->first;
  // Its parent was forgotten and is known again as another node: so is the block.
  if (holds(model, block)) forget(model, block);
  if (known != entries_.end()) {
    attach(known->first, block);
    return known->first;
  }
  const std::uint64_t key = hash(model, parent, tokens);
  const Node node = next_++;
  // Two prefixes with one key: the first keeps it, the second is never found and ages out.
  by_key_.try_emplace(key, node);
  by_block_[model].emplace(block, node);
  entries_.emplace(node, Entry{key, model, parent, {tokens.begin(), tokens.end()}, block});
  return node;
}

void PrefixCache::attach(Node node, BlockId block) {
  const auto found = entries_.find(node);
  if (found == entries_.end() || found->second.block != kNowhere) return;
  if (by_block_[found->second.model].emplace(block, node).second) found->second.block = block;
}

void PrefixCache::forget(int model, BlockId block) {
  const auto found = by_block_[model].find(block);
  if (found == by_block_[model].end()) return;
  unpark(model, block);
  const auto entry = entries_.find(found->second);
  by_block_[model].erase(found);
  entry->second.block = kNowhere;
  forget_if_nowhere(entry);
}

void PrefixCache::forget_if_nowhere(Entries::iterator entry) {
  if (entry->second.block != kNowhere || entry->second.slot != kNowhere) return;
  const auto key = by_key_.find(entry->second.key);
  if (key != by_key_.end() && key->second == entry->first) by_key_.erase(key);
  entries_.erase(entry);
}

PrefixCache::Slot PrefixCache::slot(Node node) const {
  const auto entry = entries_.find(node);
  return entry == entries_.end() ? kNowhere : entry->second.slot;
}

std::size_t PrefixCache::on_host() const {
  return static_cast<std::size_t>(std::ranges::count_if(
      entries_, [](const auto& entry) { return entry.second.slot != kNowhere; }));
}

void PrefixCache::set_slot(Node node, Slot slot) { entries_.at(node).slot = slot; }

void PrefixCache::clear_slot(Node node) {
  const auto entry = entries_.find(node);
  if (entry == entries_.end()) return;
  entry->second.slot = kNowhere;
  forget_if_nowhere(entry);
}

void PrefixCache::park(int model, BlockId block) {
  Entry& entry = entries_.at(by_block_[model].at(block));
  entry.place = parked_[model].insert(parked_[model].end(), block);
  entry.is_parked = true;
}

void PrefixCache::unpark(int model, BlockId block) {
  Entry& entry = entries_.at(by_block_[model].at(block));
  if (!entry.is_parked) return;
  parked_[model].erase(entry.place);
  entry.is_parked = false;
}

}  // namespace steer
