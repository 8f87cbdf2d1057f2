/* SPDX-License-Identifier: GPL-2.0 */
/*
 * trace.h - tracepoints: every edge in the life of an object, and every edge of a ring
 *
 * An event that is off costs a jump that is not taken. What takes work to find out is
 * found out when the event is on: in TP_fast_assign, or behind trace_..._enabled().
 * Objects are named by their plane's incarnation and their id, memories (which outlive
 * both) by their serial number: never by an address.
 *
 * The names and fields are for eyes and scripts of an administrator; they are no contract.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM dmaplane

#if !defined(DMP_KERNEL_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define DMP_KERNEL_TRACE_H

#include <linux/tracepoint.h>

#include "buffer.h"
#include "endpoint_kernel.h"
#include "plane.h"

/* define_trace.h reads this file several times over; what follows is wanted once. */
#ifndef TRACE_HEADER_MULTI_READ

#define DMP_SHOW_KIND(kind)						\
	__print_symbolic(kind,						\
			 { DMP_KIND_PAGES, "pages" },			\
			 { DMP_KIND_HUGE, "huge" },			\
			 { DMP_KIND_COHERENT, "coherent" },		\
			 { DMP_KIND_USER, "user" },			\
			 { DMP_KIND_IMPORTED, "imported" },		\
			 { DMP_KIND_PEER, "peer" })

#define DMP_SHOW_STATE(state)						\
	__print_symbolic(state,						\
			 { DMP_STATE_NONE, "none" },			\
			 { DMP_STATE_LIVE, "live" },			\
			 { DMP_STATE_DRAINING, "draining" },		\
			 { DMP_STATE_REVOKED, "revoked" },		\
			 { DMP_STATE_DEAD, "dead" })

#define DMP_SHOW_OBJECT(type)						\
	__print_symbolic(type,						\
			 { DMP_OBJECT_BUFFER, "buffer" },		\
			 { DMP_OBJECT_CHANNEL, "channel" },		\
			 { DMP_OBJECT_REGION, "region" },		\
			 { DMP_OBJECT_REMOTE, "remote" },		\
			 { DMP_OBJECT_LISTENER, "listener" },		\
			 { DMP_OBJECT_ENDPOINT, "endpoint" })

#define DMP_SHOW_OPERATION(operation)					\
	__print_symbolic(operation,					\
			 { DMP_OP_NOP, "nop" },				\
			 { DMP_OP_FILL, "fill" },			\
			 { DMP_OP_COPY, "copy" },			\
			 { DMP_OP_FENCE, "fence" },			\
			 { DMP_OP_SEND, "send" },			\
			 { DMP_OP_RECV, "recv" },			\
			 { DMP_OP_WRITE, "write" },			\
			 { DMP_OP_WRITE_IMM, "write_imm" },		\
			 { DMP_OP_READ, "read" })

#define DMP_SHOW_EVENT(event)						\
	__print_symbolic(event,						\
			 { DMP_EVENT_WRITE_IMM, "write_imm" },		\
			 { DMP_EVENT_ENDPOINT_LOST, "endpoint_lost" },	\
			 { DMP_EVENT_BUFFER_REVOKED, "buffer_revoked" },\
			 { DMP_EVENT_CONNECTION, "connection" })

/* Who was asleep. */
#define DMP_WAKE_WORKER		0U
#define DMP_WAKE_WAITERS	1U	/* in ENTER, CANCEL or DESTROY */
#define DMP_WAKE_EVENTFD	2U

#define DMP_SHOW_WAKE(who)						\
	__print_symbolic(who,						\
			 { DMP_WAKE_WORKER, "worker" },			\
			 { DMP_WAKE_WAITERS, "waiters" },		\
			 { DMP_WAKE_EVENTFD, "eventfd" })

/* The node most pages of the buffer are on, -1 if nobody knows. */
int dmp_trace_node(const struct dmp_buffer *buffer);

#endif /* TRACE_HEADER_MULTI_READ */

/* ---- planes */

DECLARE_EVENT_CLASS(dmp_plane,
	TP_PROTO(const struct dmp_plane *plane),
	TP_ARGS(plane),
	TP_STRUCT__entry(
		__field(u64, plane)
		__field(u64, bytes)
		__field(pid_t, owner)
		__field(u32, buffers)
		__field(u32, channels)
	),
	TP_fast_assign(
		__entry->plane = plane->incarnation;
		__entry->bytes = plane->buffer_bytes;
		__entry->owner = plane->owner;
		__entry->buffers = plane->buffers;
		__entry->channels = plane->channels;
	),
	TP_printk("plane=%016llx owner=%d buffers=%u bytes=%llu channels=%u",
		  __entry->plane, __entry->owner, __entry->buffers, __entry->bytes,
		  __entry->channels)
);

/* Opened: the file is about to be the caller's. */
DEFINE_EVENT(dmp_plane, dmp_plane_open,
	TP_PROTO(const struct dmp_plane *plane),
	TP_ARGS(plane)
);

/* Closed: what it shows is what the program left to us to free. */
DEFINE_EVENT(dmp_plane, dmp_plane_close,
	TP_PROTO(const struct dmp_plane *plane),
	TP_ARGS(plane)
);

/* ---- buffers */

DECLARE_EVENT_CLASS(dmp_buffer,
	TP_PROTO(const struct dmp_buffer *buffer),
	TP_ARGS(buffer),
	TP_STRUCT__entry(
		__field(u64, plane)
		__field(u64, memory)
		__field(u64, bytes)
		__field(u32, id)
		__field(u32, kind)
		__field(u32, state)
		__field(int, node)
	),
	TP_fast_assign(
		__entry->plane = buffer->plane->incarnation;
		__entry->memory = buffer->memory->serial;
		__entry->bytes = buffer->memory->length;
		__entry->id = buffer->object.id;
		__entry->kind = buffer->memory->kind;
		__entry->state = buffer->object.state;
		__entry->node = dmp_trace_node(buffer);
	),
	TP_printk("plane=%016llx id=%u memory=%llu kind=%s state=%s bytes=%llu node=%d",
		  __entry->plane, __entry->id, __entry->memory, DMP_SHOW_KIND(__entry->kind),
		  DMP_SHOW_STATE(__entry->state), __entry->bytes, __entry->node)
);

DEFINE_EVENT(dmp_buffer, dmp_buffer_create,
	TP_PROTO(const struct dmp_buffer *buffer),
	TP_ARGS(buffer)
);

/* Its state has moved: `state` is the new one. */
DEFINE_EVENT(dmp_buffer, dmp_buffer_state,
	TP_PROTO(const struct dmp_buffer *buffer),
	TP_ARGS(buffer)
);

/* It is out of the table; its memory goes with it unless an export holds that. */
DEFINE_EVENT(dmp_buffer, dmp_buffer_destroy,
	TP_PROTO(const struct dmp_buffer *buffer),
	TP_ARGS(buffer)
);

/* ---- mappings of buffers and of rings */

DECLARE_EVENT_CLASS(dmp_mapping,
	TP_PROTO(const struct dmp_plane *plane, const struct dmp_object *object, u64 bytes),
	TP_ARGS(plane, object, bytes),
	TP_STRUCT__entry(
		__field(u64, plane)
		__field(u64, bytes)
		__field(u32, id)
		__field(u32, type)
	),
	TP_fast_assign(
		__entry->plane = plane->incarnation;
		__entry->bytes = bytes;
		__entry->id = object->id;
		__entry->type = object->type;
	),
	TP_printk("plane=%016llx id=%u type=%s bytes=%llu", __entry->plane, __entry->id,
		  DMP_SHOW_OBJECT(__entry->type), __entry->bytes)
);

DEFINE_EVENT(dmp_mapping, dmp_map,
	TP_PROTO(const struct dmp_plane *plane, const struct dmp_object *object, u64 bytes),
	TP_ARGS(plane, object, bytes)
);

DEFINE_EVENT(dmp_mapping, dmp_unmap,
	TP_PROTO(const struct dmp_plane *plane, const struct dmp_object *object, u64 bytes),
	TP_ARGS(plane, object, bytes)
);

/* ---- memories: they are shared, and may outlive buffer and plane */

DECLARE_EVENT_CLASS(dmp_memory,
	TP_PROTO(const struct dmp_memory *memory),
	TP_ARGS(memory),
	TP_STRUCT__entry(
		__field(u64, memory)
		__field(u64, bytes)
		__field(u32, kind)
		__field(int, exports)
	),
	TP_fast_assign(
		__entry->memory = memory->serial;
		__entry->bytes = memory->length;
		__entry->kind = memory->kind;
		__entry->exports = atomic_read(&memory->exports);
	),
	TP_printk("memory=%llu kind=%s bytes=%llu exports=%d", __entry->memory,
		  DMP_SHOW_KIND(__entry->kind), __entry->bytes, __entry->exports)
);

/* A dma-buf of it was made; `exports` counts it. */
DEFINE_EVENT(dmp_memory, dmp_export,
	TP_PROTO(const struct dmp_memory *memory),
	TP_ARGS(memory)
);

/* A dma-buf of it was released by its last holder. */
DEFINE_EVENT(dmp_memory, dmp_export_release,
	TP_PROTO(const struct dmp_memory *memory),
	TP_ARGS(memory)
);

/* Somebody's dma-buf was attached. */
DEFINE_EVENT(dmp_memory, dmp_import,
	TP_PROTO(const struct dmp_memory *memory),
	TP_ARGS(memory)
);

/* It was taken away: nobody touches the old bytes from here on. */
DEFINE_EVENT(dmp_memory, dmp_revoke,
	TP_PROTO(const struct dmp_memory *memory),
	TP_ARGS(memory)
);

/* The last reference has gone. */
DEFINE_EVENT(dmp_memory, dmp_memory_free,
	TP_PROTO(const struct dmp_memory *memory),
	TP_ARGS(memory)
);

/* ---- channels and their workers */

DECLARE_EVENT_CLASS(dmp_channel,
	TP_PROTO(const struct dmp_kernel_channel *channel),
	TP_ARGS(channel),
	TP_STRUCT__entry(
		__field(u64, plane)
		__field(u32, id)
		__field(u32, slots)
		__field(u32, completion_slots)
		__field(u32, workers)
		__field(int, cpu)
		__field(int, node)
	),
	TP_fast_assign(
		__entry->plane = channel->plane->incarnation;
		__entry->id = channel->object.id;
		__entry->slots = channel->machine.slots;
		__entry->completion_slots = channel->machine.completion_slots;
		__entry->workers = channel->workers;
		__entry->cpu = channel->cpu;
		__entry->node = channel->node;
	),
	TP_printk("plane=%016llx id=%u slots=%u completion_slots=%u workers=%u cpu=%d node=%d",
		  __entry->plane, __entry->id, __entry->slots, __entry->completion_slots,
		  __entry->workers, __entry->cpu, __entry->node)
);

DEFINE_EVENT(dmp_channel, dmp_channel_create,
	TP_PROTO(const struct dmp_kernel_channel *channel),
	TP_ARGS(channel)
);

DEFINE_EVENT(dmp_channel, dmp_channel_destroy,
	TP_PROTO(const struct dmp_kernel_channel *channel),
	TP_ARGS(channel)
);

/* In the worker: it runs. The id is 0 until the channel is published. */
DEFINE_EVENT(dmp_channel, dmp_worker_start,
	TP_PROTO(const struct dmp_kernel_channel *channel),
	TP_ARGS(channel)
);

/* In the worker: its last act. */
DEFINE_EVENT(dmp_channel, dmp_worker_stop,
	TP_PROTO(const struct dmp_kernel_channel *channel),
	TP_ARGS(channel)
);

/* ---- edges of the rings: once a batch */

DECLARE_EVENT_CLASS(dmp_batch,
	TP_PROTO(const struct dmp_kernel_channel *channel, u32 count),
	TP_ARGS(channel, count),
	TP_STRUCT__entry(
		__field(u64, plane)
		__field(u32, id)
		__field(u32, count)
		__field(u32, queued)
		__field(u32, running)
		__field(u32, in_flight)
	),
	TP_fast_assign(
		__entry->plane = channel->plane->incarnation;
		__entry->id = channel->object.id;
		__entry->count = count;
		__entry->queued = channel->machine.queued;
		__entry->running = channel->machine.running;
		__entry->in_flight = channel->machine.in_flight;
	),
	TP_printk("plane=%016llx id=%u count=%u queued=%u running=%u in_flight=%u",
		  __entry->plane, __entry->id, __entry->count, __entry->queued,
		  __entry->running, __entry->in_flight)
);

/* ENTER has accepted `count` submissions. */
DEFINE_EVENT(dmp_batch, dmp_accept,
	TP_PROTO(const struct dmp_kernel_channel *channel, u32 count),
	TP_ARGS(channel, count)
);

/* Whoever executes has taken `count` of them; they run now. */
DEFINE_EVENT(dmp_batch, dmp_take,
	TP_PROTO(const struct dmp_kernel_channel *channel, u32 count),
	TP_ARGS(channel, count)
);

/* The user can see `count` more completions. */
DEFINE_EVENT(dmp_batch, dmp_tell,
	TP_PROTO(const struct dmp_kernel_channel *channel, u32 count),
	TP_ARGS(channel, count)
);

/* The deadlines of `count` queued operations have passed. */
DEFINE_EVENT(dmp_batch, dmp_expire,
	TP_PROTO(const struct dmp_kernel_channel *channel, u32 count),
	TP_ARGS(channel, count)
);

/* One operation's completion, on its way to be told. See dmp_trace_completions_locked(). */
TRACE_EVENT(dmp_complete,
	TP_PROTO(const struct dmp_kernel_channel *channel, const struct dmp_submission *submission,
		 int result, u64 bytes, u64 latency_ns),
	TP_ARGS(channel, submission, result, bytes, latency_ns),
	TP_STRUCT__entry(
		__field(u64, plane)
		__field(u64, user_data)
		__field(u64, bytes)
		__field(u64, latency_ns)
		__field(u32, id)
		__field(u32, source_id)
		__field(u32, target_id)
		__field(int, result)
		__field(u16, operation)
	),
	TP_fast_assign(
		__entry->plane = channel->plane->incarnation;
		__entry->user_data = submission->user_data;
		__entry->bytes = bytes;
		__entry->latency_ns = latency_ns;
		__entry->id = channel->object.id;
		__entry->source_id = submission->source_id;
		__entry->target_id = submission->target_id;
		__entry->result = result;
		__entry->operation = submission->operation;
	),
	TP_printk("plane=%016llx id=%u user_data=%llu operation=%s source=%u target=%u result=%d bytes=%llu latency_ns=%llu",
		  __entry->plane, __entry->id, __entry->user_data,
		  DMP_SHOW_OPERATION(__entry->operation), __entry->source_id,
		  __entry->target_id, __entry->result, __entry->bytes, __entry->latency_ns)
);

/* An unsolicited completion is on its way. */
TRACE_EVENT(dmp_event,
	TP_PROTO(const struct dmp_kernel_channel *channel, u32 event, u64 user_data),
	TP_ARGS(channel, event, user_data),
	TP_STRUCT__entry(
		__field(u64, plane)
		__field(u64, user_data)
		__field(u32, id)
		__field(u32, event)
	),
	TP_fast_assign(
		__entry->plane = channel->plane->incarnation;
		__entry->user_data = user_data;
		__entry->id = channel->object.id;
		__entry->event = event;
	),
	TP_printk("plane=%016llx id=%u event=%s user_data=%llu", __entry->plane, __entry->id,
		  DMP_SHOW_EVENT(__entry->event), __entry->user_data)
);

/* Somebody who slept is woken. */
TRACE_EVENT(dmp_wake,
	TP_PROTO(const struct dmp_kernel_channel *channel, u32 who),
	TP_ARGS(channel, who),
	TP_STRUCT__entry(
		__field(u64, plane)
		__field(u32, id)
		__field(u32, who)
	),
	TP_fast_assign(
		__entry->plane = channel->plane->incarnation;
		__entry->id = channel->object.id;
		__entry->who = who;
	),
	TP_printk("plane=%016llx id=%u who=%s", __entry->plane, __entry->id,
		  DMP_SHOW_WAKE(__entry->who))
);

/* CANCEL has marked what it found; `cancelled` of these had not started. */
TRACE_EVENT(dmp_cancel,
	TP_PROTO(const struct dmp_kernel_channel *channel, bool all, u64 user_data,
		 const struct dmp_cancellation *cancellation),
	TP_ARGS(channel, all, user_data, cancellation),
	TP_STRUCT__entry(
		__field(u64, plane)
		__field(u64, user_data)
		__field(u32, id)
		__field(u32, found)
		__field(u32, cancelled)
		__field(bool, all)
	),
	TP_fast_assign(
		__entry->plane = channel->plane->incarnation;
		__entry->user_data = user_data;
		__entry->id = channel->object.id;
		__entry->found = cancellation->found;
		__entry->cancelled = cancellation->cancelled;
		__entry->all = all;
	),
	TP_printk("plane=%016llx id=%u all=%d user_data=%llu found=%u cancelled=%u",
		  __entry->plane, __entry->id, __entry->all, __entry->user_data, __entry->found,
		  __entry->cancelled)
);

/* ---- endpoints */

DECLARE_EVENT_CLASS(dmp_endpoint,
	TP_PROTO(const struct dmp_kernel_endpoint *endpoint, int result),
	TP_ARGS(endpoint, result),
	TP_STRUCT__entry(
		__field(u64, plane)
		__field(u32, id)
		__field(u32, epoch)
		__field(int, result)
		__array(char, peer, DMP_ADDRESS_BYTES)
	),
	TP_fast_assign(
		__entry->plane = endpoint->plane->incarnation;
		__entry->id = endpoint->object.id;
		__entry->epoch = endpoint->epoch;
		__entry->result = result;
		strscpy(__entry->peer, (const char *)endpoint->peer_address, DMP_ADDRESS_BYTES);
	),
	TP_printk("plane=%016llx id=%u epoch=%u peer=%s result=%d", __entry->plane, __entry->id,
		  __entry->epoch, __entry->peer, __entry->result)
);

/* Connected, and published. */
DEFINE_EVENT(dmp_endpoint, dmp_endpoint_create,
	TP_PROTO(const struct dmp_kernel_endpoint *endpoint, int result),
	TP_ARGS(endpoint, result)
);

/* The connection is over; the result says why. */
DEFINE_EVENT(dmp_endpoint, dmp_endpoint_end,
	TP_PROTO(const struct dmp_kernel_endpoint *endpoint, int result),
	TP_ARGS(endpoint, result)
);

DEFINE_EVENT(dmp_endpoint, dmp_endpoint_destroy,
	TP_PROTO(const struct dmp_kernel_endpoint *endpoint, int result),
	TP_ARGS(endpoint, result)
);

/* A slice of a WRITE or READ is with the device. */
TRACE_EVENT(dmp_post,
	TP_PROTO(const struct dmp_kernel_endpoint *endpoint, u64 tag, u64 bytes, bool write),
	TP_ARGS(endpoint, tag, bytes, write),
	TP_STRUCT__entry(
		__field(u64, plane)
		__field(u64, tag)
		__field(u64, bytes)
		__field(u32, id)
		__field(bool, write)
	),
	TP_fast_assign(
		__entry->plane = endpoint->plane->incarnation;
		__entry->tag = tag;
		__entry->bytes = bytes;
		__entry->id = endpoint->object.id;
		__entry->write = write;
	),
	TP_printk("plane=%016llx id=%u tag=%llx bytes=%llu %s", __entry->plane, __entry->id,
		  __entry->tag, __entry->bytes, __entry->write ? "write" : "read")
);

/* Credit of the peer ran out, or came again: what is available now, and stalls so far. */
TRACE_EVENT(dmp_credit,
	TP_PROTO(const struct dmp_kernel_endpoint *endpoint,
		 const struct dmp_endpoint_status *status),
	TP_ARGS(endpoint, status),
	TP_STRUCT__entry(
		__field(u64, plane)
		__field(u64, slots)
		__field(u64, bytes)
		__field(u64, granted_slots)
		__field(u64, granted_bytes)
		__field(u64, stalls)
		__field(u32, id)
	),
	TP_fast_assign(
		__entry->plane = endpoint->plane->incarnation;
		__entry->slots = status->send.available.slots;
		__entry->bytes = status->send.available.bytes;
		__entry->granted_slots = status->receive.granted.slots;
		__entry->granted_bytes = status->receive.granted.bytes;
		__entry->stalls = status->stalls;
		__entry->id = endpoint->object.id;
	),
	TP_printk("plane=%016llx id=%u available=%llu/%llu granted=%llu/%llu stalls=%llu",
		  __entry->plane, __entry->id, __entry->slots, __entry->bytes,
		  __entry->granted_slots, __entry->granted_bytes, __entry->stalls)
);

#ifndef TRACE_HEADER_MULTI_READ

/* One dmp_complete for each; only called while that event is on. channel->lock held. */
void dmp_trace_each_completion_locked(const struct dmp_kernel_channel *channel);

/* Before dmp_channel_flush(): what it is going to tell. channel->lock held. */
static inline void dmp_trace_completions_locked(const struct dmp_kernel_channel *channel)
{
	lockdep_assert_held(&channel->lock);
	if (trace_dmp_complete_enabled())
		dmp_trace_each_completion_locked(channel);
}

/* After a turn of its endpoint, if its credit has changed. channel->lock held. */
void dmp_trace_credit_locked(struct dmp_kernel_endpoint *endpoint);

#endif /* TRACE_HEADER_MULTI_READ */

#endif /* DMP_KERNEL_TRACE_H */

#undef TRACE_INCLUDE_PATH
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_PATH .
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
