// SPDX-License-Identifier: GPL-2.0
/* address.c - see address.h */
#include "address.h"

#include <linux/ctype.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/inet.h>
#include <linux/kernel.h>
#include <linux/string.h>
#include <net/ipv6.h>

#include "origin.h"

#define UNIX_PREFIX	"unix:"
#define PORT_DIGITS	5

static struct sockaddr_in *ipv4_of(struct sockaddr_storage *address)
{
	return (struct sockaddr_in *)address;
}

static struct sockaddr_in6 *ipv6_of(struct sockaddr_storage *address)
{
	return (struct sockaddr_in6 *)address;
}

static int parse_port(const char *digits, u16 *port)
{
	size_t length = strlen(digits);

	if (length == 0 || length > PORT_DIGITS || !isdigit(digits[0]))
		return -EINVAL;
	return kstrtou16(digits, 10, port) ? -EINVAL : 0;
}

/* Cuts @text at the colon before the port. */
static int split(char *text, char **host, char **digits, bool *bracketed)
{
	char *end;

	*bracketed = text[0] == '[';
	if (*bracketed) {
		*host = text + 1;
		end = strchr(text, ']');
		if (!end || end[1] != ':')
			return -EINVAL;
		*digits = end + 2;
	} else {
		*host = text;
		end = strchr(text, ':');
		if (!end || strchr(end + 1, ':'))
			return -EINVAL;
		*digits = end + 1;
	}
	*end = '\0';
	return end == *host ? -EINVAL : 0;
}

static int parse_host(const char *host, bool bracketed, struct sockaddr_storage *address)
{
	struct in6_addr wide;

	if (!bracketed) {
		address->ss_family = AF_INET;
		/* What is no number is a name, and nobody here knows any. */
		if (!in4_pton(host, -1, (u8 *)&ipv4_of(address)->sin_addr, -1, NULL))
			return -EHOSTUNREACH;
		return 0;
	}
	if (!in6_pton(host, -1, wide.s6_addr, -1, NULL))
		return -EINVAL;
	if (ipv6_addr_v4mapped(&wide)) {
		address->ss_family = AF_INET;
		ipv4_of(address)->sin_addr.s_addr = wide.s6_addr32[3];
		return 0;
	}
	address->ss_family = AF_INET6;
	ipv6_of(address)->sin6_addr = wide;
	return 0;
}

static void reach_ourselves(struct sockaddr_storage *address)
{
	if (address->ss_family == AF_INET) {
		if (ipv4_of(address)->sin_addr.s_addr == htonl(INADDR_ANY))
			ipv4_of(address)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	} else if (ipv6_addr_any(&ipv6_of(address)->sin6_addr)) {
		ipv6_of(address)->sin6_addr = in6addr_loopback;
	}
}

static int parse_tcp(char *text, bool listening, struct sockaddr_storage *address)
{
	char *host, *digits;
	bool bracketed;
	u16 port = 0;
	int error = split(text, &host, &digits, &bracketed);

	if (!error)
		error = parse_port(digits, &port);
	if (!error && port == 0 && !listening)
		error = -EINVAL;
	if (!error)
		error = parse_host(host, bracketed, address);
	if (error)
		return error;
	if (!listening)
		reach_ourselves(address);
	if (address->ss_family == AF_INET)
		ipv4_of(address)->sin_port = htons(port);
	else
		ipv6_of(address)->sin6_port = htons(port);
	return 0;
}

int dmp_address_parse(const u8 text[DMP_ADDRESS_BYTES], bool listening,
		      struct sockaddr_storage *address)
{
	char copy[DMP_ADDRESS_BYTES];
	size_t length;

	memset(address, 0, sizeof(*address));
	memcpy(copy, text, sizeof(copy));
	for (length = 0; length < sizeof(copy) && copy[length]; length++)
		if ((unsigned char)copy[length] <= ' ' || copy[length] == 0x7f)
			return -EINVAL;
	if (length == 0 || length == sizeof(copy))
		return -EINVAL;
	if (strstarts(copy, UNIX_PREFIX))
		return -EOPNOTSUPP;
	return parse_tcp(copy, listening, address);
}

void dmp_address_print(const struct sockaddr_storage *address, u8 text[DMP_ADDRESS_BYTES])
{
	memset(text, 0, DMP_ADDRESS_BYTES);
	if (address->ss_family == AF_INET6 &&
	    ipv6_addr_v4mapped(&((const struct sockaddr_in6 *)address)->sin6_addr)) {
		const struct sockaddr_in6 *wide = (const struct sockaddr_in6 *)address;

		snprintf((char *)text, DMP_ADDRESS_BYTES, "%pI4:%u", &wide->sin6_addr.s6_addr32[3],
			 ntohs(wide->sin6_port));
		return;
	}
	snprintf((char *)text, DMP_ADDRESS_BYTES, "%pISpc", address);
}

bool dmp_address_is_loopback(const struct sockaddr_storage *address)
{
	if (address->ss_family == AF_INET)
		return ipv4_is_loopback(((const struct sockaddr_in *)address)->sin_addr.s_addr);
	return ipv6_addr_loopback(&((const struct sockaddr_in6 *)address)->sin6_addr);
}

u64 dmp_address_origin(const struct sockaddr_storage *address)
{
	if (address->ss_family == AF_INET) {
		const struct sockaddr_in *ipv4 = (const struct sockaddr_in *)address;

		return dmp_origin_of_ipv4(ntohl(ipv4->sin_addr.s_addr));
	}
	return dmp_origin_of_ipv6(((const struct sockaddr_in6 *)address)->sin6_addr.s6_addr);
}
