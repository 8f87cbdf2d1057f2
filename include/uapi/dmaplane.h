/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * dmaplane.h - the contract between a program and a plane
 *
 * A plane is whatever serves this header: the kernel module behind
 * /dev/dmaplane, or libdmaplane inside a process. Both give the same answer
 * to the same request.
 *
 * Rules that hold for every command
 *
 *  - A command struct starts with `size` and `flags`. The caller sets `size` to
 *    the size of the struct it was compiled with. A plane accepts any size from
 *    the end of the struct's first release upwards: what the caller lacks is
 *    taken as zero, what the caller has and the plane does not know must be zero
 *    (else E2BIG). Structs only grow, at the end.
 *  - `flags` bits a plane does not know and `__reserved` bytes that are not zero
 *    are refused with EINVAL, so that they can be given a meaning later.
 *  - Outputs ("out:") are written on success only. Inputs are never changed.
 *  - Ids are 32 bits, never 0, and never reused while the fd is open.
 *  - Times are absolute CLOCK_MONOTONIC nanoseconds; 0 means "no limit".
 *  - No struct holds a pointer. Memory is (id, offset, length); user memory that
 *    has to be named is an __aligned_u64 whose name ends in _addr.
 *  - Closing the fd, or the end of the process, returns everything made with it.
 *
 * What an errno means, on every plane and for every command
 *
 *  ENOTTY      no such command
 *  E2BIG       the struct is newer than this plane and uses what it added
 *  EOPNOTSUPP  understood, but this plane does not offer it (see capabilities)
 *  EINVAL      a wrong value: size too short, unknown flag, reserved not zero,
 *              range outside the object, contradiction between fields
 *  EFAULT      the struct, or memory it names, is not mapped as needed; what the
 *              command made is taken back
 *  ENOENT      no such id on this fd
 *  EBUSY       in use; a query names the holders. For kind PEER: the range is mapped
 *              with the other caching
 *  EAGAIN      no slot or credit now; the same request can succeed later
 *  ESTALE      the object was revoked, or belongs to an earlier epoch
 *  EOVERFLOW   a sum or product of the given numbers does not fit
 *  ENOMEM      no memory, or none on the required node
 *  ENOSPC      a limit of the plane is reached (see dmp_query)
 *  EPERM       not allowed to this caller (rights, seals, limits such as memlock)
 *  EPROTO      the other side broke the protocol: impossible ring indices, frames
 *  ETIMEDOUT   the given time passed first
 *  EINTR       a signal came before anything was done; ask again
 *  ECANCELED   cancelled, or an earlier link of the same chain failed
 *  EBADMSG     bytes do not match the checksum that was asked for
 *  EACCES      the peer refused: wrong key, right, or secret
 *  ENODEV      the device, NIC or fabric named in the request is not there
 *  ECONNRESET  the endpoint or its peer is gone
 *  ECONNREFUSED, EHOSTUNREACH, EADDRINUSE   as in connect(2) and bind(2)
 */
#ifndef _UAPI_DMAPLANE_H
#define _UAPI_DMAPLANE_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define DMP_ABI_MAJOR	1
#define DMP_ABI_MINOR	0

/* Fixed sizes of the contract. */
#define DMP_NODES_MAX		64	/* NUMA nodes a node mask can name */
#define DMP_CPUS_MAX		1024	/* CPUs a topology answer can name */
#define DMP_SLOTS_MAX		65536	/* entries of one ring */
#define DMP_NAME_BYTES		64
#define DMP_ADDRESS_BYTES	128	/* printable endpoint address, NUL ended */
#define DMP_SECRET_BYTES	64
#define DMP_KEY_BYTES		64	/* opaque key material of a region */
#define DMP_CACHE_LINE_BYTES	128	/* distance that keeps two writers apart */

/*
 * Commands: _IO(DMP_IOCTL_TYPE, nr). The number does not depend on the struct,
 * so a struct can grow. Numbers are never changed and never reused.
 */
#define DMP_IOCTL_TYPE	0xDA

#define DMP_QUERY		_IO(DMP_IOCTL_TYPE, 0x00)
#define DMP_TOPOLOGY		_IO(DMP_IOCTL_TYPE, 0x01)
#define DMP_STATISTICS		_IO(DMP_IOCTL_TYPE, 0x02)
#define DMP_HISTOGRAM		_IO(DMP_IOCTL_TYPE, 0x03)
#define DMP_BUFFER_CREATE	_IO(DMP_IOCTL_TYPE, 0x10)
#define DMP_BUFFER_QUERY	_IO(DMP_IOCTL_TYPE, 0x11)
#define DMP_BUFFER_DESTROY	_IO(DMP_IOCTL_TYPE, 0x12)
#define DMP_BUFFER_SYNC		_IO(DMP_IOCTL_TYPE, 0x13)
#define DMP_BUFFER_EXPORT	_IO(DMP_IOCTL_TYPE, 0x14)
#define DMP_BUFFER_IMPORT	_IO(DMP_IOCTL_TYPE, 0x15)
#define DMP_REGION_CREATE	_IO(DMP_IOCTL_TYPE, 0x20)
#define DMP_REGION_QUERY	_IO(DMP_IOCTL_TYPE, 0x21)
#define DMP_REGION_DESTROY	_IO(DMP_IOCTL_TYPE, 0x22)
#define DMP_REGION_IMPORT	_IO(DMP_IOCTL_TYPE, 0x23)
#define DMP_CHANNEL_CREATE	_IO(DMP_IOCTL_TYPE, 0x30)
#define DMP_CHANNEL_QUERY	_IO(DMP_IOCTL_TYPE, 0x31)
#define DMP_CHANNEL_DESTROY	_IO(DMP_IOCTL_TYPE, 0x32)
#define DMP_ENTER		_IO(DMP_IOCTL_TYPE, 0x33)
#define DMP_CANCEL		_IO(DMP_IOCTL_TYPE, 0x34)
#define DMP_LISTEN		_IO(DMP_IOCTL_TYPE, 0x40)
#define DMP_LISTENER_DESTROY	_IO(DMP_IOCTL_TYPE, 0x41)
#define DMP_CONNECT		_IO(DMP_IOCTL_TYPE, 0x42)
#define DMP_ACCEPT		_IO(DMP_IOCTL_TYPE, 0x43)
#define DMP_ENDPOINT_QUERY	_IO(DMP_IOCTL_TYPE, 0x44)
#define DMP_ENDPOINT_DESTROY	_IO(DMP_IOCTL_TYPE, 0x45)

/*
 * Capabilities: what a plane offers beyond buffers of kind PAGES and channels.
 * Features are asked for by bit, never guessed from a version.
 */
#define DMP_CAP_HUGE		(1ULL << 0)	/* kind HUGE */
#define DMP_CAP_COHERENT	(1ULL << 1)	/* kind COHERENT */
#define DMP_CAP_USER		(1ULL << 2)	/* kind USER */
#define DMP_CAP_PEER		(1ULL << 3)	/* kind PEER */
#define DMP_CAP_WRITE_COMBINE	(1ULL << 4)	/* DMP_BUFFER_WRITE_COMBINE */
#define DMP_CAP_EXPORT		(1ULL << 5)	/* BUFFER_EXPORT gives a memfd or dma-buf */
#define DMP_CAP_EXPORT_DMABUF	(1ULL << 6)	/* DMP_EXPORT_DMABUF is honoured */
#define DMP_CAP_IMPORT		(1ULL << 7)	/* BUFFER_IMPORT takes a memfd */
#define DMP_CAP_IMPORT_DMABUF	(1ULL << 8)	/* BUFFER_IMPORT takes a dma-buf */
#define DMP_CAP_EXPORT_TRACKED	(1ULL << 9)	/* exports held elsewhere count as holders */
#define DMP_CAP_PLACEMENT	(1ULL << 10)	/* placement can be verified page by page */
#define DMP_CAP_BIND		(1ULL << 11)	/* channel workers can be bound */
#define DMP_CAP_CHECKSUM	(1ULL << 12)	/* CRC32C inside the copy */
#define DMP_CAP_REGION		(1ULL << 13)
#define DMP_CAP_ENDPOINT	(1ULL << 14)
#define DMP_CAP_REVOKE		(1ULL << 15)	/* buffers can be revoked from outside */

/* Fabrics and paths: what carried the bytes. Bit n of dmp_query.fabrics is path n. */
#define DMP_PATH_NONE		0
#define DMP_PATH_LOCAL		1	/* a CPU copy inside this plane */
#define DMP_PATH_SHM		2
#define DMP_PATH_TCP		3
#define DMP_PATH_VERBS		4
#define DMP_PATH_PEER		5	/* across a PCI BAR */

/**
 * struct dmp_query - DMP_QUERY: version, capabilities and limits
 * @size: sizeof(struct dmp_query)
 * @flags: 0
 * @abi_major: out: DMP_ABI_MAJOR of the plane
 * @abi_minor: out: DMP_ABI_MINOR of the plane
 * @capabilities: out: DMP_CAP_* bits
 * @fabrics: out: bit n set if path DMP_PATH_n can be used
 * @nodes: out: NUMA nodes that have memory
 * @page_bytes: out: base page
 * @huge_page_bytes: out: page of kind HUGE, 0 if there is none
 * @buffer_bytes_max: out: largest length of one buffer
 * @buffers_max: out: buffers alive at once on this fd
 * @channels_max: out: channels alive at once on this fd
 * @slots_max: out: largest ring
 * @endpoints_max: out: endpoints alive at once on this fd
 * @regions_max: out: regions alive at once on this fd
 * @__reserved: 0
 * @incarnation: out: random identity of this open plane; a restart has another
 * @version: out: printable version of the implementation
 */
struct dmp_query {
	__u32 size;
	__u32 flags;
	__u32 abi_major;
	__u32 abi_minor;
	__aligned_u64 capabilities;
	__u32 fabrics;
	__u32 nodes;
	__u32 page_bytes;
	__u32 huge_page_bytes;
	__aligned_u64 buffer_bytes_max;
	__u32 buffers_max;
	__u32 channels_max;
	__u32 slots_max;
	__u32 endpoints_max;
	__u32 regions_max;
	__u32 __reserved;
	__aligned_u64 incarnation;
	__u8 version[DMP_NAME_BYTES];
};

/* What a topology row describes. */
#define DMP_TOPOLOGY_NODE	0	/* a NUMA node */
#define DMP_TOPOLOGY_NIC	1	/* an RDMA device */
#define DMP_TOPOLOGY_GPU	2	/* a display or 3D controller of an accelerator maker */

/**
 * struct dmp_topology - DMP_TOPOLOGY: one row of what the machine has
 * @size: sizeof(struct dmp_topology)
 * @flags: 0
 * @kind: DMP_TOPOLOGY_*
 * @index: 0 .. count - 1; ENOENT beyond
 * @count: out: rows of this kind
 * @node: out: NUMA node of the row, -1 if unknown
 * @memory_bytes: out: node: total memory
 * @memory_free_bytes: out: node: free memory
 * @huge_pages: out: node: huge pages (of dmp_query.huge_page_bytes) in the pool
 * @huge_pages_free: out: node: of these, free
 * @pci_address: out: device: domain << 16 | bus << 8 | device << 3 | function
 * @pci_vendor: out: device: PCI vendor << 16 | PCI device
 * @cpu_mask: out: CPUs local to the row, bit n of word n / 64
 * @distance: out: node: distance to node i as firmware states it, 0 if there is none
 * @name: out: printable name
 */
struct dmp_topology {
	__u32 size;
	__u32 flags;
	__u32 kind;
	__u32 index;
	__u32 count;
	__s32 node;
	__aligned_u64 memory_bytes;
	__aligned_u64 memory_free_bytes;
	__u32 huge_pages;
	__u32 huge_pages_free;
	__u32 pci_address;
	__u32 pci_vendor;
	__aligned_u64 cpu_mask[DMP_CPUS_MAX / 64];
	__u8 distance[DMP_NODES_MAX];
	__u8 name[DMP_NAME_BYTES];
};

/* Whose counters, whose histogram. */
#define DMP_SCOPE_PLANE		0	/* id must be 0: all that this fd did */
#define DMP_SCOPE_CHANNEL	1
#define DMP_SCOPE_ENDPOINT	2

/**
 * struct dmp_statistics - DMP_STATISTICS: counters, each only ever grows unless it says "now"
 * @size: sizeof(struct dmp_statistics)
 * @flags: 0
 * @scope: DMP_SCOPE_*
 * @id: id of the channel or endpoint, 0 for the plane
 * @submissions: out: accepted
 * @completions: out: posted; submissions - completions are in flight now
 * @errors: out: completions with a negative result (cancelled and timed out included)
 * @cancelled: out: completions with -ECANCELED
 * @timeouts: out: completions with -ETIMEDOUT
 * @bytes: out: bytes moved
 * @checksum_bytes: out: of these, bytes that went through a checksum
 * @batches: out: ENTER calls that accepted something
 * @wakeups: out: times a sleeping worker or waiter had to be woken
 * @stalls: out: times work waited for a slot or a credit
 * @stall_ns: out: how long it waited
 * @events: out: unsolicited completions
 * @buffers: out: now: buffers alive
 * @buffer_bytes: out: now: bytes of these
 * @mappings: out: now: mappings alive
 * @channels: out: now: channels alive
 * @endpoints: out: now: endpoints alive
 * @regions: out: now: regions alive
 */
struct dmp_statistics {
	__u32 size;
	__u32 flags;
	__u32 scope;
	__u32 id;
	__aligned_u64 submissions;
	__aligned_u64 completions;
	__aligned_u64 errors;
	__aligned_u64 cancelled;
	__aligned_u64 timeouts;
	__aligned_u64 bytes;
	__aligned_u64 checksum_bytes;
	__aligned_u64 batches;
	__aligned_u64 wakeups;
	__aligned_u64 stalls;
	__aligned_u64 stall_ns;
	__aligned_u64 events;
	__aligned_u64 buffers;
	__aligned_u64 buffer_bytes;
	__aligned_u64 mappings;
	__aligned_u64 channels;
	__aligned_u64 endpoints;
	__aligned_u64 regions;
};

/*
 * Histograms are log-linear: 32 steps per power of two, so a bucket is never
 * wider than 1/32 of its lower bound. Bucket b < 32 holds the value b; above
 * that, with g = b / 32 and s = b % 32, it holds [(32 + s) << (g - 1),
 * (33 + s) << (g - 1)). The last bucket also holds all that is larger.
 */
#define DMP_HISTOGRAM_STEPS	32
#define DMP_HISTOGRAM_BUCKETS	1152
#define DMP_HISTOGRAM_WINDOW	64

#define DMP_HISTOGRAM_LATENCY	0	/* ns from acceptance to completion */
#define DMP_HISTOGRAM_STALL	1	/* ns a submission waited for credit */

/**
 * struct dmp_histogram - DMP_HISTOGRAM: a window of buckets
 * @size: sizeof(struct dmp_histogram)
 * @flags: 0
 * @scope: DMP_SCOPE_CHANNEL or DMP_SCOPE_ENDPOINT
 * @id: id of the channel or endpoint
 * @kind: DMP_HISTOGRAM_LATENCY or DMP_HISTOGRAM_STALL
 * @bucket_first: first bucket of the window, a multiple of DMP_HISTOGRAM_WINDOW
 * @samples: out: values recorded so far
 * @sum: out: their sum
 * @maximum: out: the largest
 * @counts: out: buckets bucket_first ... bucket_first + DMP_HISTOGRAM_WINDOW - 1
 */
struct dmp_histogram {
	__u32 size;
	__u32 flags;
	__u32 scope;
	__u32 id;
	__u32 kind;
	__u32 bucket_first;
	__aligned_u64 samples;
	__aligned_u64 sum;
	__aligned_u64 maximum;
	__aligned_u64 counts[DMP_HISTOGRAM_WINDOW];
};

/* Buffer kinds. */
#define DMP_KIND_PAGES		0	/* page-backed, cached */
#define DMP_KIND_HUGE		1	/* huge pages */
#define DMP_KIND_COHERENT	2	/* dma_alloc_coherent of the plane's device */
#define DMP_KIND_USER		3	/* memory the caller already has, pinned */
#define DMP_KIND_IMPORTED	4	/* from BUFFER_IMPORT; not accepted by create */
#define DMP_KIND_PEER		5	/* a PCI BAR or accelerator memory */

/* Placement policies. */
#define DMP_POLICY_ANY		0	/* wherever the system puts it; node must be -1 */
#define DMP_POLICY_PREFER	1	/* node, others if it is full */
#define DMP_POLICY_BIND		2	/* nodes of node_mask only */
#define DMP_POLICY_INTERLEAVE	3	/* page by page over node_mask */

/* Flags of BUFFER_CREATE. */
#define DMP_BUFFER_STRICT		(1U << 0) /* every page as asked, verified, or ENOMEM */
#define DMP_BUFFER_HUGE_PREFER		(1U << 1) /* kind HUGE: base pages if there are no huge ones */
#define DMP_BUFFER_WRITE_COMBINE	(1U << 2) /* map write-combined */
#define DMP_BUFFER_READ_ONLY		(1U << 3) /* kind USER: the plane never writes there */

/* peer_bar of memory that is behind no BAR: of the device, as its own driver names it. */
#define DMP_PEER_DEVICE_MEMORY	0xffffffffU

/**
 * struct dmp_buffer_create - DMP_BUFFER_CREATE: allocate (or take) and pin memory
 * @size: sizeof(struct dmp_buffer_create)
 * @flags: DMP_BUFFER_*
 * @length_bytes: bytes wanted, > 0; rounded up to whole pages except for kind USER
 * @kind: DMP_KIND_*
 * @policy: DMP_POLICY_*
 * @node: policy PREFER: the node, else -1
 * @__reserved: 0
 * @node_mask: policies BIND and INTERLEAVE: bit n is node n, else 0
 * @user_addr: kind USER: where the memory starts, any alignment, else 0
 * @peer_address: kind PEER: offset in the BAR, or the address that the device's driver gave
 *	out (a device pointer of CUDA), else 0
 * @peer_device: kind PEER: PCI address as in dmp_topology, else 0
 * @peer_bar: kind PEER: BAR number 0 .. 5 or DMP_PEER_DEVICE_MEMORY, else 0
 * @buffer_id: out: the buffer
 * @page_bytes: out: size of the pages it really has
 * @map_offset: out: offset to give to mmap
 * @map_bytes: out: bytes that can be mapped; 0 for kind USER, which the caller has mapped
 *
 * The memory is zeroed (except USER and PEER) and resident when the call returns. A plane
 * that gives it to devices pins it as well.
 */
struct dmp_buffer_create {
	__u32 size;
	__u32 flags;
	__aligned_u64 length_bytes;
	__u32 kind;
	__u32 policy;
	__s32 node;
	__u32 __reserved;
	__aligned_u64 node_mask;
	__aligned_u64 user_addr;
	__aligned_u64 peer_address;
	__u32 peer_device;
	__u32 peer_bar;
	__u32 buffer_id;
	__u32 page_bytes;
	__aligned_u64 map_offset;
	__aligned_u64 map_bytes;
};

/* Object states (buffers, regions, channels, endpoints, listeners). */
#define DMP_STATE_NONE		0
#define DMP_STATE_LIVE		1
#define DMP_STATE_DRAINING	2	/* refuses new use, waits for the old */
#define DMP_STATE_REVOKED	3	/* its memory is gone; only destroy is left */
#define DMP_STATE_DEAD		4

/* How a plane knows where pages are. */
#define DMP_PLACEMENT_UNKNOWN	0	/* it could not find out */
#define DMP_PLACEMENT_COUNTED	1	/* asked page by page */
#define DMP_PLACEMENT_SINGLE	2	/* the machine has one node: true by construction */

#define DMP_BUFFER_RECHECK	(1U << 0)	/* count the pages again now */

/**
 * struct dmp_buffer_query - DMP_BUFFER_QUERY: what it is, where it is, who holds it
 * @size: sizeof(struct dmp_buffer_query)
 * @flags: DMP_BUFFER_RECHECK or 0: the placement found at creation
 * @buffer_id: the buffer
 * @state: out: DMP_STATE_*
 * @kind: out: DMP_KIND_*
 * @policy: out: DMP_POLICY_*
 * @length_bytes: out: usable bytes
 * @map_offset: out: offset to give to mmap
 * @page_bytes: out: size of its pages
 * @placement: out: DMP_PLACEMENT_*
 * @pages: out: number of pages
 * @pages_misplaced: out: of these, not where the policy wants them
 * @mappings: out: holder: mappings alive
 * @regions: out: holder: regions alive
 * @exports: out: holder: exported fds (or mappings of one) alive anywhere; a plane that
 *	can tell that there are some, but not how many, says 1
 * @operations: out: holder: operations in flight
 * @create_flags: out: flags of BUFFER_CREATE
 * @__reserved: 0
 * @node_pages: out: pages on each node
 */
struct dmp_buffer_query {
	__u32 size;
	__u32 flags;
	__u32 buffer_id;
	__u32 state;
	__u32 kind;
	__u32 policy;
	__aligned_u64 length_bytes;
	__aligned_u64 map_offset;
	__u32 page_bytes;
	__u32 placement;
	__aligned_u64 pages;
	__aligned_u64 pages_misplaced;
	__u32 mappings;
	__u32 regions;
	__u32 exports;
	__u32 operations;
	__u32 create_flags;
	__u32 __reserved;
	__aligned_u64 node_pages[DMP_NODES_MAX];
};

#define DMP_DESTROY_DRAIN	(1U << 0)	/* refuse new use, wait for the old, then free */

/**
 * struct dmp_destroy - *_DESTROY of buffer, region, channel, listener, endpoint
 * @size: sizeof(struct dmp_destroy)
 * @flags: DMP_DESTROY_DRAIN or 0
 * @id: the object
 * @__reserved: 0
 * @deadline_ns: with DRAIN: give up waiting then (ETIMEDOUT; the object stays draining)
 *
 * Without DRAIN an object that anything can still reach answers EBUSY and is
 * unchanged. With DRAIN it refuses new use at once (ESTALE) and the call returns
 * when the last holder has gone. Destroy never needs memory. A channel has no
 * holders: without DRAIN what it has in flight is cancelled, with DRAIN finished.
 */
struct dmp_destroy {
	__u32 size;
	__u32 flags;
	__u32 id;
	__u32 __reserved;
	__aligned_u64 deadline_ns;
};

#define DMP_SYNC_FOR_READ	(1U << 0)	/* the caller is about to read, or has read */
#define DMP_SYNC_FOR_WRITE	(1U << 1)	/* the caller is about to write, or has written */
#define DMP_SYNC_END		(1U << 2)	/* the access is over; else it begins */

/**
 * struct dmp_buffer_sync - DMP_BUFFER_SYNC: order CPU access against devices
 * @size: sizeof(struct dmp_buffer_sync)
 * @flags: at least one of FOR_READ, FOR_WRITE; END
 * @buffer_id: the buffer
 * @__reserved: 0
 * @offset: start of the range
 * @length_bytes: its length, > 0
 */
struct dmp_buffer_sync {
	__u32 size;
	__u32 flags;
	__u32 buffer_id;
	__u32 __reserved;
	__aligned_u64 offset;
	__aligned_u64 length_bytes;
};

#define DMP_EXPORT_READ_ONLY	(1U << 0)	/* the receiver can map it for reading only */
#define DMP_EXPORT_DMABUF	(1U << 1)	/* a dma-buf, or EOPNOTSUPP */

/**
 * struct dmp_buffer_export - DMP_BUFFER_EXPORT: an fd that shares the whole buffer
 * @size: sizeof(struct dmp_buffer_export)
 * @flags: DMP_EXPORT_*
 * @buffer_id: the buffer
 * @fd: out: owned by the caller, close-on-exec
 *
 * The memory lives as long as the buffer or any such fd or mapping of one.
 */
struct dmp_buffer_export {
	__u32 size;
	__u32 flags;
	__u32 buffer_id;
	__s32 fd;
};

#define DMP_IMPORT_READ_ONLY	(1U << 0)

/**
 * struct dmp_buffer_import - DMP_BUFFER_IMPORT: a buffer from somebody's fd
 * @size: sizeof(struct dmp_buffer_import)
 * @flags: DMP_IMPORT_READ_ONLY
 * @fd: memfd (sealed against shrinking) or dma-buf; stays the caller's
 * @buffer_id: out: the buffer, of kind IMPORTED
 * @length_bytes: out: its length
 * @map_offset: out: offset to give to mmap
 * @page_bytes: out: size of its pages
 * @__reserved: 0
 */
struct dmp_buffer_import {
	__u32 size;
	__u32 flags;
	__s32 fd;
	__u32 buffer_id;
	__aligned_u64 length_bytes;
	__aligned_u64 map_offset;
	__u32 page_bytes;
	__u32 __reserved;
};

/* Rights of a region. */
#define DMP_ACCESS_LOCAL_WRITE	(1U << 0)	/* RECV may land here */
#define DMP_ACCESS_REMOTE_READ	(1U << 1)
#define DMP_ACCESS_REMOTE_WRITE	(1U << 2)

/**
 * struct dmp_region_create - DMP_REGION_CREATE: register a range for peers
 * @size: sizeof(struct dmp_region_create)
 * @flags: 0
 * @buffer_id: the buffer, held until the region is destroyed
 * @access: DMP_ACCESS_*
 * @offset: start of the range
 * @length_bytes: its length, > 0
 * @region_id: out: the region
 * @generation: out: changes with every registration, never repeats on this plane
 * @key_bytes: out: valid bytes of @key
 * @__reserved: 0
 * @key: out: opaque; give it to a peer, who turns it into an id with REGION_IMPORT
 */
struct dmp_region_create {
	__u32 size;
	__u32 flags;
	__u32 buffer_id;
	__u32 access;
	__aligned_u64 offset;
	__aligned_u64 length_bytes;
	__u32 region_id;
	__u32 generation;
	__u32 key_bytes;
	__u32 __reserved;
	__u8 key[DMP_KEY_BYTES];
};

/**
 * struct dmp_region_query - DMP_REGION_QUERY
 * @size: sizeof(struct dmp_region_query)
 * @flags: 0
 * @region_id: the region
 * @state: out: DMP_STATE_*
 * @buffer_id: out: its buffer, 0 for a peer's region
 * @endpoint_id: out: 0, or for a peer's region the endpoint it belongs to
 * @access: out: DMP_ACCESS_*
 * @generation: out: its generation
 * @offset: out: start of the range
 * @length_bytes: out: its length
 * @operations: out: holder: operations in flight
 * @__reserved: 0
 */
struct dmp_region_query {
	__u32 size;
	__u32 flags;
	__u32 region_id;
	__u32 state;
	__u32 buffer_id;
	__u32 endpoint_id;
	__u32 access;
	__u32 generation;
	__aligned_u64 offset;
	__aligned_u64 length_bytes;
	__u32 operations;
	__u32 __reserved;
};

/**
 * struct dmp_region_import - DMP_REGION_IMPORT: name a peer's region on an endpoint
 * @size: sizeof(struct dmp_region_import)
 * @flags: 0
 * @endpoint_id: the endpoint the peer is behind
 * @key_bytes: valid bytes of @key
 * @key: what the peer's REGION_CREATE gave
 * @region_id: out: an id to use as the remote side of WRITE and READ
 * @access: out: DMP_ACCESS_* the peer granted
 * @length_bytes: out: length of the peer's region
 */
struct dmp_region_import {
	__u32 size;
	__u32 flags;
	__u32 endpoint_id;
	__u32 key_bytes;
	__u8 key[DMP_KEY_BYTES];
	__u32 region_id;
	__u32 access;
	__aligned_u64 length_bytes;
};

/* Flags of CHANNEL_CREATE. */
#define DMP_CHANNEL_BIND_CPU	(1U << 0)	/* the worker runs on @cpu only */
#define DMP_CHANNEL_BIND_NODE	(1U << 1)	/* the worker runs on CPUs of @node only */
#define DMP_CHANNEL_SPIN	(1U << 2)	/* take @spin_us as it is; else the plane adapts */
#define DMP_CHANNEL_EVENTFD	(1U << 3)	/* signal @eventfd */

/**
 * struct dmp_channel_create - DMP_CHANNEL_CREATE: a pair of rings and a worker
 * @size: sizeof(struct dmp_channel_create)
 * @flags: DMP_CHANNEL_*
 * @slots: submissions the ring holds, a power of two, 1 .. dmp_query.slots_max
 * @completion_slots: completions the ring holds, a power of two >= slots; 0 means twice slots
 * @workers: threads that share large copies, 0 means 1
 * @spin_us: with SPIN: so long worker and waiters poll at most before they sleep, <= 1000000
 * @cpu: with BIND_CPU, else 0
 * @node: with BIND_NODE, else 0
 * @eventfd: with EVENTFD, else 0; written once per armed wake-up (dmp_ring_control.event_armed)
 * @channel_id: out: the channel
 * @map_offset: out: offset to give to mmap
 * @map_bytes: out: bytes to map
 * @submissions_offset: out: where in the mapping the struct dmp_submission ring is
 * @completions_offset: out: where in the mapping the struct dmp_completion ring is
 *
 * The mapping starts with struct dmp_ring_control.
 */
struct dmp_channel_create {
	__u32 size;
	__u32 flags;
	__u32 slots;
	__u32 completion_slots;
	__u32 workers;
	__u32 spin_us;
	__s32 cpu;
	__s32 node;
	__s32 eventfd;
	__u32 channel_id;
	__aligned_u64 map_offset;
	__aligned_u64 map_bytes;
	__aligned_u64 submissions_offset;
	__aligned_u64 completions_offset;
};

/**
 * struct dmp_channel_query - DMP_CHANNEL_QUERY
 * @size: sizeof(struct dmp_channel_query)
 * @flags: 0
 * @channel_id: the channel
 * @state: out: DMP_STATE_*
 * @slots: out: size of the submission ring
 * @completion_slots: out: size of the completion ring
 * @operations: out: accepted and not completed
 * @unread: out: completions the user has not taken yet
 * @cpu: out: CPU the worker is bound to, -1 if none
 * @node: out: node the worker is bound to, -1 if none
 * @mappings: out: mappings of the rings alive
 * @workers: out: threads
 */
struct dmp_channel_query {
	__u32 size;
	__u32 flags;
	__u32 channel_id;
	__u32 state;
	__u32 slots;
	__u32 completion_slots;
	__u32 operations;
	__u32 unread;
	__s32 cpu;
	__s32 node;
	__u32 mappings;
	__u32 workers;
};

/**
 * struct dmp_ring_control - the first bytes of a channel's mapping
 * @submit_tail: user: submissions written so far
 * @complete_head: user: completions taken so far
 * @event_armed: user: set to n to have the eventfd written when n completions are unread, 1:
 *	at the next one; the plane clears it when it writes. It may do so before there are n, and
 *	does after some milliseconds, for what failed, and for what is neither a WRITE, a WRITE_IMM
 *	nor a SEND
 * @__reserved0: 0
 * @submit_head: plane: submissions accepted so far
 * @__reserved1: 0
 * @complete_tail: plane: completions written so far; stored with release after the entries
 * @__reserved2: 0
 *
 * Indices run freely over 32 bits; entry i lives in slot i & (slots - 1). Each side
 * writes only its own words. A plane never trusts a user word: it reads it once,
 * checks it, and answers EPROTO to what cannot be.
 */
struct dmp_ring_control {
	__u32 submit_tail;
	__u32 complete_head;
	__u32 event_armed;
	__u32 __reserved0[29];
	__u32 submit_head;
	__u32 __reserved1[31];
	__u32 complete_tail;
	__u32 __reserved2[31];
};

/*
 * Operations.
 *
 *            source                    target                     immediate
 *  NOP       -                         -                          -
 *  FILL      -                         local buffer               32-bit pattern
 *  COPY      local buffer              local buffer               -
 *  FENCE     -                         -                          -
 *  SEND      local buffer              -                          -
 *  RECV      -                         local buffer               (out: of the sender)
 *  WRITE     local buffer              peer's region              -
 *  WRITE_IMM local buffer              peer's region              for the peer
 *  READ      peer's region             local buffer               -
 *
 * "-" means: must be zero. FENCE completes when all accepted before it have; nothing
 * accepted after it starts earlier. Otherwise submissions start in order and may
 * complete in any order. Overlapping source and target of COPY: EINVAL.
 */
#define DMP_OP_NOP		0
#define DMP_OP_FILL		1
#define DMP_OP_COPY		2
#define DMP_OP_FENCE		3
#define DMP_OP_SEND		16
#define DMP_OP_RECV		17
#define DMP_OP_WRITE		18
#define DMP_OP_WRITE_IMM	19
#define DMP_OP_READ		20

/* Flags of a submission. */
#define DMP_SUBMIT_LINK		(1U << 0)	/* the next one starts only if this one succeeds */
#define DMP_SUBMIT_CHECKSUM	(1U << 1)	/* CRC32C of the bytes, in the completion */
#define DMP_SUBMIT_VERIFY	(1U << 2)	/* and it must equal @checksum, else EBADMSG */
#define DMP_SUBMIT_NOWAIT	(1U << 3)	/* EAGAIN instead of waiting for credit */

/**
 * struct dmp_submission - an entry of the submission ring
 * @operation: DMP_OP_*
 * @flags: DMP_SUBMIT_*
 * @endpoint_id: for SEND, RECV, WRITE, WRITE_IMM, READ, else 0
 * @user_data: comes back in the completion
 * @deadline_ns: complete by then, with ETIMEDOUT if need be; 0 for none
 * @source_id: buffer or peer's region
 * @target_id: buffer or peer's region
 * @source_offset: start of the source
 * @target_offset: start of the target
 * @length_bytes: how many bytes; FILL, COPY and the transfers want > 0 (SEND may be empty)
 * @immediate: FILL: pattern, length and offset then multiples of 4; WRITE_IMM: for the peer
 * @checksum: with VERIFY: the CRC32C expected, else 0
 *
 * A submission that is wrong in itself is accepted and completes with the error.
 */
struct dmp_submission {
	__u16 operation;
	__u16 flags;
	__u32 endpoint_id;
	__aligned_u64 user_data;
	__aligned_u64 deadline_ns;
	__u32 source_id;
	__u32 target_id;
	__aligned_u64 source_offset;
	__aligned_u64 target_offset;
	__aligned_u64 length_bytes;
	__u32 immediate;
	__u32 checksum;
};

/* Flags of a completion. */
#define DMP_COMPLETE_EVENT	(1U << 0)	/* unsolicited: operation is a DMP_EVENT_* */
#define DMP_COMPLETE_CHECKSUM	(1U << 1)	/* @checksum is valid */
#define DMP_COMPLETE_IMMEDIATE	(1U << 2)	/* @immediate is valid */

/*
 * Events: user_data is the id of the object, or the endpoint's user_data. BUFFER_REVOKED
 * goes to every channel of the plane, once, as soon as it has a slot to spare.
 */
#define DMP_EVENT_WRITE_IMM		1	/* a peer's WRITE_IMM has landed */
#define DMP_EVENT_ENDPOINT_LOST		2
#define DMP_EVENT_BUFFER_REVOKED	3
#define DMP_EVENT_CONNECTION		4	/* a listener has someone to ACCEPT */

/**
 * struct dmp_completion - an entry of the completion ring
 * @user_data: of the submission
 * @result: 0, or a negative errno
 * @operation: of the submission, or DMP_EVENT_*
 * @path: DMP_PATH_* the bytes took, NONE if no byte moved; with EBADMSG the hop behind which
 *	they were found wrong, NONE: in the source, before the first
 * @flags: DMP_COMPLETE_*
 * @length_bytes: bytes moved; on an error, at most this many bytes of the target changed
 * @immediate: of a RECV or an event
 * @checksum: CRC32C (Castagnoli, reflected, final inversion) of the bytes
 */
struct dmp_completion {
	__aligned_u64 user_data;
	__s32 result;
	__u8 operation;
	__u8 path;
	__u16 flags;
	__aligned_u64 length_bytes;
	__u32 immediate;
	__u32 checksum;
};

/**
 * struct dmp_enter - DMP_ENTER: accept submissions, wait for completions
 * @size: sizeof(struct dmp_enter)
 * @flags: 0
 * @channel_id: the channel
 * @submit_count: accept up to so many of those between submit_head and submit_tail
 * @wait_count: return when so many completions are unread, <= completion_slots
 * @accepted: out: how many were accepted
 * @deadline_ns: stop waiting then
 * @unread: out: completions unread now
 * @__reserved: 0
 *
 * Accepting reserves the completion slot, so fewer than submit_count may be accepted:
 * take completions and call again. Once something was accepted the call succeeds, even
 * if the wait was cut short by the deadline or a signal: compare @unread. If nothing
 * was, it succeeds if as many as waited for are unread, and answers EAGAIN (no slot and
 * no wait), ETIMEDOUT or EINTR if not.
 */
struct dmp_enter {
	__u32 size;
	__u32 flags;
	__u32 channel_id;
	__u32 submit_count;
	__u32 wait_count;
	__u32 accepted;
	__aligned_u64 deadline_ns;
	__u32 unread;
	__u32 __reserved;
};

#define DMP_CANCEL_ALL		(1U << 0)	/* everything in flight; user_data must be 0 */

/**
 * struct dmp_cancel - DMP_CANCEL: a fence
 * @size: sizeof(struct dmp_cancel)
 * @flags: DMP_CANCEL_ALL or 0
 * @channel_id: the channel
 * @cancelled: out: how many of those found will have completed with ECANCELED because of
 *	this call; the others finished by themselves
 * @user_data: all in flight with this user_data
 * @deadline_ns: stop waiting then (ETIMEDOUT; they stay marked as cancelled)
 *
 * When it returns 0 each of them has completed and nothing touches their buffers any
 * more. ENOENT if none was in flight.
 */
struct dmp_cancel {
	__u32 size;
	__u32 flags;
	__u32 channel_id;
	__u32 cancelled;
	__aligned_u64 user_data;
	__aligned_u64 deadline_ns;
};

/* Flags of LISTEN and CONNECT. */
#define DMP_REQUIRE_PATH	(1U << 0)	/* @path and no other, or ENODEV */
#define DMP_ENCRYPT		(1U << 1)	/* bytes on a wire are encrypted; needs a secret */

/**
 * struct dmp_listen - DMP_LISTEN
 * @size: sizeof(struct dmp_listen)
 * @flags: DMP_REQUIRE_PATH, DMP_ENCRYPT
 * @channel_id: where DMP_EVENT_CONNECTION is delivered
 * @path: with REQUIRE_PATH: DMP_PATH_*, else 0
 * @backlog: connections kept waiting for ACCEPT, 0 means 16
 * @secret_bytes: valid bytes of @secret; may be 0 on loopback and unix paths only
 * @secret: what both sides must know
 * @address: "host:port", "[host]:port" or "unix:/path"
 * @bound_address: out: the same with the port that was really taken
 * @listener_id: out: the listener
 * @__reserved: 0
 */
struct dmp_listen {
	__u32 size;
	__u32 flags;
	__u32 channel_id;
	__u32 path;
	__u32 backlog;
	__u32 secret_bytes;
	__u8 secret[DMP_SECRET_BYTES];
	__u8 address[DMP_ADDRESS_BYTES];
	__u8 bound_address[DMP_ADDRESS_BYTES];
	__u32 listener_id;
	__u32 __reserved;
};

/**
 * struct dmp_connect - DMP_CONNECT
 * @size: sizeof(struct dmp_connect)
 * @flags: DMP_REQUIRE_PATH, DMP_ENCRYPT
 * @channel_id: where its completions go
 * @path: with REQUIRE_PATH: DMP_PATH_*, else 0
 * @window_slots: receive credit granted to the peer, in messages and immediates
 * @secret_bytes: valid bytes of @secret
 * @window_bytes: receive credit granted to the peer, in bytes
 * @user_data: in every event of this endpoint
 * @deadline_ns: be connected by then
 * @detect_ms: report a silent peer as lost after this long, 0 means the default
 * @endpoint_id: out: the endpoint
 * @path_taken: out: DMP_PATH_*
 * @epoch: out: identity of this connection
 * @secret: what both sides must know
 * @address: as in LISTEN
 */
struct dmp_connect {
	__u32 size;
	__u32 flags;
	__u32 channel_id;
	__u32 path;
	__u32 window_slots;
	__u32 secret_bytes;
	__aligned_u64 window_bytes;
	__aligned_u64 user_data;
	__aligned_u64 deadline_ns;
	__u32 detect_ms;
	__u32 endpoint_id;
	__u32 path_taken;
	__u32 epoch;
	__u8 secret[DMP_SECRET_BYTES];
	__u8 address[DMP_ADDRESS_BYTES];
};

/**
 * struct dmp_accept - DMP_ACCEPT
 * @size: sizeof(struct dmp_accept)
 * @flags: 0
 * @listener_id: the listener
 * @channel_id: where the endpoint's completions go
 * @window_slots: receive credit granted to the peer, in messages and immediates
 * @detect_ms: report a silent peer as lost after this long, 0 means the default
 * @window_bytes: receive credit granted to the peer, in bytes
 * @user_data: in every event of this endpoint
 * @deadline_ns: have someone by then (ETIMEDOUT); EAGAIN if it is in the past
 * @endpoint_id: out: the endpoint
 * @path_taken: out: DMP_PATH_*
 * @epoch: out: identity of this connection
 * @__reserved: 0
 * @peer_address: out: printable
 */
struct dmp_accept {
	__u32 size;
	__u32 flags;
	__u32 listener_id;
	__u32 channel_id;
	__u32 window_slots;
	__u32 detect_ms;
	__aligned_u64 window_bytes;
	__aligned_u64 user_data;
	__aligned_u64 deadline_ns;
	__u32 endpoint_id;
	__u32 path_taken;
	__u32 epoch;
	__u32 __reserved;
	__u8 peer_address[DMP_ADDRESS_BYTES];
};

/**
 * struct dmp_endpoint_query - DMP_ENDPOINT_QUERY: state and ledger
 * @size: sizeof(struct dmp_endpoint_query)
 * @flags: 0
 * @endpoint_id: the endpoint
 * @state: out: DMP_STATE_*
 * @path: out: DMP_PATH_*
 * @epoch: out: identity of this connection
 * @peer_incarnation: out: dmp_query.incarnation of the peer's plane
 * @send_slots: out: ledger towards the peer: available now
 * @send_slots_in_flight: out: taken by operations in flight
 * @send_bytes: out: available now
 * @send_bytes_in_flight: out: taken by operations in flight
 * @granted_slots: out: granted to the peer so far, cumulative
 * @granted_bytes: out: granted to the peer so far, cumulative
 * @stalls: out: times a submission waited for credit
 * @stall_ns: out: how long in all
 * @operations: out: holder: operations in flight
 * @regions: out: holder: imported regions
 * @peer_address: out: printable
 */
struct dmp_endpoint_query {
	__u32 size;
	__u32 flags;
	__u32 endpoint_id;
	__u32 state;
	__u32 path;
	__u32 epoch;
	__aligned_u64 peer_incarnation;
	__aligned_u64 send_slots;
	__aligned_u64 send_slots_in_flight;
	__aligned_u64 send_bytes;
	__aligned_u64 send_bytes_in_flight;
	__aligned_u64 granted_slots;
	__aligned_u64 granted_bytes;
	__aligned_u64 stalls;
	__aligned_u64 stall_ns;
	__u32 operations;
	__u32 regions;
	__u8 peer_address[DMP_ADDRESS_BYTES];
};

#endif /* _UAPI_DMAPLANE_H */
