// Every flag of `launch_server`: one row each. Field names are SGLang's (they appear in /server_info).
#pragma once

#include <span>

#include "app/flags.h"

namespace tandem::app {

std::span<const Flag> server_flags();

// All values as they may be shown to everybody: stars in the place of keys.
json::Object printable(const FlagValues& flags);

}  // namespace tandem::app
