// `moectl bench kernels`: every kernel at the sizes of published models, with the machine's roofs and a library's
// time for the same work. What is timed and how stands behind kernels/bench_kernels.h; this prints it.
#include "kernels/bench_kernels.h"

#include <fmt/core.h>

#include <nlohmann/json.hpp>

#include "cmd/command.h"
#include "cmd/progress.h"
#include "core/base/error.h"
#include "core/model/shapes.h"

namespace moectl {
namespace {

KernelShape kernel_shape(const std::string& name) {
  const Config c = shape_config(name);
  KernelShape s{.name = name,
                .hidden_size = c.hidden_size,
                .num_heads = c.num_heads,
                .vocab_size = c.vocab_size,
                .num_experts = c.moe.num_experts,
                .num_experts_per_tok = c.moe.num_experts_per_tok,
                .moe_intermediate_size = c.moe.moe_intermediate_size,
                .num_groups = c.moe.num_groups,
                .num_topk_groups = c.moe.num_topk_groups,
                .sigmoid_gate = c.moe.scoring == GateScoring::kSigmoid,
                .f8 = c.quant.dtype == DType::kF8E4M3};
  for (const LayerConfig& layer : c.layers)
    if (layer.feed_forward == FeedForwardKind::kDense) s.dense_intermediate_size = c.intermediate_size;
  if (c.attention() == AttentionKind::kMla) {
    s.q_lora_rank = c.mla.q_lora_rank;
    s.kv_lora_rank = c.mla.kv_lora_rank;
    s.qk_nope_head_dim = c.mla.qk_nope_head_dim;
    s.qk_rope_head_dim = c.mla.qk_rope_head_dim;
    s.v_head_dim = c.mla.v_head_dim;
  } else {
    s.num_kv_heads = c.gqa.num_kv_heads;
    s.head_dim = c.gqa.head_dim;
  }
  return s;
}

std::string rate_text(const KernelResult& r) {
  if (r.seconds <= 0) return "-";
  const double gflops = r.flops / r.seconds / 1e9;
  return r.bound == "memory" ? fmt::format("{:.0f} GB/s", r.bytes / r.seconds / 1e9)
         : gflops < 1e4      ? fmt::format("{:.0f} GFLOP/s", gflops)
                             : fmt::format("{:.0f} TFLOP/s", gflops / 1e3);
}

std::string percent(double share) {
  return share > 0 ? fmt::format("{:.0f} %", 100 * share) : "-";
}

std::string microseconds(double seconds) {
  return seconds > 0 ? fmt::format("{:.1f}", seconds * 1e6) : "-";
}

std::string roof_text(double value, double unit, std::string_view name) {
  return value > 0 ? fmt::format("{:.0f} {}", value / unit, name) : "unknown";
}

void print_table(const KernelReport& report) {
  const KernelRoofs& roofs = report.roofs;
  fmt::print("{}\npeers: {}\n", report.device, report.library);
  fmt::print("roofs, this run: read {}, bf16 {}, f8 {}\n", roof_text(roofs.read_bytes_per_second, 1e9, "GB/s"),
             roof_text(roofs.bf16_flops_per_second, 1e12, "TFLOP/s"),
             roof_text(roofs.f8_flops_per_second, 1e12, "TFLOP/s"));
  if (!roofs.missing.empty()) fmt::print("unknown roofs: {}\n", roofs.missing);
  size_t kernel_width = 6, shape_width = 5;
  for (const KernelResult& r : report.results) {
    kernel_width = std::max(kernel_width, r.kernel.size());
    shape_width = std::max(shape_width, r.shape.size());
  }
  fmt::print("\n{:<{}}  {:<{}} {:>9} {:>12} {:>13}  {:<16}  {}\n", "kernel", kernel_width, "shape", shape_width, "us",
             "achieved", "of the roof", "output hash", "peers: us (ours is so many times as fast)");
  for (const KernelResult& r : report.results) {
    std::string peers;
    for (const KernelPeer& p : r.peers) {
      if (!peers.empty()) peers += "; ";
      if (p.seconds <= 0)
        peers += fmt::format("{}: {}", p.name, p.error);
      else if (r.seconds > 0)
        peers += fmt::format("{} {} (x{:.2f})", p.name, microseconds(p.seconds), p.seconds / r.seconds);
      else
        peers += fmt::format("{} {}", p.name, microseconds(p.seconds));
    }
    fmt::print("{:<{}}  {:<{}} {:>9} {:>12} {:>13}  {:016x}  {}\n", r.kernel, kernel_width, r.shape, shape_width,
               microseconds(r.seconds), rate_text(r), fmt::format("{} {}", percent(r.roof_share), r.bound),
               r.output_hash, peers);
    if (!r.error.empty()) fmt::print("  failed: {}\n", r.error);
  }
}

nlohmann::json to_json(const KernelReport& report) {
  const auto known = [](double v) { return v > 0 ? nlohmann::json(v) : nlohmann::json(nullptr); };
  nlohmann::json j = {{"device", report.device},
                      {"library", report.library},
                      {"roofs",
                       {{"read_bytes_per_second", known(report.roofs.read_bytes_per_second)},
                        {"bf16_flops_per_second", known(report.roofs.bf16_flops_per_second)},
                        {"f8_flops_per_second", known(report.roofs.f8_flops_per_second)}}},
                      {"kernels", nlohmann::json::array()}};
  if (!report.roofs.missing.empty()) j["roofs"]["missing"] = report.roofs.missing;
  for (const KernelResult& r : report.results) {
    nlohmann::json k = {{"kernel", r.kernel},
                        {"shape", r.shape},
                        {"seconds", known(r.seconds)},
                        {"bytes", r.bytes},
                        {"flops", r.flops},
                        {"bound", r.bound},
                        {"roof_share", known(r.roof_share)},
                        {"output_hash", fmt::format("{:016x}", r.output_hash)},
                        {"peers", nlohmann::json::array()}};
    if (!r.error.empty()) k["error"] = r.error;
    for (const KernelPeer& p : r.peers) {
      k["peers"].push_back({{"name", p.name}, {"seconds", known(p.seconds)}});
      if (!p.error.empty()) k["peers"].back()["error"] = p.error;
    }
    j["kernels"].push_back(k);
  }
  return j;
}

}  // namespace

int bench_kernels(const BenchKernelsOptions& options) {
  KernelBenchOptions bench;
  bench.device = options.device;
  bench.filter = options.filter;
  bench.num_threads = options.num_threads;
  for (const std::string& name : options.shapes) bench.shapes.push_back(kernel_shape(name));
  ProgressBar bar("kernels", ProgressBar::Unit::kCount);
  bench.progress = [&](int done, int total, const std::string&) { bar.update(done, total); };
  const KernelReport report = time_kernels(bench);
  bar.finish();
  if (report.results.empty())
    throw Error(Code::kUsage,
                fmt::format("--filter {}: no kernel and shape is named so; without it all are timed", options.filter));
  if (options.common.json)
    fmt::print("{}\n", to_json(report).dump(2));
  else
    print_table(report);
  const auto failed = [](const KernelResult& r) { return !r.error.empty(); };
  return std::any_of(report.results.begin(), report.results.end(), failed) ? 1 : 0;
}

}  // namespace moectl
