// Launchers of kernels/cuda/comm/peer.cu and all_reduce.cu. They may be captured in a graph; a call returns before the
// kernel is done.
#pragma once

#include "kernels/peer.h"

namespace moectl::cuda {

void peer_barrier(const PeerBarrierArgs& args, Stream stream);
void peer_sum(const PeerSumArgs& args, Stream stream);
void peer_mark(const PeerMarkArgs& args, Stream stream);
void peer_all_reduce(const PeerAllReduceArgs& args, Stream stream);

}  // namespace moectl::cuda
