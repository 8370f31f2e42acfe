// Where the model that comes with Tandem lies: models/tiny beside the build, or share/tandem/models/tiny of an install.
#pragma once

#include <string>

#include "base/result.h"

namespace tandem::app {

// Looks upwards from the executable. Error: names what was looked for, and the flag to use instead.
Result<std::string> embedded_model_directory();

}  // namespace tandem::app
