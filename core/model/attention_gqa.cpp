// Grouped-query attention (arXiv 2305.13245) with what its families add: biases, norms of queries and keys, partial
// rotation, sinks, windows, chunks, temperatures. Keys and values are read only from the cache, the own chunk included.
#include "core/model/step.h"

namespace moectl {

namespace {

View<float> flat(const View<float>& t) {
  return View<float>(t.data, {t.dim(0), t.row_size()});
}

// Whether the norms of queries and keys need the sums of all TP ranks.
bool norms_over_ranks(const Step& step) {
  return step.config.gqa.qk_norm == QkNorm::kAllBeforeRope && step.tp.size() > 1;
}

// Of all heads, of which the rank holds some. A KV head that several ranks hold counts as often, in the sum of squares
// as in the number of values.
void norm_over_ranks(Step& step, const View<float>& rows, View<const float> weight) {
  const View<float> sums = step.buffers.square_sums.first(rows.dim(0));
  step.ops.sum_squares({rows, sums}, step.stream);
  step.tp.all_reduce(sums, step.stream);
  step.ops.rms_norm({.x = rows,
                     .weight = weight,
                     .out = rows,
                     .eps = step.config.rms_norm_eps,
                     .square_sums = sums,
                     .whole_size = step.tp.size() * rows.row_size()},
                    step.stream);
}

// Norm and rotation, in the family's order, of queries or keys [num_tokens, heads, head_dim] in place.
void norm_and_rotate(Step& step, const View<float>& t, View<const float> norm_weight, bool rope) {
  const Config& c = step.config;
  const QkNorm kind = c.gqa.qk_norm;
  auto norm = [&] {
    if (norms_over_ranks(step)) return norm_over_ranks(step, flat(t), norm_weight);
    const View<float> rows =
        kind == QkNorm::kAllBeforeRope ? flat(t) : View<float>(t.data, {t.dim(0) * t.dim(1), t.dim(2)});
    step.ops.rms_norm({.x = rows, .weight = norm_weight, .out = rows, .eps = c.rms_norm_eps}, step.stream);
  };
  if (kind == QkNorm::kHeadBeforeRope || kind == QkNorm::kAllBeforeRope) norm();
  if (rope) step.ops.rope({t, step.buffers.cos_sin.first(step.num_tokens), c.rope.interleaved}, step.stream);
  if (kind == QkNorm::kHeadAfterRope || (kind == QkNorm::kHeadL2AfterRope && rope)) norm();
}

}  // namespace

void gqa_cache(Step& step, const GqaWeights& w, int layer_idx, const Operands& x) {
  const View<float> k = step.buffers.k.first(step.num_tokens), v = step.buffers.v.first(step.num_tokens);
  step.ops.linear({x.get(w.k.operand), w.k, flat(k), w.k_bias}, step.stream);
  step.ops.linear({x.get(w.v.operand), w.v, flat(v), w.v_bias}, step.stream);
  norm_and_rotate(step, k, w.k_norm, step.config.layers[size_t(layer_idx)].rope);
  step.ops.gqa_cache_write({k, v, step.in.slots, kPageSize, step.cache.layer(layer_idx)}, step.stream);
}

void gqa_layer(Step& step, const GqaWeights& w, int layer_idx, const Operands& x, View<float> out) {
  const Config& c = step.config;
  const LayerConfig& layer = c.layers[size_t(layer_idx)];
  Ops& ops = step.ops;
  const int64_t n = step.num_tokens;
  const DType o = w.o.operand;
  const View<float> q = step.buffers.q.first(n);
  const Operands heads = step.buffers.heads.rows(n, q.row_size(), {DType::kF32, o});
  ops.linear({x.get(w.q.operand), w.q, flat(q), w.q_bias}, step.stream);
  const auto cache_x = [&] { gqa_cache(step, w, layer_idx, x); };
  if (norms_over_ranks(step))
    cache_x();  // collectives of one group stay in one stream
  else
    ops.device().fork(cache_x);
  norm_and_rotate(step, q, w.q_norm, layer.rope);
  ops.device().join();
  ops.gqa_attention({.q = q,
                     .cache = step.cache.layer(layer_idx),
                     .page_table = step.in.page_table,
                     .seq_idx = step.in.seq_idx,
                     .positions = step.in.positions,
                     .sinks = w.sinks,
                     .page_size = kPageSize,
                     .window = layer.window,
                     .chunk = layer.chunk,
                     .scale = c.softmax_scale,
                     .out = View<float>(heads.f32.f32().data, {n, q.dim(1), q.dim(2)}),
                     .temperature_floor = layer.temperature ? c.gqa.temperature_floor : 0.0f,
                     .temperature_scale = c.gqa.temperature_scale},
                    step.stream);
  if (o != DType::kF32) ops.quantize({heads.f32.f32(), Operands(heads.get(o))}, step.stream);
  ops.linear({heads.get(o), w.o, out, step.tp.is_first() ? w.o_bias : View<const float>()}, step.stream);
}

}  // namespace moectl
