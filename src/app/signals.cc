#include "app/signals.h"

#include <csignal>

namespace tandem::app {
namespace {

volatile std::sig_atomic_t seen = 0;

void on_signal(int) { seen = seen + 1; }

}  // namespace

void watch_signals() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
}

int signals_seen() { return seen; }

}  // namespace tandem::app
