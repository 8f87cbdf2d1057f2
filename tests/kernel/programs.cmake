# SPDX-License-Identifier: MIT
#
# The C programs that `make vmtest` runs against the module, target kernel_programs:
# one per tests/kernel/*.c that has a main(), and the embedded plane's fuzzer unchanged;
# each is linked with those files that have none (device.c serves the calls of
# libdmaplane.h from /dev/dmaplane). They land in kernel-programs/ of the build directory,
# and tests find them by the fixture program("NAME").

add_custom_target(kernel_programs)

function(dmp_kernel_program name)
	add_executable(${name} EXCLUDE_FROM_ALL ${ARGN})
	target_link_libraries(${name} PRIVATE dmp_kernel_attack dmp_core)
	set_target_properties(${name} PROPERTIES
		RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/kernel-programs)
	add_dependencies(kernel_programs ${name})
endfunction()

# The fuzzer's generator and the client of rings (it only speaks ioctl) serve all.
file(GLOB sources CONFIGURE_DEPENDS tests/kernel/*.c tests/fuzz/*.c)
list(APPEND sources ${CMAKE_SOURCE_DIR}/embedded/client.c)
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

add_library(dmp_kernel_attack STATIC EXCLUDE_FROM_ALL ${shared})
target_link_libraries(dmp_kernel_attack PUBLIC dmp_core)
target_include_directories(dmp_kernel_attack PUBLIC
	${CMAKE_SOURCE_DIR}/tests ${CMAKE_SOURCE_DIR}/tests/kernel ${CMAKE_SOURCE_DIR}/tests/fuzz)
if(EXISTS ${CMAKE_SOURCE_DIR}/tests/kernel/device.c)
	foreach(source ${programs})
		get_filename_component(name ${source} NAME_WE)
		dmp_kernel_program(kernel_${name} ${source})
		set_target_properties(kernel_${name} PROPERTIES OUTPUT_NAME ${name})
	endforeach()
endif()

# The embedded plane's own, for the RDMA device that test_verbs.py makes.
if(TARGET embedded_verbs)
	add_custom_command(TARGET embedded_verbs POST_BUILD
		COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_BINARY_DIR}/kernel-programs
		COMMAND ${CMAKE_COMMAND} -E copy $<TARGET_FILE:embedded_verbs>
			${CMAKE_BINARY_DIR}/kernel-programs/verbs)
	add_dependencies(kernel_programs embedded_verbs)
endif()
