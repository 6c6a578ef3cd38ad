# Finds LibTorch inside a Python environment (the `torch` wheel) without needing a CUDA toolkit.
#
# The wheel's own CMake package asks for nvcc as soon as the wheel was built with CUDA; this module does not.
#   MEMSIEVE_PYTHON    the interpreter of the environment that holds torch (default: the one scripts/setup.sh makes)
# Defines the target LibTorch::LibTorch and LibTorch_VERSION, and
#   LibTorch::CUDA     headers and libraries for NCCL and CUDA streams, when the wheel carries them (LibTorch_CUDA_FOUND).

if(TARGET LibTorch::LibTorch)
  return()
endif()
if(NOT MEMSIEVE_PYTHON)
  set(_cache "$ENV{XDG_CACHE_HOME}")
  if(NOT _cache)
    set(_cache "$ENV{HOME}/.cache")
  endif()
  set(_candidates "$ENV{MEMSIEVE_VENV}/bin/python" "${_cache}/memsieve/venv/bin/python" "$ENV{VIRTUAL_ENV}/bin/python")
  foreach(_candidate IN LISTS _candidates)
    if(NOT MEMSIEVE_PYTHON AND EXISTS "${_candidate}")
      set(MEMSIEVE_PYTHON "${_candidate}")
    endif()
  endforeach()
  if(NOT MEMSIEVE_PYTHON)
    find_program(MEMSIEVE_PYTHON python3)
  endif()
endif()
set(MEMSIEVE_PYTHON "${MEMSIEVE_PYTHON}" CACHE FILEPATH "Python interpreter of the environment that holds torch")

# -I the second time: pip builds in an environment of its own, which hides the one that holds torch from what its
# PYTHONPATH reaches.
foreach(_isolated "" "-I")
  execute_process(
    COMMAND "${MEMSIEVE_PYTHON}" ${_isolated} -c
            "import importlib.util as u, importlib.metadata as m, os; s = u.find_spec('torch'); print(os.path.dirname(s.origin), end=';'); print(m.version('torch'), end='')"
    OUTPUT_VARIABLE _torch RESULT_VARIABLE _rc ERROR_QUIET)
  if(_rc EQUAL 0)
    break()
  endif()
endforeach()
if(NOT _rc EQUAL 0)
  set(_torch "")
  if(LibTorch_FIND_REQUIRED)
    message(FATAL_ERROR "LibTorch: no torch in '${MEMSIEVE_PYTHON}'; run scripts/setup.sh or pass -DMEMSIEVE_PYTHON=<python of an environment with torch>")
  endif()
  set(LibTorch_FOUND FALSE)
  return()
endif()
list(GET _torch 0 LibTorch_DIR_IN_WHEEL)
list(GET _torch 1 LibTorch_VERSION)
get_filename_component(_site "${LibTorch_DIR_IN_WHEEL}" DIRECTORY)

add_library(LibTorch::LibTorch INTERFACE IMPORTED)
# -idirafter: the wheel's include folder also carries fmt, which must not shadow the system's (spdlog uses that one).
target_compile_options(LibTorch::LibTorch INTERFACE
  "SHELL:-idirafter ${LibTorch_DIR_IN_WHEEL}/include"
  "SHELL:-idirafter ${LibTorch_DIR_IN_WHEEL}/include/torch/csrc/api/include")
target_link_directories(LibTorch::LibTorch INTERFACE "${LibTorch_DIR_IN_WHEEL}/lib")
# libtorch.so exports a broken copy of std::filesystem: the C++ library's own must come first.
target_link_options(LibTorch::LibTorch INTERFACE
  "SHELL:-Wl,--push-state,--no-as-needed -lstdc++ -Wl,--pop-state")
if(NOT SKBUILD)  # what is in a wheel is loaded beside torch's own libraries, wherever they lie
  target_link_options(LibTorch::LibTorch INTERFACE "LINKER:-rpath,${LibTorch_DIR_IN_WHEEL}/lib")
endif()
target_link_libraries(LibTorch::LibTorch INTERFACE torch_cpu c10)

set(LibTorch_CUDA_FOUND FALSE)
if(EXISTS "${LibTorch_DIR_IN_WHEEL}/lib/libtorch_cuda.so" AND EXISTS "${_site}/nvidia/nccl/include/nccl.h")
  set(LibTorch_CUDA_FOUND TRUE)
  file(GLOB _cuda_include "${_site}/nvidia/cu*/include" "${_site}/nvidia/cuda_runtime/include")
  file(GLOB _cuda_lib "${_site}/nvidia/cu*/lib" "${_site}/nvidia/cuda_runtime/lib")
  list(GET _cuda_include 0 _cuda_include)
  list(GET _cuda_lib 0 _cuda_lib)
  file(GLOB _cudart "${_cuda_lib}/libcudart.so.*")
  list(GET _cudart 0 _cudart)
  add_library(LibTorch::CUDA INTERFACE IMPORTED)
  target_compile_options(LibTorch::CUDA INTERFACE "SHELL:-idirafter ${_cuda_include}"
    "SHELL:-idirafter ${_site}/nvidia/nccl/include")
  # torch registers its CUDA kernels from static initialisers: without --no-as-needed the linker would drop the library.
  target_link_options(LibTorch::CUDA INTERFACE "LINKER:--no-as-needed" "LINKER:-rpath-link,${_cuda_lib}"
    "LINKER:-rpath,${_cuda_lib}" "LINKER:--allow-shlib-undefined")
  target_link_libraries(LibTorch::CUDA INTERFACE LibTorch::LibTorch torch torch_cuda c10_cuda "${_cudart}")
endif()
set(LibTorch_FOUND TRUE)
message(STATUS "LibTorch ${LibTorch_VERSION} from ${LibTorch_DIR_IN_WHEEL} (CUDA/NCCL: ${LibTorch_CUDA_FOUND})")
