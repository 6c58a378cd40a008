// `moectl bench kernels`, without CUDA's types: what to time and what came out. Roofs are measured in the same run. The
// caller prints.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace moectl {

// The sizes of one model that kernels see; 0 where a model has no such part.
struct KernelShape {
  std::string name;
  int hidden_size = 0, num_heads = 0, vocab_size = 0;
  int dense_intermediate_size = 0;
  int q_lora_rank = 0, kv_lora_rank = 0, qk_nope_head_dim = 0, qk_rope_head_dim = 0, v_head_dim = 0;  // MLA
  int num_kv_heads = 0, head_dim = 0;                                                                 // GQA
  int num_experts = 0, num_experts_per_tok = 0, moe_intermediate_size = 0;
  int num_groups = 1, num_topk_groups = 1;
  bool sigmoid_gate = false;
  bool f8 = false;  // weights are FP8 with 128 x 128 block scales, else bf16
};

struct KernelBenchOptions {
  std::string device = "auto";  // auto | cpu | cuda
  std::string filter;           // regular expression (ECMAScript), found anywhere in "kernel shape"; empty: all
  std::vector<KernelShape> shapes;
  int num_threads = 1;                                                         // of the CPU backend
  std::function<void(int done, int total, const std::string& what)> progress;  // empty: none
};

// 0: unknown, and `missing` says why.
struct KernelRoofs {
  double read_bytes_per_second = 0, bf16_flops_per_second = 0, f8_flops_per_second = 0;
  std::string missing;
};

struct KernelPeer {
  std::string name;
  double seconds = 0;  // 0: it did not run, and `error` says why
  std::string error;
};

struct KernelResult {
  std::string kernel, shape;
  double seconds = 0;           // median of one run; 0: it did not run, and `error` says why
  double bytes = 0, flops = 0;  // the least it must move and compute
  std::string bound;            // which roof is nearer: "memory", "bf16", "f8"; "arithmetic" of a CPU
  double roof_share = 0;        // time at that roof over `seconds`; 0: unknown
  std::vector<KernelPeer> peers;
  uint64_t output_hash = 0;
  std::string error;
};

struct KernelReport {
  std::string device;   // "NVIDIA H200, 132 multiprocessors, ..."
  std::string library;  // of the peers: "cuBLASLt 13.1.0", or why there is none
  KernelRoofs roofs;
  std::vector<KernelResult> results;
};

// Bytes a second that the device (cpu | cuda) reads from its memory; `num_threads` of the CPU.
double read_bandwidth(const std::string& device, int num_threads);

// Throws Error{kBadConfig} that says what this machine or build lacks, Error{kUsage} for a filter that is none.
KernelReport time_kernels(const KernelBenchOptions& options);

}  // namespace moectl
