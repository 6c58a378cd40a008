// ModelRunner: the decoder alone, without scheduler or sampler: one or more ranks as threads over one checkpoint.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/model/model.h"
#include "core/model/weights.h"

namespace moectl::test {

struct RankModel {
  std::unique_ptr<Ops> ops;
  std::unique_ptr<Communicator> comm;
  std::unique_ptr<KvCache> cache;
  std::unique_ptr<Model> model;
};

class ModelRunner {
 public:
  struct Options {
    std::string cpu_path = "auto";
    int threads = 1;  // per rank
    int ep_size = 1;
    std::optional<int> num_redundant_experts;  // make_placement
    int max_tokens = 2048, max_logits = 2048;
    int num_pages = 40;
    std::string device = "cpu";
    bool precise = false, deterministic = false, portable = false;  // on CUDA
    DType kv_dtype = DType::kF32;
  };

  ModelRunner(const std::string& dir, Options options) : config_(read_config(dir)), checkpoint_(Checkpoint::open(dir)) {
    // As in an engine: more threads than cores do not spin.
    const bool spin = options.ep_size * options.threads <= int(std::thread::hardware_concurrency());
    for (int r = 0; r < options.ep_size; ++r) {
      RankModel rank;
      rank.ops = make_ops({.device = options.device,
                           .cpu_path = options.cpu_path,
                           .num_threads = options.threads,
                           .spin = spin,
                           .precise = options.precise,
                           .deterministic = options.deterministic,
                           .has_peers = options.ep_size > 1,
                           .portable = options.portable});
      ranks_.push_back(std::move(rank));
    }
    std::vector<Device*> devices;
    for (RankModel& rank : ranks_) devices.push_back(&rank.ops->device());
    // Ranks on a GPU share it.
    auto comms = options.ep_size > 1 && devices[0]->peers() ? make_p2p_communicators(devices)
                                                            : make_local_communicators(options.ep_size);
    ExpertPlacement placement;
    if (config_.moe.num_experts > 0)
      placement = make_placement(config_.moe.num_experts, options.ep_size, options.num_redundant_experts);
    // As in an engine: ranks whose memory the host addresses share the weights of all experts.
    std::vector<std::shared_ptr<const ModelWeights>> weights;
    if (ranks_[0].ops->capabilities().host_readable || options.ep_size == 1) {
      weights.assign(size_t(options.ep_size), load_weights(config_, checkpoint_, *ranks_[0].ops));
    } else {
      std::vector<ShardTarget> targets;
      for (int r = 0; r < options.ep_size; ++r)
        targets.push_back({*ranks_[size_t(r)].ops,
                           rank_shard(config_, expert_parallel(options.ep_size), r, placement.logical_experts(r))});
      weights = load_shards(config_, checkpoint_, targets);
    }
    for (size_t r = 0; r < ranks_.size(); ++r) {
      ranks_[r].comm = std::move(comms[r]);
      ranks_[r].cache =
          std::make_unique<KvCache>(config_, weights[r]->dims, *ranks_[r].ops, options.num_pages, options.kv_dtype);
    }
    on_all([&](RankModel& rank) {
      ModelLimits limits = {options.max_tokens, 16, options.max_logits, config_.max_position_embeddings};
      rank.model = std::make_unique<Model>(config_, weights[size_t(rank.comm->rank())], *rank.ops, *rank.comm,
                                           placement, *rank.cache, limits);
    });
  }

  const Config& config() const { return config_; }
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
