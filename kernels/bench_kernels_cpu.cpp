// The CPU part of `moectl bench kernels`: operations of kernels/ops.h at a model's sizes, a few rows each, since one of
// its matrices is tens of megabytes. The roof is the bandwidth that as many threads read.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <random>
#include <regex>

#include "core/base/error.h"
#include "kernels/bench_kernels.h"
#include "kernels/ops.h"

namespace moectl {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kBalance = 8;  // operations a byte above which memory is no limit on any CPU

struct Case {
  std::string kernel, shape;
  double bytes, flops;
  // Prepares inputs; the function that it returns runs once, and `*out` is what it wrote.
  std::function<std::function<void()>(Ops&, std::vector<float>* out)> make;
};

std::vector<float> random_floats(int64_t n, float scale = 1.0f) {
  std::mt19937_64 rng(uint64_t(n) + 1);
  std::vector<float> v(static_cast<size_t>(n));
  for (float& x : v) x = scale * (float(rng() >> 40) * 0x1p-23f - 1.0f);
  return v;
}

Case rms_norm_case(const KernelShape& s, int64_t rows) {
  const int64_t size = s.hidden_size;
  return {"rms_norm", fmt::format("{} {}x{}", s.name, rows, size), 2.0 * double(rows * size) * 4, 0,
          [=](Ops& ops, std::vector<float>* out) -> std::function<void()> {
            auto x = std::make_shared<std::vector<float>>(random_floats(rows * size));
            auto weight = std::make_shared<std::vector<float>>(random_floats(size));
            out->resize(size_t(rows * size));
            return [=, &ops] {
              RmsNormArgs args;
              args.x = View<const float>(x->data(), {rows, size});
              args.weight = View<const float>(weight->data(), {size});
              args.out = View<float>(out->data(), {rows, size});
              ops.rms_norm(args, {});
            };
          }};
}

Case linear_case(const KernelShape& s, const char* name, DType dtype, int64_t rows, int64_t n, int64_t k) {
  const double weight_bytes = double(n * k) * dtype_info(dtype).bits / 8;
  return {fmt::format("linear {}", dtype_info(dtype).name), fmt::format("{} {} {}x{}x{}", s.name, name, rows, n, k),
          weight_bytes + double(rows * (n + k)) * 4, 2.0 * double(rows) * double(n) * double(k),
          [=](Ops& ops, std::vector<float>* out) -> std::function<void()> {
            MatrixSpec m;
            m.name = "random";
            m.dtype = dtype;
            m.rows = m.num_rows = n;
            m.cols = m.num_cols = k;
            const std::vector<float> values = random_floats(n * k);
            std::vector<std::byte> bytes(static_cast<size_t>(weight_bytes));
            std::vector<float> scales;
            if (dtype == DType::kF8E4M3) {
              std::mt19937_64 rng(7);
              for (std::byte& b : bytes) b = std::byte(rng() % 2 << 7 | rng() % 127);  // all but NaN
              m.block_n = m.block_k = 128;
              scales.assign(size_t((n + 127) / 128 * ((k + 127) / 128)), 1e-3f);
              m.scales = reinterpret_cast<const std::byte*>(scales.data());
            } else {
              for (size_t i = 0; i < values.size(); ++i) {
                const uint16_t h = f32_to_bf16(values[i]);
                std::memcpy(bytes.data() + 2 * i, &h, 2);
              }
            }
            m.data = bytes.data();
            const Weight weight = ops.pack(std::span(&m, 1));
            auto x = std::make_shared<std::vector<float>>(random_floats(rows * k));
            out->resize(size_t(rows * n));
            return [=, &ops] {
              LinearArgs args;
              args.x = View<const float>(x->data(), {rows, k});
              args.weight = weight;
              args.out = View<float>(out->data(), {rows, n});
              ops.linear(args, {});
            };
          }};
}

std::vector<Case> cases_of(const KernelShape& s) {
  std::vector<Case> cases;
  const DType dtype = s.f8 ? DType::kF8E4M3 : DType::kBF16;
  const bool mla = s.kv_lora_rank > 0;
  const int64_t qkv = mla ? s.q_lora_rank + s.kv_lora_rank + s.qk_rope_head_dim
                          : int64_t{s.num_heads + 2 * s.num_kv_heads} * s.head_dim;
  for (const int64_t rows : {1, 64}) {
    cases.push_back(rms_norm_case(s, rows));
    cases.push_back(linear_case(s, mla ? "qkv_a" : "qkv", dtype, rows, qkv, s.hidden_size));
    cases.push_back(linear_case(s, "expert gate_up", dtype, rows, 2 * s.moe_intermediate_size, s.hidden_size));
    cases.push_back(linear_case(s, "gate", DType::kBF16, rows, s.num_experts, s.hidden_size));
  }
  return cases;
}

double median_seconds(const std::function<void()>& run) {
  run();
  std::vector<double> seconds;
  const auto begin = Clock::now();
  while (seconds.size() < 5 || (seconds.size() < 200 && Clock::now() - begin < std::chrono::milliseconds(200))) {
    const auto start = Clock::now();
    run();
    seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
  }
  std::nth_element(seconds.begin(), seconds.begin() + ptrdiff_t(seconds.size() / 2), seconds.end());
  return seconds[seconds.size() / 2];
}

uint64_t hash_of(const std::vector<float>& values) {
  uint64_t hash = 0xcbf29ce484222325ull;
  for (const float v : values) hash = (hash ^ std::bit_cast<uint32_t>(v)) * 0x100000001b3ull;
  return hash;
}

}  // namespace

KernelReport bench_kernels_on_cpu(const KernelBenchOptions& options, const std::regex& filter) {
  auto ops = make_ops({.device = "cpu", .num_threads = options.num_threads});
  std::vector<Case> cases;
  for (const KernelShape& shape : options.shapes)
    for (Case& c : cases_of(shape))
      if (std::regex_search(c.kernel + " " + c.shape, filter)) cases.push_back(std::move(c));
  KernelReport report;
  report.device = fmt::format("CPU, {}, {} threads", ops->numerics_id(), options.num_threads);
  report.library = "none: on the CPU no peer is timed";
  report.roofs.read_bytes_per_second = read_bandwidth("cpu", options.num_threads);
  report.roofs.missing = "matrix rates are not measured on the CPU";
  for (const Case& c : cases) {
    if (options.progress) options.progress(int(report.results.size()), int(cases.size()), c.kernel + " " + c.shape);
    KernelResult r{.kernel = c.kernel, .shape = c.shape, .bytes = c.bytes, .flops = c.flops, .bound = "memory"};
    std::vector<float> out;
    r.seconds = median_seconds(c.make(*ops, &out));
    if (c.flops > kBalance * c.bytes)
      r.bound = "arithmetic";
    else
      r.roof_share = c.bytes / report.roofs.read_bytes_per_second / r.seconds;
    r.output_hash = hash_of(out);
    report.results.push_back(r);
  }
  return report;
}

}  // namespace moectl
