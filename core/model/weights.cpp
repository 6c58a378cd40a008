#include "core/model/weights.h"

#include <array>
#include <cstring>

#include "core/base/check.h"
#include "core/base/memory.h"

namespace moectl {
namespace {

class Loader {
 public:
  Loader(const Config& config, const Checkpoint& checkpoint, Ops& ops,
         const std::function<void(int64_t, int64_t)>& progress)
      : config_(config), checkpoint_(checkpoint), ops_(ops), progress_(progress) {}

  std::shared_ptr<const ModelWeights> load() {
    check_memory();
    out_ = std::make_shared<ModelWeights>();
    const int64_t hidden = config_.hidden_size, vocab = config_.vocab_size;
    out_->embed = table("model.embed_tokens.weight", vocab, hidden);
    for (int i = 0; i < config_.num_layers; ++i) out_->layers.push_back(layer(i));
    for (int i = 0; i < config_.num_mtp_layers; ++i) out_->mtp.push_back(mtp(config_.num_layers + i));
    out_->norm = vector("model.norm.weight", hidden);
    out_->head = matrix(config_.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight", vocab, hidden);
    return out_;
  }

 private:
  // Before the first allocation: a checkpoint that cannot fit (or a sparse file that claims to be huge) is refused in
  // words.
  void check_memory() const {
    const int64_t needed = checkpoint_.total_bytes(), available = available_memory_bytes();
    if (needed > available)
      throw Error(
          Code::kResourceExhausted,
          fmt::format("{}: the weights need {:.1f} GB of memory and {:.1f} GB are available; use a machine with more "
                      "memory or a smaller checkpoint",
                      checkpoint_.dir().string(), double(needed) / 1e9, double(available) / 1e9));
  }

  // The matrix as it lies in the file, with its block scales when it is FP8.
  MatrixSpec spec(const std::string& name, int64_t rows, int64_t cols) {
    const TensorInfo& t = checkpoint_.get(name, std::array{rows, cols});
    MatrixSpec m = {.name = fmt::format("{}: {}", t.file, name),
                    .data = t.data,
                    .dtype = t.dtype,
                    .rows = rows,
                    .cols = cols,
                    .num_rows = rows,
                    .num_cols = cols};
    if (t.dtype == DType::kF8E4M3) {
      const int bn = config_.quant.block_n, bk = config_.quant.block_k;
      if (bn <= 0 || bk <= 0)
        throw Error(Code::kBadData,
                    fmt::format("{}: {} is FP8, but config.json has no quantization_config.weight_block_size; "
                                "expected [128, 128]",
                                t.file, name));
      const TensorInfo& s =
          checkpoint_.get(name + "_scale_inv", std::array{(rows + bn - 1) / bn, (cols + bk - 1) / bk});
      if (s.dtype != DType::kF32)
        throw Error(Code::kBadData, fmt::format("{}: {} is {}, expected f32", s.file, s.name, dtype_name(s.dtype)));
      m.scales = s.data;
      m.block_n = bn;
      m.block_k = bk;
    } else if (t.dtype != DType::kF32 && t.dtype != DType::kBF16 && t.dtype != DType::kF16) {
      throw Error(Code::kBadData, fmt::format("{}: {} is {}; weights are f32, bf16, f16 or f8_e4m3", t.file, name,
                                              dtype_name(t.dtype)));
    }
    used_.push_back(&t);
    return m;
  }

  Weight pack(std::span<const MatrixSpec> batch) {
    Weight w = ops_.pack(batch);
    finish(w);
    return w;
  }
  Weight matrix(const std::string& name, int64_t rows, int64_t cols) {
    MatrixSpec m = spec(name, rows, cols);
    return pack({&m, 1});
  }
  Weight table(const std::string& name, int64_t rows, int64_t cols) {
    MatrixSpec m = spec(name, rows, cols);
    if (m.scales) throw Error(Code::kBadData, fmt::format("{}: embeddings in FP8 are not supported", m.name));
    Weight w = ops_.pack_rows(m);
    finish(w);
    return w;
  }
  // Accounts for what was packed and lets go of its file pages, so that a loaded server holds its weights once.
  void finish(const Weight& w) {
    out_->num_bytes += w.num_bytes;
    for (const TensorInfo* t : used_) {
      done_ += t->num_bytes;
      checkpoint_.release(*t);
    }
    used_.clear();
    if (progress_) progress_(std::min(done_, checkpoint_.total_bytes()), checkpoint_.total_bytes());
  }

  View<const float> vector(const std::string& name, int64_t size) {
    const TensorInfo& t = checkpoint_.get(name, std::array{size});
    std::vector<float> host(static_cast<size_t>(size));
    for (int64_t i = 0; i < size; ++i) {
      const std::byte* p = t.data + i * dtype_bytes(t.dtype);
      uint16_t half = 0;
      if (dtype_bytes(t.dtype) == 2) std::memcpy(&half, p, 2);
      switch (t.dtype) {
        case DType::kF32:
          std::memcpy(&host[size_t(i)], p, 4);
          break;
        case DType::kBF16:
          host[size_t(i)] = bf16_to_f32(half);
          break;
        case DType::kF16:
          host[size_t(i)] = f16_to_f32(half);
          break;
        default:
          throw Error(Code::kBadData,
                      fmt::format("{}: {} is {}; vectors are f32, bf16 or f16", t.file, name, dtype_name(t.dtype)));
      }
    }
    Buffer buffer = ops_.alloc(size * 4);
    ops_.upload(buffer.get(), host.data(), size * 4);
    out_->vectors.push_back(buffer);
    out_->num_bytes += size * 4;
    return View<const float>(reinterpret_cast<float*>(buffer.get()), {size});
  }

  MlaWeights mla(const std::string& prefix) {
    const MlaConfig& c = config_.mla;
    const int64_t hidden = config_.hidden_size, heads = config_.num_heads;
    const int64_t nope = c.qk_nope_head_dim, rope = c.qk_rope_head_dim, v = c.v_head_dim, rank = c.kv_lora_rank;
    MlaWeights w;
    if (c.q_lora_rank > 0) {
      w.q_a = matrix(prefix + "q_a_proj.weight", c.q_lora_rank, hidden);
      w.q_a_norm = vector(prefix + "q_a_layernorm.weight", c.q_lora_rank);
      w.q_b = matrix(prefix + "q_b_proj.weight", heads * (nope + rope), c.q_lora_rank);
    } else {
      w.q_b = matrix(prefix + "q_proj.weight", heads * (nope + rope), hidden);
    }
    w.kv_a = matrix(prefix + "kv_a_proj_with_mqa.weight", rank + rope, hidden);
    w.kv_a_norm = vector(prefix + "kv_a_layernorm.weight", rank);
    const MatrixSpec kv_b = spec(prefix + "kv_b_proj.weight", heads * (nope + v), rank);
    std::vector<MatrixSpec> uk, uv;
    for (int64_t h = 0; h < heads; ++h) {
      uk.push_back(kv_b);
      uk.back().row_begin = h * (nope + v);
      uk.back().num_rows = nope;
      uk.back().transpose = true;
      uv.push_back(kv_b);
      uv.back().row_begin = h * (nope + v) + nope;
      uv.back().num_rows = v;
    }
    w.w_uk = ops_.pack(uk);
    out_->num_bytes += w.w_uk.num_bytes;
    w.w_uv = pack(uv);
    w.o = matrix(prefix + "o_proj.weight", hidden, heads * v);
    return w;
  }

  MlpWeights mlp(const std::string& prefix, int64_t intermediate) {
    const int64_t hidden = config_.hidden_size;
    return {matrix(prefix + "gate_proj.weight", intermediate, hidden),
            matrix(prefix + "up_proj.weight", intermediate, hidden),
            matrix(prefix + "down_proj.weight", hidden, intermediate)};
  }

  MlpWeights experts(const std::string& prefix) {
    const int64_t hidden = config_.hidden_size, inter = config_.moe.moe_intermediate_size;
    auto all = [&](const char* name, int64_t rows, int64_t cols) {
      std::vector<MatrixSpec> batch;
      for (int e = 0; e < config_.moe.num_experts; ++e)
        batch.push_back(spec(fmt::format("{}experts.{}.{}.weight", prefix, e, name), rows, cols));
      return pack(batch);
    };
    return {all("gate_proj", inter, hidden), all("up_proj", inter, hidden), all("down_proj", hidden, inter)};
  }

  LayerWeights layer(int idx) {
    const std::string prefix = fmt::format("model.layers.{}.", idx);
    const MoeConfig& moe = config_.moe;
    LayerWeights w;
    w.input_norm = vector(prefix + "input_layernorm.weight", config_.hidden_size);
    w.attention = mla(prefix + "self_attn.");
    w.post_attention_norm = vector(prefix + "post_attention_layernorm.weight", config_.hidden_size);
    if (config_.layers[size_t(idx)].feed_forward == FeedForwardKind::kDense) {
      w.mlp = mlp(prefix + "mlp.", config_.intermediate_size);
      return w;
    }
    w.gate = matrix(prefix + "mlp.gate.weight", moe.num_experts, config_.hidden_size);
    if (moe.has_correction_bias) w.gate_bias = vector(prefix + "mlp.gate.e_score_correction_bias", moe.num_experts);
    w.experts = experts(prefix + "mlp.");
    if (moe.num_shared_experts > 0)
      w.shared = mlp(prefix + "mlp.shared_experts.", int64_t{moe.num_shared_experts} * moe.moe_intermediate_size);
    return w;
  }

  MtpWeights mtp(int idx) {
    const std::string prefix = fmt::format("model.layers.{}.", idx);
    const int64_t hidden = config_.hidden_size, vocab = config_.vocab_size;
    MtpWeights w;
    // Published checkpoints repeat the embedding and the head here; both may be left out.
    if (checkpoint_.find(prefix + "embed_tokens.weight"))
      w.embed = table(prefix + "embed_tokens.weight", vocab, hidden);
    w.enorm = vector(prefix + "enorm.weight", hidden);
    w.hnorm = vector(prefix + "hnorm.weight", hidden);
    MatrixSpec half = spec(prefix + "eh_proj.weight", hidden, 2 * hidden);
    half.num_cols = hidden;
    w.eh_proj_e = ops_.pack({&half, 1});
    out_->num_bytes += w.eh_proj_e.num_bytes;
    half.col_begin = hidden;
    w.eh_proj_h = pack({&half, 1});
    w.layer = layer(idx);
    w.norm = vector(prefix + "shared_head.norm.weight", hidden);
    if (checkpoint_.find(prefix + "shared_head.head.weight"))
      w.head = matrix(prefix + "shared_head.head.weight", vocab, hidden);
    return w;
  }

  const Config& config_;
  const Checkpoint& checkpoint_;
  Ops& ops_;
  const std::function<void(int64_t, int64_t)>& progress_;
  std::shared_ptr<ModelWeights> out_;
  std::vector<const TensorInfo*> used_;
  int64_t done_ = 0;
};

}  // namespace

std::shared_ptr<const ModelWeights> load_weights(const Config& config, const Checkpoint& checkpoint, Ops& ops,
                                                 const std::function<void(int64_t, int64_t)>& progress) {
  return Loader(config, checkpoint, ops, progress).load();
}

int64_t weight_bytes(const ModelWeights& weights) {
  return weights.num_bytes;
}

}  // namespace moectl
