#include "core/text/block_hash.h"

#define XXH_INLINE_ALL  // the streaming state on the stack; no call into the shared library
#include <xxhash.h>

#include <bit>

namespace moectl {
namespace {

static_assert(std::endian::native == std::endian::little, "block hashes are defined over little-endian bytes");

BlockHash from(XXH128_hash_t h) {
  return {h.low64, h.high64};
}

}  // namespace

BlockHash root_hash(std::string_view salt) {
  return from(XXH3_128bits(salt.data(), salt.size()));
}

BlockHash block_hash(const BlockHash& parent, std::span<const int32_t> ids) {
  XXH3_state_t state;
  XXH3_INITSTATE(&state);
  XXH3_128bits_reset(&state);
  const uint64_t words[2] = {parent.low, parent.high};
  XXH3_128bits_update(&state, words, sizeof words);
  if (!ids.empty()) XXH3_128bits_update(&state, ids.data(), ids.size_bytes());
  return from(XXH3_128bits_digest(&state));
}

}  // namespace moectl
