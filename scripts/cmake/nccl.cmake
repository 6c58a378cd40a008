# NCCL: its header is all that a build needs (core/comm/nccl_*.cpp); the library is loaded at run time. Without the header
# the build goes on, and --collectives nccl says that it is missing.
set(MOECTL_NCCL AUTO CACHE STRING "Build the NCCL transport: AUTO (when nccl.h is found), ON or OFF")
set_property(CACHE MOECTL_NCCL PROPERTY STRINGS AUTO ON OFF)

set(nccl_missing "MOECTL_NCCL=OFF")
if(NOT MOECTL_NCCL STREQUAL "OFF")
  # build-deps: where scripts/install-deps puts it. nccl.h includes the CUDA runtime's headers.
  find_path(MOECTL_NCCL_INCLUDE nccl.h HINTS ${CMAKE_SOURCE_DIR}/build-deps/nccl ${CUDAToolkit_INCLUDE_DIRS}
            /usr/local/cuda/include)
  find_path(MOECTL_CUDA_RUNTIME_INCLUDE cuda_runtime.h HINTS ${CUDAToolkit_INCLUDE_DIRS} ENV CUDA_PATH /usr/local/cuda
            PATH_SUFFIXES include)
  set(nccl_missing "nccl.h or the CUDA runtime's headers were not found: scripts/install-deps brings the first, a CUDA toolkit the others")
endif()
set(nccl_sources ${CMAKE_SOURCE_DIR}/core/comm/nccl_comm.cpp ${CMAKE_SOURCE_DIR}/core/comm/nccl_group.cpp
    ${CMAKE_SOURCE_DIR}/core/comm/nccl_library.cpp)
if(NOT MOECTL_NCCL STREQUAL "OFF" AND MOECTL_NCCL_INCLUDE AND MOECTL_CUDA_RUNTIME_INCLUDE)
  add_library(moectl_nccl_headers INTERFACE)
  target_include_directories(moectl_nccl_headers SYSTEM INTERFACE ${MOECTL_NCCL_INCLUDE} ${MOECTL_CUDA_RUNTIME_INCLUDE})
  target_compile_definitions(moectl_comm PRIVATE MOECTL_HAVE_NCCL=1)
  target_link_libraries(moectl_comm PUBLIC ${CMAKE_DL_LIBS} PRIVATE moectl_nccl_headers)
  file(STRINGS ${MOECTL_NCCL_INCLUDE}/nccl.h nccl_version REGEX "define NCCL_(MAJOR|MINOR|PATCH) ")
  string(REGEX REPLACE "[^0-9;]" "" nccl_version "${nccl_version}")
  string(REPLACE ";" "." nccl_version "${nccl_version}")
  message(STATUS "NCCL transport: on (header ${nccl_version}, ${MOECTL_NCCL_INCLUDE})")
elseif(MOECTL_NCCL STREQUAL "ON")
  message(FATAL_ERROR "MOECTL_NCCL=ON but ${nccl_missing}.")
else()
  set_source_files_properties(${nccl_sources} PROPERTIES HEADER_FILE_ONLY ON)
  message(STATUS "NCCL transport: off (${nccl_missing})")
endif()
