// SPDX-License-Identifier: MIT
/*
 * verbs_connect.c - from an address to a queue pair, and its end; see verbs.h
 *
 * rdma_cm does all of it: routes, GIDs, the states of the queue pair. Each connection has an
 * event channel of its own, so that its events reach whoever executes it.
 */
#ifdef DMP_VERBS
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <unistd.h>

#include "verbs_layout.h"

#define MEMORY_BYTES	((DMP_VERBS_RECEIVE_MAX + DMP_VERBS_SLOTS) * DMP_VERBS_SLOT_BYTES + \
			 DMP_VERBS_PAGE)
#define READS_MAX	16
#define RETRIES		7
#define NEIGHBOUR_MS	1000	/* rdma_cm asks for a neighbour once a try, see find() */
#define ACK_TIMEOUT	16	/* 4.096 us << 16: a silence of two seconds is outlived, see wait_long() */
#define LAST_WORD_NS	50000000u	/* what is said last has so long to arrive */

struct dmp_verbs_door {
	const struct dmp_verbs_library *library;
	struct rdma_event_channel *events;
	struct rdma_cm_id *id;
};

static int failed(void)
{
	switch (errno) {
	case 0:
	case ENODEV:
		return -ENODEV;
	case EADDRNOTAVAIL:
	case ENETUNREACH:
		return -EHOSTUNREACH;
	case EACCES:
		return -EPERM;
	default:
		return -errno;
	}
}

/* ---- memory and queues */

static int open_events(struct dmp_verbs *verbs)
{
	verbs->events = verbs->library->create_event_channel();
	if (!verbs->events)
		return failed();
	if (fcntl(verbs->events->fd, F_SETFL, O_NONBLOCK) != 0)
		return -errno;
	return 0;
}

static int open_fabric(struct dmp_plane *plane, struct dmp_verbs **opened)
{
	const struct dmp_verbs_library *library = dmp_verbs_use();
	struct dmp_verbs *verbs;
	int error;

	if (!library)
		return -ENODEV;
	verbs = calloc(1, sizeof(*verbs));
	if (!verbs)
		return -ENOMEM;
	verbs->fabric.type = &dmp_verbs_type;
	verbs->library = library;
	verbs->plane = plane;
	verbs->memory = MAP_FAILED;
	pthread_mutex_init(&verbs->locals_lock, NULL);
	verbs->moving_max = DMP_RDMA_PIECE_BYTES;
	verbs->fabric.fd = epoll_create1(EPOLL_CLOEXEC);
	error = verbs->fabric.fd < 0 ? -errno : open_events(verbs);
	if (error) {
		dmp_verbs_close(&verbs->fabric);
		return error;
	}
	*opened = verbs;
	return 0;
}

static int register_memory(struct dmp_verbs *verbs)
{
	__u8 *word;

	verbs->memory = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (verbs->memory == MAP_FAILED)
		return -errno;
	/* A child would share the pages on write, and the device go on with the old ones. */
	madvise(verbs->memory, MEMORY_BYTES, MADV_DONTFORK);
	word = verbs->memory + MEMORY_BYTES - DMP_VERBS_PAGE;
	verbs->memory_mr = verbs->library->reg_mr(verbs->pd, verbs->memory,
						  MEMORY_BYTES - DMP_VERBS_PAGE,
						  IBV_ACCESS_LOCAL_WRITE);
	if (!verbs->memory_mr)
		return failed();
	verbs->word_mr = verbs->library->reg_mr_iova(verbs->pd, word, DMP_RDMA_WORD_BYTES, 0,
						     IBV_ACCESS_LOCAL_WRITE |
						     IBV_ACCESS_REMOTE_WRITE);
	return verbs->word_mr ? 0 : failed();
}

static int watch(struct dmp_verbs *verbs, int fd)
{
	struct epoll_event event = { .events = EPOLLIN, .data.fd = fd };

	if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) != 0)
		return -errno;
	return epoll_ctl(verbs->fabric.fd, EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : -errno;
}

/*
 * How long an acknowledgement may take is the manager's choice, and on RoCE often 67 ms: seven of
 * them are less than a cable that is put back or a host that is busy takes. That a peer is gone is
 * the machine's to find out, which pings. A kernel that does not know the option has its own way.
 */
static void wait_long(struct dmp_verbs *verbs)
{
	uint8_t timeout = ACK_TIMEOUT;

	verbs->library->set_option(verbs->id, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT, &timeout,
				   sizeof(timeout));
}

/* All that a queue pair on the device of verbs->id needs, and its receives posted. */
static int make_queues(struct dmp_verbs *verbs)
{
	const struct dmp_verbs_library *library = verbs->library;
	struct ibv_qp_init_attr wanted = {
		.qp_type = IBV_QPT_RC,
		.cap = {
			.max_send_wr = DMP_VERBS_SEND_MAX,
			.max_recv_wr = DMP_VERBS_RECEIVE_MAX,
			.max_send_sge = 1,
			.max_recv_sge = 1,
			.max_inline_data = DMP_VERBS_INLINE,
		},
	};
	struct ibv_device_attr device = { .max_mr_size = 0 };
	__u32 slot;
	int error;

	if (!verbs->id->verbs)
		return -ENODEV;
	wait_long(verbs);
	library->query_device(verbs->id->verbs, &device);
	verbs->mr_bytes_max = device.max_mr_size ? device.max_mr_size : ~0ull;
	verbs->pd = library->alloc_pd(verbs->id->verbs);
	if (!verbs->pd)
		return failed();
	verbs->bell = library->create_comp_channel(verbs->id->verbs);
	if (!verbs->bell)
		return failed();
	verbs->cq = library->create_cq(verbs->id->verbs,
				       DMP_VERBS_SEND_MAX + DMP_VERBS_RECEIVE_MAX, NULL,
				       verbs->bell, 0);
	if (!verbs->cq)
		return failed();
	error = register_memory(verbs);
	if (error)
		return error;
	wanted.send_cq = verbs->cq;
	wanted.recv_cq = verbs->cq;
	if (library->create_qp(verbs->id, verbs->pd, &wanted)) {
		/* The word of repayment has to fit; that frames do is a wish. */
		wanted.cap.max_inline_data = DMP_RDMA_WORD_BYTES;
		if (library->create_qp(verbs->id, verbs->pd, &wanted))
			return failed();
	}
	verbs->inline_max = wanted.cap.max_inline_data;
	for (slot = 0; slot < DMP_VERBS_RECEIVE_MAX && !error; slot++)
		error = dmp_verbs_post_receive(verbs, slot);
	if (!error)
		error = watch(verbs, verbs->bell->fd);
	return error ? error : watch(verbs, verbs->events->fd);
}

/*
 * Nobody waits for a host that died: its connections end without a last word. Most slots are
 * not signalled: a WRITE of nothing, behind the last one, tells that it has arrived.
 */
void dmp_verbs_finish(struct dmp_fabric *fabric)
{
	struct dmp_verbs *verbs = dmp_verbs_of(fabric);
	struct ibv_send_wr nothing = {
		.wr_id = DMP_VERBS_ID(DMP_VERBS_SENT, verbs->sent),
		.opcode = IBV_WR_RDMA_WRITE,
		.send_flags = IBV_SEND_SIGNALED,
	}, *refused;
	__u64 until_ns = dmp_now_ns() + LAST_WORD_NS;

	if (!verbs->connected || !verbs->id->qp || verbs->piece_count != 0 || !verbs->sends_out ||
	    ibv_post_send(verbs->id->qp, &nothing, &refused))
		return;
	while (verbs->sends_out != 0 && !verbs->lost && dmp_now_ns() < until_ns)
		dmp_verbs_poll(verbs);
}

void dmp_verbs_close(struct dmp_fabric *fabric)
{
	struct dmp_verbs *verbs = dmp_verbs_of(fabric);
	const struct dmp_verbs_library *library = verbs->library;

	if (verbs->id && verbs->id->qp) {
		library->disconnect(verbs->id);
		/* From here on the device touches no memory of this connection. */
		library->destroy_qp(verbs->id);
	}
	dmp_verbs_free_grants(verbs);
	dmp_verbs_free_locals(verbs);
	if (verbs->word_mr)
		library->dereg_mr(verbs->word_mr);
	if (verbs->memory_mr)
		library->dereg_mr(verbs->memory_mr);
	if (verbs->memory != MAP_FAILED)
		munmap(verbs->memory, MEMORY_BYTES);
	if (verbs->cq)
		library->destroy_cq(verbs->cq);
	if (verbs->bell)
		library->destroy_comp_channel(verbs->bell);
	if (verbs->pd)
		library->dealloc_pd(verbs->pd);
	if (verbs->id)
		library->destroy_id(verbs->id);
	if (verbs->events)
		library->destroy_event_channel(verbs->events);
	if (verbs->fabric.fd >= 0)
		close(verbs->fabric.fd);
	pthread_mutex_destroy(&verbs->locals_lock);
	free(verbs);
}

/* ---- rdma_cm's events */

static int hear(struct dmp_verbs *verbs, const struct rdma_cm_event *event)
{
	struct dmp_rdma_hello hello;
	int error;

	switch (event->event) {
	case RDMA_CM_EVENT_ESTABLISHED:
		/* The acceptor has heard the hello already; to the connector it comes here. */
		if (!verbs->peer_slots) {
			error = dmp_rdma_get_hello(event->param.conn.private_data,
						   event->param.conn.private_data_len, &hello);
			if (error)
				return error;
			verbs->peer_slots = hello.slots;
			verbs->peer_slot_bytes = hello.slot_bytes;
		}
		verbs->connected = true;
		return 0;
	case RDMA_CM_EVENT_REJECTED:
		return event->param.conn.private_data_len >= DMP_RDMA_HELLO_BYTES &&
		       dmp_rdma_get_hello(event->param.conn.private_data,
					  event->param.conn.private_data_len,
					  &hello) == -EOPNOTSUPP ? -EOPNOTSUPP : -ECONNREFUSED;
	case RDMA_CM_EVENT_ADDR_ERROR:
	case RDMA_CM_EVENT_ROUTE_ERROR:
	case RDMA_CM_EVENT_UNREACHABLE:
		return event->status == -ETIMEDOUT ? -ETIMEDOUT : -EHOSTUNREACH;
	case RDMA_CM_EVENT_CONNECT_ERROR:
	case RDMA_CM_EVENT_DISCONNECTED:
	case RDMA_CM_EVENT_DEVICE_REMOVAL:
		return -ECONNRESET;
	default:
		return 0;
	}
}

/* The next event: its kind in *@what, or -EAGAIN. */
static int next_event(struct dmp_verbs *verbs, enum rdma_cm_event_type *what)
{
	struct rdma_cm_event *event;
	int error;

	if (verbs->library->get_event(verbs->events, &event))
		return errno == EAGAIN || errno == EINTR ? -EAGAIN : -errno;
	*what = event->event;
	error = hear(verbs, event);
	verbs->library->ack_event(event);
	return error;
}

int dmp_verbs_hear_manager(struct dmp_verbs *verbs)
{
	enum rdma_cm_event_type what;
	int error;

	do
		error = next_event(verbs, &what);
	while (!error);
	return error == -EAGAIN ? 0 : error;
}

/* ---- connector */

static int wait_for(struct dmp_verbs *verbs, enum rdma_cm_event_type wanted, __u64 deadline_ns)
{
	struct pollfd one = { .fd = verbs->events->fd, .events = POLLIN };
	enum rdma_cm_event_type what;
	__u64 now_ns;
	int error;

	for (;;) {
		error = next_event(verbs, &what);
		if (!error && what == wanted)
			return 0;
		if (error && error != -EAGAIN)
			return error;
		now_ns = dmp_now_ns();
		if (now_ns >= deadline_ns)
			return -ETIMEDOUT;
		if (error && poll(&one, 1, (int)((deadline_ns - now_ns) / 1000000u) + 1) < 0)
			return -errno;
	}
}

static void fill_parameters(const struct dmp_verbs *verbs, struct rdma_conn_param *param,
			    __u8 bytes[DMP_RDMA_HELLO_BYTES])
{
	struct ibv_device_attr device = { .max_qp_rd_atom = 1, .max_qp_init_rd_atom = 1 };
	struct dmp_rdma_hello hello = {
		.slots = DMP_VERBS_SLOTS, .slot_bytes = DMP_VERBS_SLOT_BYTES,
	};

	verbs->library->query_device(verbs->id->verbs, &device);
	hello.reads = device.max_qp_rd_atom < READS_MAX ? (__u32)device.max_qp_rd_atom : READS_MAX;
	dmp_rdma_put_hello(&hello, bytes);
	*param = (struct rdma_conn_param){
		.private_data = bytes,
		.private_data_len = DMP_RDMA_HELLO_BYTES,
		.responder_resources = (uint8_t)hello.reads,
		.initiator_depth = (uint8_t)(device.max_qp_init_rd_atom < READS_MAX ?
						     device.max_qp_init_rd_atom : READS_MAX),
		.retry_count = RETRIES,
		.rnr_retry_count = 0,	/* never asked for: see the invariants of verbs.c */
	};
}

static int left_ms(__u64 deadline_ns)
{
	__u64 now_ns = dmp_now_ns();

	return now_ns < deadline_ns ? (int)((deadline_ns - now_ns) / 1000000u) + 1 : 0;
}

/*
 * The neighbour of @to is asked for once a try, by a few probes within seconds. A peer that
 * hears none of them, since its cable is just being put in, would not be asked again before
 * the deadline: so tries are short, and there are many.
 */
static int find(struct dmp_verbs *verbs, struct sockaddr_storage *to, __u64 deadline_ns)
{
	int error, patience_ms;

	do {
		patience_ms = left_ms(deadline_ns);
		if (patience_ms > NEIGHBOUR_MS)
			patience_ms = NEIGHBOUR_MS;
		if (verbs->library->resolve_addr(verbs->id, NULL, (struct sockaddr *)to, patience_ms))
			return failed();
		error = wait_for(verbs, RDMA_CM_EVENT_ADDR_RESOLVED, deadline_ns);
	} while (error == -ETIMEDOUT && left_ms(deadline_ns));
	return error;
}

static int dial(struct dmp_verbs *verbs, const struct dmp_address *address, __u64 deadline_ns)
{
	const struct dmp_verbs_library *library = verbs->library;
	struct sockaddr_storage to = address->socket;
	__u8 bytes[DMP_RDMA_HELLO_BYTES];
	struct rdma_conn_param param;
	int error;

	if (library->create_id(verbs->events, &verbs->id, NULL, RDMA_PS_TCP))
		return failed();
	error = find(verbs, &to, deadline_ns);
	if (error)
		return error;
	if (library->resolve_route(verbs->id, left_ms(deadline_ns)))
		return failed();
	error = wait_for(verbs, RDMA_CM_EVENT_ROUTE_RESOLVED, deadline_ns);
	if (!error)
		error = make_queues(verbs);
	if (error)
		return error;
	fill_parameters(verbs, &param, bytes);
	if (library->connect(verbs->id, &param))
		return failed();
	return wait_for(verbs, RDMA_CM_EVENT_ESTABLISHED, deadline_ns);
}

int dmp_verbs_dial(struct dmp_plane *plane, const struct dmp_address *address, __u64 deadline_ns,
		   struct dmp_fabric **fabric)
{
	struct dmp_verbs *verbs;
	int error = open_fabric(plane, &verbs);

	if (error)
		return error;
	error = dial(verbs, address, deadline_ns);
	if (error)
		dmp_verbs_close(&verbs->fabric);
	else
		*fabric = &verbs->fabric;
	return error;
}

/* ---- acceptor */

int dmp_verbs_door_open(const struct dmp_address *address, __u32 backlog,
			struct dmp_verbs_door **opened)
{
	const struct dmp_verbs_library *library = dmp_verbs_use();
	struct sockaddr_storage here = address->socket;
	struct dmp_verbs_door *door;
	int error;

	if (!library)
		return -ENODEV;
	door = calloc(1, sizeof(*door));
	if (!door)
		return -ENOMEM;
	door->library = library;
	door->events = library->create_event_channel();
	if (!door->events || fcntl(door->events->fd, F_SETFL, O_NONBLOCK) != 0 ||
	    library->create_id(door->events, &door->id, NULL, RDMA_PS_TCP) ||
	    library->bind_addr(door->id, (struct sockaddr *)&here) ||
	    library->listen(door->id, (int)backlog)) {
		error = failed();
		dmp_verbs_door_close(door);
		return error;
	}
	*opened = door;
	return 0;
}

int dmp_verbs_door_fd(const struct dmp_verbs_door *door)
{
	return door->events->fd;
}

void dmp_verbs_door_close(struct dmp_verbs_door *door)
{
	if (door->id)
		door->library->destroy_id(door->id);
	if (door->events)
		door->library->destroy_event_channel(door->events);
	free(door);
}

static int accept_call(struct dmp_verbs *verbs, const struct dmp_rdma_hello *hello)
{
	__u8 bytes[DMP_RDMA_HELLO_BYTES];
	struct rdma_conn_param param;
	int error;

	if (verbs->library->migrate_id(verbs->id, verbs->events))
		return failed();
	error = make_queues(verbs);
	if (error)
		return error;
	verbs->peer_slots = hello->slots;
	verbs->peer_slot_bytes = hello->slot_bytes;
	fill_parameters(verbs, &param, bytes);
	return verbs->library->accept(verbs->id, &param) ? failed() : 0;
}

/* A call that is not answered is refused by destroying what stands for it. */
static int take_call(struct dmp_plane *plane, struct rdma_cm_id *id, int error,
		     const struct dmp_rdma_hello *hello, struct dmp_fabric **fabric)
{
	const struct dmp_verbs_library *library = dmp_verbs_use();
	struct dmp_rdma_hello ours = { .slots = DMP_VERBS_SLOTS,
				       .slot_bytes = DMP_VERBS_SLOT_BYTES };
	__u8 bytes[DMP_RDMA_HELLO_BYTES];
	struct dmp_verbs *verbs;

	if (!error)
		error = open_fabric(plane, &verbs);
	if (error) {
		dmp_rdma_put_hello(&ours, bytes);
		library->reject(id, bytes, sizeof(bytes));
		library->destroy_id(id);
		return error;
	}
	verbs->id = id;
	error = accept_call(verbs, hello);
	if (error)
		dmp_verbs_close(&verbs->fabric);
	else
		*fabric = &verbs->fabric;
	return error;
}

int dmp_verbs_door_take(struct dmp_plane *plane, struct dmp_verbs_door *door,
			struct sockaddr_storage *peer, socklen_t *length,
			struct dmp_fabric **fabric)
{
	struct dmp_rdma_hello hello = { 0 };
	struct rdma_cm_event *event;
	struct rdma_cm_id *id;
	bool call;
	int error;

	if (door->library->get_event(door->events, &event))
		return errno == EAGAIN || errno == EINTR ? -EAGAIN : -errno;
	id = event->id;
	call = event->event == RDMA_CM_EVENT_CONNECT_REQUEST;
	error = !call ? -ECONNRESET :
			dmp_rdma_get_hello(event->param.conn.private_data,
					   event->param.conn.private_data_len, &hello);
	memset(peer, 0, sizeof(*peer));
	if (call) {
		const struct sockaddr *from = &id->route.addr.dst_addr;

		*length = from->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6) :
							sizeof(struct sockaddr_in);
		memcpy(peer, from, *length);
	}
	door->library->ack_event(event);
	return call ? take_call(plane, id, error, &hello, fabric) : error;
}

#endif /* DMP_VERBS */
