// The exchange between two `tandem doctor`, one listening and one calling, over the transport and devices that servers
// use. Messages are lines of text:
//   caller -> listener   "tandem-doctor 1"      listener -> caller   "hello VERSION MTU"
//                        "ping N"                                    "pong N UNIX_SECONDS"
//                        "send BYTES"                                messages of zeros, BYTES altogether
#pragma once

#include <functional>

#include "app/doctor_checks.h"
#include "base/clock.h"

namespace tandem::app {

struct PeerOptions {
  std::string version;
  std::vector<std::string> devices;  // as of transport::Context
  std::string secret;                // of the deployment
  int64_t own_mtu = 0;               // of the interface towards the other side; 0: not known
};

// Calls a listener and measures: the least of many round trips, the skew at that one, then the time of 32 MiB or of one
// second. Errors: kPeerLost, kTimeout, kCorrupt (somebody else answers there).
Result<PeerFact> call_peer(const std::string& host, uint16_t port, const PeerOptions& options, Duration timeout);

// Answers callers until stopped() says so. started: called with the port. Errors: the port is taken, no such device.
Status listen_for_peers(const std::string& host, uint16_t port, const PeerOptions& options,
                        const std::function<void(uint16_t)>& started, const std::function<bool()>& stopped);

}  // namespace tandem::app
