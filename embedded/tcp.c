// SPDX-License-Identifier: MIT
/*
 * tcp.c - the fabric between any two machines: one connected socket
 *
 * The machine's own PINGs notice a silent peer; keepalive and the time-out of unanswered
 * data are a net below them, for an endpoint whose executor does not come round.
 *
 * Buffers: the kernel's own tuning is left alone where it may grow further than what we
 * could ask for. A size that was set stops the tuning, and is cut to the system's limit.
 *
 * Not used: MSG_ZEROCOPY (one notification per call to collect, pages pinned for a round
 * trip, and on loopback the kernel copies all the same), and several sockets per
 * endpoint (one core on each side is what limits a connection, not its window).
 */
#include "tcp.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define BUFFER_BYTES		(4 << 20)
#define KEEPALIVE_IDLE_S	10
#define KEEPALIVE_INTERVAL_S	5
#define KEEPALIVE_PROBES	3
#define UNANSWERED_MS		30000u
#define UNSENT_BYTES		(512 << 10)	/* on a slow link a frame waits behind so much */
#define UNSENT_HERE_BYTES	(128 << 10)	/* within one host: see suit_the_way() */
#define CLOSE_CALLS_MAX		1024
#define LAST_WORD_BYTES_MAX	4096

/* A lost connection has one name. What is wrong on this side (EFAULT, ENOMEM) keeps its own. */
static ssize_t failed(int error)
{
	switch (error) {
	case EAGAIN:
#if EWOULDBLOCK != EAGAIN
	case EWOULDBLOCK:
#endif
		return 0;
	case EPIPE:
	case ENOTCONN:
	case ESHUTDOWN:
	case ETIMEDOUT:
	case ECONNABORTED:
	case EHOSTUNREACH:
	case EHOSTDOWN:
	case ENETUNREACH:
	case ENETDOWN:
	/* With TLS (tls.c): a record that is none, or that was changed on the way. */
	case EBADMSG:
	case EMSGSIZE:
	case EINVAL:
	case EIO:
		return -ECONNRESET;
	default:
		return -error;
	}
}

static ssize_t tcp_send(struct dmp_fabric *fabric, const struct iovec *pieces, int count)
{
	struct msghdr message = {
		.msg_iov = (struct iovec *)pieces,
		.msg_iovlen = (size_t)count,
	};
	ssize_t sent;

	do {
		sent = sendmsg(fabric->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
	} while (sent < 0 && errno == EINTR);
	return sent < 0 ? failed(errno) : sent;
}

static ssize_t tcp_receive(struct dmp_fabric *fabric, const struct iovec *pieces, int count)
{
	struct msghdr message = {
		.msg_iov = (struct iovec *)pieces,
		.msg_iovlen = (size_t)count,
	};
	ssize_t got;

	do {
		got = recvmsg(fabric->fd, &message, MSG_DONTWAIT);
	} while (got < 0 && errno == EINTR);
	if (got > 0)
		return got;
	return got ? failed(errno) : -ECONNRESET;
}

/*
 * A last word, the reason why we go, should arrive: so what has come is thrown away first, for
 * a socket that is closed with bytes unread resets the connection at once. But where much
 * is still on its way the peer takes nothing or the end is no orderly one; then the
 * bytes are taken back by a reset, or the kernel would go on offering them for a while.
 */
static void tcp_close(struct dmp_fabric *fabric)
{
	struct linger reset = { .l_onoff = 1 };
	int on_the_way = 0;
	char rest[4096];
	int calls;

	if (!ioctl(fabric->fd, SIOCOUTQ, &on_the_way) && on_the_way > LAST_WORD_BYTES_MAX) {
		setsockopt(fabric->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	} else {
		shutdown(fabric->fd, SHUT_WR);
		for (calls = 0; calls < CLOSE_CALLS_MAX; calls++)
			if (recv(fabric->fd, rest, sizeof(rest), MSG_DONTWAIT) <= 0)
				break;
	}
	close(fabric->fd);
	free(fabric);
}

/* Both ends have the same address. */
static bool is_on_this_host(int socket)
{
	struct sockaddr_storage here = { 0 }, there = { 0 };
	socklen_t length = sizeof(here);

	if (getsockname(socket, (struct sockaddr *)&here, &length))
		return false;
	length = sizeof(there);
	if (getpeername(socket, (struct sockaddr *)&there, &length))
		return false;
	if (here.ss_family != there.ss_family)
		return false;
	if (here.ss_family == AF_INET)
		return ((struct sockaddr_in *)&here)->sin_addr.s_addr ==
		       ((struct sockaddr_in *)&there)->sin_addr.s_addr;
	return here.ss_family == AF_INET6 &&
	       IN6_ARE_ADDR_EQUAL(&((struct sockaddr_in6 *)&here)->sin6_addr,
				  &((struct sockaddr_in6 *)&there)->sin6_addr);
}

static int tcp_processor(struct dmp_fabric *fabric)
{
	socklen_t length = sizeof(int);
	int processor;

	if (!is_on_this_host(fabric->fd) ||
	    getsockopt(fabric->fd, SOL_SOCKET, SO_INCOMING_CPU, &processor, &length))
		return -1;
	return processor;
}

static const struct dmp_fabric_type tcp_type = {
	.path = DMP_PATH_TCP,
	.send = tcp_send,
	.receive = tcp_receive,
	.processor = tcp_processor,
	.close = tcp_close,
};

static void set(int socket, int level, int name, int value)
{
	/* Each is a refinement: a socket of another kind works without. */
	setsockopt(socket, level, name, &value, sizeof(value));
}

/* The last of the three numbers of a line such as "4096 131072 33554432". */
static int tuned_max(const char *path)
{
	FILE *file = fopen(path, "re");
	int low, usual, most = 0;

	if (!file)
		return 0;
	if (fscanf(file, "%d %d %d", &low, &usual, &most) != 3)
		most = 0;
	fclose(file);
	return most;
}

static void set_buffers(int socket)
{
	if (tuned_max("/proc/sys/net/ipv4/tcp_rmem") < BUFFER_BYTES)
		set(socket, SOL_SOCKET, SO_RCVBUF, BUFFER_BYTES);
	if (tuned_max("/proc/sys/net/ipv4/tcp_wmem") < BUFFER_BYTES)
		set(socket, SOL_SOCKET, SO_SNDBUF, BUFFER_BYTES);
}

/*
 * Between two machines the congestion control is the administrator's choice. Within one there is no
 * link to be careful with: bytes that wait for bbr's pace cost a quarter of the rate and of the
 * processor. Everybody may choose reno.
 *
 * What waits in a socket for its window is sent by the processor that acknowledges, the reader's, and
 * within one host is overtaken there by what we send meanwhile from ours. That is taken for loss, at
 * a window too small for the socket ever to be free of it. So only little may wait.
 */
static void suit_the_way(int socket)
{
	static const char plain[] = "reno";
	bool here = is_on_this_host(socket);

	if (here)
		setsockopt(socket, IPPROTO_TCP, TCP_CONGESTION, plain, sizeof(plain) - 1);
	set(socket, IPPROTO_TCP, TCP_NOTSENT_LOWAT, here ? UNSENT_HERE_BYTES : UNSENT_BYTES);
}

int dmp_tcp_fabric(int socket, struct dmp_fabric **fabric)
{
	struct dmp_fabric *fresh;
	int flags = fcntl(socket, F_GETFL);

	if (flags < 0 || fcntl(socket, F_SETFL, flags | O_NONBLOCK))
		return -errno;
	fresh = malloc(sizeof(*fresh));
	if (!fresh)
		return -ENOMEM;
	set(socket, IPPROTO_TCP, TCP_NODELAY, 1);
	set(socket, IPPROTO_TCP, TCP_USER_TIMEOUT, UNANSWERED_MS);
	suit_the_way(socket);
	set(socket, IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE_S);
	set(socket, IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S);
	set(socket, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES);
	set(socket, SOL_SOCKET, SO_KEEPALIVE, 1);
	set_buffers(socket);
	fresh->type = &tcp_type;
	fresh->fd = socket;	/* owned by the fabric from here */
	*fabric = fresh;
	return 0;
}
