// ExpertAllToAll: the expert all-to-all between ranks that store into each other's memory (Ops::expert_all_to_all()).
// Dispatch stores each token once into the memory of every other rank that holds an expert of it; combine stores
// results back. Each is one call: it stores, signals its peers, and waits for their signals, on the device.
//
// Ranks of a group alternate: dispatch, combine, dispatch, combine, ..., every rank each time, with or without tokens.
// This is what protects the buffers, which exist once: when a rank stores the tokens of its next dispatch, the combine
// before has told it that every peer is done with the last ones; and likewise for results
// (tests/comm/all_to_all_model_test.cpp goes through all orders).
#pragma once

#include <cstdint>
#include <span>

#include "kernels/ops.h"
#include "kernels/peer.h"

namespace moectl {

// A token on the wire: its numbers, then, for f8_e4m3, its scales: row-major, each row at a multiple of 16 bytes.
inline int64_t packed_row_bytes(DType dtype, int64_t row_size) {
  const int64_t scales = dtype == DType::kF8E4M3 ? row_size / kFp8Block * int64_t(sizeof(float)) : 0;
  return (row_size * dtype_bytes(dtype) + scales + 15) / 16 * 16;
}

// Signals of one rank, in its memory: the number of the all-to-all that a peer has stored everything for.
struct AllToAllSignals {
  enum Kind { kChoices, kTokens, kResults, kNumKinds };
  std::span<uint32_t* const> flags;  // by rank: [kNumKinds, number of ranks] in that rank's memory, zeros at first
  // [2] in the caller's memory, zeros at first: all-to-alls that are complete (a dispatch and its combine), and blocks
  // of a kernel that are done.
  uint32_t* state = nullptr;
  PeerWait wait;
  int32_t layer = -1;  // for PeerOperation
  // Tests only: other than 0, delays by a random generator of this seed before every store, signal and wait.
  uint32_t delay_seed = 0;
};

// Where the caller's tokens of a round go at one rank; x null: at the caller itself, which reads them in place.
struct DispatchInbox {
  std::byte* x = nullptr;          // [tokens of a round, packed_row_bytes]; token i of the round is row i
  int32_t* expert_idx = nullptr;   // [tokens of a round, top_k]
  float* expert_weight = nullptr;  // likewise; null: not sent
};

struct DispatchArgs {
  AllToAllSignals signals;
  std::span<const DispatchInbox> inboxes;  // by rank, of the caller's tokens
  // What the caller's experts compute, once tokens are here. `sources`: the caller's own in place, its peers' where
  // they store them (MoeSource::packed).
  MoePermuteArgs permute;
  // Few tokens: rows are numbered while tokens travel. Else: many blocks number them afterwards.
  bool low_latency = false;
};

// The caller's results for one source rank's tokens of a round.
struct CombineSource {
  View<const int32_t> row_of;       // [num_tokens, top_k]: MoeSource::row_of
  View<const float> expert_weight;  // [num_tokens, top_k] of the source, for the reduced form; empty: ones
  // In the source's memory. Reduced form: [num_tokens, row_size], the caller's. Else [num_tokens, top_k, row_size],
  // every rank writes the choices that it holds.
  void* slots = nullptr;
};

// Sends results to the ranks that the tokens came from, and says where those of the caller's own tokens are: what
// MoeCombineArgs::expert_rows is then.
struct CombineArgs {
  AllToAllSignals signals;
  PlacementView placement;
  int64_t rank = 0;                        // the caller's
  View<const int32_t> expert_idx;          // [num_tokens, top_k] of the caller's own tokens
  int64_t token_begin = 0;                 // of its batch: PlacementView's t of the first of them
  Operand rows;                            // [max_rows, row_size] f32 or bf16: the caller's experts' results
  std::span<const CombineSource> results;  // by source rank
  // Each rank adds its experts' results of a token first, weighted, in the order of the token's choices: one row per
  // token and rank, in the dtype of `rows`. Else one row per choice, and the bits are those of one rank.
  bool reduced = false;
  // By rank: where it stores results of the caller's tokens, in the caller's memory. Not reduced: all the same.
  std::span<const void* const> slots;
  // Out. Reduced: [num_tokens, number of ranks], null where a rank holds no expert of the token. Else [num_tokens,
  // top_k], null for choices of no expert; the caller's own rows stand where its experts wrote them.
  View<const void*> expert_rows;
};

class ExpertAllToAll {
 public:
  virtual ~ExpertAllToAll() = default;
  virtual void dispatch(const DispatchArgs&, Stream) = 0;
  virtual void combine(const CombineArgs&, Stream) = 0;
};

}  // namespace moectl
