// A prefill and a decode engine in one thread: two rigs on one manual clock, linked by the in-process transfer backend,
// whose commands and reports are carried by hand between the ports and the transfers.
#pragma once

#include "kv/local_fabric.h"
#include "tests/engine/engine_rig.h"

namespace tandem::testing {

// What a TransferThread does, without the thread.
class HandTransfer {
 public:
  HandTransfer(std::unique_ptr<kv::KvTransfer> transfer, kv::TransferPort& port)
      : transfer_(std::move(transfer)), port_(port) {}

  bool pump(TimePoint now) {
    bool any = false;
    while (auto command = port_.commands.try_pop()) {
      apply(*command, now);
      any = true;
    }
    events_.clear();
    any |= transfer_->poll(now, events_);
    for (kv::TransferEvent& event : events_) {
      std::visit([&](auto& e) { EXPECT_EQ(port_.reports.push(std::move(e)), PushResult::kPushed); }, event);
    }
    return any;
  }
  kv::KvTransfer& transfer() { return *transfer_; }

 private:
  void apply(kv::TransferCommand& command, TimePoint now) {
    if (auto* connect = std::get_if<kv::ConnectCommand>(&command)) {
      const PeerId peer = transfer_->connect(connect->host, connect->port, now);
      port_.reports.push(kv::ConnectStarted{connect->connect_id, peer});
    } else if (auto* send = std::get_if<kv::SendCommand>(&command)) {
      transfer_->send(send->peer, std::move(send->bytes));
    } else if (auto* read = std::get_if<kv::ReadCommand>(&command)) {
      transfer_->post_read(read->read_id, read->peer, read->ranges);
    } else if (auto* cancel = std::get_if<kv::CancelReadCommand>(&command)) {
      transfer_->cancel_read(cancel->read_id);
    } else if (auto* disconnect = std::get_if<kv::DisconnectCommand>(&command)) {
      transfer_->disconnect(disconnect->peer);
    }
  }

  std::unique_ptr<kv::KvTransfer> transfer_;
  kv::TransferPort& port_;
  std::vector<kv::TransferEvent> events_;
};

// One instance: engine, port and transfer, which a test can kill and start again.
struct Instance {
  Instance(const engine::EngineConfig& config, std::shared_ptr<kv::LocalFabric> fabric, ManualClock& clock,
           uint16_t listen_port, uint64_t fingerprint = 1, profile::FlightRecorder* flight = nullptr)
      : port(1 << 16), rig(config, &port, &clock, fingerprint, nullptr, flight) {
    kv::TransferOptions options;
    options.host = "prefill";
    options.port = listen_port;
    options.listen = listen_port != 0;
    if (listen_port == 0) options.host = "decode";
    options.epoch = config.epoch;
    const auto size = size_t(rig.storage.layout().total_bytes());
    hand = std::make_unique<HandTransfer>(
        kv::make_local_transfer(fabric, options, {static_cast<std::byte*>(rig.storage.base()), size}), port);
  }
  bool turn() {
    bool any = rig.turn_engines();
    any |= hand->pump(rig.clock.now());
    return any;
  }
  std::string address() { return hand->transfer().address(); }

  kv::TransferPort port;
  Rig rig;
  std::unique_ptr<HandTransfer> hand;
};

struct PairOptions {
  engine::EngineConfig prefill = small_config(engine::Role::kPrefill);
  engine::EngineConfig decode = small_config(engine::Role::kDecode);
  uint64_t decode_fingerprint = 1;
  // Null: nothing is recorded.
  profile::FlightRecorder *prefill_flight = nullptr, *decode_flight = nullptr;
};

class Pair {
 public:
  static constexpr uint16_t kPort = 9000;

  explicit Pair(PairOptions options = {}) : options_(options), fabric(kv::make_local_fabric()) {
    clock.advance(std::chrono::seconds(1));
    options_.decode.epoch = 8;
    start_prefill();
    start_decode();
  }
  void start_prefill() {
    options_.prefill.epoch += 100;
    prefill = std::make_unique<Instance>(options_.prefill, fabric, clock, kPort, 1, options_.prefill_flight);
  }
  void start_decode() {
    options_.decode.epoch += 100;
    decode = std::make_unique<Instance>(options_.decode, fabric, clock, 0, options_.decode_fingerprint,
                                        options_.decode_flight);
  }
  // As kill -9.
  void kill_prefill() {
    fabric->kill(prefill->address());
    prefill.reset();
  }
  void kill_decode() {
    fabric->kill(decode->address());
    decode.reset();
  }

  static api::EngineRequest with_room(api::EngineRequest request, uint64_t room) {
    request.bootstrap = api::BootstrapInfo{"prefill", kPort, room};
    return request;
  }
  void submit(const api::EngineRequest& request, uint64_t room) {
    prefill->rig.submit(with_room(request, room));
    decode->rig.submit(with_room(request, room));
  }
  bool turn() {
    clock.advance(std::chrono::microseconds(100));
    bool any = false;
    if (prefill) any |= prefill->turn();
    if (decode) any |= decode->turn();
    return any;
  }
  void run_until_idle(int max_turns = 200000) {
    for (int i = 0, quiet = 0; i < max_turns; ++i) {
      quiet = turn() ? 0 : quiet + 1;
      if (quiet > 3) return;
    }
    ADD_FAILURE() << "still busy after " << max_turns << " turns";
  }
  void expect_baseline() {
    if (prefill) prefill->rig.expect_baseline();
    if (decode) {
      decode->rig.expect_baseline();
      EXPECT_EQ(decode->rig.engine->snapshot().prompt_tokens_computed, 0u) << "decode computes no prompt";
    }
  }
  int64_t token_bytes() const { return prefill->rig.storage.layout().token_bytes(); }

 private:
  PairOptions options_;

 public:
  ManualClock clock;
  std::shared_ptr<kv::LocalFabric> fabric;
  std::unique_ptr<Instance> prefill, decode;
};

}  // namespace tandem::testing
