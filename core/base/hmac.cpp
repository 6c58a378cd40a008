#include "core/base/hmac.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include "core/base/check.h"

namespace moectl {

Sha256 sha256(std::string_view data) {
  Sha256 digest;
  unsigned size = 0;
  const int ok = EVP_Digest(data.data(), data.size(), digest.data(), &size, EVP_sha256(), nullptr);
  CHECK(ok == 1 && size == digest.size(), "the crypto library gave a SHA-256 of {} bytes", size);
  return digest;
}

Sha256 hmac_sha256(std::string_view key, std::string_view message) {
  Sha256 digest;
  unsigned size = 0;
  const auto* data = reinterpret_cast<const unsigned char*>(message.data());
  const void* ok = HMAC(EVP_sha256(), key.data(), int(key.size()), data, message.size(), digest.data(), &size);
  CHECK(ok && size == digest.size(), "the crypto library gave an HMAC of {} bytes", size);
  return digest;
}

void random_bytes(void* out, size_t num_bytes) {
  CHECK(RAND_bytes(static_cast<unsigned char*>(out), int(num_bytes)) == 1, "no random bytes to be had");
}

bool constant_time_equal(std::string_view a, std::string_view b) {
  return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

std::string to_hex(const void* data, size_t num_bytes) {
  static constexpr char kDigits[] = "0123456789abcdef";
  const auto* bytes = static_cast<const uint8_t*>(data);
  std::string text;
  for (size_t i = 0; i < num_bytes; ++i) {
    text += kDigits[bytes[i] >> 4];
    text += kDigits[bytes[i] & 15];
  }
  return text;
}

}  // namespace moectl
