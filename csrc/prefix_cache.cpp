#include "prefix_cache.h"

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

std::optional<PrefixCache::Hit> PrefixCache::find(int model, Node parent,
                                                  std::span<const Token> tokens) const {
  const auto found = by_key_.find(hash(model, parent, tokens));
  if (found == by_key_.end()) return std::nullopt;
  const Entry& entry = entries_.at(found->second);
  // The key is a hash: what counts is the parent and the tokens. The model is checked by the block.
  const auto block = by_block_[model].find(entry.block);
  if (block == by_block_[model].end() || block->second != found->second) return std::nullopt;
  if (entry.parent != parent || !std::ranges::equal(entry.tokens, tokens)) return std::nullopt;
  return Hit{found->second, entry.block};
}

PrefixCache::Node PrefixCache::insert(int model, Node parent, std::span<const Token> tokens,
                                      BlockId block) {
  if (const auto known = find(model, parent, tokens)) return known->node;
  const std::uint64_t key = hash(model, parent, tokens);
  const Node node = next_++;
  // Two prefixes with one key: the first keeps it, the second is never found and ages out.
  by_key_.try_emplace(key, node);
  by_block_[model].emplace(block, node);
  entries_.emplace(node, Entry{key, parent, {tokens.begin(), tokens.end()}, block});
  return node;
}

void PrefixCache::forget(int model, BlockId block) {
  const auto found = by_block_[model].find(block);
  if (found == by_block_[model].end()) return;
  unpark(model, block);
  const auto entry = entries_.find(found->second);
  const auto key = by_key_.find(entry->second.key);
  if (key != by_key_.end() && key->second == entry->first) by_key_.erase(key);
  entries_.erase(entry);
  by_block_[model].erase(found);
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
