// tandem experts record|stop|dump: the recorder's three endpoints, on all servers that the flags mean.
#pragma once

#include <string>

#include "app/commands.h"

namespace tandem::app {

// verb: "record", "stop" or "dump". Returns the exit status: 1 if a server did not do it.
int control_recording(const std::string& verb, Args args);

}  // namespace tandem::app
