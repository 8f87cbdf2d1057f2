// SPDX-License-Identifier: MIT
/*
 * address.c - see address.h
 *
 * One address has one form: IPv4 inside IPv6 becomes IPv4, and the unspecified address
 * becomes loopback for who connects (as connect(2) has it). A name with several addresses
 * means its first IPv4 address, else its first: both sides choose alike.
 */
#define _GNU_SOURCE
#include "address.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "origin.h"

#define UNIX_PREFIX	"unix:"
#define DOOR_PREFIX	"dmaplane/tcp"
#define PORT_DIGITS	5u

static struct sockaddr_in *ipv4_of(struct sockaddr_storage *socket)
{
	return (struct sockaddr_in *)socket;
}

static struct sockaddr_in6 *ipv6_of(struct sockaddr_storage *socket)
{
	return (struct sockaddr_in6 *)socket;
}

/* 1 .. 5 digits and nothing else. */
static int parse_port(const char *text, unsigned int *port)
{
	unsigned int value = 0, digits;

	for (digits = 0; text[digits]; digits++) {
		if (text[digits] < '0' || text[digits] > '9' || digits == PORT_DIGITS)
			return -EINVAL;
		value = value * 10 + (unsigned int)(text[digits] - '0');
	}
	if (digits == 0 || value > 65535)
		return -EINVAL;
	*port = value;
	return 0;
}

static int parse_unix(const char *path, struct dmp_address *address)
{
	struct sockaddr_un *target = (struct sockaddr_un *)&address->socket;
	size_t length = strlen(path);

	if (path[0] != '/' || length >= sizeof(target->sun_path))
		return -EINVAL;
	target->sun_family = AF_UNIX;
	memcpy(target->sun_path, path, length + 1);
	address->length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length + 1);
	address->is_unix = true;
	address->is_loopback = true;
	return 0;
}

/* Cuts "host:port" or "[host]:port" in two, in place. */
static int split(char *text, char **host, char **port, bool *bracketed)
{
	char *colon = strrchr(text, ':');

	if (!colon || colon == text)
		return -EINVAL;
	*colon = '\0';
	*port = colon + 1;
	*bracketed = text[0] == '[';
	if (!*bracketed) {
		/* More colons: IPv6 without brackets, where the port cannot be told apart. */
		*host = text;
		return strpbrk(text, ":[]") ? -EINVAL : 0;
	}
	if (colon - text < 3 || colon[-1] != ']')
		return -EINVAL;
	colon[-1] = '\0';
	*host = text + 1;
	return strpbrk(*host, "[]") ? -EINVAL : 0;
}

static int resolve_error(int error)
{
	switch (error) {
	case EAI_MEMORY:
		return -ENOMEM;
	case EAI_SYSTEM:
		return errno == EMFILE || errno == ENFILE ? -errno : -EHOSTUNREACH;
	default:
		return -EHOSTUNREACH;
	}
}

static int resolve(const char *host, bool numeric_ipv6, struct dmp_address *address)
{
	struct addrinfo hints = { .ai_family = numeric_ipv6 ? AF_INET6 : AF_UNSPEC,
				  .ai_flags = numeric_ipv6 ? AI_NUMERICHOST : 0,
				  .ai_socktype = SOCK_STREAM };
	struct addrinfo *found = NULL, *chosen = NULL, *each;
	int error = getaddrinfo(host, NULL, &hints, &found);

	if (error)
		return numeric_ipv6 && error != EAI_MEMORY ? -EINVAL : resolve_error(error);
	for (each = found; each; each = each->ai_next) {
		if (each->ai_family != AF_INET && each->ai_family != AF_INET6)
			continue;
		if (!chosen || (each->ai_family == AF_INET && chosen->ai_family != AF_INET))
			chosen = each;
	}
	if (chosen) {
		memcpy(&address->socket, chosen->ai_addr, chosen->ai_addrlen);
		address->length = chosen->ai_addrlen;
	}
	freeaddrinfo(found);
	return chosen ? 0 : -EHOSTUNREACH;
}

static void unmap_ipv4(struct sockaddr_storage *socket, socklen_t *length)
{
	struct sockaddr_in6 wide;
	struct sockaddr_in *narrow = ipv4_of(socket);

	if (socket->ss_family != AF_INET6 || !IN6_IS_ADDR_V4MAPPED(&ipv6_of(socket)->sin6_addr))
		return;
	memcpy(&wide, socket, sizeof(wide));
	memset(socket, 0, sizeof(*socket));
	narrow->sin_family = AF_INET;
	narrow->sin_port = wide.sin6_port;
	memcpy(&narrow->sin_addr, &wide.sin6_addr.s6_addr[12], sizeof(narrow->sin_addr));
	*length = sizeof(*narrow);
}

static bool is_unspecified(const struct dmp_address *address)
{
	const struct sockaddr_in *ipv4 = (const struct sockaddr_in *)&address->socket;
	const struct sockaddr_in6 *ipv6 = (const struct sockaddr_in6 *)&address->socket;

	return address->socket.ss_family == AF_INET ?
		       ipv4->sin_addr.s_addr == htonl(INADDR_ANY) :
		       IN6_IS_ADDR_UNSPECIFIED(&ipv6->sin6_addr);
}

static bool is_loopback(const struct dmp_address *address)
{
	const struct sockaddr_in *ipv4 = (const struct sockaddr_in *)&address->socket;
	const struct sockaddr_in6 *ipv6 = (const struct sockaddr_in6 *)&address->socket;

	return address->socket.ss_family == AF_INET ?
		       ntohl(ipv4->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET :
		       IN6_IS_ADDR_LOOPBACK(&ipv6->sin6_addr);
}

static void set_port(struct dmp_address *address, unsigned int port)
{
	if (address->socket.ss_family == AF_INET)
		ipv4_of(&address->socket)->sin_port = htons((uint16_t)port);
	else
		ipv6_of(&address->socket)->sin6_port = htons((uint16_t)port);
}

static int parse_tcp(char *text, bool listening, struct dmp_address *address)
{
	unsigned int port = 0;
	char *host, *digits;
	bool bracketed;
	int error = split(text, &host, &digits, &bracketed);

	if (!error)
		error = parse_port(digits, &port);
	if (!error && port == 0 && !listening)
		error = -EINVAL;
	if (!error)
		error = resolve(host, bracketed, address);
	if (error)
		return error;
	unmap_ipv4(&address->socket, &address->length);
	if (!listening && is_unspecified(address)) {
		if (address->socket.ss_family == AF_INET)
			ipv4_of(&address->socket)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		else
			ipv6_of(&address->socket)->sin6_addr = in6addr_loopback;
	}
	set_port(address, port);
	address->is_loopback = is_loopback(address);
	return 0;
}

int dmp_address_parse(const __u8 text[DMP_ADDRESS_BYTES], bool listening,
		      struct dmp_address *address)
{
	struct dmp_address parsed;
	char copy[DMP_ADDRESS_BYTES];
	size_t length;
	int error;

	memset(&parsed, 0, sizeof(parsed));
	memcpy(copy, text, sizeof(copy));
	for (length = 0; length < sizeof(copy) && copy[length]; length++)
		if ((unsigned char)copy[length] <= ' ' || copy[length] == 0x7f)
			return -EINVAL;
	if (length == 0 || length == sizeof(copy))
		return -EINVAL;
	if (strncmp(copy, UNIX_PREFIX, strlen(UNIX_PREFIX)) == 0)
		error = parse_unix(copy + strlen(UNIX_PREFIX), &parsed);
	else
		error = parse_tcp(copy, listening, &parsed);
	if (!error)
		*address = parsed;
	return error;
}

static void print_host(const struct sockaddr_storage *socket, socklen_t length, char *host,
		       size_t room)
{
	if (getnameinfo((const struct sockaddr *)socket, length, host, (socklen_t)room, NULL, 0,
			NI_NUMERICHOST) != 0)
		host[0] = '\0';
}

void dmp_address_print(const struct sockaddr_storage *socket, socklen_t length,
		       __u8 text[DMP_ADDRESS_BYTES])
{
	const struct sockaddr_un *local = (const struct sockaddr_un *)socket;
	struct dmp_address address = { .length = length };
	char host[NI_MAXHOST];

	memset(text, 0, DMP_ADDRESS_BYTES);
	if (socket->ss_family == AF_UNIX) {
		snprintf((char *)text, DMP_ADDRESS_BYTES, UNIX_PREFIX "%.*s",
			 (int)(length - offsetof(struct sockaddr_un, sun_path)), local->sun_path);
		return;
	}
	if (socket->ss_family != AF_INET && socket->ss_family != AF_INET6)
		return;
	memcpy(&address.socket, socket, sizeof(address.socket));
	unmap_ipv4(&address.socket, &address.length);
	print_host(&address.socket, address.length, host, sizeof(host));
	snprintf((char *)text, DMP_ADDRESS_BYTES,
		 address.socket.ss_family == AF_INET ? "%.64s:%u" : "[%.64s]:%u", host,
		 dmp_address_port(&address));
}

__u64 dmp_address_origin(const struct sockaddr_storage *socket)
{
	const struct sockaddr_in *ipv4 = (const struct sockaddr_in *)socket;
	const struct sockaddr_in6 *ipv6 = (const struct sockaddr_in6 *)socket;

	if (socket->ss_family == AF_INET)
		return dmp_origin_of_ipv4(ntohl(ipv4->sin_addr.s_addr));
	return dmp_origin_of_ipv6(ipv6->sin6_addr.s6_addr);
}

/*
 * A route to our own address leads from that address to itself. (That a socket can be bound
 * to it would say less: where ip_nonlocal_bind is set, any address can be bound.)
 */
bool dmp_address_is_local(const struct dmp_address *address)
{
	struct dmp_address mine = { .length = sizeof(mine.socket) };
	struct dmp_address theirs = *address;
	bool local = false;
	int probe;

	if (address->is_loopback)
		return true;
	probe = socket(address->socket.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (probe < 0)
		return false;
	if (connect(probe, (const struct sockaddr *)&address->socket, address->length) == 0 &&
	    getsockname(probe, (struct sockaddr *)&mine.socket, &mine.length) == 0) {
		char here[NI_MAXHOST], there[NI_MAXHOST];

		print_host(&mine.socket, mine.length, here, sizeof(here));
		print_host(&theirs.socket, theirs.length, there, sizeof(there));
		local = here[0] != '\0' && strcmp(here, there) == 0;
	}
	close(probe);
	return local;
}

void dmp_address_door(const struct dmp_address *address, struct sockaddr_un *door,
		      socklen_t *length)
{
	char host[NI_MAXHOST] = "any";
	int count;

	if (!is_unspecified(address))
		print_host(&address->socket, address->length, host, sizeof(host));
	memset(door, 0, sizeof(*door));
	door->sun_family = AF_UNIX;
	/* The first byte stays 0: an abstract name, of this network namespace. */
	count = snprintf(door->sun_path + 1, sizeof(door->sun_path) - 1, DOOR_PREFIX "/%u/%.64s",
			 dmp_address_port(address), host);
	*length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)count);
}

void dmp_address_make_any(struct dmp_address *address)
{
	if (address->socket.ss_family == AF_INET)
		ipv4_of(&address->socket)->sin_addr.s_addr = htonl(INADDR_ANY);
	else
		ipv6_of(&address->socket)->sin6_addr = in6addr_any;
	address->is_loopback = false;
}

unsigned int dmp_address_port(const struct dmp_address *address)
{
	switch (address->socket.ss_family) {
	case AF_INET:
		return ntohs(((const struct sockaddr_in *)&address->socket)->sin_port);
	case AF_INET6:
		return ntohs(((const struct sockaddr_in6 *)&address->socket)->sin6_port);
	default:
		return 0;
	}
}
