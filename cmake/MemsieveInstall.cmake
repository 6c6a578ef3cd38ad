# cmake --install, and the package that find_package(memsieve) finds.
include(CMakePackageConfigHelpers)
