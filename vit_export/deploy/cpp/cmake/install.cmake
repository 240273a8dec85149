# Installs the library, its headers, and the files by which CMake and pkg-config find it.
set(package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/vit_export)

install(TARGETS vit_export EXPORT vit_export-targets
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY include/vit_export DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT vit_export-targets NAMESPACE vit_export:: DESTINATION ${package_folder})

configure_package_config_file(
  cmake/vit_export-config.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/vit_export-config.cmake
  INSTALL_DESTINATION ${package_folder})
write_basic_package_version_file(
  ${CMAKE_CURRENT_BINARY_DIR}/vit_export-config-version.cmake COMPATIBILITY SameMajorVersion)
install(FILES
  ${CMAKE_CURRENT_BINARY_DIR}/vit_export-config.cmake
  ${CMAKE_CURRENT_BINARY_DIR}/vit_export-config-version.cmake
  DESTINATION ${package_folder})

# A static library hands what it needs on to the program.
if(BUILD_SHARED_LIBS)
  set(VIT_EXPORT_PC_LIBS "")
else()
  set(VIT_EXPORT_PC_LIBS "-lstdc++ -ldl -lpthread")
endif()
# The file names the prefix relative to itself, so that the installed folder may be moved.
file(RELATIVE_PATH VIT_EXPORT_PC_PREFIX "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
configure_file(cmake/vit_export.pc.in ${CMAKE_CURRENT_BINARY_DIR}/vit_export.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/vit_export.pc
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
