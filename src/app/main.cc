#include <cstdio>
#include <string>
#include <vector>

#include "app/commands.h"
#include "app/machine.h"
#include "base/memory.h"

int main(int argc, char** argv) {
  tandem::keep_large_blocks_apart();
  tandem::app::raise_open_files_limit();
  std::vector<std::string> args(argv + 1, argv + argc);
  return tandem::app::run_command(args);
}
