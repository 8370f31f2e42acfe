// Link: connections that carry records of any length between nodes, over one UCX worker. Owner: one thread, but wake().
#pragma once

#include <map>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "parallel/ucx/wire.h"
#include "transport/transport.h"

namespace tandem::parallel {

struct LinkRecord {
  transport::EndpointId endpoint;
  std::string bytes;  // see decode_record()
};
struct LinkLost {  // terminal
  transport::EndpointId endpoint;
  std::string reason;
  bool not_greeted = false;  // as of transport::EndpointFailed
};
using LinkEvent = std::variant<LinkRecord, LinkLost>;

class Link {
 public:
  // devices, own: as of transport::Context.
  static Result<std::unique_ptr<Link>> create(const std::vector<std::string>& devices,
                                              const transport::Credentials& own);

  Status listen(const std::string& host, uint16_t port);
  Result<transport::EndpointId> call(const transport::SocketAddress& address);
  // From now on records of any length are taken from a caller that is known; until then a greeting's.
  void trust(transport::EndpointId endpoint);
  // Queued; a no-op on lost connections.
  void write(transport::EndpointId endpoint, const NodeRecord& record);
  size_t backlog(transport::EndpointId endpoint) const;  // bytes that are not on their way
  void close(transport::EndpointId endpoint, bool linger);

  bool poll(TimePoint now, std::vector<LinkEvent>& events);
  void wait(Duration timeout) { worker_->wait(timeout); }
  void wake() { worker_->wake(); }  // any thread

 private:
  struct Peer {
    RecordStream in;
    std::string out;
    size_t sent = 0;  // of out
  };
  Link() = default;
  void take(const transport::Event& event, std::vector<LinkEvent>& events);
  bool flush();

  std::unique_ptr<transport::Context> context_;
  std::unique_ptr<transport::Worker> worker_;
  std::map<transport::EndpointId, Peer> peers_;
  std::vector<transport::Event> arrived_;  // scratch
};

}  // namespace tandem::parallel
