# SPDX-License-Identifier: MIT
#
# The C programs that `make vmtest` runs against the module, target kernel_programs:
# one per tests/kernel/*.c that has a main(), linked with those that have none (device.c
# serves the calls of libdmaplane.h from /dev/dmaplane); and the embedded plane's fuzzer,
# unchanged, as kernel_fuzz. They land in kernel-programs/ of the build directory, and
# tests find them by the fixture program("NAME").

add_custom_target(kernel_programs)

function(dmp_kernel_program name)
	add_executable(${name} EXCLUDE_FROM_ALL ${ARGN})
	target_link_libraries(${name} PRIVATE dmp_kernel_attack dmp_core)
	set_target_properties(${name} PROPERTIES
		RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/kernel-programs)
	add_dependencies(kernel_programs ${name})
endfunction()

file(GLOB sources CONFIGURE_DEPENDS tests/kernel/*.c)
set(programs "")
set(shared "")
foreach(source ${sources})
	file(STRINGS ${source} main REGEX "^int main\\(")
	if(main)
		list(APPEND programs ${source})
	else()
		list(APPEND shared ${source})
	endif()
endforeach()

if(shared)
	add_library(dmp_kernel_attack STATIC EXCLUDE_FROM_ALL ${shared})
	target_link_libraries(dmp_kernel_attack PUBLIC dmp_core)
	target_include_directories(dmp_kernel_attack PUBLIC
		${CMAKE_SOURCE_DIR}/tests ${CMAKE_SOURCE_DIR}/tests/kernel)
	foreach(source ${programs})
		get_filename_component(name ${source} NAME_WE)
		dmp_kernel_program(${name} ${source})
	endforeach()
	file(GLOB sources CONFIGURE_DEPENDS tests/fuzz/*.c)
	dmp_kernel_program(kernel_fuzz ${sources})
	set_target_properties(kernel_fuzz PROPERTIES OUTPUT_NAME fuzz)
endif()
