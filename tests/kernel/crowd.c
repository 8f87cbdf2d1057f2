// SPDX-License-Identifier: MIT
/*
 * crowd.c - two who ask at once: one for far too much, one for a page
 *
 *	crowd --absurd		asks for 2^44 bytes until it is killed; each time ENOSPC or ENOMEM
 *	crowd --pages N		asks for a page N times, and gets it N times
 */
#include <errno.h>
#include <string.h>

#include "device.h"

#define ABSURD_BYTES (1ull << 44)

int main(int count, char **words)
{
	struct dmp_buffer_create create;
	struct dmp_plane *plane;
	unsigned long pages, i;
	int status;

	if (dmp_open(&plane))
		FAIL("no plane");
	while (count == 2 && !strcmp(words[1], "--absurd")) {
		status = device_buffer(plane, &create, DMP_KIND_PAGES, ABSURD_BYTES);
		if (status != -ENOSPC && status != -ENOMEM)
			FAIL("2^44 bytes were answered with %d", status);
	}
	if (count != 3 || strcmp(words[1], "--pages"))
		return 2;
	pages = strtoul(words[2], NULL, 0);
	for (i = 0; i < pages; i++) {
		status = device_buffer(plane, &create, DMP_KIND_PAGES, 4096);
		if (!status)
			status = device_destroy(plane, DMP_BUFFER_DESTROY, create.buffer_id);
		if (status)
			FAIL("page %lu was answered with %d", i, status);
	}
	printf("crowd: of %lu none was refused\n", pages);
	return 0;
}
