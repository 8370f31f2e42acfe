# The CUDA language and how its files are compiled. Nothing here needs a GPU or its driver.
if(NOT CMAKE_CUDA_COMPILER)
  find_program(TANDEM_NVCC nvcc HINTS /usr/local/cuda/bin REQUIRED)
  set(CMAKE_CUDA_COMPILER ${TANDEM_NVCC} CACHE FILEPATH "CUDA compiler")
endif()
set(CMAKE_CUDA_ARCHITECTURES ${TANDEM_CUDA_ARCHITECTURES})
enable_language(CUDA)
# CMake 3.25.1 does not know that nvcc has C++20.
set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
set(CMAKE_CUDA_STANDARD 20)
find_package(CUDAToolkit REQUIRED)
add_compile_options("$<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings;-Xcompiler=-Wall,-Wextra,-Wno-unused-parameter>")
