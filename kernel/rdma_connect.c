// SPDX-License-Identifier: GPL-2.0
/*
 * rdma_connect.c - from an address to a queue pair, and its end; see rdma_pair.h
 *
 * rdma_cm does all of it: routes, GIDs, the states of the queue pair. What it tells of a pair
 * is kept for the executor: how far connecting came (`step`) and why it is over (`news`).
 *
 * Its end. The handler never destroys anything: it tells, and whoever has the pair closes it.
 * When a device is removed rdma_cm waits until the last identifier on it is destroyed, and that
 * is what close() does last, after all that the pair had of the device.
 */
#include <linux/delay.h>
#include <linux/jiffies.h>
#include <linux/ktime.h>
#include <linux/nsproxy.h>
#include <linux/sched.h>
#include <linux/slab.h>

#include "rdma_layout.h"

#define READS_MAX	16
#define RETRIES		7
#define NEIGHBOUR_MS	1000	/* rdma_cm asks for a neighbour once a try, see find() */
#define LAST_WORD_MS	50	/* what is said last has so long to arrive */
#define ROUTE_MS	3600000	/* what a deadline that is none means here */
#define FLUSH_MS	2000	/* a device that has not flushed by then is not waited for */
#define CHARGED_BYTES	((DMP_PAIR_RECEIVE_MAX + DMP_PAIR_SLOTS) * DMP_PAIR_SLOT_BYTES + \
			 2 * PAGE_SIZE)

/* How far connecting came. */
#define STEP_ADDRESS	1U
#define STEP_ROUTE	2U

/* ---- rdma_cm's events, in its threads */

int dmp_pair_hear(struct rdma_cm_id *id, struct rdma_cm_event *event)
{
	struct dmp_pair_ear *ear = id->context;

	return ear->hear(ear, id, event);
}

static void tell(struct dmp_pair *pair, u32 step, int news)
{
	if (news && !pair->news)
		/* Pairs with hear_news() and has_come(). */
		smp_store_release(&pair->news, news);
	if (step)
		/* Pairs with hear_news() and has_come(): what the peer said is there. */
		smp_store_release(&pair->step, step);
	wake_up_all(&pair->heard);
	dmp_pair_ring(pair);
}

static int rejected(const struct rdma_cm_event *event)
{
	struct dmp_rdma_hello hello;

	if (event->param.conn.private_data_len >= DMP_RDMA_HELLO_BYTES &&
	    dmp_rdma_get_hello(event->param.conn.private_data,
			       event->param.conn.private_data_len, &hello) == -EOPNOTSUPP)
		return -EOPNOTSUPP;
	return -ECONNREFUSED;
}

static int not_reached(int status)
{
	if (status == -ENODEV || status == -ETIMEDOUT || status == -ENOMEM)
		return status;
	return -EHOSTUNREACH;
}

void dmp_pair_set_peer(struct dmp_pair *pair, const struct dmp_rdma_hello *hello)
{
	pair->peer_slots = hello->slots;
	pair->peer_slot_bytes = hello->slot_bytes;
}

/* The acceptor has heard the hello already; to the connector it comes with the answer. */
static void established(struct dmp_pair *pair, const struct rdma_cm_event *event)
{
	struct dmp_rdma_hello hello;
	int error = 0;

	if (!pair->peer_slots) {
		error = dmp_rdma_get_hello(event->param.conn.private_data,
					   event->param.conn.private_data_len, &hello);
		if (!error)
			dmp_pair_set_peer(pair, &hello);
	}
	tell(pair, error ? 0 : DMP_PAIR_ESTABLISHED, error);
}

static int hear(struct dmp_pair_ear *ear, struct rdma_cm_id *id, struct rdma_cm_event *event)
{
	struct dmp_pair *pair = container_of(ear, struct dmp_pair, ear);

	switch (event->event) {
	case RDMA_CM_EVENT_ADDR_RESOLVED:
		tell(pair, STEP_ADDRESS, 0);
		break;
	case RDMA_CM_EVENT_ROUTE_RESOLVED:
		tell(pair, STEP_ROUTE, 0);
		break;
	case RDMA_CM_EVENT_ESTABLISHED:
		established(pair, event);
		break;
	case RDMA_CM_EVENT_REJECTED:
		tell(pair, 0, pair->dialled ? rejected(event) : -ECONNRESET);
		break;
	case RDMA_CM_EVENT_ADDR_ERROR:
	case RDMA_CM_EVENT_ROUTE_ERROR:
	case RDMA_CM_EVENT_UNREACHABLE:
		tell(pair, 0, not_reached(event->status));
		break;
	case RDMA_CM_EVENT_CONNECT_ERROR:
	case RDMA_CM_EVENT_DISCONNECTED:
	case RDMA_CM_EVENT_DEVICE_REMOVAL:
		tell(pair, 0, -ECONNRESET);
		break;
	default:
		break;
	}
	return 0;
}

/* ---- the device's own events; interrupts */

static void completions_came(struct ib_cq *cq, void *context)
{
	struct dmp_pair *pair = context;

	WRITE_ONCE(pair->armed, false);
	dmp_pair_ring(pair);
}

static void queue_failed(struct ib_event *event, void *context)
{
	struct dmp_pair *pair = context;

	/* The peer's first bytes are there before its last word to rdma_cm. */
	if (event->event == IB_EVENT_COMM_EST)
		rdma_notify(pair->id, IB_EVENT_COMM_EST);
	else if (event->event != IB_EVENT_QP_LAST_WQE_REACHED)
		tell(pair, 0, -ECONNRESET);
}

static void completions_failed(struct ib_event *event, void *context)
{
	tell(context, 0, -ECONNRESET);
}

/* ---- memory and queues */

static void due(struct work_struct *work)
{
	dmp_pair_ring(container_of(work, struct dmp_pair, due.work));
}

struct dmp_pair *dmp_pair_make(void)
{
	struct dmp_pair *pair = kvzalloc(sizeof(*pair), GFP_KERNEL_ACCOUNT);
	int error;

	if (!pair)
		return ERR_PTR(-ENOMEM);
	error = dmp_charge(CHARGED_BYTES);
	if (error) {
		kvfree(pair);
		return ERR_PTR(error);
	}
	pair->ear.hear = hear;
	pair->moving_max = DMP_RDMA_PIECE_BYTES;
	pair->answered = true;		/* nothing has been asked */
	spin_lock_init(&pair->bell_lock);
	INIT_DELAYED_WORK(&pair->due, due);
	init_waitqueue_head(&pair->heard);
	mutex_init(&pair->mappings_lock);
	INIT_LIST_HEAD(&pair->mappings);
	mutex_init(&pair->grants_lock);
	INIT_LIST_HEAD(&pair->grants);
	xa_init_flags(&pair->granted, XA_FLAGS_ACCOUNT);
	return pair;
}

static int make_bytes(struct dmp_pair *pair, struct dmp_pair_bytes *bytes, u32 length,
		      enum dma_data_direction direction)
{
	bytes->at = kzalloc(length, GFP_KERNEL_ACCOUNT);
	if (!bytes->at)
		return -ENOMEM;
	bytes->bus = ib_dma_map_single(pair->id->device, bytes->at, length, direction);
	if (ib_dma_mapping_error(pair->id->device, bytes->bus)) {
		kfree(bytes->at);
		bytes->at = NULL;
		return -ENOMEM;
	}
	return 0;
}

static void free_bytes(struct dmp_pair *pair, struct dmp_pair_bytes *bytes, u32 length,
		       enum dma_data_direction direction)
{
	if (!bytes->at)
		return;
	ib_dma_unmap_single(pair->id->device, bytes->bus, length, direction);
	kfree(bytes->at);
}

static int make_memory(struct dmp_pair *pair)
{
	u32 slot;
	int error;

	error = make_bytes(pair, &pair->word, PAGE_SIZE, DMA_FROM_DEVICE);
	if (!error)
		error = make_bytes(pair, &pair->words, PAGE_SIZE, DMA_TO_DEVICE);
	for (slot = 0; slot < DMP_PAIR_RECEIVE_MAX && !error; slot++)
		error = make_bytes(pair, &pair->receive[slot], DMP_PAIR_SLOT_BYTES,
				   DMA_FROM_DEVICE);
	for (slot = 0; slot < DMP_PAIR_SLOTS && !error; slot++)
		error = make_bytes(pair, &pair->send[slot], DMP_PAIR_SLOT_BYTES, DMA_TO_DEVICE);
	if (error)
		return error;
	pair->word_mr = dmp_pair_make_word_mr(pair);
	if (IS_ERR(pair->word_mr)) {
		error = PTR_ERR(pair->word_mr);
		pair->word_mr = NULL;
	}
	return error;
}

static void free_memory(struct dmp_pair *pair)
{
	u32 slot;

	if (pair->word_mr)
		ib_dereg_mr(pair->word_mr);
	free_bytes(pair, &pair->word, PAGE_SIZE, DMA_FROM_DEVICE);
	free_bytes(pair, &pair->words, PAGE_SIZE, DMA_TO_DEVICE);
	for (slot = 0; slot < DMP_PAIR_RECEIVE_MAX; slot++)
		free_bytes(pair, &pair->receive[slot], DMP_PAIR_SLOT_BYTES, DMA_FROM_DEVICE);
	for (slot = 0; slot < DMP_PAIR_SLOTS; slot++)
		free_bytes(pair, &pair->send[slot], DMP_PAIR_SLOT_BYTES, DMA_TO_DEVICE);
}

/*
 * Fast registrations are what regions are made of. On iWARP a READ lands only in what is
 * registered for the peer, which would be one registration a piece: not done.
 */
static int look_at_device(struct dmp_pair *pair)
{
	const struct ib_device *device = pair->id->device;
	const struct ib_device_attr *limits;

	if (!device || rdma_protocol_iwarp(device, pair->id->port_num))
		return -ENODEV;
	limits = &device->attrs;
	if (!(limits->device_cap_flags & IB_DEVICE_MEM_MGT_EXTENSIONS) ||
	    limits->max_fast_reg_page_list_len < 2)
		return -ENODEV;
	pair->part_pages = min(limits->max_fast_reg_page_list_len, DMP_PAIR_PART_PAGES);
	pair->places = clamp_t(u32, limits->max_send_sge, 1, DMP_PAIR_PLACES);
	pair->places_read = clamp_t(u32, limits->max_sge_rd, 1, pair->places);
	return 0;
}

/* All that a queue pair on the device of pair->id needs, and its receives posted. */
int dmp_pair_make_queues(struct dmp_pair *pair)
{
	const struct ib_cq_init_attr room = { .cqe = DMP_PAIR_SEND_MAX + DMP_PAIR_RECEIVE_MAX };
	struct ib_qp_init_attr wanted = {
		.event_handler = queue_failed,
		.qp_context = pair,
		.qp_type = IB_QPT_RC,
		.sq_sig_type = IB_SIGNAL_REQ_WR,
		.cap = {
			.max_send_wr = DMP_PAIR_SEND_MAX,
			.max_recv_wr = DMP_PAIR_RECEIVE_MAX,
			.max_recv_sge = 1,
		},
	};
	int error = look_at_device(pair);
	u32 slot;

	if (error)
		return error;
	pair->pd = ib_alloc_pd(pair->id->device, 0);
	if (IS_ERR(pair->pd)) {
		error = PTR_ERR(pair->pd);
		pair->pd = NULL;
		return error;
	}
	pair->cq = ib_create_cq(pair->id->device, completions_came, completions_failed, pair,
				&room);
	if (IS_ERR(pair->cq)) {
		error = PTR_ERR(pair->cq);
		pair->cq = NULL;
		return error;
	}
	error = make_memory(pair);
	if (error)
		return error;
	wanted.send_cq = pair->cq;
	wanted.recv_cq = pair->cq;
	wanted.cap.max_send_sge = pair->places;
	error = rdma_create_qp(pair->id, pair->pd, &wanted);
	for (slot = 0; slot < DMP_PAIR_RECEIVE_MAX && !error; slot++)
		error = dmp_pair_post_receive(pair, slot);
	return error;
}

/* ---- the end */

/* Most slots are not signalled: the completion of this stands for all before, flushed or not. */
static void write_nothing(struct dmp_pair *pair)
{
	struct ib_rdma_wr request = {
		.wr = {
			.wr_id = DMP_PAIR_ID(DMP_PAIR_SENT, (u64)pair->sent),
			.opcode = IB_WR_RDMA_WRITE,
			.send_flags = IB_SEND_SIGNALED,
		},
	};

	if (pair->sends_out && ib_post_send(pair->id->qp, &request.wr, NULL))
		dmp_pair_lose(pair, -ECONNRESET);
}

/* What is said last should arrive; nothing else is waited for. */
static void finish_sending(struct dmp_pair *pair)
{
	unsigned long until = jiffies + msecs_to_jiffies(LAST_WORD_MS);

	if (!pair->connected || pair->piece_count != 0)
		return;
	dmp_pair_flush(pair);
	write_nothing(pair);
	while (pair->sends_out != 0 && !pair->lost && time_before(jiffies, until)) {
		usleep_range(100, 500);
		dmp_pair_poll(pair);
	}
}

static bool is_flushed(const struct dmp_pair *pair)
{
	return !pair->sends_out && !pair->words_out && !pair->chore_count &&
	       !pair->receives_out && pair->pieces_done == pair->piece_count;
}

/* All that was posted comes back; then the queue pair goes, and no device touches memory. */
static void end_queue_pair(struct dmp_pair *pair)
{
	unsigned long until = jiffies + msecs_to_jiffies(FLUSH_MS);
	struct ib_qp_attr broken = { .qp_state = IB_QPS_ERR };

	finish_sending(pair);
	rdma_disconnect(pair->id);
	if (!ib_modify_qp(pair->id->qp, &broken, IB_QP_STATE)) {
		write_nothing(pair);
		dmp_pair_poll(pair);
		while (!is_flushed(pair) && time_before(jiffies, until)) {
			usleep_range(100, 500);
			dmp_pair_poll(pair);
		}
	}
	rdma_destroy_qp(pair->id);
}

void dmp_pair_give_up(struct dmp_pair *pair)
{
	dmp_pair_lose(pair, -ECONNRESET);
}

/* Context: may sleep. Nobody else is in the pair. */
void dmp_pair_close(struct dmp_pair *pair)
{
	dmp_pair_watch(pair, NULL);
	if (pair->id && pair->id->qp)
		end_queue_pair(pair);
	cancel_delayed_work_sync(&pair->due);
	if (pair->id && pair->id->device) {
		dmp_pair_free_grants(pair);
		dmp_pair_free_mappings(pair);
		free_memory(pair);
		if (pair->cq)
			ib_destroy_cq(pair->cq);
		if (pair->pd)
			ib_dealloc_pd(pair->pd);
	}
	/* A device that is being removed goes from here on. */
	if (pair->id)
		rdma_destroy_id(pair->id);
	dmp_pair_remote_free(&pair->gathered);
	dmp_pair_free_granted(pair);
	dmp_uncharge(CHARGED_BYTES);
	kvfree(pair);
}

/* ---- connector */

/* What wait_event_interruptible_timeout() answered, when it was not what was waited for. */
int dmp_pair_wait_error(long left)
{
	if (left < 0)
		return -EINTR;
	return left == 0 ? -ETIMEDOUT : 0;
}

long dmp_pair_ticks_until(u64 deadline_ns)
{
	u64 now_ns = ktime_get_ns();

	if (deadline_ns == 0)
		return MAX_SCHEDULE_TIMEOUT;
	if (now_ns >= deadline_ns)
		return 0;
	return min_t(u64, nsecs_to_jiffies64(deadline_ns - now_ns) + 1, MAX_JIFFY_OFFSET);
}

static bool has_come(struct dmp_pair *pair, u32 step)
{
	/* Pairs with tell(). */
	return smp_load_acquire(&pair->news) || smp_load_acquire(&pair->step) >= step;
}

static int wait_for(struct dmp_pair *pair, u32 step, u64 deadline_ns)
{
	long left = wait_event_interruptible_timeout(pair->heard, has_come(pair, step),
						     dmp_pair_ticks_until(deadline_ns));

	return left > 0 || has_come(pair, step) ? pair->news : dmp_pair_wait_error(left);
}

static u8 reads_of(const struct ib_device *device)
{
	return clamp_t(int, device->attrs.max_qp_rd_atom, 0, READS_MAX);
}

void dmp_pair_put_hello(const struct ib_device *device, u8 bytes[DMP_RDMA_HELLO_BYTES])
{
	struct dmp_rdma_hello hello = {
		.slots = DMP_PAIR_SLOTS,
		.slot_bytes = DMP_PAIR_SLOT_BYTES,
		.reads = device ? reads_of(device) : 0,
	};

	dmp_rdma_put_hello(&hello, bytes);
}

void dmp_pair_fill_parameters(const struct dmp_pair *pair, struct rdma_conn_param *param,
			      u8 bytes[DMP_RDMA_HELLO_BYTES])
{
	const struct ib_device *device = pair->id->device;

	dmp_pair_put_hello(device, bytes);
	*param = (struct rdma_conn_param){
		.private_data = bytes,
		.private_data_len = DMP_RDMA_HELLO_BYTES,
		.responder_resources = reads_of(device),
		.initiator_depth = clamp_t(int, device->attrs.max_qp_init_rd_atom, 0, READS_MAX),
		.retry_count = RETRIES,
		.rnr_retry_count = 0,	/* never asked for: see rdma_layout.h */
	};
}

static int failed(int error)
{
	switch (error) {
	case -EADDRNOTAVAIL:
	case -ENETUNREACH:
		return -EHOSTUNREACH;
	case -EACCES:
		return -EPERM;
	default:
		return error;
	}
}

/* The address was good for rdma_cm: now EINVAL says that the device went between two steps. */
static int failed_later(int error)
{
	return error == -EINVAL ? -ENODEV : failed(error);
}

static int patience_ms(u64 deadline_ns, unsigned int longest_ms)
{
	long ticks = min_t(long, dmp_pair_ticks_until(deadline_ns), msecs_to_jiffies(longest_ms));

	return max(jiffies_to_msecs(ticks), 1U);
}

/*
 * The neighbour of @to is asked for once a try, by a few probes within seconds. A peer that
 * hears none of them, since its cable is just being put in, would not be asked again before
 * the deadline: so tries are short, and there are many.
 */
static int find(struct dmp_pair *pair, struct sockaddr *to, u64 deadline_ns)
{
	int error;

	do {
		/* What ended the last try; rdma_cm says nothing more until it is asked again. */
		WRITE_ONCE(pair->news, 0);
		error = rdma_resolve_addr(pair->id, NULL, to,
					  patience_ms(deadline_ns, NEIGHBOUR_MS));
		if (!error)
			error = wait_for(pair, STEP_ADDRESS, deadline_ns);
	} while (error == -ETIMEDOUT && dmp_pair_ticks_until(deadline_ns));
	return failed(error);
}

static int dial(struct dmp_pair *pair, struct sockaddr *to, u64 deadline_ns)
{
	u8 bytes[DMP_RDMA_HELLO_BYTES];
	struct rdma_conn_param param;
	int error = find(pair, to, deadline_ns);

	if (error)
		return error;
	error = rdma_resolve_route(pair->id, patience_ms(deadline_ns, ROUTE_MS));
	if (!error)
		error = wait_for(pair, STEP_ROUTE, deadline_ns);
	if (!error)
		error = dmp_pair_make_queues(pair);
	if (error)
		return failed_later(error);
	dmp_pair_fill_parameters(pair, &param, bytes);
	error = rdma_connect(pair->id, &param);
	return error ? failed_later(error) : wait_for(pair, DMP_PAIR_ESTABLISHED, deadline_ns);
}

int dmp_pair_dial(const struct sockaddr_storage *to, u64 deadline_ns, struct dmp_pair **opened)
{
	struct sockaddr_storage where = *to;
	struct dmp_pair *pair = dmp_pair_make();
	struct rdma_cm_id *id;
	int error;

	if (IS_ERR(pair))
		return PTR_ERR(pair);
	pair->dialled = true;
	id = rdma_create_id(current->nsproxy->net_ns, dmp_pair_hear, &pair->ear, RDMA_PS_TCP,
			    IB_QPT_RC);
	if (IS_ERR(id)) {
		error = PTR_ERR(id);
	} else {
		pair->id = id;
		error = dial(pair, (struct sockaddr *)&where, deadline_ns);
	}
	if (error) {
		dmp_pair_close(pair);
		return error;
	}
	*opened = pair;
	return 0;
}
