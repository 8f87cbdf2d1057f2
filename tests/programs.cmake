# SPDX-License-Identifier: MIT
#
# One program per tests/core/test_*.c and tests/embedded/test_*.c, the simulator,
# the fuzzers and the kill -9 soak. Tests see internals, so they link the sources
# statically instead of the shared library.

set(DMP_TEST_TIMEOUT_SECONDS 300)

add_library(dmp_core STATIC ${DMP_CORE_SOURCES})
target_link_libraries(dmp_core PUBLIC dmp_flags)
target_compile_definitions(dmp_core PUBLIC DMP_OBSERVE=1)

if(EXISTS ${CMAKE_SOURCE_DIR}/tests/core/simulator.c)
	file(GLOB sources CONFIGURE_DEPENDS tests/core/simulator*.c)
	add_library(dmp_simulator STATIC ${sources})
	target_link_libraries(dmp_simulator PUBLIC dmp_core)
	target_include_directories(dmp_simulator PUBLIC ${CMAKE_SOURCE_DIR}/tests/core)
endif()

function(dmp_test label source)
	get_filename_component(name ${source} NAME_WE)
	string(REGEX REPLACE "^test_" "${label}_" name ${name})
	add_executable(${name} ${source})
	target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR}/tests)
	target_link_libraries(${name} PRIVATE ${ARGN})
	add_test(NAME ${name} COMMAND ${name})
	set_tests_properties(${name} PROPERTIES LABELS ${label}
		TIMEOUT ${DMP_TEST_TIMEOUT_SECONDS})
endfunction()

file(GLOB sources CONFIGURE_DEPENDS tests/core/test_*.c)
foreach(source ${sources})
	# A hundred thousand plays in one thread: TSan has nothing to see there, and is slow at it.
	if(DMP_SANITIZE STREQUAL "thread" AND source MATCHES "/test_faults.c$")
		continue()
	endif()
	if(TARGET dmp_simulator)
		dmp_test(core ${source} dmp_simulator)
	else()
		dmp_test(core ${source} dmp_core)
	endif()
endforeach()

if(EXISTS ${CMAKE_SOURCE_DIR}/tests/core/simulate.c AND TARGET dmp_simulator)
	add_executable(simulate tests/core/simulate.c)
	target_link_libraries(simulate PRIVATE dmp_simulator)
endif()

if(DMP_EMBEDDED_SOURCES)
	add_library(dmp_embedded STATIC ${DMP_EMBEDDED_SOURCES})
	target_link_libraries(dmp_embedded PUBLIC dmp_core)

	file(GLOB sources CONFIGURE_DEPENDS tests/embedded/test_*.c)
	foreach(source ${sources})
		dmp_test(embedded ${source} dmp_embedded)
	endforeach()

	file(GLOB sources CONFIGURE_DEPENDS tests/fuzz/*.c)
	if(sources)
		add_executable(fuzz ${sources})
		target_link_libraries(fuzz PRIVATE dmp_embedded)
		# Writing entries that the plane is using is a race, and the point of
		# hostile.c: it is judged by what comes of it, which TSan cannot.
		set(writes 10000)
		if(DMP_SANITIZE STREQUAL "thread")
			set(writes 0)
		endif()
		add_test(NAME fuzz_short
			COMMAND fuzz --seed 1 --commands 100000 --ring-writes ${writes})
		set_tests_properties(fuzz_short PROPERTIES LABELS fuzz
			TIMEOUT ${DMP_TEST_TIMEOUT_SECONDS})
	endif()

	file(GLOB sources CONFIGURE_DEPENDS tests/fuzz/wire/*.c)
	if(sources)
		add_executable(fuzz_wire ${sources})
		target_link_libraries(fuzz_wire PRIVATE dmp_embedded)
		# Scribbling over shared memory is a race, and the point: see fuzz_short.
		if(NOT DMP_SANITIZE STREQUAL "thread")
			add_test(NAME fuzz_wire_short COMMAND fuzz_wire --seed 1 --frames 20000)
			set_tests_properties(fuzz_wire_short PROPERTIES LABELS fuzz
				TIMEOUT ${DMP_TEST_TIMEOUT_SECONDS})
		endif()
	endif()

	file(GLOB sources CONFIGURE_DEPENDS tests/soak/*.c)
	if(sources)
		add_executable(soak ${sources})
		target_link_libraries(soak PRIVATE dmp_embedded)
		add_test(NAME soak_short COMMAND soak --seed 1 --kills 20)
		set_tests_properties(soak_short PROPERTIES LABELS soak
			TIMEOUT ${DMP_TEST_TIMEOUT_SECONDS})
	endif()
endif()

include(tests/kernel/programs.cmake)
