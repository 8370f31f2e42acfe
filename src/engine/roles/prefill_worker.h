#pragma once

namespace tandem::engine {

struct SourceHandover {};

}  // namespace tandem::engine
