// SPDX-License-Identifier: GPL-2.0
/*
 * connect.c - CONNECT and ACCEPT: from an address to an endpoint that is open
 *
 * The handshake runs in the caller's thread, on an endpoint nobody else knows: it is published,
 * and handed to the executor of its channel, when both sides have proved the secret. Until
 * then the channel only lends its lock. It is entered when there is a pair: before, the peer is
 * waited for, as long as the caller likes, and who destroys a channel waits for those inside.
 */
#include <linux/ktime.h>
#include <linux/random.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/wait.h>

#include "endpoint_kernel.h"
#include "lifetime.h"
#include "listener.h"
#include "network.h"
#include "trace.h"

#define CONNECT_NS	(10 * (u64)NSEC_PER_SEC)	/* without a deadline of the caller's */
#define GREETING_NS	NSEC_PER_SEC	/* one arrival keeps ACCEPT no longer than this */
#define LOOK_NS		(50 * NSEC_PER_MSEC)	/* a channel that is destroyed wakes nobody here */
#define DETECT_MS_MAX	3600000U

/* What the caller is told; read before anybody else can find the endpoint. */
struct established {
	u32 id;
	u32 epoch;
};

struct wishes {
	struct dmp_plane *plane;
	struct dmp_kernel_channel *channel;
	const struct dmp_secret *secret;
	u64 user_data;
	u64 window_bytes;
	u32 window_slots;
	u32 detect_ms;
	bool connector;
};

/* Before it is attached: its pair rings for the thread that makes the connection. */
static void greet_ring(struct dmp_pair_ringer *ringer)
{
	struct dmp_kernel_endpoint *endpoint =
		container_of(ringer, struct dmp_kernel_endpoint, ringer);

	set_bit(0, &endpoint->rung);
	wake_up(&endpoint->greet_wait);
}

static int admit(struct dmp_pair_admission *admission, const u8 *key, u32 key_bytes,
		 struct dmp_pair_admitted *admitted)
{
	struct dmp_kernel_endpoint *endpoint =
		container_of(admission, struct dmp_kernel_endpoint, admission);

	return dmp_region_register(endpoint->plane, key, key_bytes, admitted);
}

static struct dmp_endpoint_config configure(const struct dmp_kernel_endpoint *endpoint,
					    const struct wishes *wishes)
{
	return (struct dmp_endpoint_config){
		.incarnation = wishes->plane->incarnation,
		.window_bytes = wishes->window_bytes,
		.window_slots = wishes->window_slots,
		.detect_ns = endpoint->detect_ns,
		.operations_max = DMP_OPERATIONS_MAX,
		.receives_max = DMP_RECEIVES_MAX,
		.incoming_max = DMP_OPERATIONS_MAX,
		.direct = true,
		.stall = endpoint->stall,
	};
}

/* All that an endpoint takes, with a window of @slots: some 250 KiB, so it counts. */
static u64 bytes_of(const struct dmp_endpoint_config *config)
{
	return sizeof(struct dmp_kernel_endpoint) + dmp_endpoint_bytes(config) +
	       config->window_slots * sizeof(struct dmp_stage_memory) +
	       DMP_ERRANDS_MAX * sizeof(struct dmp_errand) +
	       DMP_ADMITTED_MAX * sizeof(struct dmp_admitted) +
	       dmp_queue_bytes(DMP_ADMITTED_MAX) +
	       2 * sizeof(struct dmp_histogram_counts) +
	       DMP_STREAM_FRAMES * sizeof(struct dmp_outgoing) + DMP_STREAM_BUFFER;
}

static int make_machine(struct dmp_kernel_endpoint *endpoint, const struct wishes *wishes)
{
	struct dmp_endpoint_config config = configure(endpoint, wishes);
	size_t bytes = dmp_endpoint_bytes(&config);
	int error;

	if (bytes == 0)
		return -EINVAL;
	error = dmp_charge(bytes_of(&config));
	if (error)
		return error;
	endpoint->charged_bytes = bytes_of(&config);
	error = dmp_traffic_init(endpoint);
	if (error)
		return error;
	config.stall = endpoint->stall;
	endpoint->machine_memory = kvzalloc(bytes, GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	if (!endpoint->machine_memory)
		return -ENOMEM;
	return dmp_endpoint_init(&endpoint->machine, endpoint->machine_memory, bytes, &config);
}

/* An endpoint around @pair, which is its own from here on, also on failure. */
static int make(const struct wishes *wishes, struct dmp_pair *pair,
		struct dmp_kernel_endpoint **made)
{
	struct dmp_kernel_endpoint *endpoint = kvzalloc(sizeof(*endpoint), GFP_KERNEL_ACCOUNT);
	int error;

	if (!endpoint) {
		dmp_pair_close(pair);
		return -ENOMEM;
	}
	endpoint->object.type = DMP_OBJECT_ENDPOINT;
	endpoint->plane = wishes->plane;
	endpoint->channel = wishes->channel;
	endpoint->user_data = wishes->user_data;
	endpoint->window_slots = wishes->window_slots;
	endpoint->detect_ns = (wishes->detect_ms ?: DMP_DETECT_MS) * (u64)NSEC_PER_MSEC;
	endpoint->connector = wishes->connector;
	endpoint->secret = *wishes->secret;
	endpoint->admission.admit = admit;
	INIT_LIST_HEAD(&endpoint->dirty);
	INIT_LIST_HEAD(&endpoint->active);
	init_waitqueue_head(&endpoint->greet_wait);
	error = make_machine(endpoint, wishes);
	if (!error)
		error = dmp_network_make(wishes->channel);
	if (error) {
		dmp_pair_close(pair);
		dmp_endpoint_free(endpoint);
		return error;
	}
	endpoint->pair = pair;
	endpoint->ringer.ring = greet_ring;
	dmp_pair_watch(pair, &endpoint->ringer);
	*made = endpoint;
	return 0;
}

/* Sleeps until the pair rings or the machine has to look. The lock is given up: 0, -EINTR. */
static int wait_for_pair_locked(struct dmp_kernel_endpoint *endpoint)
{
	u64 now_ns = ktime_get_ns(), until_ns = dmp_endpoint_next_wakeup(endpoint->machine);
	u64 wait_ns = until_ns > now_ns ? min_t(u64, until_ns - now_ns, LOOK_NS) : 0;
	long left;

	lockdep_assert_held(&endpoint->channel->lock);
	if (!dmp_pair_rest(endpoint->pair))
		return 0;
	mutex_unlock(&endpoint->channel->lock);
	left = wait_event_interruptible_timeout(endpoint->greet_wait,
						test_and_clear_bit(0, &endpoint->rung),
						nsecs_to_jiffies(wait_ns) + 1);
	mutex_lock(&endpoint->channel->lock);
	return left < 0 ? -EINTR : 0;
}

/* Who stalls or talks nonsense costs others as much as who guesses the secret. */
static bool is_judged(int error)
{
	return error == -EACCES || error == -ETIMEDOUT || error == -EPROTO;
}

/*
 * As the machine says it; it may have been the peer who did. One who calls has proved nothing yet:
 * whatever he says of the reason, only he is concerned.
 */
static int why_ended(const struct dmp_kernel_endpoint *endpoint)
{
	struct dmp_endpoint_status status;

	dmp_endpoint_query(endpoint->machine, &status);
	if (!status.reason || (!endpoint->connector && !is_judged(status.reason)))
		return -ECONNRESET;
	return dmp_pair_reason(status.reason);
}

/* Until both sides are in: 0, or why not. */
static int greet_locked(struct dmp_kernel_endpoint *endpoint, u32 epoch, u64 deadline_ns)
{
	u64 now_ns = dmp_endpoint_time(endpoint, ktime_get_ns());
	u8 nonce[DMP_WIRE_NONCE_BYTES];
	int error;

	lockdep_assert_held(&endpoint->channel->lock);
	get_random_bytes(nonce, sizeof(nonce));
	error = endpoint->connector ?
			dmp_endpoint_connect(endpoint->machine, now_ns, deadline_ns, nonce) :
			dmp_endpoint_accept(endpoint->machine, now_ns, deadline_ns, epoch, nonce);
	while (!error) {
		bool more = dmp_traffic_round_locked(endpoint, ktime_get_ns());

		/* A frame may wait to be sent: it is, before anybody sleeps. */
		if (dmp_endpoint_state(endpoint->machine) == DMP_ENDPOINT_OPEN && !more)
			return 0;
		if (endpoint->ended)
			return why_ended(endpoint);
		if (endpoint->channel->closing)
			return -ESTALE;
		if (!more && endpoint->pair)
			error = wait_for_pair_locked(endpoint);
	}
	return error;
}

/* Publishes it, then hands it to the executor. */
static int publish(struct dmp_kernel_endpoint *endpoint, struct established *established)
{
	struct dmp_kernel_channel *channel = endpoint->channel;
	struct dmp_plane *plane = endpoint->plane;
	struct dmp_endpoint_status status;
	bool kick = false;
	int error;

	down_write(&plane->lock);
	error = channel->object.state == DMP_STATE_LIVE ? 0 : -ESTALE;
	if (!error && plane->endpoints >= DMP_ENDPOINTS_MAX)
		error = -ENOSPC;
	if (!error)
		error = dmp_plane_insert_locked(plane, &endpoint->object);
	if (error) {
		up_write(&plane->lock);
		return error;
	}
	mutex_lock(&channel->lock);
	dmp_endpoint_query(endpoint->machine, &status);
	endpoint->epoch = status.epoch;
	dmp_secret_forget(&endpoint->secret);
	error = endpoint->pair ? dmp_network_attach_locked(channel, endpoint) : -ECONNRESET;
	if (!error)
		kick = dmp_channel_claim_locked(channel);
	mutex_unlock(&channel->lock);
	if (error) {
		dmp_plane_remove_locked(plane, &endpoint->object);
	} else {
		dmp_lifetime_move(&endpoint->object.state, DMP_STATE_LIVE);
		plane->endpoints++;
		established->id = endpoint->object.id;
		established->epoch = endpoint->epoch;
		trace_dmp_endpoint_create(endpoint, 0);
	}
	up_write(&plane->lock);		/* from here on another thread may destroy it */
	if (kick)
		dmp_channel_kick(channel);
	return error;
}

/* Never published, and nobody else knows it: the pair ends with it. */
static void abandon(struct dmp_kernel_endpoint *endpoint)
{
	mutex_lock(&endpoint->channel->lock);
	if (!endpoint->ended)
		dmp_traffic_abort_locked(endpoint, -ECONNRESET);
	mutex_unlock(&endpoint->channel->lock);
	dmp_endpoint_free(endpoint);
}

/* Makes, greets, publishes. @pair is used up. */
static int establish(const struct wishes *wishes, struct dmp_pair *pair, const u8 *peer_address,
		     u64 deadline_ns, struct established *established)
{
	struct dmp_kernel_channel *channel = wishes->channel;
	struct dmp_kernel_endpoint *endpoint;
	int error = make(wishes, pair, &endpoint);
	u32 epoch;

	if (error)
		return error;
	memcpy(endpoint->peer_address, peer_address, sizeof(endpoint->peer_address));
	do
		epoch = atomic_inc_return(&wishes->plane->epochs);
	while (epoch == 0);
	mutex_lock(&channel->lock);
	error = greet_locked(endpoint, epoch, deadline_ns);
	/* From here on the peer may ask for regions. */
	if (!error && endpoint->pair)
		dmp_pair_trust(endpoint->pair, &endpoint->admission);
	mutex_unlock(&channel->lock);
	if (!error)
		error = publish(endpoint, established);
	if (error)
		abandon(endpoint);
	return error;
}

/* ---- the commands */

static int check_wishes(u32 detect_ms, u32 window_slots, u64 window_bytes)
{
	if (detect_ms > DETECT_MS_MAX || window_slots == 0 || window_bytes == 0 ||
	    window_slots > DMP_ENDPOINT_TABLE_MAX || window_bytes > DMP_BUFFER_BYTES_MAX)
		return -EINVAL;
	return 0;
}

static int enter_channel(struct dmp_plane *plane, u32 id, struct dmp_kernel_channel **channel)
{
	int error;

	down_read(&plane->lock);
	*channel = dmp_channel_get_locked(plane, id, &error);
	up_read(&plane->lock);
	return error;
}

/* Before the peer is waited for, which is done outside: who destroys a channel waits for us. */
static int check_channel(struct dmp_plane *plane, u32 id)
{
	struct dmp_kernel_channel *channel;
	int error = enter_channel(plane, id, &channel);

	if (!error)
		dmp_channel_put(channel);
	return error;
}

/* As establish(), in the channel @id, if it is still there. */
static int establish_in(struct wishes *wishes, u32 id, struct dmp_pair *pair,
			const u8 *peer_address, u64 deadline_ns, struct established *established)
{
	int error = enter_channel(wishes->plane, id, &wishes->channel);

	if (error) {
		dmp_pair_close(pair);
		return error;
	}
	error = establish(wishes, pair, peer_address, deadline_ns, established);
	dmp_channel_put(wishes->channel);
	return error;
}

static int check_connect(const struct dmp_connect *connect, struct sockaddr_storage *address)
{
	bool required = connect->flags & DMP_REQUIRE_PATH;
	int error = check_wishes(connect->detect_ms, connect->window_slots,
				 connect->window_bytes);

	if (error || connect->secret_bytes > DMP_SECRET_BYTES || connect->path > DMP_PATH_PEER ||
	    required != (connect->path != DMP_PATH_NONE))
		return -EINVAL;
	error = dmp_address_parse(connect->address, false, address);
	if (error)
		return error;
	if (connect->secret_bytes == 0 &&
	    (connect->flags & DMP_ENCRYPT || !dmp_address_is_loopback(address)))
		return -EPERM;
	/* A device sends what lies in memory, and nobody encrypts it on the way. */
	if (connect->flags & DMP_ENCRYPT)
		return -EOPNOTSUPP;
	if (required && connect->path != DMP_PATH_VERBS)
		return -ENODEV;
	return 0;
}

int dmp_endpoint_connect_command(struct dmp_plane *plane, void *argument)
{
	struct dmp_connect *connect = argument;
	u64 deadline_ns = connect->deadline_ns ?: ktime_get_ns() + CONNECT_NS;
	struct dmp_secret secret = { };
	struct wishes wishes = {
		.plane = plane,
		.secret = &secret,
		.user_data = connect->user_data,
		.window_bytes = connect->window_bytes,
		.window_slots = connect->window_slots,
		.detect_ms = connect->detect_ms,
		.connector = true,
	};
	struct established established;
	struct sockaddr_storage address;
	struct dmp_pair *pair;
	int error = check_connect(connect, &address);

	if (!error)
		error = check_channel(plane, connect->channel_id);
	if (error)
		return error;
	secret.count = connect->secret_bytes;
	memcpy(secret.bytes, connect->secret, secret.count);
	error = deadline_ns <= ktime_get_ns() ? -ETIMEDOUT :
						 dmp_pair_dial(&address, deadline_ns, &pair);
	if (!error)
		error = establish_in(&wishes, connect->channel_id, pair, connect->address,
				     deadline_ns, &established);
	dmp_secret_forget(&secret);
	if (!error) {
		connect->endpoint_id = established.id;
		connect->path_taken = DMP_PATH_VERBS;
		connect->epoch = established.epoch;
	}
	return error;
}

/* What is ours to mend is told; what the arrival did wrong is not. */
static bool is_ours(int error)
{
	return error == -ENOMEM || error == -ENOSPC || error == -ESTALE || error == -EINVAL ||
	       error == -EINTR || error == -ENOENT;
}

/* One arrival after the other, until one is let in. */
static int accept_one(struct wishes *wishes, struct dmp_accept *accept,
		      struct established *established)
{
	struct dmp_listener *listener;
	struct dmp_arrival arrival;
	int error;

	do {
		error = dmp_listener_take(wishes->plane, accept->listener_id, accept->deadline_ns,
					  &listener, &arrival);
		if (error)
			return error;
		wishes->secret = dmp_listener_secret(listener);
		error = establish_in(wishes, accept->channel_id, arrival.pair,
				     arrival.peer_address, ktime_get_ns() + GREETING_NS,
				     established);
		if (!error || is_judged(error))
			dmp_listener_judge(listener, arrival.origin, !error);
		dmp_listener_put(listener);
	} while (error && !is_ours(error));
	if (!error)
		memcpy(accept->peer_address, arrival.peer_address, sizeof(accept->peer_address));
	return error;
}

int dmp_endpoint_accept_command(struct dmp_plane *plane, void *argument)
{
	struct dmp_accept *accept = argument;
	struct established established;
	struct wishes wishes = {
		.plane = plane,
		.user_data = accept->user_data,
		.window_bytes = accept->window_bytes,
		.window_slots = accept->window_slots,
		.detect_ms = accept->detect_ms,
	};
	int error = check_wishes(accept->detect_ms, accept->window_slots, accept->window_bytes);

	if (!error)
		error = check_channel(plane, accept->channel_id);
	if (error)
		return error;
	error = accept_one(&wishes, accept, &established);
	if (!error) {
		accept->endpoint_id = established.id;
		accept->path_taken = DMP_PATH_VERBS;
		accept->epoch = established.epoch;
	}
	return error;
}
