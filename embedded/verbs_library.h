/* SPDX-License-Identifier: MIT */
/*
 * verbs_library.h - rdma-core, opened at run time
 *
 * libibverbs and librdmacm are never linked: a wheel with a second copy of them would break
 * the process it comes to help. Their structures are those of the public headers, where
 * these were there at build time (DMP_VERBS); what the headers have as inline functions goes
 * through the device's own table.
 *
 * The library is opened on first use and stays: a process cannot let go of a driver.
 */
#ifndef DMP_VERBS_LIBRARY_H
#define DMP_VERBS_LIBRARY_H

#include <stdbool.h>

/* The first broken link on the way to RDMA. */
#define DMP_VERBS_READY		0
#define DMP_VERBS_NOT_BUILT	1	/* without the headers of rdma-core */
#define DMP_VERBS_NO_LIBRARY	2	/* librdmacm.so.1 or libibverbs.so.1 cannot be opened */
#define DMP_VERBS_NO_SYMBOL	3	/* they are older than what we need */
#define DMP_VERBS_NO_MANAGER	4	/* /dev/infiniband/rdma_cm: rdma_ucm is not loaded, or closed to us */
#define DMP_VERBS_NO_DEVICE	5	/* no RDMA device */
#define DMP_VERBS_FORKED	6	/* a child of a process that used RDMA */
#define DMP_VERBS_REASONS	7

/* Asks again each time, but for what cannot change: devices come and go. */
int dmp_verbs_probe(void);

/* "missing-...: what, and what to do about it"; "" for READY. */
const char *dmp_verbs_reason(int reason);

#ifdef DMP_VERBS

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

#undef ibv_reg_mr
#undef ibv_reg_mr_iova

struct dmp_verbs_library {
	struct ibv_device **(*get_device_list)(int *count);
	void (*free_device_list)(struct ibv_device **list);
	int (*query_device)(struct ibv_context *context, struct ibv_device_attr *attributes);
	struct ibv_pd *(*alloc_pd)(struct ibv_context *context);
	int (*dealloc_pd)(struct ibv_pd *pd);
	struct ibv_mr *(*reg_mr)(struct ibv_pd *pd, void *address, size_t length, int access);
	struct ibv_mr *(*reg_mr_iova)(struct ibv_pd *pd, void *address, size_t length,
				      uint64_t iova, int access);
	struct ibv_mr *(*reg_dmabuf_mr)(struct ibv_pd *pd, uint64_t offset, size_t length,
					uint64_t iova, int fd, int access); /* NULL: too old */
	int (*dereg_mr)(struct ibv_mr *mr);
	struct ibv_comp_channel *(*create_comp_channel)(struct ibv_context *context);
	int (*destroy_comp_channel)(struct ibv_comp_channel *channel);
	struct ibv_cq *(*create_cq)(struct ibv_context *context, int entries, void *owner,
				    struct ibv_comp_channel *channel, int vector);
	int (*destroy_cq)(struct ibv_cq *cq);
	int (*get_cq_event)(struct ibv_comp_channel *channel, struct ibv_cq **cq, void **owner);
	void (*ack_cq_events)(struct ibv_cq *cq, unsigned int count);

	struct rdma_event_channel *(*create_event_channel)(void);
	void (*destroy_event_channel)(struct rdma_event_channel *channel);
	int (*create_id)(struct rdma_event_channel *channel, struct rdma_cm_id **id, void *owner,
			 enum rdma_port_space space);
	int (*destroy_id)(struct rdma_cm_id *id);
	int (*bind_addr)(struct rdma_cm_id *id, struct sockaddr *address);
	int (*resolve_addr)(struct rdma_cm_id *id, struct sockaddr *from, struct sockaddr *to,
			    int timeout_ms);
	int (*resolve_route)(struct rdma_cm_id *id, int timeout_ms);
	int (*create_qp)(struct rdma_cm_id *id, struct ibv_pd *pd, struct ibv_qp_init_attr *wanted);
	void (*destroy_qp)(struct rdma_cm_id *id);
	int (*connect)(struct rdma_cm_id *id, struct rdma_conn_param *param);
	int (*listen)(struct rdma_cm_id *id, int backlog);
	int (*accept)(struct rdma_cm_id *id, struct rdma_conn_param *param);
	int (*reject)(struct rdma_cm_id *id, const void *data, uint8_t bytes);
	int (*disconnect)(struct rdma_cm_id *id);
	int (*get_event)(struct rdma_event_channel *channel, struct rdma_cm_event **event);
	int (*ack_event)(struct rdma_cm_event *event);
	int (*set_option)(struct rdma_cm_id *id, int level, int name, void *value, size_t bytes);
	int (*migrate_id)(struct rdma_cm_id *id, struct rdma_event_channel *channel);
};

/*
 * NULL if it cannot be opened: dmp_verbs_probe() says why. use: the caller makes connections,
 * so files of devices are open from here on, which the kernel serves to this process alone;
 * rdma-core does not open them again in a child.
 */
const struct dmp_verbs_library *dmp_verbs_library(void);
const struct dmp_verbs_library *dmp_verbs_use(void);

#endif /* DMP_VERBS */
#endif /* DMP_VERBS_LIBRARY_H */
