// SIGINT and SIGTERM as a flag that event loops look at. The signal flag is one of the two mutable globals of the
// house.
#pragma once

namespace tandem::app {

void watch_signals();  // once, before threads start; also ignores SIGPIPE
int signals_seen();    // how many arrived: 1 drains, 2 stops at once

}  // namespace tandem::app
