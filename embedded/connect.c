// SPDX-License-Identifier: MIT
/*
 * connect.c - CONNECT and ACCEPT: from an address to an endpoint that is open
 *
 * The handshake runs in the caller's thread, on an endpoint nobody else knows: it is
 * published, and handed to the executor of its channel, when both sides have proved the
 * secret. Until then the channel only lends its lock.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "lifetime.h"
#include "listener.h"
#include "network.h"
#include "tls.h"
#include "traffic.h"
#include "verbs.h"

#define CONNECT_NS	10000000000ull	/* without a deadline of the caller's */
#define GREETING_NS	1000000000ull	/* one arrival keeps ACCEPT no longer than this */
#define DETECT_MS_MAX	3600000u

/* What the caller is told; read before anybody else can find the endpoint. */
struct established {
	__u32 id;
	__u32 path;
	__u32 epoch;
	__u8 peer_address[DMP_ADDRESS_BYTES];
};

struct wishes {
	struct dmp_plane *plane;
	struct dmp_embedded_channel *channel;
	const struct dmp_secret *secret;
	__u64 user_data;
	__u64 window_bytes;
	__u32 window_slots;
	__u32 detect_ms;
	bool connector;
	bool encrypt;
};

static void free_unpublished(struct dmp_plane *plane, struct dmp_embedded_endpoint *endpoint)
{
	endpoint->object.id = 0;
	dmp_endpoint_free(plane, endpoint);
}

static int make_machine(struct dmp_embedded_endpoint *endpoint, const struct wishes *wishes)
{
	bool direct = endpoint->fabric->type->direct;
	struct dmp_endpoint_config config = {
		.incarnation = wishes->plane->incarnation,
		.features = wishes->encrypt ? DMP_WIRE_ENCRYPT : 0,
		.features_required = wishes->encrypt ? DMP_WIRE_ENCRYPT : 0,
		.window_bytes = wishes->window_bytes,
		.window_slots = wishes->window_slots,
		.detect_ns = endpoint->detect_ns,
		.operations_max = DMP_OPERATIONS_MAX,
		.receives_max = DMP_RECEIVES_MAX,
		.incoming_max = DMP_OPERATIONS_MAX,
		.direct = direct,
		.unchecked = endpoint->path == DMP_PATH_SHM,
		.stall = endpoint->stall,
	};
	size_t bytes = dmp_endpoint_bytes(&config);

	if (bytes == 0)
		return -EINVAL;
	endpoint->machine_memory = calloc(1, bytes);
	if (!endpoint->machine_memory)
		return -ENOMEM;
	return dmp_endpoint_init(&endpoint->machine, endpoint->machine_memory, bytes, &config);
}

/* An endpoint around @fabric, which is its own from here on, also on failure. */
static int make(const struct wishes *wishes, struct dmp_fabric *fabric,
		struct dmp_embedded_endpoint **made)
{
	struct dmp_embedded_endpoint *endpoint = calloc(1, sizeof(*endpoint));
	int error;

	if (!endpoint) {
		fabric->type->close(fabric);
		return -ENOMEM;
	}
	endpoint->object.type = DMP_OBJECT_ENDPOINT;
	endpoint->plane = wishes->plane;
	endpoint->channel = wishes->channel;
	endpoint->fabric = fabric;
	endpoint->path = fabric->type->path;
	endpoint->user_data = wishes->user_data;
	endpoint->window_slots = wishes->window_slots;
	endpoint->detect_ns =
		(wishes->detect_ms ? wishes->detect_ms : DMP_DETECT_MS) * 1000000ull;
	endpoint->connector = wishes->connector;
	endpoint->secret = *wishes->secret;
	error = dmp_traffic_init(endpoint);
	if (error)
		goto err_free;
	error = -ENOMEM;
#if DMP_OBSERVE
	endpoint->latency = calloc(1, sizeof(*endpoint->latency));
	endpoint->stall = calloc(1, sizeof(*endpoint->stall));
	if (!endpoint->latency || !endpoint->stall)
		goto err_free;
#endif
	error = make_machine(endpoint, wishes);
	/* A device sends what lies in memory, and no kernel encrypts it on the way. */
	if (!error && wishes->encrypt && endpoint->path == DMP_PATH_VERBS)
		error = -EOPNOTSUPP;
	/* Shared memory leaves no machine. */
	if (!error && wishes->encrypt && endpoint->path != DMP_PATH_SHM)
		error = dmp_tls_prepare(endpoint);
	if (error)
		goto err_free;
	*made = endpoint;
	return 0;

err_free:
	free_unpublished(wishes->plane, endpoint);
	return error;
}

/* Sleeps on the fabric's descriptor. channel->lock held, given up and held again. */
static void wait_for_fabric(struct dmp_embedded_endpoint *endpoint)
{
	const struct dmp_fabric_type *type = endpoint->fabric->type;
	struct pollfd poll_fd = { .fd = endpoint->fabric->fd, .events = POLLIN | POLLRDHUP };
	uint64_t now_ns = dmp_now_ns(), until_ns = dmp_endpoint_next_wakeup(endpoint->machine);
	uint64_t wait_ns = until_ns > now_ns ? until_ns - now_ns : 0;

	/* A channel that is destroyed is noticed by looking, not by being woken. */
	if (wait_ns > 50000000u)
		wait_ns = 50000000u;
	if (type->rest && !type->rest(endpoint->fabric))
		return;
	pthread_mutex_unlock(&endpoint->channel->lock);
	poll(&poll_fd, 1, (int)((wait_ns + 999999u) / 1000000u));
	pthread_mutex_lock(&endpoint->channel->lock);
	if (type->wake)
		type->wake(endpoint->fabric);
	endpoint->has_event = true;
}

/* Until both sides are in: 0, or why not. channel->lock held. */
static int greet_locked(struct dmp_embedded_endpoint *endpoint, __u32 epoch, uint64_t deadline_ns)
{
	struct dmp_endpoint_status status;
	uint64_t now_ns = dmp_endpoint_time(endpoint, dmp_now_ns());
	__u8 nonce[DMP_WIRE_NONCE_BYTES];
	int error;

	if (getrandom(nonce, sizeof(nonce), 0) != sizeof(nonce))
		return -EAGAIN;
	if (endpoint->connector)
		error = dmp_endpoint_connect(endpoint->machine, now_ns, deadline_ns, nonce);
	else
		error = dmp_endpoint_accept(endpoint->machine, now_ns, deadline_ns, epoch, nonce);
	if (error)
		return error;
	endpoint->has_event = true;
	for (;;) {
		bool more = dmp_traffic_round_locked(endpoint, dmp_now_ns());

		error = dmp_tls_switch_locked(endpoint);
		if (error < 0)
			return error;
		more |= error != 0;
		/* A frame may wait to be sent: it is, before anybody sleeps. */
		if (dmp_endpoint_state(endpoint->machine) == DMP_ENDPOINT_OPEN && !more)
			return 0;
		if (endpoint->ended)
			break;
		if (endpoint->channel->closing)
			return -ESTALE;
		if (!more && endpoint->fabric)
			wait_for_fabric(endpoint);
	}
	dmp_endpoint_query(endpoint->machine, &status);
	return status.reason ? status.reason : -ECONNRESET;
}

/* Publishes it, then hands it to the executor. */
static int publish(struct dmp_embedded_endpoint *endpoint, struct established *established)
{
	struct dmp_embedded_channel *channel = endpoint->channel;
	struct dmp_plane *plane = endpoint->plane;
	struct dmp_endpoint_status status;
	int error = -ENOSPC;

	pthread_mutex_lock(&plane->lock);
	if (channel->object.state != DMP_STATE_LIVE)
		error = -ESTALE;
	else if (plane->endpoints < DMP_ENDPOINTS_MAX)
		error = dmp_table_insert(&plane->table, &endpoint->object);
	if (error) {
		pthread_mutex_unlock(&plane->lock);
		return error;
	}
	pthread_mutex_lock(&channel->lock);
	dmp_endpoint_query(endpoint->machine, &status);
	endpoint->epoch = status.epoch;
	dmp_secret_forget(&endpoint->secret);
	error = dmp_network_attach_locked(channel, endpoint);
	if (!error) {
		endpoint->opened = true;
		dmp_channel_kick(channel, dmp_channel_claim_wake_locked(channel));
	}
	pthread_mutex_unlock(&channel->lock);
	if (error) {
		dmp_table_remove(&plane->table, &endpoint->object);
	} else {
		dmp_lifetime_move(&endpoint->object.state, DMP_STATE_LIVE);
		plane->endpoints++;
		dmp_board_add(&plane->board->statistics.endpoints, 1);
		established->id = endpoint->object.id;
		established->path = endpoint->path;
		established->epoch = endpoint->epoch;
		memcpy(established->peer_address, endpoint->peer_address,
		       sizeof(established->peer_address));
	}
	pthread_mutex_unlock(&plane->lock);
	return error;
}

/* Makes, greets, publishes. @fabric is used up. */
static int establish(const struct wishes *wishes, struct dmp_fabric *fabric,
		     const __u8 *peer_address, uint64_t deadline_ns,
		     struct established *established)
{
	struct dmp_embedded_channel *channel = wishes->channel;
	struct dmp_embedded_endpoint *endpoint;
	__u32 epoch;
	int error = make(wishes, fabric, &endpoint);

	if (error)
		return error;
	memcpy(endpoint->peer_address, peer_address, sizeof(endpoint->peer_address));
	do
		epoch = __atomic_add_fetch(&wishes->plane->epochs, 1, __ATOMIC_RELAXED);
	while (epoch == 0);
	pthread_mutex_lock(&channel->lock);
	error = greet_locked(endpoint, epoch, deadline_ns);
	if (!error && endpoint->path == DMP_PATH_VERBS)
		dmp_verbs_trust(endpoint->fabric);
	pthread_mutex_unlock(&channel->lock);
	if (!error)
		error = publish(endpoint, established);
	if (error)
		free_unpublished(wishes->plane, endpoint);
	return error;
}

static int check_wishes(__u32 detect_ms, __u32 window_slots, __u64 window_bytes)
{
	if (detect_ms > DETECT_MS_MAX || window_slots == 0 || window_bytes == 0 ||
	    window_slots > DMP_ENDPOINT_TABLE_MAX || window_bytes > DMP_BUFFER_BYTES_MAX)
		return -EINVAL;
	return 0;
}

static int enter_channel(struct dmp_plane *plane, __u32 id, struct dmp_embedded_channel **channel)
{
	int error = 0;

	pthread_mutex_lock(&plane->lock);
	*channel = dmp_channel_enter_locked(plane, id, &error);
	pthread_mutex_unlock(&plane->lock);
	return error;
}

/* Is it sure, before anybody has called, that the way leads over a wire? */
static bool is_wire(const struct dmp_address *address, __u32 path)
{
	return path == DMP_PATH_TCP || path == DMP_PATH_VERBS || (path == DMP_PATH_NONE && !address->is_unix &&
					!dmp_address_is_local(address));
}

int dmp_endpoint_connect_command(struct dmp_plane *plane, void *argument)
{
	struct dmp_connect *connect = argument;
	bool required = connect->flags & DMP_REQUIRE_PATH;
	struct established established;
	struct dmp_secret secret = { .count = connect->secret_bytes };
	struct wishes wishes = {
		.plane = plane,
		.secret = &secret,
		.user_data = connect->user_data,
		.window_bytes = connect->window_bytes,
		.window_slots = connect->window_slots,
		.detect_ms = connect->detect_ms,
		.connector = true,
		.encrypt = connect->flags & DMP_ENCRYPT,
	};
	uint64_t deadline_ns = connect->deadline_ns ? connect->deadline_ns :
						      dmp_now_ns() + CONNECT_NS;
	struct dmp_address address;
	struct dmp_fabric *fabric;
	int error;

	error = check_wishes(connect->detect_ms, connect->window_slots, connect->window_bytes);
	if (error || secret.count > DMP_SECRET_BYTES || connect->path > DMP_PATH_PEER ||
	    required != (connect->path != DMP_PATH_NONE))
		return -EINVAL;
	memcpy(secret.bytes, connect->secret, secret.count);
	error = dmp_address_parse(connect->address, false, &address);
	if (!error && (!address.is_loopback || wishes.encrypt) && secret.count == 0)
		error = -EPERM;
	if (!error && wishes.encrypt && dmp_tls_probe() && is_wire(&address, connect->path))
		error = -EOPNOTSUPP;
	if (!error)
		error = enter_channel(plane, connect->channel_id, &wishes.channel);
	if (error)
		goto out;
	/* Encrypted bytes are tcp's or stay on this machine: a device sends what lies in memory. */
	error = required || wishes.encrypt ?
			dmp_dial(plane, &address, required ? connect->path : 0, deadline_ns, &fabric) :
			dmp_dial_best(plane, &address, deadline_ns, &fabric);
	if (!error)
		error = establish(&wishes, fabric, connect->address, deadline_ns, &established);
	if (!error) {
		connect->endpoint_id = established.id;
		connect->path_taken = established.path;
		connect->epoch = established.epoch;
	}
	dmp_channel_put(wishes.channel);
out:
	dmp_secret_forget(&secret);
	return error;
}

/* One arrival after the other, until one is let in. */
static int accept_one(const struct wishes *from, struct dmp_accept *accept,
		      struct established *established)
{
	struct wishes wishes = *from;
	struct dmp_arrival arrival;
	struct dmp_listener *listener;
	uint64_t until_ns;
	int error;

	for (;;) {
		error = dmp_listener_take(wishes.plane, accept->listener_id, accept->deadline_ns,
					  &listener, &arrival);
		if (error)
			return error;
		wishes.secret = dmp_listener_secret(listener);
		wishes.encrypt = dmp_listener_encrypts(listener);
		until_ns = dmp_now_ns() + GREETING_NS;
		error = establish(&wishes, arrival.fabric, arrival.peer_address, until_ns,
				  established);
		/* Who stalls or talks nonsense costs others as much as who guesses. */
		if (!error || error == -EACCES || error == -ETIMEDOUT || error == -EPROTO)
			dmp_listener_judge(listener, arrival.origin, !error);
		dmp_listener_put(wishes.plane, listener);
		/* What is ours to mend is told; what the arrival did wrong is not. */
		if (!error || error == -ENOMEM || error == -ENOSPC || error == -ESTALE ||
		    error == -EINVAL)
			return error;
	}
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
		error = enter_channel(plane, accept->channel_id, &wishes.channel);
	if (error)
		return error;
	error = accept_one(&wishes, accept, &established);
	if (!error) {
		accept->endpoint_id = established.id;
		accept->path_taken = established.path;
		accept->epoch = established.epoch;
		memcpy(accept->peer_address, established.peer_address,
		       sizeof(accept->peer_address));
	}
	dmp_channel_put(wishes.channel);
	return error;
}
