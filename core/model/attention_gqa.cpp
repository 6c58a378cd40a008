// Grouped-query attention (arXiv 2305.13245) with what its families add: biases, norms of queries and keys, partial
// rotation, sinks, windows. Keys and values are read only from the cache, the own chunk included.
#include "core/model/step.h"

namespace moectl {

void gqa_layer(Step& step, const GqaWeights& w, int layer_idx, View<const float> x, View<float> out) {
  const Config& c = step.config;
  const LayerConfig& layer = c.layers[size_t(layer_idx)];
  Buffers& b = step.buffers;
  Ops& ops = step.ops;
  const int64_t n = step.num_tokens;
  const View<float> q = b.q.first(n), k = b.k.first(n), v = b.v.first(n), heads = b.heads.first(n);
  auto flat = [&](const View<float>& t) { return View<float>(t.data, {n, t.row_size()}); };
  ops.linear({x, w.q, flat(q), w.q_bias}, step.stream);
  ops.linear({x, w.k, flat(k), w.k_bias}, step.stream);
  ops.linear({x, w.v, flat(v), w.v_bias}, step.stream);

  auto norm = [&](const View<float>& t, View<const float> weight) {
    const View<float> rows =
        c.gqa.qk_norm == QkNorm::kAllBeforeRope ? flat(t) : View<float>(t.data, {n * t.dim(1), t.dim(2)});
    ops.rms_norm({.x = rows, .weight = weight, .out = rows, .eps = c.rms_norm_eps}, step.stream);
  };
  auto norm_both = [&] {
    norm(q, w.q_norm);
    norm(k, w.k_norm);
  };
  if (c.gqa.qk_norm == QkNorm::kHeadBeforeRope || c.gqa.qk_norm == QkNorm::kAllBeforeRope) norm_both();
  if (layer.rope) {
    const View<float> cos_sin = b.cos_sin.first(n);
    ops.rope({q, cos_sin, c.rope.interleaved}, step.stream);
    ops.rope({k, cos_sin, c.rope.interleaved}, step.stream);
  }
  if (c.gqa.qk_norm == QkNorm::kHeadAfterRope || c.gqa.qk_norm == QkNorm::kHeadL2AfterRope) norm_both();

  const View<float> cache = step.cache.layer(layer_idx);
  ops.gqa_cache_write({k, v, step.slots, kPageSize, cache}, step.stream);
  ops.gqa_attention({.q = q,
                     .cache = cache,
                     .page_table = step.page_table,
                     .seq_idx = step.seq_idx,
                     .positions = step.positions,
                     .sinks = w.sinks,
                     .page_size = kPageSize,
                     .window = layer.window,
                     .chunk = layer.chunk,
                     .scale = c.softmax_scale,
                     .out = heads},
                    step.stream);
  ops.linear({flat(heads), w.o, out, w.o_bias}, step.stream);
}

}  // namespace moectl
