// `moectl bench comm`: the collectives and the expert all-to-all between ranks, beside the rates of the link. What is
// measured and how stands in core/comm/bench_comm.h; this prints it.
#include "core/comm/bench_comm.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cmd/command.h"
#include "cmd/progress.h"

namespace moectl {
namespace {

using Json = nlohmann::json;

double rate(int64_t num_bytes, double seconds) {
  return num_bytes > 0 && seconds > 0 ? double(num_bytes) / seconds : 0;
}

Json known(double value) {
  return value > 0 ? Json(value) : Json(nullptr);
}

Json times_json(const CommTimes& t, int64_t num_bytes) {
  return {{"iterations", t.iterations},
          {"p50_seconds", t.p50_seconds},
          {"p99_seconds", t.p99_seconds},
          {"max_seconds", t.max_seconds},
          {"bytes_per_second", known(rate(num_bytes, t.p50_seconds))}};
}

Json to_json(const CommReport& report, const CommBenchOptions& o) {
  Json j = {{"device", report.device},
            {"device_name", report.device_name},
            {"devices", report.devices},
            {"crosses_link", report.crosses_link},
            {"ep_size", o.ep_size},
            {"hidden_size", o.hidden_size},
            {"top_k", o.top_k},
            {"num_experts", o.num_experts},
            {"dtype", dtype_name(report.dtype)},
            {"results_dtype", dtype_name(report.results_dtype)},
            {"all2all_backend", all2all_backend_name(o.backend)},
            {"nccl", report.nccl.empty() ? Json(nullptr) : Json(report.nccl)},
            {"not_measured", report.missing.empty() ? Json(nullptr) : Json(report.missing)},
            {"one_shot_bytes", kOneShotBytes},
            {"pause_seconds", std::chrono::duration<double>(o.pause).count()},
            {"clock_step_seconds", report.clock_step_seconds},
            {"link", {{"flag_seconds", known(report.flag_seconds)}, {"rates", Json::array()}}},
            {"results", Json::array()}};
  for (const LinkRate& r : report.link)
    j["link"]["rates"].push_back({{"transfer", r.transfer},
                                  {"num_blocks", r.num_blocks > 0 ? Json(r.num_blocks) : Json(nullptr)},
                                  {"bytes_per_second", r.bytes_per_second}});
  for (const CommResult& r : report.results) {
    Json result = {{"operation", r.operation},
                   {"form", r.form.empty() ? Json(nullptr) : Json(r.form)},
                   {"collectives", r.collectives ? Json(collectives_name(*r.collectives)) : Json(nullptr)},
                   {"tokens", r.tokens > 0 ? Json(r.tokens) : Json(nullptr)},
                   {"rounds", r.rounds},
                   {"bytes", r.num_bytes},
                   {"back_to_back", times_json(r.back_to_back, r.num_bytes)},
                   {"after_pause", times_json(r.after_pause, r.num_bytes)}};
    if (r.output_hash != 0) result["output_hash"] = fmt::format("{:016x}", r.output_hash);
    j["results"].push_back(result);
  }
  return j;
}

void print_link(const CommReport& report) {
  if (report.link.empty()) {
    fmt::print("\nno link is measured: ranks over NCCL alone do not address each other's memory\n");
    return;
  }
  fmt::print("\nlink, all ranks at once, GB/s per direction\n");
  for (const LinkRate& r : report.link) {
    const std::string by =
        r.num_blocks == 0 ? "" : fmt::format("{} block{}", r.num_blocks, r.num_blocks > 1 ? "s" : "");
    fmt::print("  {:<12}{:<12}{:>8.1f}\n", r.transfer, by, r.bytes_per_second / 1e9);
  }
  fmt::print("  flag, one way        {:>8.2f} us\n", report.flag_seconds * 1e6);
  if (!report.crosses_link)
    fmt::print("no link is measured: {}\n",
               report.devices.empty() ? "the ranks are threads of one CPU" : "ranks share a GPU, and so its memory");
}

void print_head(const CommReport& report, const CommBenchOptions& o) {
  const std::string where = report.devices.empty() ? "" : fmt::format(" on GPUs {}", fmt::join(report.devices, ", "));
  fmt::print("{}; {} ranks{}\n", report.device_name, o.ep_size, where);
  fmt::print("{} values per token, {} out, {} back; top {} of {} experts, chosen at random; all-to-all {}\n",
             o.hidden_size, dtype_name(report.dtype), dtype_name(report.results_dtype), o.top_k, o.num_experts,
             all2all_backend_name(o.backend));
  if (!report.nccl.empty()) fmt::print("NCCL {}\n", report.nccl);
  if (!report.missing.empty()) fmt::print("{}\n", report.missing);
  print_link(report);
  fmt::print("\nmicroseconds of the slowest rank; the clock advances by {:.3g} us\n", report.clock_step_seconds * 1e6);
}

std::string times_text(const CommTimes& t, int64_t num_bytes) {
  const double gigabytes = rate(num_bytes, t.p50_seconds) / 1e9;
  return fmt::format("{:>10.2f} {:>10.2f} {:>7}", t.p50_seconds * 1e6, t.p99_seconds * 1e6,
                     gigabytes > 0 ? fmt::format("{:.1f}", gigabytes) : "-");
}

void print_table(const CommReport& report, const CommBenchOptions& o) {
  print_head(report, o);
  fmt::print("{:>46} | {:<29} | {}\n", "", "back to back", fmt::format("ranks idle for {} ms before", o.pause.count()));
  const std::string columns = fmt::format("{:>10} {:>10} {:>7}", "p50", "p99", "GB/s");
  fmt::print("{:>6} {:<10} {:<13} {:<5} {:>8} | {} | {}  {}\n", "tokens", "operation", "form", "by", "MB", columns,
             columns, "output hash");
  for (const CommResult& r : report.results) {
    const std::string hash = r.output_hash != 0 ? fmt::format("  {:016x}", r.output_hash) : "";
    fmt::print("{:>6} {:<10} {:<13} {:<5} {:>8} | {} | {}{}\n", r.tokens > 0 ? std::to_string(r.tokens) : "-",
               r.operation, r.form.empty() ? "-" : r.form, r.collectives ? collectives_name(*r.collectives) : "-",
               r.num_bytes > 0 ? fmt::format("{:.3f}", double(r.num_bytes) / 1e6) : "-",
               times_text(r.back_to_back, r.num_bytes), times_text(r.after_pause, r.num_bytes), hash);
  }
}

}  // namespace

int bench_comm(const BenchCommOptions& options) {
  CommBenchOptions bench = options.bench;
  ProgressBar bar("ranks", ProgressBar::Unit::kCount);
  bench.progress = [&](int done, int total) { bar.update(done, total); };
  const CommReport report = bench_comm(bench);
  bar.finish();
  if (options.common.json)
    fmt::print("{}\n", to_json(report, bench).dump(2));
  else
    print_table(report, bench);
  return 0;
}

}  // namespace moectl
