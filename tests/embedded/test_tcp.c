// SPDX-License-Identifier: MIT
/*
 * test_tcp.c - the tcp fabric on sockets: what it takes, gives, and how it names an end
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/sockios.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/check.h"
#include "dmaplane.h"
#include "tcp.h"

/* Two ends of a connection over loopback. */
static void connected(int *sockets)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	socklen_t length = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM, 0);

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	CHECK(!bind(listener, (struct sockaddr *)&address, length) && !listen(listener, 1));
	CHECK(!getsockname(listener, (struct sockaddr *)&address, &length));
	sockets[0] = socket(AF_INET, SOCK_STREAM, 0);
	CHECK(!connect(sockets[0], (struct sockaddr *)&address, length));
	sockets[1] = accept(listener, NULL, NULL);
	CHECK(sockets[1] >= 0);
	close(listener);
}

static int option(int socket, int level, int name)
{
	int value = -1;
	socklen_t length = sizeof(value);

	CHECK(!getsockopt(socket, level, name, &value, &length));
	return value;
}

static void wait_for_input(int socket)
{
	struct pollfd poller = { .fd = socket, .events = POLLIN };

	CHECK(poll(&poller, 1, 10000) == 1);
}

static void test_a_socket_is_made_fit(void)
{
	struct dmp_fabric *fabric;
	int sockets[2];

	connected(sockets);
	CHECK(!dmp_tcp_fabric(sockets[0], &fabric));
	CHECK(fabric->fd == sockets[0] && fabric->type->path == DMP_PATH_TCP);
	CHECK(!fabric->type->direct && !fabric->type->move);
	CHECK(option(sockets[0], IPPROTO_TCP, TCP_NODELAY));
	CHECK(option(sockets[0], SOL_SOCKET, SO_KEEPALIVE));
	CHECK(option(sockets[0], IPPROTO_TCP, TCP_USER_TIMEOUT) > 0);
	fabric->type->close(fabric);
	close(sockets[1]);
}

/* What paces, or probes for a queue, has nothing to find between two ends of one host. */
static void test_nothing_paces_two_ends_of_one_host(void)
{
	static const char others[][8] = { "bbr", "cubic", "dctcp" };
	struct dmp_fabric *fabric;
	char name[16] = "";
	socklen_t length = sizeof(name);
	unsigned int number;
	int sockets[2];

	connected(sockets);
	/* So that there is something to change, where this machine has more than one. */
	for (number = 0; number < sizeof(others) / sizeof(*others); number++)
		if (!setsockopt(sockets[0], IPPROTO_TCP, TCP_CONGESTION, others[number],
				(socklen_t)strlen(others[number])))
			break;
	CHECK(!dmp_tcp_fabric(sockets[0], &fabric));
	CHECK(!getsockopt(sockets[0], IPPROTO_TCP, TCP_CONGESTION, name, &length));
	CHECK(!strcmp(name, "reno"));
	fabric->type->close(fabric);
	close(sockets[1]);
}

/*
 * What waits in the socket for its window is sent by whoever acknowledges, and overtaken there by
 * what we send: see suit_the_way().
 */
static void test_little_waits_within_one_host(void)
{
	static char bytes[1 << 20];
	struct iovec all = { .iov_base = bytes, .iov_len = sizeof(bytes) };
	struct dmp_fabric *fabric;
	int sockets[2], unsent = -1;

	connected(sockets);
	CHECK(!dmp_tcp_fabric(sockets[0], &fabric));
	while (fabric->type->send(fabric, &all, 1) > 0)
		continue;
	CHECK(!ioctl(sockets[0], SIOCOUTQNSD, &unsent));
	/* The kernel's last buffer may reach beyond what was asked for. */
	CHECK(unsent >= 0 && unsent <= 256 << 10);
	fabric->type->close(fabric);
	close(sockets[1]);
}

/* Who receives for another processor (RPS) hands in what comes from there. */
static bool hands_over(void)
{
	FILE *file = fopen("/sys/class/net/lo/queues/rx-0/rps_cpus", "re");
	char line[256] = "";

	if (!file)
		return false;
	if (!fgets(line, sizeof(line), file))
		line[0] = 0;
	fclose(file);
	return line[strspn(line, "0,\n")] != 0;
}

static void test_it_knows_which_processor_its_peer_sends_from(void)
{
	char byte = 1;
	struct iovec one = { .iov_base = &byte, .iov_len = 1 };
	struct dmp_fabric *fabric;
	cpu_set_t before, only;
	int sockets[2], cpu;

	CHECK(!sched_getaffinity(0, sizeof(before), &before));
	for (cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET(cpu, &before))
			continue;
		CPU_ZERO(&only);
		CPU_SET(cpu, &only);
		CHECK(!sched_setaffinity(0, sizeof(only), &only));
		connected(sockets);
		CHECK(!dmp_tcp_fabric(sockets[0], &fabric));
		CHECK(send(sockets[1], &byte, 1, 0) == 1);
		wait_for_input(sockets[0]);
		CHECK(fabric->type->receive(fabric, &one, 1) == 1);
		CHECK(fabric->type->processor(fabric) == cpu || hands_over());
		fabric->type->close(fabric);
		close(sockets[1]);
	}
	CHECK(!sched_setaffinity(0, sizeof(before), &before));
}

static void test_tcp_gives_what_came_and_then_the_end(void)
{
	struct dmp_fabric *fabric;
	struct iovec piece;
	char bytes[16];
	int sockets[2];

	connected(sockets);
	CHECK(!dmp_tcp_fabric(sockets[0], &fabric));
	piece = (struct iovec){ bytes, sizeof(bytes) };
	CHECK(fabric->type->receive(fabric, &piece, 1) == 0);
	CHECK(write(sockets[1], "abc", 3) == 3);
	close(sockets[1]);
	wait_for_input(sockets[0]);
	CHECK(fabric->type->receive(fabric, &piece, 1) == 3);
	wait_for_input(sockets[0]);
	CHECK(fabric->type->receive(fabric, &piece, 1) == -ECONNRESET);
	fabric->type->close(fabric);
	CHECK(dmp_tcp_fabric(-1, &fabric) == -EBADF);
}

/* The user's memory went away: that is no lost peer, and says so. */
static void test_tcp_names_memory_that_went_away(void)
{
	struct dmp_fabric *fabric;
	struct iovec piece;
	int sockets[2];
	void *gone;

	gone = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(gone != MAP_FAILED);
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, sockets));
	CHECK(!dmp_tcp_fabric(sockets[0], &fabric));
	piece = (struct iovec){ gone, 4096 };
	CHECK(fabric->type->send(fabric, &piece, 1) == -EFAULT);
	CHECK(write(sockets[1], "abc", 3) == 3);
	CHECK(fabric->type->receive(fabric, &piece, 1) == -EFAULT);
	fabric->type->close(fabric);
	close(sockets[1]);
	munmap(gone, 4096);
}

/* A full socket takes what fits and then nothing, and is no error. */
static void test_a_full_socket_takes_nothing(void)
{
	static char bytes[1 << 20];
	struct iovec pieces[2] = { { bytes, sizeof(bytes) }, { bytes, sizeof(bytes) } };
	struct dmp_fabric *fabric;
	ssize_t taken, total = 0;
	int sockets[2];

	connected(sockets);
	CHECK(!dmp_tcp_fabric(sockets[0], &fabric));
	while ((taken = fabric->type->send(fabric, pieces, 2)) > 0)
		total += taken;
	CHECK(!taken && total);
	fabric->type->close(fabric);
	close(sockets[1]);
}

/* The last word arrives, and after it an orderly end, though not all that had come was read. */
static void test_close_lets_the_last_word_arrive(void)
{
	char much[100000] = { 0 }, word[16];
	struct iovec piece = { "goodbye", 7 };
	struct dmp_fabric *fabric;
	int sockets[2];

	connected(sockets);
	CHECK(!dmp_tcp_fabric(sockets[0], &fabric));
	CHECK(write(sockets[1], much, sizeof(much)) == sizeof(much));
	wait_for_input(sockets[0]);
	CHECK(fabric->type->send(fabric, &piece, 1) == 7);
	fabric->type->close(fabric);
	wait_for_input(sockets[1]);
	CHECK(read(sockets[1], word, sizeof(word)) == 7 && !memcmp(word, "goodbye", 7));
	CHECK(read(sockets[1], word, sizeof(word)) == 0);
	close(sockets[1]);
}

/* A peer that takes nothing: what it has not taken does not live on in the kernel. */
static void test_close_takes_back_what_nobody_takes(void)
{
	static char bytes[1 << 20];
	struct iovec piece = { bytes, sizeof(bytes) };
	struct dmp_fabric *fabric;
	ssize_t count, sent = 0, arrived = 0;
	int sockets[2];

	connected(sockets);
	CHECK(!dmp_tcp_fabric(sockets[0], &fabric));
	while ((count = fabric->type->send(fabric, &piece, 1)) > 0)
		sent += count;
	fabric->type->close(fabric);
	while ((count = read(sockets[1], bytes, sizeof(bytes))) > 0)
		arrived += count;
	CHECK(count == -1 && errno == ECONNRESET && arrived < sent);
	close(sockets[1]);
}

int main(void)
{
	test_a_socket_is_made_fit();
	test_nothing_paces_two_ends_of_one_host();
	test_little_waits_within_one_host();
	test_it_knows_which_processor_its_peer_sends_from();
	test_tcp_gives_what_came_and_then_the_end();
	test_tcp_names_memory_that_went_away();
	test_a_full_socket_takes_nothing();
	test_close_lets_the_last_word_arrive();
	test_close_takes_back_what_nobody_takes();
	return 0;
}
