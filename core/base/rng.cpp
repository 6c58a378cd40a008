#include "core/base/rng.h"

namespace moectl {

std::array<uint32_t, 4> philox4x32_10(std::array<uint32_t, 4> c, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c[0], p1 = uint64_t{0xCD9E8D57u} * c[2];
    c = {uint32_t(p1 >> 32) ^ c[1] ^ key[0], uint32_t(p1), uint32_t(p0 >> 32) ^ c[3] ^ key[1], uint32_t(p0)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return c;
}

double uniform_double(uint64_t seed, uint64_t output_index, uint32_t draw) {
  const auto w = philox4x32_10({draw, 0, uint32_t(output_index), uint32_t(output_index >> 32)},
                               {uint32_t(seed), uint32_t(seed >> 32)});
  return double((uint64_t{w[1]} << 32 | w[0]) >> 11) * 0x1p-53;
}

}  // namespace moectl
