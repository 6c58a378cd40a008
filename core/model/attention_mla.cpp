// Multi-head latent attention (DeepSeek-V2 report, section 2.1) in absorbed form: keys and values are read only from
// the compressed KV in the cache, the own chunk included, so prefill in any chunking and decode are the same
// arithmetic. A backend may take long prefill chunks in expanded form instead (ExpandedMla), which is other arithmetic.
#include "core/model/step.h"

namespace moectl {
namespace {

template <class T>
View<T> rows(View<T> v, int64_t begin, int64_t end) {
  v.data = v.row(begin);
  return v.first(end - begin);
}

}  // namespace

void mla_cache(Step& step, const MlaWeights& w, int layer_idx, const Operands& x) {
  const int64_t n = step.num_tokens;
  const View<float> kv_a = step.buffers.kv_a.first(n), cos_sin = step.buffers.cos_sin.first(n);
  step.ops.linear({x.get(w.kv_a.operand), w.kv_a, kv_a, w.kv_a_bias}, step.stream);
  step.ops.mla_cache_write({kv_a, w.kv_a_norm, step.config.mla.latent_norm_eps, cos_sin, step.in.slots,
                            step.cache.layer(layer_idx), step.config.rope.interleaved},
                           step.stream);
}

void mla_layer(Step& step, const MlaWeights& w, const LayerOperands& operands, int layer_idx, const Operands& x,
               View<float> out) {
  const Config& c = step.config;
  Buffers& b = step.buffers;
  Ops& ops = step.ops;
  const int64_t n = step.num_tokens;
  const View<float> q = b.q.first(n);
  const View<float> q_flat(q.data, {n, q.row_size()});
  const auto cache_x = [&] { mla_cache(step, w, layer_idx, x); };
  if (w.q_a) {
    const View<float> q_a = b.q_a.first(n);
    const Operands q_a_normed = b.q_a_normed.rows(n, w.q_b.k, {w.q_b.operand});
    ops.linear({x.get(w.q_a.operand), w.q_a, q_a, w.q_a_bias}, step.stream);
    ops.device().fork(cache_x);
    ops.rms_norm({.x = q_a, .weight = w.q_a_norm, .out = q_a_normed, .eps = c.mla.latent_norm_eps}, step.stream);
    ops.linear({q_a_normed.get(w.q_b.operand), w.q_b, q_flat}, step.stream);
  } else {
    ops.linear({x.get(w.q_b.operand), w.q_b, q_flat}, step.stream);
    ops.device().fork(cache_x);
  }

  const View<float> cos_sin = b.cos_sin.first(n);
  const KvView cache = step.cache.layer(layer_idx);
  const int64_t num_heads = q.dim(1), rank = c.mla.kv_lora_rank, v_dim = w.w_uv.n;
  const DType latent_dtype = operands.mla.latent;
  // Heads [begin, end) of the step from queries [begin, end).
  const auto absorbed = [&](int64_t begin, int64_t end, const Operands& heads) {
    if (begin == end) return;
    const int64_t rows_n = end - begin, width = rank + c.mla.qk_rope_head_dim;
    const Operand q_latent = b.q_latent.rows(rows_n, num_heads * width, {latent_dtype})
                                 .get(latent_dtype)
                                 .reshaped({rows_n, num_heads, width});
    const Operand latent =
        b.latent.rows(rows_n, num_heads * rank, {latent_dtype}).get(latent_dtype).reshaped({rows_n, num_heads, rank});
    ops.mla_query({rows(q, begin, end), w.w_uk, rows(cos_sin, begin, end), q_latent, c.rope.interleaved}, step.stream);
    ops.device().join();
    ops.mla_attention({q_latent, cache, step.in.page_table, rows(step.in.seq_idx, begin, end),
                       rows(step.in.positions, begin, end), c.mla.kv_lora_rank, c.softmax_scale, latent},
                      step.stream);
    ops.mla_output({latent, w.w_uv, heads}, step.stream);
  };
  const DType o = w.o.operand;
  const View<const float> o_bias = step.tp.is_first() ? w.o_bias : View<const float>();
  if (step.in.prefill_chunks.empty() && operands.mla.output_operands) {
    const Operands heads = b.heads.rows(n, num_heads * v_dim, {o});
    absorbed(0, n, heads);
    return ops.linear({heads.get(o), w.o, out, o_bias}, step.stream);
  }

  DTypeSet dtypes = {DType::kF32, o};
  const Operands heads = b.heads.rows(n, num_heads * v_dim, dtypes);
  const View<float> by_head(heads.f32.f32().data, {n, num_heads, v_dim});
  int64_t begin = 0;  // rows before it are done
  for (const PrefillChunk& chunk : step.in.prefill_chunks) {
    const int64_t end = chunk.row + chunk.num_rows;
    ops.device().join();
    const View<const int32_t> pages(step.in.page_table.row(chunk.seq), {step.in.page_table.dim(1)});
    const MlaPrefillArgs args = {rows(q, chunk.row, end),       w.w_uk,          w.w_uv,
                                 rows(cos_sin, chunk.row, end), cache,           pages,
                                 chunk.first_position,          c.softmax_scale, c.rope.interleaved,
                                 rows(by_head, chunk.row, end)};
    if (!ops.expanded_mla()->takes(args)) continue;
    ops.expanded_mla()->mla_prefill(args, step.stream);
    absorbed(begin, chunk.row, rows(by_head, begin, chunk.row));
    begin = end;
  }
  absorbed(begin, n, rows(by_head, begin, n));
  if (o != DType::kF32) ops.quantize({heads.f32.f32(), Operands(heads.get(o))}, step.stream);
  ops.linear({heads.get(o), w.o, out, o_bias}, step.stream);
}

}  // namespace moectl
