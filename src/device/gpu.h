// The GPU: whether one can be used, its memory, order on it (Stream, Event, Graph) and copies. In a build without CUDA
// no GPU is found, and everything else is never reached. A fault of the GPU is sticky: whoever meets it ends the
// process with one line, so that no caller goes on with half a step. Any thread; a Stream has one owner.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"

namespace tandem::device {

struct GpuInfo {
  std::string name;
  int32_t index = 0;
  int32_t architecture = 0;  // 90: compute capability 9.0
  int32_t num_multiprocessors = 0;
  int64_t total_bytes = 0, free_bytes = 0;
};

bool built_with_cuda();
// What this process sees of GPU `index`. One line for: a build without CUDA, no driver, no GPU, an architecture that no
// kernel here was compiled for.
Result<GpuInfo> find_gpu(int32_t index);
// Makes it the one of the calling thread.
void use_gpu(int32_t index);
// Kernels on each of these read and write the memory of the others. kNotFound, naming a pair that cannot.
Status share_memory(std::span<const int32_t> gpus);

// Host memory that kernels write before they give up on a peer: what they waited for, said by whoever meets the fault.
// One for the process; there is one fault at most.
struct WaitFault {
  int32_t rank = 0, missing_rank = 0;
  uint64_t exchange = 0;  // counts from one; 0: no fault
  int32_t seconds = 0;
  bool is_answer = false;  // it waited for results; else for rows
};
WaitFault* wait_fault();

// Commands in order. Kernels that are given none run on the default stream.
class Stream {
 public:
  Stream() = default;  // none
  // goes_first: blocks of its kernels start before those of other streams that wait as well.
  static Result<Stream> create(bool goes_first = false);
  Stream(Stream&& other) noexcept;
  Stream& operator=(Stream&& other) noexcept;
  ~Stream();

  void* handle() const { return handle_; }
  void synchronize() const;  // waits for everything so far

 private:
  void* handle_ = nullptr;
};

// A point in a stream. Timed, so that the distance of two points can be asked for.
class Event {
 public:
  Event() = default;  // none
  static Result<Event> create();
  Event(Event&& other) noexcept;
  Event& operator=(Event&& other) noexcept;
  ~Event();

  void record(const Stream& stream);
  bool is_done() const;
  void synchronize() const;
  float milliseconds_since(const Event& earlier) const;  // both done

 private:
  void* handle_ = nullptr;
};

// Commands of a stream recorded once and sent off as one. The memory that they read and write stays where it was.
class Graph {
 public:
  Graph() = default;  // none
  Graph(Graph&& other) noexcept;
  Graph& operator=(Graph&& other) noexcept;
  ~Graph();

  // In between the stream's commands are recorded and not run; nothing may wait for the stream.
  static void begin_recording(const Stream& stream);
  static Graph end_recording(const Stream& stream);
  void launch(const Stream& stream) const;

 private:
  void* handle_ = nullptr;
};

// Where the time of a stream goes: a point after every launch, by name. Off until start(); then for as many launches as
// it was made for. Owner: the stream's.
class LaunchLog {
 public:
  explicit LaunchLog(size_t max_launches);
  void start(const Stream& stream);  // forgets what was there
  bool is_on() const { return is_on_; }
  void mark(const Stream& stream, const char* name);
  struct Total {
    std::string name;
    double microseconds = 0;
    int64_t launches = 0;
  };
  // Waits for the stream, switches off, and adds up by name, largest first.
  std::vector<Total> stop(const Stream& stream);

 private:
  std::vector<Event> points_;
  std::vector<const char*> names_;
  size_t used_ = 0;
  bool is_on_ = false;
};

// In order on the stream; host memory should be pinned and stay until the copy is done.
void copy_async(const Stream& stream, void* to, const void* from, size_t bytes);
void fill_async(const Stream& stream, void* to, int value, size_t bytes);

// One GPU buffer made known to other processes of this host: what names it, for import_memory(). Empty: it cannot be.
std::string export_memory(const void* buffer);
// Another process's buffer, mapped here until the object goes. Its owner must be alive for as long.
class ImportedMemory {
 public:
  ImportedMemory() = default;  // none
  ImportedMemory(ImportedMemory&& other) noexcept;
  ImportedMemory& operator=(ImportedMemory&& other) noexcept;
  ~ImportedMemory();
  const std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  friend Result<ImportedMemory> import_memory(const std::string& name);
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};
// Errors: a name of another host, or one that the driver does not know (any more).
Result<ImportedMemory> import_memory(const std::string& name);

// Many copies at once, by a kernel: neither side may be host memory, and all three numbers are multiples of 16.
struct CopyPiece {
  const std::byte* from;
  std::byte* to;
  int64_t bytes;
};
// pieces: in pinned host memory, untouched until the copies are done.
void copy_pieces_async(const Stream& stream, std::span<const CopyPiece> pieces);

// digest_of_words() of bytes in the GPU's memory, written to 8 bytes there. On few multiprocessors, so that what runs
// beside it keeps the others. bytes: a multiple of 16, at such an address.
void digest_async(const Stream& stream, std::span<const std::byte> bytes, uint64_t* out);

// What Buffer is made of; allocation failure ends the process.
void* gpu_allocate(size_t bytes);  // zero-filled
int64_t gpu_free_bytes();          // of the calling thread's GPU
void gpu_free(void* data);
void* gpu_allocate_pinned(size_t bytes);  // zero-filled
void gpu_free_pinned(void* data);
void gpu_copy(void* to, const void* from, size_t bytes);

}  // namespace tandem::device
