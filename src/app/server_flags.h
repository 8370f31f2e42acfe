// Every flag of `launch_server`: one row each. Field names are SGLang's (they appear in /server_info).
#pragma once

#include <span>

#include "app/flags.h"

namespace tandem::app {

std::span<const Flag> server_flags();

}  // namespace tandem::app
