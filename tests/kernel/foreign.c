// SPDX-License-Identifier: MIT
/*
 * foreign.c - dma-bufs of drivers that are not ours: udmabuf, the system heap, vgem
 *
 * vgem is spoken to by five structs of the DRM interface, so no libdrm is needed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/dma-heap.h>
#include <linux/udmabuf.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "device.h"

struct vgem_version {
	int numbers[3];
	size_t name_bytes;
	char *name;
	size_t date_bytes;
	char *date;
	size_t description_bytes;
	char *description;
};

struct vgem_dumb {
	uint32_t height, width, bits_per_pixel, flags, handle, pitch;
	uint64_t size;
};

struct vgem_prime {
	uint32_t handle, flags;
	int32_t fd;
};

struct vgem_close {
	uint32_t handle, padding;
};

#define VGEM_VERSION		_IOWR('d', 0x00, struct vgem_version)
#define VGEM_CLOSE		_IOW('d', 0x09, struct vgem_close)
#define VGEM_HANDLE_TO_FD	_IOWR('d', 0x2d, struct vgem_prime)
#define VGEM_FD_TO_HANDLE	_IOWR('d', 0x2e, struct vgem_prime)
#define VGEM_CREATE_DUMB	_IOWR('d', 0xb2, struct vgem_dumb)

int device_udmabuf(uint64_t length_bytes)
{
	struct udmabuf_create create = { .flags = UDMABUF_FLAGS_CLOEXEC, .size = length_bytes };
	int memory = memfd_create("foreign", MFD_CLOEXEC | MFD_ALLOW_SEALING), device, fd;

	if (memory < 0)
		return -errno;
	device = open("/dev/udmabuf", O_RDWR | O_CLOEXEC);
	if (device < 0 || ftruncate(memory, (off_t)length_bytes) ||
	    fcntl(memory, F_ADD_SEALS, F_SEAL_SHRINK)) {
		fd = -errno;
	} else {
		create.memfd = (uint32_t)memory;
		fd = ioctl(device, UDMABUF_CREATE, &create);
		fd = fd < 0 ? -errno : fd;
	}
	if (device >= 0)
		close(device);
	close(memory);
	return fd;
}

int device_heap(uint64_t length_bytes)
{
	struct dma_heap_allocation_data data = { .len = length_bytes,
						 .fd_flags = O_RDWR | O_CLOEXEC };
	int heap = open("/dev/dma_heap/system", O_RDWR | O_CLOEXEC), status;

	if (heap < 0)
		return -errno;
	status = ioctl(heap, DMA_HEAP_IOCTL_ALLOC, &data) ? -errno : (int)data.fd;
	close(heap);
	return status;
}

int device_vgem_open(void)
{
	char path[32], name[16];
	int card;

	for (card = 0; card < 8; card++) {
		struct vgem_version version = { .name = name, .name_bytes = sizeof(name) - 1 };
		int fd;

		snprintf(path, sizeof(path), "/dev/dri/card%d", card);
		fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd < 0)
			continue;
		memset(name, 0, sizeof(name));
		if (!ioctl(fd, VGEM_VERSION, &version) && !strcmp(name, "vgem"))
			return fd;
		close(fd);
	}
	return -ENODEV;
}

int device_vgem_export(int vgem, uint64_t length_bytes, uint32_t *handle)
{
	struct vgem_dumb dumb = { .height = (uint32_t)(length_bytes / 4096), .width = 1024,
				  .bits_per_pixel = 32 };
	struct vgem_prime prime = { .flags = O_RDWR | O_CLOEXEC };

	if (ioctl(vgem, VGEM_CREATE_DUMB, &dumb))
		return -errno;
	*handle = prime.handle = dumb.handle;
	if (ioctl(vgem, VGEM_HANDLE_TO_FD, &prime)) {
		int status = -errno;

		device_vgem_close_handle(vgem, dumb.handle);
		return status;
	}
	return prime.fd;
}

int device_vgem_import(int vgem, int fd, uint32_t *handle)
{
	struct vgem_prime prime = { .fd = fd };

	if (ioctl(vgem, VGEM_FD_TO_HANDLE, &prime))
		return -errno;
	*handle = prime.handle;
	return 0;
}

int device_vgem_close_handle(int vgem, uint32_t handle)
{
	struct vgem_close request = { .handle = handle };

	return ioctl(vgem, VGEM_CLOSE, &request) ? -errno : 0;
}
