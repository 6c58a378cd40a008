// Ops: the mathematics between the model and the hardware. About twenty coarse operations, one Args struct each, a
// shape on every field. The model above it is the same for every backend; memory, streams and graphs are device.h.
//
// Rules: views point to memory of the Ops' device (host memory on the CPU). Every operation takes a stream and may
// return before it is done there (the CPU backend returns when done). No Args field is a host value derived from device
// data, and nothing is allocated inside an operation: scratch is an Args field.
//
// Activations are operands (operand.h): a weight says which dtype of rows it multiplies (Weight::operand), and the
// operation that produces the rows writes that dtype.
//
// Exactness: on the CPU backend each output row is a function of its own inputs; the number of rows, their order and
// the number of threads change no bit of it (docs/determinism.md).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "core/base/dtype.h"
#include "core/base/tensor.h"
#include "kernels/capabilities.h"
#include "kernels/device.h"
#include "kernels/operand.h"

namespace moectl {

// The paged cache of a layer: f32 or bf16.
struct KvView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  std::array<int64_t, 4> shape{};

  KvView() = default;
  KvView(void* p, DType t, const std::array<int64_t, 4>& dims) : data(p), dtype(t), shape(dims) {}
  KvView(const View<float>& v) : data(v.data), shape(v.shape) {}  // NOLINT: a view of f32 is one
  KvView(const View<const float>& v) : data(const_cast<float*>(v.data)), shape(v.shape) {}  // NOLINT
  int64_t dim(int i) const { return shape[size_t(i)]; }
  int64_t num_bytes() const { return shape[0] * page_values() * dtype_bytes(dtype); }
  // Numbers that one step of the first dimension (a page) skips.
  int64_t page_values() const { return shape[1] * shape[2] * (shape[3] ? shape[3] : 1); }
};

// Where the numbers of a kI4, kU4 or kF4E2M1 matrix lie: eight in a little-endian 32-bit word.
// kRows: words run along each row, the first element lowest: [rows, ceil(cols / 8)] words. Zero points run down the
//   rows: [ceil(rows / block_n / 8), ceil(cols / block_k)] words (compressed-tensors pack-quantized; MXFP4).
// kAwq: everything is stored transposed, [cols, rows / 8] words, and the eight elements of a word, rows 0 .. 7, stand
// in
//   nibbles 0, 4, 1, 5, 2, 6, 3, 7; scales are [ceil(cols / block_k), rows] and zero points [.., rows / 8] words alike
//   (AutoAWQ, version "gemm"; block_n is 1).
enum class NibbleOrder { kRows, kAwq };

// A matrix as it lies in a checkpoint, or a rectangle of it, perhaps transposed: the operand W [n, k] of out = x W^T.
// Where `scales` are given an element's value is scale * number; kU4: scale * (number - zero point); kI4 numbers are
// stored as number + 8, kU8 ones as number + 128 in rows of whole 32-bit words (compressed-tensors int8).
struct MatrixSpec {
  std::string name;                   // for messages
  const std::byte* data = nullptr;    // [rows, cols], row-major, any alignment; 4-bit: see NibbleOrder
  DType dtype = DType::kF32;          // f32, bf16, f16; with scales f8_e4m3, f4_e2m1, i4, u4, i8, u8
  int64_t rows = 0, cols = 0;         // of the whole tensor
  const std::byte* scales = nullptr;  // scale_dtype [ceil(rows / block_n), ceil(cols / block_k)], any alignment
  DType scale_dtype = DType::kF32;    // f32, bf16, f16, f8_e8m0
  const std::byte* zeros = nullptr;   // kU4: see NibbleOrder
  NibbleOrder nibble_order = NibbleOrder::kRows;
  int block_n = 0, block_k = 0;
  int64_t row_begin = 0, num_rows = 0, col_begin = 0, num_cols = 0;  // the rectangle that is used
  int64_t row_step = 1, col_step = 1;  // 2: every other row or column (gate and up interleaved)
  bool transpose = false;              // n = num_cols, k = num_rows
};

// `batch` matrices [n, k] of one dtype in the layout that the backend reads fastest; opaque above this interface.
struct Weight {
  int64_t batch = 0, n = 0, k = 0;
  DType dtype = DType::kF32;
  DType operand = DType::kF32;  // of the rows that linear() multiplies with it
  int64_t num_bytes = 0;
  std::shared_ptr<const void> impl;
  explicit operator bool() const { return impl != nullptr; }
};

// ------------------------------------------------------------------------------------------------ arguments

struct EmbedArgs {
  View<const int32_t> token_ids;  // [num_tokens]; -1 - i: token i of `sampled`, which the host does not know yet
  Weight table;                   // packed by pack_rows: [vocab_size, hidden_size]
  View<float> out;                // [num_tokens, hidden_size]
  View<const int32_t> sampled;    // [any]; may be empty where every token is known
  // Vocabulary parallel: `table` holds rows first_id, first_id + 1, ... of [vocab_size, hidden_size]; tokens of other
  // rows give zeros. vocab_size 0: `table` is the whole.
  int64_t first_id = 0, vocab_size = 0;
};

// out = norm(x) * weight, norm(x) = x / sqrt(mean(x^2) + eps). With a residual stream: residual += x, and the sum is
// normed.
struct RmsNormArgs {
  View<const float> x;       // [num_rows, size]
  View<float> residual;      // [num_rows, size] in and out; empty: none
  View<const float> weight;  // [size]; empty: ones
  Operands out;              // [num_rows, size]; f32 may be `x` itself
  float eps = 1e-6f;
  // Tensor parallel: x is a part of rows of `whole_size`, whose sums of squares [num_rows] are given; no residual.
  // Empty: x holds whole rows.
  View<const float> square_sums = {};
  int64_t whole_size = 0;
};

// out[i] = the sum of x[i, j]^2 over j.
struct SumSquaresArgs {
  View<const float> x;  // [num_rows, size]
  View<float> out;      // [num_rows]
};

struct LinearArgs {
  Operand x;                    // [num_rows, k] of weight.operand
  Weight weight;                // batch 1
  View<float> out;              // [num_rows, n]
  View<const float> bias = {};  // [n], added to each row; empty: none
};

// out = x, rounded to each dtype that is given: bf16 to nearest even; f8_e4m3 with scale = max |x| / 448 of 128
// columns. For rows whose producer computes in f32 only (attention), and for callers outside the model.
struct QuantizeArgs {
  View<const float> x;  // [num_rows, size]
  Operands out;         // [num_rows, size]; f32: `x` itself, left as it is
};

// Rows whose columns are in several parts: out[i, part * width + j] = part's row i, column j.
struct ConcatColumnsArgs {
  // [num_parts, any]: each begins with its columns, [num_rows, width], or fewer in the last part, one row after the
  // other.
  View<const float> parts;
  int64_t width = 0;  // of each part but the last
  View<float> out;    // [num_rows, size], (num_parts - 1) * width < size <= num_parts * width
};

// Row gather: out[i] = x[row_idx[i]].
struct GatherArgs {
  Operand x;                    // [any, size]
  View<const int32_t> row_idx;  // [num_rows]
  Operand out;                  // [num_rows, size], in x's dtype
};

// cos and sin of position * inv_freq, both times `factor` (YaRN's attention factor), for the rows of one step.
struct RopeTableArgs {
  View<const int32_t> positions;  // [num_tokens]
  View<const float> inv_freq;     // [rope_dim / 2]
  float factor = 1.0f;
  View<float> cos_sin;  // [num_tokens, rope_dim] out: cosines, then sines
};

// Rotates the first rope_dim components of every head: pairs (2i, 2i + 1) when interleaved, else (i, i + rope_dim / 2).
struct RopeArgs {
  View<float> x;              // [num_tokens, num_heads, head_dim] in and out
  View<const float> cos_sin;  // [num_tokens, rope_dim]
  bool interleaved = false;
};

// Copies keys and values of a step to their slots of the paged cache. Within a page each head's keys lie together, then
// its values, so that attention reads one head strictly forward.
struct GqaCacheWriteArgs {
  View<const float> k, v;     // [num_tokens, num_kv_heads, head_dim]
  View<const int64_t> slots;  // [num_tokens]: page * page_size + offset; -1: a padding row, not written
  int page_size = 0;
  KvView cache;  // [num_pages, num_kv_heads, 2 * page_size, head_dim] of one layer: keys, then values
};

// softmax(scale * q . k) v for grouped-query attention: query head h reads key/value head h * num_kv_heads / num_heads.
// A row at position p sees positions b .. p, b = max(0, p - window + 1) with a window, the start of p's chunk with
// chunks.
struct GqaAttentionArgs {
  View<const float> q;             // [num_tokens, num_heads, head_dim]
  KvView cache;                    // [num_pages, num_kv_heads, 2 * page_size, head_dim] of one layer
  View<const int32_t> page_table;  // [num_seqs, max_pages]
  View<const int32_t> seq_idx;     // [num_tokens]: row of page_table
  View<const int32_t> positions;   // [num_tokens]; -1: a padding row, its output is zeros
  View<const float> sinks;         // [num_heads]: one more logit of each head, without a value; empty: none
  int page_size = 0;
  int window = 0;  // positions a row sees, its own included; 0: all
  int chunk = 0;   // attention inside chunks of so many positions; 0: none
  float scale = 1.0f;
  View<float> out;  // [num_tokens, num_heads, head_dim]
  // A row's scale times 1 + temperature_scale * ln(1 + floor((position + 1) / temperature_floor)); 0: none (Llama 4).
  float temperature_floor = 0.0f, temperature_scale = 0.0f;
};

// MLA (DeepSeek-V2 report, section 2.1), absorbed form: the query is moved into the latent space, so that attention
// reads the cached latent only. q_latent = q_nope W_UK; the rotary part is rotated as by RopeArgs.
struct MlaQueryArgs {
  View<const float> q;        // [num_tokens, num_heads, qk_nope_head_dim + qk_rope_head_dim]
  Weight w_uk;                // batch num_heads: [kv_lora_rank, qk_nope_head_dim]
  View<const float> cos_sin;  // [num_tokens, qk_rope_head_dim]
  Operand out;                // [num_tokens, num_heads, kv_lora_rank + qk_rope_head_dim] of MlaForm::latent
  bool interleaved = true;
};

// Writes a token's latent (normed) and rotated key part to its slot of the paged cache.
struct MlaCacheWriteArgs {
  View<const float> kv;           // [num_tokens, kv_lora_rank + qk_rope_head_dim], of kv_a_proj_with_mqa
  View<const float> norm_weight;  // [kv_lora_rank]
  float eps = 1e-6f;
  View<const float> cos_sin;  // [num_tokens, qk_rope_head_dim]
  View<const int64_t> slots;  // [num_tokens]: page * page_size + offset; -1: a padding row, not written
  KvView cache;               // [num_pages, page_size, kv_lora_rank + qk_rope_head_dim] of one layer
  bool interleaved = true;    // RopeArgs
};

// softmax(scale * q . k) v over the cache positions 0 .. position of the row's sequence, page by page from position 0.
struct MlaAttentionArgs {
  Operand q;                       // [num_tokens, num_heads, kv_lora_rank + qk_rope_head_dim]
  KvView cache;                    // [num_pages, page_size, kv_lora_rank + qk_rope_head_dim] of one layer
  View<const int32_t> page_table;  // [num_seqs, max_pages]
  View<const int32_t> seq_idx;     // [num_tokens]: row of page_table
  View<const int32_t> positions;   // [num_tokens]; -1: a padding row, its output is zeros
  int kv_lora_rank = 0;
  float scale = 1.0f;
  Operand out;  // [num_tokens, num_heads, kv_lora_rank] in q's dtype
};

// out[t, h] = W_UV[h] latent[t, h].
struct MlaOutputArgs {
  Operand latent;  // [num_tokens, num_heads, kv_lora_rank]
  Weight w_uv;     // batch num_heads: [v_head_dim, kv_lora_rank]
  Operands out;    // [num_tokens, num_heads, v_head_dim]
};

// mla_query, mla_attention and mla_output in one, for rows at consecutive positions of one sequence (a prefill chunk)
// whose compressed KV is in the cache, the chunk's own included. Expanded form: keys and values of all heads are
// computed from the compressed KV first (W_UK c, W_UV c), for all rows together.
struct MlaPrefillArgs {
  View<const float> q;         // [num_tokens, num_heads, qk_nope_head_dim + qk_rope_head_dim]
  Weight w_uk, w_uv;           // of MlaQueryArgs and MlaOutputArgs
  View<const float> cos_sin;   // [num_tokens, qk_rope_head_dim]
  KvView cache;                // [num_pages, page_size, kv_lora_rank + qk_rope_head_dim] of one layer
  View<const int32_t> pages;   // [max_pages] of the sequence
  int64_t first_position = 0;  // of row 0
  float scale = 1.0f;
  bool interleaved = true;
  View<float> out;  // [num_tokens, num_heads, v_head_dim]
};

// Counts a gate's choices by the physical expert that computes them (PlacementView). Integers: the order of additions
// does not matter.
struct ExpertCounting {
  View<int64_t> counts;               // [num_physical_experts] in and out; empty: nothing is counted
  View<const int32_t> positions;      // [num_tokens]; -1: a padding row, not counted
  View<const int32_t> replica_begin;  // PlacementView's; empty: every expert has one replica
  int64_t rank = 0;                   // the caller's: PlacementView's s
};

// Top-k routing. Sigmoid: DeepSeek-V3 report, section 2.1.2: the bias picks experts; it never weights them.
struct MoeGateArgs {
  View<const float> logits;   // [num_tokens, num_experts]
  View<const float> bias;     // [num_experts]; empty: no correction
  View<int32_t> expert_idx;   // [num_tokens, top_k] out, logical ids, best first, ties to the lower id
  View<float> expert_weight;  // [num_tokens, top_k] out; rows sum to `scale` when normalised
  bool sigmoid = false;       // else softmax over all experts
  bool normalize = false;
  int num_groups = 1, num_topk_groups = 1;  // groups of equal size; only the best num_topk_groups take part
  bool group_score_top2 = false;            // a group's score: sum of its two best (V3), else its best (V2)
  float scale = 1.0f;
  float norm_min = 0.0f;  // normalising divides by the sum of the weights, at least by this
  ExpertCounting count = {};
};

// Of a gated feed-forward: what becomes of gate g and up u.
struct Activation {
  enum class Kind { kSwiGlu, kClampedSwiGlu } kind = Kind::kSwiGlu;  // silu(g) * u
  // kClampedSwiGlu (gpt-oss): g' = min(g, limit), u' = clamp(u, -limit, limit), g' * sigmoid(alpha * g') * (u' + 1).
  float limit = 0.0f, alpha = 1.0f;
};

// Where experts are: logical expert e is held by physical experts replica_begin[e] .. replica_begin[e + 1] - 1 (more
// than one: redundant experts); physical expert p is expert local[p] of rank rank[p]. Token t of source rank s uses
// replica (s + t) % number of replicas; replicas are equal, so the choice changes no result. Empty: one rank holds
// every expert, in order.
struct PlacementView {
  View<const int32_t> replica_begin;  // [num_experts + 1]
  View<const int32_t> rank, local;    // [num_physical_experts]
};

// Tokens of one rank of a group, in that rank's memory, which its peers may read: tokens token_begin, token_begin + 1,
// ... of its batch.
struct MoeSource {
  Operand x;                        // [batch, hidden_size]: the whole batch; or, `packed`, only the tokens here
  bool packed = false;              // rows of x are packed_row_bytes (expert_all_to_all.h) apart, as tokens travel
  View<const int32_t> expert_idx;   // [num_tokens, top_k] logical; -1: none
  View<const float> expert_weight;  // [num_tokens, top_k]; empty: not wanted
  View<int32_t> row_of;             // [num_tokens * top_k] out, the caller's: row in `x` of MoePermuteArgs where the
                                    // expert is the caller's, else -1
  int64_t token_begin = 0;          // PlacementView's t of expert_idx's first token, and its row in `x` unless packed
};

// Gathers the rows that the caller's experts compute, sorted by local expert, then source rank, token and slot.
struct MoePermuteArgs {
  std::span<const MoeSource> sources;  // by rank; the caller's own among them
  PlacementView placement;
  int64_t rank = 0;              // the caller's
  View<int32_t> expert_offsets;  // [num_local_experts + 1] out
  Operand x;                     // [max_rows, hidden_size] out, in the sources' dtype
                                 // max_rows >= sum of num_tokens * min(top_k, num_local_experts)
  View<float> scale;             // [max_rows] out: the rows' weights; empty: not wanted
};

// Results of one rank for the rows of one source: `out` is MoeExpertsArgs::out, `row_of` that MoeSource::row_of.
struct MoeResults {
  const void* out = nullptr;
  const int32_t* row_of = nullptr;
};

// Where the results of the caller's tokens are: expert_rows[t, j] = out + row_of[t * top_k + j] of the expert's rank.
struct MoeLocateArgs {
  View<const int32_t> expert_idx;       // [num_tokens, top_k] logical; -1: the row is null
  std::span<const MoeResults> results;  // by rank
  PlacementView placement;
  int64_t rank = 0, token_begin = 0;  // the caller's (PlacementView's s); PlacementView's t of expert_idx's first token
  int64_t row_bytes = 0;              // of MoeResults::out
  View<const void*> expert_rows;      // [num_tokens, top_k] out
};

// Gated feed-forward of several experts: rows of expert e are expert_offsets[e] .. expert_offsets[e + 1].
// out = act(x W_gate^T, x W_up^T) W_down^T. A dense feed-forward is one expert.
struct MoeExpertsArgs {
  Operand x;                           // [max_rows, hidden_size] of ExpertOperands::x
  View<const int32_t> expert_offsets;  // [num_local_experts + 1], on the device
  Weight w_gate, w_up;                 // batch >= num_local_experts: [intermediate, hidden_size]
  Weight w_down;                       // the same batch: [hidden_size, intermediate]
  View<const int32_t> weight_idx;      // [num_local_experts]: batch entry of each; empty: 0, 1, 2, ...
  Operands hidden;                     // [max_rows, intermediate] scratch of ExpertOperands::hidden
  Operand out;                         // [max_rows, hidden_size] of ExpertOperands::out
  Activation activation = {};
  View<const float> gate_bias = {}, up_bias = {};  // [batch, intermediate]; empty: none
  View<const float> down_bias = {};                // [batch, hidden_size]; empty: none
  // Of each row: gate and up are multiplied by it before the activation, as if it had multiplied x (Llama 4). Empty: 1.
  View<const float> row_scale = {};  // [max_rows]
};

// The dtypes that moe_experts multiplies with: of x, and of its scratch; and of what it writes. Routed experts
// write `out` wherever they are, so that their place changes no bit.
struct ExpertOperands {
  DType x = DType::kF32;
  DTypeSet hidden = {DType::kF32};
  DType out = DType::kF32;  // what routed experts write: f32 or bf16; f32 is always possible
};

// out[t] = sum over j of expert_weight[t, j] * expert_out[row_idx[t, j]], in the order of j, plus shared[t], which is
// multiplied by sigmoid(shared_gate[t]) where there is one.
struct MoeCombineArgs {
  // [num_tokens, top_k]: the expert's output row of [hidden_size], maybe a peer's memory; null: none.
  View<const void* const> expert_rows;
  DType rows_dtype = DType::kF32;      // of expert_rows: f32 or bf16
  View<const float> expert_weight;     // [num_tokens, top_k]; empty: ones
  View<const float> shared;            // [num_tokens, hidden_size]; empty: none
  View<float> out;                     // [num_tokens, hidden_size]
  View<const float> shared_gate = {};  // [num_tokens]; empty: none
};

// What a token's logit is changed by before sampling (core/engine/sampler.h, steps 2 and 3), in this order: + bias;
// where `seen`, divided (positive) or multiplied (else) by the row's repetition penalty; - frequency penalty * count
// - presence penalty where count > 0. A token stands in at most one adjustment of a row.
struct LogitAdjustment {
  int32_t token_id = 0;
  float bias = 0.0f;  // -infinity: never chosen
  int32_t count = 0;  // times in the output so far
  int32_t seen = 0;   // 1: in the prompt or the output
};

// How one row is sampled: core/engine/sampler.h, steps 2 to 6.
struct SamplingRow {
  float temperature = 0.0f;  // below kGreedyBelow: the best id
  int32_t top_k = 0;         // 0: off
  float top_p = 1.0f, min_p = 0.0f;
  float repetition_penalty = 1.0f, presence_penalty = 0.0f, frequency_penalty = 0.0f;
  int32_t num_logprobs = -1;  // -1: none; 0: of the chosen token; k <= kMaxTopLogprobs: also the k best, of the raw row
  int32_t adjust_begin = 0, adjust_end = 0;  // of LogitAdjustments, by ascending token_id
  int32_t given_id = -1;     // 0 or more: nothing is chosen; this token's logprob is wanted, and num_logprobs
  int32_t pending_row = -1;  // 0 or more: token pending_row of `sampled` ends the output, and the adjustments lack it
  double uniform = 0.0;      // the draw, in [0, 1)
};
inline constexpr int kMaxTopLogprobs = 20;
inline constexpr float kGreedyBelow = 1e-5f;

enum class SampledStatus : int32_t { kOk, kNotFinite, kNothingLeft };  // NaN or infinity in the row; all excluded
struct SampledRow {
  int32_t token_id = 0;
  SampledStatus status = SampledStatus::kOk;
  float logprob = 0.0f;
  int32_t num_top = 0;
  int32_t top_ids[kMaxTopLogprobs] = {};  // best first, equal ones by id
  float top_logprobs[kMaxTopLogprobs] = {};
};

struct SampleRowsArgs {
  View<const float> logits;                 // [num_rows, vocab_size] raw
  View<const SamplingRow> rows;             // [num_rows], on the device
  View<const LogitAdjustment> adjustments;  // [any], on the device
  View<SampledRow> out;                     // [num_rows]
  View<int32_t> next_token_ids;  // [num_rows] out: token_id again, where the next step reads it; may be empty
  View<const int32_t> sampled;   // [any] by the step before; may be empty where no row is pending
};

// ------------------------------------------------------------------------------------------------ interface

// The largest shapes that a rank's operations will meet; scratch is sized by it.
struct ScratchShape {
  int64_t max_tokens = 0;                                     // rows of a step
  int64_t num_heads = 0, q_head_size = 0, out_head_size = 0;  // of the attention operation
  int64_t num_experts = 0;                                    // of moe_permute
  int64_t max_sampled_rows = 0, vocab_size = 0;               // of sample_rows
};

// How absorbed MLA runs with these weights and this cache.
struct MlaForm {
  DType latent = DType::kF32;    // of mla_query's output, mla_attention's operands and mla_output's input
  bool output_operands = false;  // mla_output writes every dtype that is given; else f32 only
};

// Expanded MLA, of backends that have it.
class ExpandedMla {
 public:
  virtual ~ExpandedMla() = default;
  virtual int64_t min_rows() const = 0;                 // shorter chunks are never taken
  virtual bool takes(const MlaPrefillArgs&) const = 0;  // whether it fits, and costs less than the absorbed form
  virtual void mla_prefill(const MlaPrefillArgs&, Stream) = 0;
};

// Sampling on the device, of backends whose logits the host cannot read.
class DeviceSampling {
 public:
  virtual ~DeviceSampling() = default;
  virtual void sample_rows(const SampleRowsArgs&, Stream) = 0;
};

class ExpertAllToAll;  // expert_all_to_all.h

class Ops {
 public:
  virtual ~Ops() = default;
  // Part of the numerics id: equal ids compute equal bits ("cpu-avx512-1").
  virtual std::string numerics_id() const = 0;
  virtual Device& device() = 0;
  virtual const Capabilities& capabilities() const = 0;
  virtual ExpandedMla* expanded_mla() = 0;          // null: MLA runs in absorbed form
  virtual DeviceSampling* device_sampling() = 0;    // null: Capabilities::host_readable, and the host samples
  virtual ExpertAllToAll* expert_all_to_all() = 0;  // null: peers' tokens are read in place (moe_permute)

  // Bytes that the operations need for themselves up to `shape`; set_scratch() before the first of them.
  virtual int64_t scratch_bytes(const ScratchShape&) const = 0;
  virtual void set_scratch(Buffer, const ScratchShape&) = 0;
  // Packs equal-sized matrices, one per batch entry. Work that is put into device().stream() afterwards finds them
  // complete; other streams have to wait for that one. Throws Error{kBadData} for NaN in FP8 data or scales.
  virtual Weight pack(std::span<const MatrixSpec> batch) = 0;
  // Packs a table for row look-ups (embeddings).
  virtual Weight pack_rows(const MatrixSpec& table) = 0;

  // Asked once, when the model is built. `args`: weights, biases, activation, row_scale (any non-null) and the number
  // of experts (expert_offsets' shape).
  virtual ExpertOperands expert_operands(const MoeExpertsArgs& args) const = 0;
  virtual MlaForm mla_form(const Weight& w_uk, const Weight& w_uv, const KvView& cache) const = 0;

  virtual void embed(const EmbedArgs&, Stream) = 0;
  virtual void rms_norm(const RmsNormArgs&, Stream) = 0;
  virtual void sum_squares(const SumSquaresArgs&, Stream) = 0;
  virtual void linear(const LinearArgs&, Stream) = 0;
  virtual void quantize(const QuantizeArgs&, Stream) = 0;
  virtual void gather(const GatherArgs&, Stream) = 0;
  virtual void concat_columns(const ConcatColumnsArgs&, Stream) = 0;
  virtual void rope_table(const RopeTableArgs&, Stream) = 0;
  virtual void rope(const RopeArgs&, Stream) = 0;
  virtual void gqa_cache_write(const GqaCacheWriteArgs&, Stream) = 0;
  virtual void gqa_attention(const GqaAttentionArgs&, Stream) = 0;
  virtual void mla_query(const MlaQueryArgs&, Stream) = 0;
  virtual void mla_cache_write(const MlaCacheWriteArgs&, Stream) = 0;
  virtual void mla_attention(const MlaAttentionArgs&, Stream) = 0;
  virtual void mla_output(const MlaOutputArgs&, Stream) = 0;
  virtual void moe_gate(const MoeGateArgs&, Stream) = 0;
  virtual void moe_permute(const MoePermuteArgs&, Stream) = 0;
  virtual void moe_experts(const MoeExpertsArgs&, Stream) = 0;
  virtual void moe_locate(const MoeLocateArgs&, Stream) = 0;
  virtual void moe_combine(const MoeCombineArgs&, Stream) = 0;
};

struct OpsOptions {
  std::string device = "cpu";     // cpu | cuda | auto
  std::string cpu_path = "auto";  // auto | avx512 | portable
  int num_threads = 1;            // of this rank
  bool spin = true;               // false when ranks x threads exceed the cores
  int device_index = 0;           // cuda: device ordinal
  bool precise = false;           // cuda: f32 activations everywhere, as the CPU computes; else FP8 and bf16 operands
  bool deterministic = false;     // cuda: batch-invariant: a row's bits do not depend on the other rows of its step
  bool has_peers = false;         // cuda: other ranks of this process wait for this device in barriers
  bool portable = false;          // cuda: the portable kernels (compute capability 8.0 and later), on Hopper too
};

// Throws Error{kBadConfig} that says what this machine or build lacks.
std::unique_ptr<Ops> make_ops(const OpsOptions& options);

}  // namespace moectl
