// Device: the memory, streams and graphs of one rank's device (host memory on the CPU). One object per rank, used on
// the rank's thread; what is loaded before may be loaded on another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

namespace moectl {

struct Stream {
  void* handle = nullptr;  // cudaStream_t; unused on the CPU
};

// Device memory, zero-filled, 64-byte aligned (256 on a GPU), freed with the last reference.
using Buffer = std::shared_ptr<std::byte>;

// A captured graph; opaque, freed with the last reference.
using Graph = std::shared_ptr<void>;

// An event in a stream; opaque, freed with the last reference.
using Event = std::shared_ptr<void>;

// CUDA graphs, of devices that have them.
class GraphCapture {
 public:
  virtual ~GraphCapture() = default;
  // What `work` puts into Device::stream(), for replay(). Arguments are captured too: a replay reads and writes the
  // same memory. `work` runs nothing on the device.
  virtual Graph capture(const std::function<void()>& work) = 0;
  virtual void replay(const Graph&, Stream) = 0;
  // The rows of the graph that serves a decode step of `rows` rows: graphs are captured for few sizes.
  virtual int64_t graph_rows(int64_t rows) const = 0;
};

class PeerOps;  // peer.h

class Device {
 public:
  virtual ~Device() = default;

  virtual Buffer alloc(int64_t num_bytes) = 0;
  // Host memory that copies fast to the device and back.
  virtual Buffer alloc_host(int64_t num_bytes) = 0;
  // Copies host bytes to device memory; complete when it returns.
  virtual void upload(void* device, const void* host, int64_t num_bytes) = 0;
  // Copies between any two of host (alloc_host) and device memory, in stream order.
  virtual void copy(void* to, const void* from, int64_t num_bytes, Stream) = 0;
  struct Memory {
    int64_t free_bytes = 0, total_bytes = 0;  // now; zeros where the device sets no limit of its own
  };
  virtual Memory memory() const = 0;

  // The rank's stream; operations given Stream{} use it.
  virtual Stream stream() = 0;
  // Waits until everything in the stream is done. Throws Error{kUnavailable} when an operation failed on the device.
  virtual void synchronize(Stream) = 0;
  virtual Event record_event(Stream) = 0;
  // Waits until everything before the event is done; throws as synchronize() does.
  virtual void wait(const Event&) = 0;
  // On the device's clock, between two events that wait() has returned from.
  virtual double seconds_between(const Event& begin, const Event& end) = 0;
  // Issues `work` on a side stream, concurrently with what follows in stream() up to join(): neither side may write
  // what the other reads or writes. A device may as well run one after the other.
  virtual void fork(const std::function<void()>& work) = 0;
  virtual void join() = 0;

  virtual GraphCapture* graphs() = 0;  // null: this device captures none
  virtual PeerOps* peers() = 0;        // null: the host orders what ranks do with each other's memory
};

}  // namespace moectl
