# cmake --install, and the package that find_package(memsieve CONFIG) finds.
include(CMakePackageConfigHelpers)
set(_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/memsieve)

install(DIRECTORY lib/include/memsieve filters/include/memsieve DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
        FILES_MATCHING PATTERN "*.h" PATTERN detail EXCLUDE)
install(TARGETS memsieve EXPORT memsieveTargets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
if(MEMSIEVE_BUILD_TRAINER)
  install(TARGETS memsieve-train memsieve-audit RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
install(EXPORT memsieveTargets NAMESPACE memsieve:: DESTINATION ${_package_dir})

configure_package_config_file(cmake/memsieveConfig.cmake.in ${PROJECT_BINARY_DIR}/memsieveConfig.cmake
                              INSTALL_DESTINATION ${_package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/memsieveConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/memsieveConfig.cmake ${PROJECT_BINARY_DIR}/memsieveConfigVersion.cmake
              cmake/FindLibTorch.cmake DESTINATION ${_package_dir})
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
