// SPDX-License-Identifier: MIT
/* test_address.c - what is an address, what is none, whose it is, and where its door is */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <stddef.h>
#include <string.h>

#include "address.h"
#include "core/check.h"

static int parse(const char *text, bool listening, struct dmp_address *address)
{
	__u8 bytes[DMP_ADDRESS_BYTES] = { 0 };

	CHECK(strlen(text) <= sizeof(bytes));
	memcpy(bytes, text, strlen(text));
	memset(address, 0x5a, sizeof(*address));
	return dmp_address_parse(bytes, listening, address);
}

static void test_an_address_prints_as_it_was_written(void)
{
	static const struct {
		const char *text;
		const char *printed;
		bool unix_path, loopback;
		unsigned int port;
	} rows[] = {
		{ "127.0.0.1:7471", "127.0.0.1:7471", false, true, 7471 },
		{ "127.255.0.9:1", "127.255.0.9:1", false, true, 1 },
		{ "10.1.2.3:65535", "10.1.2.3:65535", false, false, 65535 },
		{ "128.0.0.1:00080", "128.0.0.1:80", false, false, 80 },
		{ "[::1]:7471", "[::1]:7471", false, true, 7471 },
		{ "[2001:db8::7]:9", "[2001:db8::7]:9", false, false, 9 },
		{ "[::ffff:127.0.0.1]:5", "127.0.0.1:5", false, true, 5 },
		{ "[::ffff:10.0.0.1]:5", "10.0.0.1:5", false, false, 5 },
		{ "localhost:7471", "127.0.0.1:7471", false, true, 7471 },
		{ "unix:/run/door", "unix:/run/door", true, true, 0 },
		{ "unix:/a:b[c]", "unix:/a:b[c]", true, true, 0 },
	};
	__u8 printed[DMP_ADDRESS_BYTES], zero[DMP_ADDRESS_BYTES] = { 0 };
	struct dmp_address address;
	unsigned int row;

	for (row = 0; row < sizeof(rows) / sizeof(rows[0]); row++) {
		size_t length = strlen(rows[row].printed);

		CHECK(parse(rows[row].text, row % 2, &address) == 0);
		CHECK(address.is_unix == rows[row].unix_path);
		CHECK(address.is_loopback == rows[row].loopback);
		CHECK(dmp_address_port(&address) == rows[row].port);
		memset(printed, 0xff, sizeof(printed));
		dmp_address_print(&address.socket, address.length, printed);
		CHECK(memcmp(printed, rows[row].printed, length) == 0);
		CHECK(memcmp(printed + length, zero, sizeof(zero) - length) == 0);
	}
}

static void test_what_is_no_address_is_refused_and_leaves_the_answer_alone(void)
{
	static const char *const rows[] = {
		"", ":", ":7471", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536",
		"127.0.0.1:100000", "127.0.0.1:-1", "127.0.0.1:+1", "127.0.0.1: 1",
		"127.0.0.1:1 ", " 127.0.0.1:1", "127.0.0.1:0x10", "127.0.0.1:7a",
		"127.0.0.1:7471:1", "::1:7471", "[::1]", "[::1]7471", "[::1]:", "[]:1", "[:1",
		"[::1:1", "::1]:1", "[[::1]]:1", "[::1]]:1", "[127.0.0.1]:1", "[localhost]:1",
		"[::1\n]:1", "a\tb:1", "\x7f:1", "\x01:1", "unix:", "unix:relative", "unix:@name",
		"unix:/with space", "unix:/new\nline", "tcp:/x:y",
	};
	struct dmp_address address, untouched;
	unsigned int row;

	memset(&untouched, 0x5a, sizeof(untouched));
	for (row = 0; row < sizeof(rows) / sizeof(rows[0]); row++) {
		CHECK(parse(rows[row], true, &address) == -EINVAL);
		CHECK(memcmp(&address, &untouched, sizeof(address)) == 0);
		CHECK(parse(rows[row], false, &address) == -EINVAL);
	}
}

static void test_the_longest_path_fits(void)
{
	char text[DMP_ADDRESS_BYTES] = "unix:/";
	struct dmp_address address;
	__u8 printed[DMP_ADDRESS_BYTES];

	memset(text + 6, 'p', 106);
	CHECK(parse(text, true, &address) == 0);
	dmp_address_print(&address.socket, address.length, printed);
	CHECK(strcmp((char *)printed, text) == 0);
	text[112] = 'p';
	CHECK(parse(text, true, &address) == -EINVAL);
}

static void test_bytes_without_an_end_are_refused(void)
{
	struct dmp_address address;
	__u8 bytes[DMP_ADDRESS_BYTES];
	unsigned int fill;

	for (fill = 1; fill < 256; fill++) {
		memset(bytes, (int)fill, sizeof(bytes));
		CHECK(dmp_address_parse(bytes, true, &address) == -EINVAL);
		memcpy(bytes, "127.0.0.1:7471", 14);
		CHECK(dmp_address_parse(bytes, true, &address) == -EINVAL);
		memcpy(bytes, "unix:/", 6);
		CHECK(dmp_address_parse(bytes, true, &address) == -EINVAL);
	}
}

/* One byte changed to anything, anywhere: an answer, and what is accepted prints. */
static void test_hostile_bytes_do_no_harm(void)
{
	static const char *const rows[] = { "127.0.0.1:7471", "[::1]:7471", "unix:/run/door" };
	struct dmp_address address;
	__u8 bytes[DMP_ADDRESS_BYTES];
	unsigned int row, at, value;

	for (row = 0; row < 3; row++) {
		for (at = 0; at < strlen(rows[row]); at++) {
			for (value = 0; value < 256; value++) {
				/* Other hosts would be names, which somebody would be asked for. */
				if (row == 0 && at < 9 && value > ' ' && !strchr(":[]", (int)value))
					continue;
				if (row == 1 && at == 0 && value != '[')
					continue;
				if (row == 2 && at < 5)
					continue;
				memset(bytes, 0, sizeof(bytes));
				memcpy(bytes, rows[row], strlen(rows[row]));
				bytes[at] = (__u8)value;
				if (dmp_address_parse(bytes, true, &address) == 0) {
					dmp_address_print(&address.socket, address.length, bytes);
					CHECK(bytes[0] != 0);
					CHECK(bytes[DMP_ADDRESS_BYTES - 1] == 0);
				}
			}
		}
	}
}

static void test_port_0_is_for_listeners_only(void)
{
	struct dmp_address address;

	CHECK(parse("127.0.0.1:0", true, &address) == 0);
	CHECK(dmp_address_port(&address) == 0);
	CHECK(parse("127.0.0.1:0", false, &address) == -EINVAL);
}

static void test_a_name_nobody_has_is_unreachable(void)
{
	struct dmp_address address;

	CHECK(parse("no-such-host.invalid:1", false, &address) == -EHOSTUNREACH);
}

static void test_any_address_is_listened_on_and_connects_to_loopback(void)
{
	struct dmp_address address;
	__u8 printed[DMP_ADDRESS_BYTES];

	CHECK(parse("0.0.0.0:5", true, &address) == 0);
	CHECK(!address.is_loopback);
	CHECK(parse("[::]:5", true, &address) == 0);
	CHECK(!address.is_loopback);
	CHECK(parse("0.0.0.0:5", false, &address) == 0);
	CHECK(address.is_loopback);
	dmp_address_print(&address.socket, address.length, printed);
	CHECK(strcmp((char *)printed, "127.0.0.1:5") == 0);
	CHECK(parse("[::]:5", false, &address) == 0);
	dmp_address_print(&address.socket, address.length, printed);
	CHECK(strcmp((char *)printed, "[::1]:5") == 0);
}

static void test_local_is_what_this_machine_owns(void)
{
	struct dmp_address address;
	struct ifaddrs *all, *each;

	CHECK(parse("127.1.2.3:9", false, &address) == 0 && dmp_address_is_local(&address));
	CHECK(parse("[::1]:9", false, &address) == 0 && dmp_address_is_local(&address));
	CHECK(parse("unix:/x", false, &address) == 0 && dmp_address_is_local(&address));
	/* Addresses for documentation belong to nobody. */
	CHECK(parse("192.0.2.1:9", false, &address) == 0 && !dmp_address_is_local(&address));
	CHECK(parse("198.51.100.7:9", false, &address) == 0 && !dmp_address_is_local(&address));
	CHECK(parse("[2001:db8::7]:9", false, &address) == 0 && !dmp_address_is_local(&address));
	CHECK(parse("255.255.255.255:9", false, &address) == 0 && !dmp_address_is_local(&address));
	CHECK(getifaddrs(&all) == 0);
	for (each = all; each; each = each->ifa_next) {
		if (!each->ifa_addr || each->ifa_addr->sa_family != AF_INET)
			continue;
		memset(&address, 0, sizeof(address));
		memcpy(&address.socket, each->ifa_addr, sizeof(struct sockaddr_in));
		address.length = sizeof(struct sockaddr_in);
		((struct sockaddr_in *)&address.socket)->sin_port = htons(9);
		CHECK(dmp_address_is_local(&address));
	}
	freeifaddrs(all);
}

static void door_of(const char *text, bool any, char name[108])
{
	struct dmp_address address;
	struct sockaddr_un door;
	socklen_t length;

	CHECK(parse(text, true, &address) == 0);
	if (any)
		dmp_address_make_any(&address);
	dmp_address_door(&address, &door, &length);
	CHECK(door.sun_family == AF_UNIX);
	CHECK(door.sun_path[0] == '\0');
	CHECK(length > offsetof(struct sockaddr_un, sun_path) + 1 && length <= sizeof(door));
	memset(name, 0, 108);
	memcpy(name, door.sun_path + 1, length - offsetof(struct sockaddr_un, sun_path) - 1);
}

static void test_a_door_is_named_after_port_and_address(void)
{
	static const struct {
		const char *text;
		const char *door;
	} rows[] = {
		{ "127.0.0.1:7471", "dmaplane/tcp/7471/127.0.0.1" },
		{ "127.0.0.2:7471", "dmaplane/tcp/7471/127.0.0.2" },
		{ "127.0.0.1:7472", "dmaplane/tcp/7472/127.0.0.1" },
		{ "[::ffff:127.0.0.1]:7471", "dmaplane/tcp/7471/127.0.0.1" },
		{ "[2001:db8:0:0::7]:1", "dmaplane/tcp/1/2001:db8::7" },
		{ "0.0.0.0:65535", "dmaplane/tcp/65535/any" },
		{ "[::]:65535", "dmaplane/tcp/65535/any" },
	};
	char name[108];
	unsigned int row;

	for (row = 0; row < sizeof(rows) / sizeof(rows[0]); row++) {
		door_of(rows[row].text, false, name);
		CHECK(strcmp(name, rows[row].door) == 0);
	}
	door_of("127.0.0.1:7471", true, name);
	CHECK(strcmp(name, "dmaplane/tcp/7471/any") == 0);
	door_of("[::1]:7471", true, name);
	CHECK(strcmp(name, "dmaplane/tcp/7471/any") == 0);
}

int main(void)
{
	test_an_address_prints_as_it_was_written();
	test_what_is_no_address_is_refused_and_leaves_the_answer_alone();
	test_the_longest_path_fits();
	test_bytes_without_an_end_are_refused();
	test_hostile_bytes_do_no_harm();
	test_port_0_is_for_listeners_only();
	test_a_name_nobody_has_is_unreachable();
	test_any_address_is_listened_on_and_connects_to_loopback();
	test_local_is_what_this_machine_owns();
	test_a_door_is_named_after_port_and_address();
	return 0;
}
