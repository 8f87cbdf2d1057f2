// SPDX-License-Identifier: MIT
/*
 * memory.c - the bytes of a buffer: a memfd, the user's memory, or somebody's fd
 *
 * Invariants
 *  - A memfd of ours is sealed against shrinking and growing before anyone else can
 *    have it, so no access inside it can raise SIGBUS.
 *  - Its descriptor is the only one on its open file description, and every export
 *    makes a new description. So a write lease, which Linux grants only where no
 *    other description of the file is open, tells whether an export lives anywhere.
 *    The description memfd_create() returns is not counted by the kernel as an
 *    opening of the file; that is why we open it again and close the first.
 *  - A lease of ours is given back at once. Its break signal is set to SIGURG,
 *    which is ignored unless the program asks for it.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "memory.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <linux/udmabuf.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "topology.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL		0x0008U
#endif

#define DMABUF_MAGIC		0x444d4142
#define HUGETLBFS_MAGIC		0x958458f6

/* From here on it is worth asking what is left before taking it. */
#define FORECAST_BYTES_MIN	(64ULL << 20)
/* Populated between two looks at what is left, since others take memory too. */
#define POPULATE_SLICE_BYTES	(256ULL << 20)

static size_t base_page_bytes(void)
{
	return (size_t)sysconf(_SC_PAGESIZE);
}

/* Rounds up; false if the result cannot be the length of a file or a mapping. */
static bool round_up(__u64 length, __u64 page_bytes, size_t *rounded)
{
	__u64 sum;

	if (__builtin_add_overflow(length, page_bytes - 1, &sum))
		return false;
	sum &= ~(page_bytes - 1);
	*rounded = (size_t)sum;
	return sum <= INT64_MAX && sum <= SIZE_MAX;
}

/* Doubles the soft limit on descriptors, as far as the hard one goes. */
static bool raise_descriptor_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) || limit.rlim_cur >= limit.rlim_max)
		return false;
	limit.rlim_cur = limit.rlim_cur > limit.rlim_max / 2 ? limit.rlim_max
							       : limit.rlim_cur * 2;
	return !setrlimit(RLIMIT_NOFILE, &limit);
}

static int create_memfd(unsigned int flags)
{
	long fd;

	flags |= MFD_CLOEXEC | MFD_ALLOW_SEALING;
	for (int attempt = 0; attempt < 2; attempt++) {
		fd = syscall(SYS_memfd_create, "dmaplane", flags | MFD_NOEXEC_SEAL);
		if (fd < 0 && errno == EINVAL) /* before Linux 6.3 */
			fd = syscall(SYS_memfd_create, "dmaplane", flags);
		if (fd >= 0)
			return (int)fd;
		if (errno != EMFILE || !raise_descriptor_limit())
			break;
	}
	return -errno;
}

/* A new description of the file behind @fd. */
static int open_again(int fd, int access)
{
	char path[32];
	int again = -1;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	for (int attempt = 0; attempt < 2; attempt++) {
		again = open(path, access | O_CLOEXEC);
		if (again >= 0)
			return again;
		if (errno != EMFILE || !raise_descriptor_limit())
			break;
	}
	return -errno;
}

static int duplicate(int fd)
{
	int copy = -1;

	for (int attempt = 0; attempt < 2; attempt++) {
		copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
		if (copy >= 0)
			return copy;
		if (errno != EMFILE || !raise_descriptor_limit())
			break;
	}
	return -errno;
}

/*
 * A sealed memfd of @length bytes on a description of its own. 0600, so that a
 * stranger who was given it for reading cannot open it again for writing.
 */
static int create_sealed(unsigned int flags, size_t length, bool *tracked)
{
	int fd = create_memfd(flags);
	int again, ret;

	if (fd < 0)
		return fd;
	if (ftruncate(fd, (off_t)length) || fchmod(fd, 0600) ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)) {
		ret = errno == EFBIG || errno == EINVAL ? -ENOMEM : -errno;
		close(fd);
		return ret;
	}
	again = open_again(fd, O_RDWR);
	if (again == -EMFILE || again == -ENFILE) {
		close(fd);
		return again;
	}
	*tracked = again >= 0;
	if (again < 0)
		return fd;
	close(fd);
	fcntl(again, F_SETSIG, SIGURG);
	return again;
}

static bool fits(__u64 length, __u64 node_mask)
{
	return length < FORECAST_BYTES_MIN || length <= dmp_topology_memory_available(node_mask);
}

/* Populates our own mapping; what is not there behind it is memory that is short. */
static int populate(struct dmp_memory *memory, bool huge, __u64 node_mask)
{
	size_t done = 0;
	int ret;

	while (done < memory->map_bytes) {
		size_t bytes = memory->map_bytes - done;

		if (!huge && !fits(bytes, node_mask))
			return -ENOMEM;
		if (bytes > POPULATE_SLICE_BYTES)
			bytes = POPULATE_SLICE_BYTES;
		ret = dmp_placement_populate((char *)memory->address + done, bytes,
					     memory->page_bytes, !memory->read_only);
		if (ret)
			return ret == -EFAULT ? -ENOMEM : ret;
		done += bytes;
	}
	return 0;
}

static int map_own(struct dmp_memory *memory)
{
	int protection = memory->read_only ? PROT_READ : PROT_READ | PROT_WRITE;
	void *address = mmap(NULL, memory->map_bytes, protection, MAP_SHARED, memory->fd, 0);

	if (address == MAP_FAILED)
		return -errno;
	memory->address = address;
	return 0;
}

/* One attempt with pages of one size. @advise: ask for transparent huge pages. */
static int allocate_pages(struct dmp_memory *out, __u64 length, __u32 page_bytes, bool advise,
			  __u32 create_flags, const struct dmp_policy *policy)
{
	struct dmp_memory memory = { .fd = -1, .page_bytes = page_bytes };
	bool huge = page_bytes != base_page_bytes();
	bool strict = create_flags & DMP_BUFFER_STRICT;
	__u64 nodes = policy->policy == DMP_POLICY_BIND ? policy->node_mask : 0;
	struct rlimit limit;
	int ret;

	if (!round_up(length, page_bytes, &memory.length))
		return -EOVERFLOW;
	memory.map_bytes = memory.length;
	/* Beyond this limit the kernel would send SIGXFSZ. */
	if (!getrlimit(RLIMIT_FSIZE, &limit) && memory.length > limit.rlim_cur)
		return -EPERM;
	if (!huge && !fits(memory.length, nodes))
		return -ENOMEM;
	memory.fd = create_sealed(huge ? MFD_HUGETLB : 0, memory.length, &memory.tracked);
	if (memory.fd < 0)
		return memory.fd;
	ret = map_own(&memory);
	if (!ret)
		ret = dmp_placement_apply(policy, memory.address, memory.map_bytes, strict);
	if (!ret && advise)
		madvise(memory.address, memory.map_bytes, MADV_HUGEPAGE);
	if (!ret)
		ret = populate(&memory, huge, nodes);
	if (ret)
		dmp_memory_free(&memory);
	else
		*out = memory;
	return ret;
}

int dmp_memory_allocate(struct dmp_memory *memory, __u32 kind, __u64 length, __u32 create_flags,
			const struct dmp_policy *policy)
{
	bool prefer = create_flags & DMP_BUFFER_HUGE_PREFER;
	__u32 page_bytes = (__u32)base_page_bytes();
	__u32 huge_page_bytes;
	int ret = -EOPNOTSUPP;

	if (!length || (kind != DMP_KIND_PAGES && kind != DMP_KIND_HUGE))
		return -EINVAL;
	if (kind == DMP_KIND_PAGES) {
		ret = allocate_pages(memory, length, page_bytes, false, create_flags, policy);
	} else {
		huge_page_bytes = dmp_topology_huge_page_bytes();
		if (huge_page_bytes)
			ret = allocate_pages(memory, length, huge_page_bytes, false, create_flags,
					     policy);
		if (prefer && (ret == -ENOMEM || ret == -EOPNOTSUPP || ret == -EINVAL ||
			       ret == -ENOSYS || ret == -ENODEV || ret == -EPERM))
			ret = allocate_pages(memory, length, page_bytes, true, create_flags,
					     policy);
	}
	if (!ret)
		memory->kind = kind;
	return ret;
}

int dmp_memory_user(struct dmp_memory *memory, __u64 user_addr, __u64 length, bool read_only)
{
	size_t page_bytes = base_page_bytes();
	__u64 end;
	int ret;

	if (!length)
		return -EINVAL;
	if (__builtin_add_overflow(user_addr, length, &end) ||
	    __builtin_add_overflow(end, page_bytes - 1, &end) || end > UINTPTR_MAX)
		return -EOVERFLOW;
	ret = dmp_placement_populate((void *)(uintptr_t)user_addr, length, page_bytes, !read_only);
	if (ret)
		return ret;
	*memory = (struct dmp_memory){
		.fd = -1,
		.address = (void *)(uintptr_t)user_addr,
		.length = length,
		.map_bytes = length,
		.page_bytes = (__u32)page_bytes,
		.kind = DMP_KIND_USER,
		.read_only = read_only,
	};
	return 0;
}

/* What @fd is: its length and pages, whether it is a dma-buf, and whether we may take it. */
static int inspect(int fd, bool read_only, struct dmp_memory *memory)
{
	int access = fcntl(fd, F_GETFL);
	int seals = fcntl(fd, F_GET_SEALS);
	struct statfs filesystem;
	struct stat file;
	off_t length;

	if (access < 0 || fstatfs(fd, &filesystem) || fstat(fd, &file))
		return -EINVAL;
	memory->dmabuf = filesystem.f_type == DMABUF_MAGIC;
	memory->page_bytes = (__u32)base_page_bytes();
	if (memory->dmabuf) {
		length = lseek(fd, 0, SEEK_END);
	} else {
		if (seals < 0)
			return -EINVAL;
		if (!(seals & F_SEAL_SHRINK))
			return -EPERM;
		length = file.st_size;
		if ((__u64)filesystem.f_type == HUGETLBFS_MAGIC)
			memory->page_bytes = (__u32)filesystem.f_bsize;
	}
	if (length <= 0)
		return -EINVAL;
	access &= O_ACCMODE;
	if (access == O_WRONLY || (!read_only && access != O_RDWR))
		return -EPERM;
	if (!round_up((__u64)length, memory->page_bytes, &memory->map_bytes))
		return -EOVERFLOW;
	memory->length = (size_t)length;
	return 0;
}

int dmp_memory_import(struct dmp_memory *memory, int fd, bool read_only)
{
	struct dmp_memory imported = {
		.fd = -1,
		.kind = DMP_KIND_IMPORTED,
		.read_only = read_only,
	};
	int ret = inspect(fd, read_only, &imported);

	if (ret)
		return ret;
	imported.fd = duplicate(fd);
	if (imported.fd < 0)
		return imported.fd;
	ret = map_own(&imported);
	if (ret == -EACCES)
		ret = -EPERM;
	else if (imported.dmabuf && (ret == -ENODEV || ret == -EINVAL || ret == -ENOTTY))
		ret = -EOPNOTSUPP;
	/* A memfd may be all holes: take the memory now, not under a copy. */
	if (!ret && !imported.dmabuf)
		ret = populate(&imported, imported.page_bytes != base_page_bytes(), 0);
	if (ret)
		dmp_memory_free(&imported);
	else
		*memory = imported;
	return ret;
}

static int export_dmabuf(struct dmp_memory *memory)
{
	struct udmabuf_create create = {
		.memfd = (__u32)memory->fd,
		.flags = UDMABUF_FLAGS_CLOEXEC,
		.size = memory->map_bytes,
	};
	int device = open("/dev/udmabuf", O_RDWR | O_CLOEXEC);
	int fd, ret;

	if (device < 0)
		return errno == EMFILE || errno == ENFILE ? -errno : -EOPNOTSUPP;
	fd = ioctl(device, UDMABUF_CREATE, &create);
	ret = fd < 0 ? -errno : fd;
	close(device);
	/* Its own limit on the size of one dma-buf is all it can object to here. */
	return ret == -EINVAL ? -ENOSPC : ret;
}

int dmp_memory_export(struct dmp_memory *memory, __u32 export_flags, int *fd)
{
	bool read_only = export_flags & DMP_EXPORT_READ_ONLY;
	bool as_dmabuf = export_flags & DMP_EXPORT_DMABUF;
	int access, exported;

	if (memory->fd < 0)
		return -EOPNOTSUPP;
	if (memory->read_only && !read_only)
		return -EPERM;
	access = fcntl(memory->fd, F_GETFL) & O_ACCMODE;
	if (memory->dmabuf) {
		if (read_only && access != O_RDONLY)
			return -EOPNOTSUPP;
		exported = duplicate(memory->fd);
	} else if (as_dmabuf) {
		exported = read_only ? -EOPNOTSUPP : export_dmabuf(memory);
	} else {
		exported = open_again(memory->fd, read_only ? O_RDONLY : O_RDWR);
		if (exported == -ENOENT || exported == -EACCES) /* no /proc, or another's memfd */
			exported = access == (read_only ? O_RDONLY : O_RDWR)
					   ? duplicate(memory->fd) : -EOPNOTSUPP;
	}
	if (exported < 0)
		return exported;
	*fd = exported;
	return 0;
}

static bool other_description(int fd)
{
	if (fcntl(fd, F_SETLEASE, F_WRLCK))
		return errno == EAGAIN;
	fcntl(fd, F_SETLEASE, F_UNLCK);
	return false;
}

bool dmp_memory_exported(struct dmp_memory *memory)
{
	return memory->tracked && dmp_memory_tracks_exports() && other_description(memory->fd);
}

static bool tracks_exports;

/* Alone, with one more description, and alone again: the answer must follow. */
static void probe_tracking(void)
{
	bool tracked = false;
	int fd = create_sealed(0, base_page_bytes(), &tracked);
	int again;

	if (fd < 0)
		return;
	again = tracked && !other_description(fd) ? open_again(fd, O_RDONLY) : -1;
	if (again >= 0) {
		tracks_exports = other_description(fd);
		close(again);
		tracks_exports = tracks_exports && !other_description(fd);
	}
	close(fd);
}

bool dmp_memory_tracks_exports(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, probe_tracking);
	return tracks_exports;
}

int dmp_memory_map_read_only(struct dmp_memory *memory, void **address)
{
	void *found = __atomic_load_n(&memory->read_only_address, __ATOMIC_ACQUIRE);
	void *made;

	if (memory->fd < 0 || memory->read_only) {
		if (!memory->read_only)
			return -EOPNOTSUPP;
		*address = memory->address;
		return 0;
	}
	if (!found) {
		made = mmap(NULL, memory->map_bytes, PROT_READ, MAP_SHARED, memory->fd, 0);
		if (made == MAP_FAILED)
			return -errno;
		/* Two may come here at once: the first mapping stays. Pairs with the load above. */
		if (__atomic_compare_exchange_n(&memory->read_only_address, &found, made, false,
						__ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
			found = made;
		else
			munmap(made, memory->map_bytes);
	}
	*address = found;
	return 0;
}

void dmp_memory_free(struct dmp_memory *memory)
{
	if (memory->kind != DMP_KIND_USER) {
		if (memory->read_only_address)
			munmap(memory->read_only_address, memory->map_bytes);
		if (memory->address)
			munmap(memory->address, memory->map_bytes);
		if (memory->fd >= 0)
			close(memory->fd);
	}
	*memory = (struct dmp_memory){ .fd = -1 };
}
