# The front door. CMake does the work; see CMakePresets.json.
#   make build   build/release/tandem          make test    the whole default suite, sanitizers included
#   make demo    serve the embedded model and benchmark it, then exit
JOBS ?= $(shell nproc)

.PHONY: build test test-long demo bench format clean deps

build: deps
	@cmake --preset release >/dev/null
	@cmake --build --preset release --target tandem -j $(JOBS)

demo: build
	@build/release/tandem up --bench

test: deps
	@JOBS=$(JOBS) scripts/run_tests.sh

test-long: deps
	@JOBS=$(JOBS) scripts/run_tests.sh long

bench: deps
	@JOBS=$(JOBS) tools/run_benchmarks.sh

format: deps
	@git ls-files -z '*.h' '*.cc' '*.cu' '*.cuh' | xargs -0 -r clang-format -i

clean:
	@rm -rf build

deps:
	@scripts/install-deps.sh
