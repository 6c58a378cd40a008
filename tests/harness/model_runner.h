// ModelRunner: the decoder alone, without scheduler or sampler: one or more ranks as threads over one checkpoint.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/comm/rank_communicators.h"
#include "core/model/model.h"
#include "core/model/rank_weights.h"

namespace moectl::test {

struct RankModel {
  int index = 0;  // of the instance
  std::unique_ptr<Ops> ops;
  std::unique_ptr<Communicator> comm, tp;  // RankCommunicators
  std::unique_ptr<KvCache> cache;
  std::unique_ptr<Model> model;
};

class ModelRunner {
 public:
  struct Options {
    std::string cpu_path = "auto";
    int threads = 1;  // per rank
    int ep_size = 1;
    std::optional<Parallelism> parallelism;    // in place of ep_size
    std::optional<int> num_redundant_experts;  // make_placement
    int max_tokens = 2048, max_logits = 2048;
    int num_pages = 40;
    std::string device = "cpu";
    bool precise = false, deterministic = false, portable = false;  // on CUDA
    DType kv_dtype = DType::kF32;
    std::function<std::unique_ptr<Ops>(std::unique_ptr<Ops>)> wrap;  // of each rank; may be empty
  };

  ModelRunner(const std::string& dir, Options options) : config_(read_config(dir)), checkpoint_(Checkpoint::open(dir)) {
    const Parallelism p = options.parallelism.value_or(expert_parallel(options.ep_size));
    // As in an engine: more threads than cores do not spin.
    const bool spin = p.world_size() * options.threads <= int(std::thread::hardware_concurrency());
    std::vector<Ops*> ops;
    std::vector<Device*> devices;
    for (int r = 0; r < p.world_size(); ++r) {
      RankModel rank;
      rank.ops = make_ops({.device = options.device,
                           .cpu_path = options.cpu_path,
                           .num_threads = options.threads,
                           .spin = spin,
                           .precise = options.precise,
                           .deterministic = options.deterministic,
                           .has_peers = p.world_size() > 1,
                           .portable = options.portable});
      if (options.wrap) rank.ops = options.wrap(std::move(rank.ops));
      ops.push_back(rank.ops.get());
      devices.push_back(&rank.ops->device());
      ranks_.push_back(std::move(rank));
    }
    // Ranks on a GPU share it.
    auto comms = make_rank_communicators(choose_collectives(Collectives::kAuto, devices), devices, p, true);
    ExpertPlacement placement;
    if (config_.moe.num_experts > 0)
      placement = make_placement(config_.moe.num_experts, p.ep_size, options.num_redundant_experts);
    const auto weights = load_ranks(config_, checkpoint_, ops, p, placement);
    for (size_t r = 0; r < ranks_.size(); ++r) {
      ranks_[r].index = int(r);
      ranks_[r].comm = std::move(comms[r].experts);
      ranks_[r].tp = std::move(comms[r].tp);
      ranks_[r].cache =
          std::make_unique<KvCache>(config_, weights[r]->dims, *ranks_[r].ops, options.num_pages, options.kv_dtype);
    }
    on_all([&](RankModel& rank) {
      ModelLimits limits = {options.max_tokens, 16, options.max_logits, config_.max_position_embeddings};
      rank.model = std::make_unique<Model>(config_, weights[size_t(rank.index)], *rank.ops, *rank.comm, placement,
                                           *rank.cache, limits, rank.tp.get());
    });
  }

  const Config& config() const { return config_; }
  int num_ranks() const { return int(ranks_.size()); }
  RankModel& rank(int r = 0) { return ranks_[size_t(r)]; }

  // f(rank) on one thread per rank, as a group.
  void on_all(const std::function<void(RankModel&)>& f) {
    std::vector<std::thread> threads;
    std::exception_ptr error;
    std::mutex mutex;
    for (auto& rank : ranks_)
      threads.emplace_back([&] {
        try {
          f(rank);
        } catch (...) {
          std::lock_guard lock(mutex);
          if (!error) error = std::current_exception();
          rank.comm->abort("test");
          if (rank.tp) rank.tp->abort("test");
        }
      });
    for (auto& t : threads) t.join();
    if (error) std::rethrow_exception(error);
  }

 private:
  Config config_;
  Checkpoint checkpoint_;
  std::vector<RankModel> ranks_;
};

// Rows of a step's logits or states, wherever the backend keeps them.
inline std::vector<std::vector<float>> host_rows(Ops& ops, View<const float> view) {
  const int64_t num_bytes = view.size() * int64_t(sizeof(float));
  Device& device = ops.device();
  const Buffer host = device.alloc_host(num_bytes);
  device.copy(host.get(), view.data, num_bytes, device.stream());
  device.synchronize(device.stream());
  std::vector<std::vector<float>> rows;
  const float* data = reinterpret_cast<const float*>(host.get());
  for (int64_t i = 0; i < view.dim(0); ++i, data += view.row_size()) rows.emplace_back(data, data + view.row_size());
  return rows;
}

// One sequence whose pages are first_page, first_page + 1, ...: rows [begin, end) of `ids`, logits of every row.
inline Batch rows_of(const std::vector<int32_t>& ids, int begin, int end, int first_page = 0) {
  Batch batch;
  batch.max_pages = int(ids.size() + kPageSize - 1) / kPageSize;
  for (int p = 0; p < batch.max_pages; ++p) batch.page_table.push_back(first_page + p);
  for (int i = begin; i < end; ++i) {
    batch.logits_rows.push_back(i - begin);
    batch.token_ids.push_back(ids[size_t(i)]);
    batch.positions.push_back(i);
    batch.seq_idx.push_back(0);
  }
  return batch;
}

}  // namespace moectl::test
