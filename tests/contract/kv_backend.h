// The rows of the contract suite: what a KvTransfer backend offers to be tested.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kv/transfer.h"

namespace tandem::kv {

// The byte at `offset` of an echo peer's cache.
inline std::byte pattern(int64_t offset) { return std::byte((uint64_t(offset) * 2654435761u) >> 13); }
inline constexpr int64_t kEchoBytes = int64_t(8) << 20;

// Another instance: its cache holds pattern(), it sends every message back, and "disconnect me" disconnects.
class EchoPeer {
 public:
  virtual ~EchoPeer() = default;
  virtual uint16_t port() const = 0;
  virtual void pump(TimePoint now) = 0;  // lets it work, where it shares our thread
  virtual void kill() = 0;               // as kill -9
  virtual void freeze() = 0;             // as SIGSTOP; kill() still works
};

// What a reader asks for, again and again, in one read; as much as it has memory.
inline constexpr int64_t kReaderBytes = int64_t(1) << 20;

// All instances of one backend object reach each other.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::unique_ptr<KvTransfer> make(const TransferOptions& options, std::span<std::byte> region) = 0;
  // port 0: any. Options come from peer_options().
  virtual std::unique_ptr<EchoPeer> start_peer(const TransferOptions& options) = 0;
  // An instance that connects to `port`, says "reading" and reads from then on without end. port() is 0.
  virtual std::unique_ptr<EchoPeer> start_reader(uint16_t port) = 0;
};

struct BackendRow {
  std::string name;
  std::function<std::unique_ptr<Backend>()> make;
};
std::vector<BackendRow> backends();
std::unique_ptr<Backend> make_local_backend();
std::unique_ptr<Backend> make_ucx_backend();

}  // namespace tandem::kv
