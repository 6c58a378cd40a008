// Multi-head latent attention (DeepSeek-V2 report, section 2.1) in absorbed form: keys and values are read only from
// the latent cache, the own chunk included, so prefill in any chunking and decode are the same arithmetic. A backend
// may take long chunks of prompts in expanded form instead (Ops::mla_prefill), which is other arithmetic.
#include "core/model/step.h"

namespace moectl {
namespace {

template <class T>
View<T> rows(View<T> v, int64_t begin, int64_t end) {
  v.data = v.row(begin);
  return v.first(end - begin);
}

}  // namespace

void mla_cache(Step& step, const MlaWeights& w, int layer_idx, View<const float> x) {
  const int64_t n = step.num_tokens;
  const View<float> kv_a = step.buffers.kv_a.first(n), cos_sin = step.buffers.cos_sin.first(n);
  step.ops.linear({x, w.kv_a, kv_a, w.kv_a_bias}, step.stream);
  step.ops.mla_cache_write({kv_a, w.kv_a_norm, step.config.mla.latent_norm_eps, cos_sin, step.in.slots,
                            step.cache.layer(layer_idx), step.config.rope.interleaved},
                           step.stream);
}

void mla_layer(Step& step, const MlaWeights& w, int layer_idx, View<const float> x, View<float> out) {
  const Config& c = step.config;
  Buffers& b = step.buffers;
  Ops& ops = step.ops;
  const int64_t n = step.num_tokens;
  const View<float> q = b.q.first(n);
  const View<float> q_flat(q.data, {n, q.row_size()});
  const auto cache_x = [&] { mla_cache(step, w, layer_idx, x); };
  if (w.q_a) {
    const View<float> q_a = b.q_a.first(n);
    ops.linear({x, w.q_a, q_a, w.q_a_bias}, step.stream);
    ops.beside(cache_x);
    ops.rms_norm({.x = q_a, .weight = w.q_a_norm, .out = q_a, .eps = c.mla.latent_norm_eps}, step.stream);
    ops.linear({q_a, w.q_b, q_flat}, step.stream);
  } else {
    ops.linear({x, w.q_b, q_flat}, step.stream);
    ops.beside(cache_x);
  }

  const View<float> cos_sin = b.cos_sin.first(n);
  const KvView cache = step.cache.layer(layer_idx);
  const View<float> heads = b.heads.first(n);
  const auto absorbed = [&](int64_t begin, int64_t end) {
    if (begin == end) return;
    TypedView q_latent = b.q_latent.first(end - begin), latent = b.latent.first(end - begin);
    q_latent.dtype = latent.dtype = ops.latent_dtype(w.w_uk, w.w_uv, cache);
    ops.mla_query({rows(q, begin, end), w.w_uk, rows(cos_sin, begin, end), q_latent, c.rope.interleaved}, step.stream);
    ops.rejoin();
    ops.mla_attention({q_latent, cache, step.in.page_table, rows(step.in.seq_idx, begin, end),
                       rows(step.in.positions, begin, end), c.mla.kv_lora_rank, c.softmax_scale, latent},
                      step.stream);
    ops.mla_output({latent, w.w_uv, rows(heads, begin, end)}, step.stream);
  };
  int64_t begin = 0;  // rows before it are done
  for (const LongChunk& chunk : step.in.long_chunks) {
    const int64_t end = chunk.row + chunk.num_rows;
    ops.rejoin();
    const View<const int32_t> pages(step.in.page_table.row(chunk.seq), {step.in.page_table.dim(1)});
    if (!ops.mla_prefill({rows(q, chunk.row, end), w.w_uk, w.w_uv, rows(cos_sin, chunk.row, end), cache, pages,
                          chunk.first_position, c.softmax_scale, c.rope.interleaved, rows(heads, chunk.row, end)},
                         step.stream))
      continue;
    absorbed(begin, chunk.row);
    begin = end;
  }
  absorbed(begin, n);
  ops.linear({View<const float>(heads.data, {n, heads.row_size()}), w.o, out, w.o_bias}, step.stream);
}

}  // namespace moectl
