#include "core/engine/step_codec.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <concepts>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#include "core/base/error.h"

namespace moectl {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are copied as they are in memory");
static_assert(sizeof(int) == 4 && std::numeric_limits<float>::is_iec559 && std::numeric_limits<double>::is_iec559);

constexpr uint32_t kMagic = 0x5054534d;  // "MSTP"
constexpr size_t kHeaderBytes = 12;
enum class Kind : uint16_t { kPlan = 1, kResult = 2 };

template <class... Args>
[[noreturn]] void bad(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(Code::kBadData, "step message: " + fmt::format(format, std::forward<Args>(args)...));
}

// ------------------------------------------------------------------------------------------------ fields
// One list per struct, for reading and writing alike.

template <class T, class Struct>
concept Is = std::same_as<std::remove_const_t<T>, Struct>;

template <class Io, Is<SamplingParams> T>
void fields(Io& io, T& p) {
  io(p.temperature, p.top_k, p.top_p, p.min_p, p.seed, p.presence_penalty, p.frequency_penalty, p.repetition_penalty,
     p.logit_bias, p.max_tokens, p.min_tokens, p.ignore_eos, p.stop_token_ids, p.num_logprobs, p.prompt_logprobs);
}
template <class Io, Is<SequenceStart> T>
void fields(Io& io, T& s) {
  io(s.sampling, s.num_prompt_tokens, s.prompt_ids, s.eos_token_ids);
}
template <class Io, Is<Chunk> T>
void fields(Io& io, T& c) {
  io(c.seq, c.begin, c.token_ids, c.num_drafts, c.next_token_id, c.sample, c.prompt_logits_begin, c.prompt_logits_end,
     c.mtp_end, c.start, c.num_old_pages, c.new_pages, c.new_output_ids);
}
template <class Io, Is<RankStepPlan> T>
void fields(Io& io, T& p) {
  io(p.ended, p.chunks, p.compute, p.read_expert_load);
}
template <class Io, Is<TokenLogprob> T>
void fields(Io& io, T& t) {
  io(t.token_id, t.logprob);
}
template <class Io, Is<GenerateOutput::Token> T>
void fields(Io& io, T& t) {
  io(t.id, t.logprob, t.top);
}
template <class Io, Is<ChunkResult> T>
void fields(Io& io, T& r) {
  io(r.prompt_logprobs, r.tokens, r.error);
}
template <class Io, Is<RankFailure> T>
void fields(Io& io, T& f) {
  io(f.what, f.by_peer);
}
template <class Io, Is<ExpertLoad::Layer> T>
void fields(Io& io, T& l) {
  io(l.layer_idx, l.experts, l.ranks);
}
template <class Io, Is<ExpertLoad> T>
void fields(Io& io, T& l) {
  io(l.layers);
}
template <class Io, Is<RankStepResult> T>
void fields(Io& io, T& r) {
  io(r.chunks, r.busy_seconds, r.idle_seconds, r.expert_load, r.failure);
}

template <class T>
concept Number = std::is_arithmetic_v<T> && !std::same_as<T, bool>;

// ------------------------------------------------------------------------------------------------ writing
class Writer {
 public:
  template <class... T>
  void operator()(const T&... values) {
    (one(values), ...);
  }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  void raw(const void* data, size_t size) {
    const auto* p = static_cast<const std::byte*>(data);
    bytes_.insert(bytes_.end(), p, p + size);
  }
  template <Number T>
  void one(T value) {
    raw(&value, sizeof value);
  }
  void one(bool value) { one(uint8_t(value)); }
  void one(const std::string& text) {
    one(uint32_t(text.size()));
    raw(text.data(), text.size());
  }
  template <Number T>
  void one(const std::vector<T>& values) {
    one(uint32_t(values.size()));
    raw(values.data(), values.size() * sizeof(T));
  }
  template <class T>
  void one(const std::vector<T>& values) {
    one(uint32_t(values.size()));
    for (const T& value : values) one(value);
  }
  template <class A, class B>
  void one(const std::pair<A, B>& pair) {
    one(pair.first);
    one(pair.second);
  }
  template <class T>
  void one(const std::optional<T>& value) {
    one(value.has_value());
    if (value) one(*value);
  }
  void one(const Error& error) {
    one(uint8_t(error.code()));
    one(std::string(error.what()));
    one(error.param());
  }
  template <class T>
  requires std::is_class_v<T>
  void one(const T& value) { fields(*this, value); }

  std::vector<std::byte> bytes_;
};

template <class T>
std::vector<std::byte> encode_as(Kind kind, const T& value) {
  Writer writer;
  writer(kMagic, kStepCodecVersion, uint16_t(kind), uint32_t(0), value);
  std::vector<std::byte> bytes = writer.take();
  const size_t body_bytes = bytes.size() - kHeaderBytes;
  if (body_bytes > std::numeric_limits<uint32_t>::max()) bad("a body of {} bytes is too large", body_bytes);
  const auto stated = uint32_t(body_bytes);
  std::memcpy(bytes.data() + kHeaderBytes - sizeof stated, &stated, sizeof stated);
  return bytes;
}

// ------------------------------------------------------------------------------------------------ reading
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : rest_(bytes) {}

  template <class... T>
  void operator()(T&... values) {
    (one(values), ...);
  }
  size_t num_left() const { return rest_.size(); }

 private:
  void raw(void* out, size_t size) {
    if (size > rest_.size()) bad("{} bytes are needed, {} are left", size, rest_.size());
    if (size > 0) std::memcpy(out, rest_.data(), size);
    rest_ = rest_.subspan(size);
  }
  template <Number T>
  T number() {
    T value;
    raw(&value, sizeof value);
    return value;
  }
  // Of elements that take at least `element_bytes` each.
  size_t count(size_t element_bytes) {
    const size_t count = number<uint32_t>();
    if (count > rest_.size() / element_bytes) bad("{} elements in {} bytes", count, rest_.size());
    return count;
  }
  bool flag() {
    const auto value = number<uint8_t>();
    if (value > 1) bad("a flag is {}", value);
    return value == 1;
  }

  template <Number T>
  void one(T& value) {
    value = number<T>();
  }
  void one(bool& value) { value = flag(); }
  void one(std::string& text) {
    text.resize(count(1));
    raw(text.data(), text.size());
  }
  template <Number T>
  void one(std::vector<T>& values) {
    values.resize(count(sizeof(T)));
    raw(values.data(), values.size() * sizeof(T));
  }
  template <class T>
  void one(std::vector<T>& values) {
    values.clear();  // grows by what has been read: a count alone allocates nothing
    for (size_t left = count(1); left > 0; --left) one(values.emplace_back());
  }
  template <class A, class B>
  void one(std::pair<A, B>& pair) {
    one(pair.first);
    one(pair.second);
  }
  template <class T>
  void one(std::optional<T>& value) {
    value.reset();
    if (flag()) one(value.emplace());
  }
  void one(std::optional<Error>& error) {
    error.reset();
    if (!flag()) return;
    const auto code = number<uint8_t>();
    if (code > uint8_t(Code::kInternal)) bad("error code {}", code);
    std::string message, param;
    one(message);
    one(param);
    if (message.find('\0') != std::string::npos) bad("an error message with a NUL");  // what() would end there
    error.emplace(Code(code), std::move(message), std::move(param));
  }
  template <class T>
  requires std::is_class_v<T>
  void one(T& value) { fields(*this, value); }

  std::span<const std::byte> rest_;
};

template <class T>
T decode_as(Kind kind, std::span<const std::byte> bytes) {
  Reader reader(bytes);
  uint32_t magic = 0, body_bytes = 0;
  uint16_t version = 0, stated_kind = 0;
  reader(magic, version, stated_kind, body_bytes);
  if (magic != kMagic) bad("magic {:#x}, expected {:#x}", magic, kMagic);
  if (version != kStepCodecVersion) bad("version {}, expected {}", version, kStepCodecVersion);
  if (stated_kind != uint16_t(kind)) bad("kind {}, expected {}", stated_kind, uint16_t(kind));
  if (body_bytes != reader.num_left()) bad("{} bytes of body stated, {} received", body_bytes, reader.num_left());
  T value;
  reader(value);
  if (reader.num_left() > 0) bad("{} bytes after the last field", reader.num_left());
  return value;
}

// ------------------------------------------------------------------------------------------------ consistency
void check_ids(std::span<const int32_t> ids, const char* what) {
  for (const int32_t id : ids)
    if (id < 0) bad("{} {}", what, id);
}

void check(const Chunk& c) {
  const int64_t end = int64_t(c.begin) + int64_t(c.token_ids.size());
  if (c.begin < 0 || c.token_ids.empty() || end >= std::numeric_limits<int>::max())
    bad("a chunk of positions [{}, {})", c.begin, end);
  if (c.num_drafts < 0 || size_t(c.num_drafts) >= c.token_ids.size())
    bad("{} drafts in {} rows", c.num_drafts, c.token_ids.size());
  const std::span<const int32_t> ids = c.token_ids;
  const size_t newest = ids.size() - 1 - size_t(c.num_drafts);  // the only row whose token may be unknown
  check_ids(ids.first(newest), "token id");
  check_ids(ids.subspan(newest + 1), "draft token id");
  if (c.next_token_id < -1) bad("next token id {}", c.next_token_id);
  if (c.prompt_logits_begin < c.begin || c.prompt_logits_end < c.prompt_logits_begin || c.prompt_logits_end > end)
    bad("prompt logits [{}, {}) of positions [{}, {})", c.prompt_logits_begin, c.prompt_logits_end, c.begin, end);
  if (c.mtp_end < c.begin || c.mtp_end > end) bad("MTP up to {} of positions [{}, {})", c.mtp_end, c.begin, end);
  if (c.num_old_pages < 0) bad("{} pages sent", c.num_old_pages);
  check_ids(c.new_pages, "page");
  check_ids(c.new_output_ids, "output token id");
  if (!c.start) return;
  if (c.start->num_prompt_tokens < 1) bad("a prompt of {} tokens", c.start->num_prompt_tokens);
  if (!c.start->prompt_ids.empty() && c.start->prompt_ids.size() != size_t(c.start->num_prompt_tokens))
    bad("{} ids of a prompt of {}", c.start->prompt_ids.size(), c.start->num_prompt_tokens);
  check_ids(c.start->prompt_ids, "prompt token id");
  check_ids(c.start->eos_token_ids, "eos token id");
}

void check(const ExpertLoad::Layer& layer) {
  if (layer.layer_idx < 0) bad("the load of layer {}", layer.layer_idx);
  for (const std::vector<int64_t>* counts : {&layer.experts, &layer.ranks})
    for (const int64_t count : *counts)
      if (count < 0) bad("{} tokens of an expert or rank", count);
}

}  // namespace

std::vector<std::byte> encode(const RankStepPlan& plan) {
  return encode_as(Kind::kPlan, plan);
}

std::vector<std::byte> encode(const RankStepResult& result) {
  return encode_as(Kind::kResult, result);
}

RankStepPlan decode_step_plan(std::span<const std::byte> bytes) {
  auto plan = decode_as<RankStepPlan>(Kind::kPlan, bytes);
  for (const Chunk& chunk : plan.chunks) check(chunk);
  if (!plan.compute && !plan.chunks.empty()) bad("{} chunks that are not to be computed", plan.chunks.size());
  return plan;
}

RankStepResult decode_step_result(std::span<const std::byte> bytes) {
  auto result = decode_as<RankStepResult>(Kind::kResult, bytes);
  if (!std::isfinite(result.busy_seconds) || !std::isfinite(result.idle_seconds))
    bad("a step of {} s after a pause of {} s", result.busy_seconds, result.idle_seconds);
  if (result.expert_load)
    for (const ExpertLoad::Layer& layer : result.expert_load->layers) check(layer);
  return result;
}

}  // namespace moectl
