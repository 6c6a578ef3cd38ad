# Settings that every target of our own shares.
include(GNUInstallDirs)
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_CXX_VISIBILITY_PRESET default)
set(CMAKE_INSTALL_RPATH "$ORIGIN/../${CMAKE_INSTALL_LIBDIR}")
set(CMAKE_INSTALL_RPATH_USE_LINK_PATH ON)
if(PROJECT_IS_TOP_LEVEL AND NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()
find_program(MEMSIEVE_CCACHE ccache)
if(PROJECT_IS_TOP_LEVEL AND MEMSIEVE_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER "${MEMSIEVE_CCACHE}")
endif()

# memsieve_own(target): warnings and sanitizers for code of ours.
function(memsieve_own target)
  target_compile_options(${target} PRIVATE -Wall -Wextra)
  if(CMAKE_CXX_COMPILER_ID STREQUAL GNU AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    # g++ 12 warns of overlapping copies inside std::string's own operator+ (GCC bug 105651).
    target_compile_options(${target} PRIVATE -Wno-restrict)
  endif()
  if(MEMSIEVE_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=${MEMSIEVE_SANITIZE} -fno-omit-frame-pointer)
    target_link_options(${target} PRIVATE -fsanitize=${MEMSIEVE_SANITIZE})
  endif()
endfunction()

# Torch's headers take ten seconds a file: they are compiled once for each set of targets that share their flags.
option(MEMSIEVE_PRECOMPILE "Precompile torch's headers" ON)

# memsieve_precompile(target header...): its own precompiled header.  memsieve_precompile(target FROM other): another's.
function(memsieve_precompile target)
  cmake_parse_arguments(P "" "FROM" "" ${ARGN})
  if(MEMSIEVE_PRECOMPILE AND P_FROM)
    target_precompile_headers(${target} REUSE_FROM ${P_FROM})
  elseif(MEMSIEVE_PRECOMPILE)
    target_precompile_headers(${target} PRIVATE ${P_UNPARSED_ARGUMENTS})
  endif()
  if(MEMSIEVE_PRECOMPILE AND CMAKE_CXX_COMPILER_ID STREQUAL GNU)
    target_compile_options(${target} PRIVATE -fpch-preprocess)  # what ccache needs to see through it
  endif()
endfunction()

# memsieve_sources(variable target folder...): all sources in the folders; one without any is an error.
function(memsieve_sources variable target)
  set(_sources)
  foreach(_folder IN LISTS ARGN)
    file(GLOB _found CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${_folder}/*.cpp)
    if(NOT _found)
      message(FATAL_ERROR "${target}: no sources in ${CMAKE_CURRENT_SOURCE_DIR}/${_folder}")
    endif()
    list(APPEND _sources ${_found})
  endforeach()
  set(${variable} ${_sources} PARENT_SCOPE)
endfunction()

# memsieve_room(target [FOLDERS ...] [LINKS ...]): a static library of all sources in the folders (default: this one),
# whose headers are included by their path from the root. All rooms are compiled with the same flags, so that they can
# share precompiled headers.
#
# OpenMP comes by the compiler's flag rather than the library's path, of which CMake would say that torch's libgomp may
# hide it. It shall: there must be one pool of threads.
function(memsieve_room target)
  cmake_parse_arguments(ROOM "" "" "FOLDERS;LINKS" ${ARGN})
  if(NOT ROOM_FOLDERS)
    set(ROOM_FOLDERS .)
  endif()
  memsieve_sources(_sources ${target} ${ROOM_FOLDERS})
  add_library(${target} STATIC ${_sources})
  memsieve_own(${target})
  target_include_directories(${target} PUBLIC ${PROJECT_SOURCE_DIR})
  target_link_libraries(${target} PUBLIC memsieve ${ROOM_LINKS})
  target_compile_options(${target} PRIVATE ${OpenMP_CXX_FLAGS})
  target_link_options(${target} INTERFACE ${OpenMP_CXX_FLAGS})
  target_compile_definitions(${target} PUBLIC USE_C10D_GLOO)
  if(LibTorch_CUDA_FOUND)
    target_compile_definitions(${target} PUBLIC USE_C10D_NCCL MEMSIEVE_WITH_CUDA)
    target_link_libraries(${target} PUBLIC LibTorch::CUDA)
  endif()
endfunction()

# memsieve_program(target SOURCES ... LINKS ...): a program that uses torch and the rooms, with the rooms' precompiled headers; for
# their sake it is compiled as they are (the last of -fPIE and -fPIC counts).
function(memsieve_program target)
  cmake_parse_arguments(PROGRAM "" "" "SOURCES;LINKS" ${ARGN})
  add_executable(${target} ${PROGRAM_SOURCES})
  memsieve_own(${target})
  target_compile_options(${target} PRIVATE ${OpenMP_CXX_FLAGS} -fPIC)
  target_link_libraries(${target} PRIVATE ${PROGRAM_LINKS})
  memsieve_precompile(${target} FROM memsieve_models)
endfunction()
