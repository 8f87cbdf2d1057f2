/* SPDX-License-Identifier: MIT */
/*
 * address.h - "host:port", "[host]:port" and "unix:/path", and who they reach
 *
 * A tcp address that is local also has a shm door: an abstract unix socket whose name is
 * made of the port, so that it lives in the same network namespace as the port does.
 */
#ifndef DMP_ADDRESS_H
#define DMP_ADDRESS_H

#include <stdbool.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "dmaplane.h"

struct dmp_address {
	struct sockaddr_storage socket;
	socklen_t length;
	bool is_unix;		/* "unix:/path" */
	bool is_loopback;	/* unix, or 127.0.0.0/8, or ::1: no secret is needed */
};

/* @text is DMP_ADDRESS_BYTES from outside, perhaps without a NUL: -EINVAL, -EHOSTUNREACH. */
int dmp_address_parse(const __u8 text[DMP_ADDRESS_BYTES], bool listening,
		      struct dmp_address *address);

/* NUL ended and zero filled. */
void dmp_address_print(const struct sockaddr_storage *socket, socklen_t length,
		       __u8 text[DMP_ADDRESS_BYTES]);

/* Whom an address is counted as, where it failed to prove a secret (core/origin.h). */
__u64 dmp_address_origin(const struct sockaddr_storage *socket);

/* Does this machine (this network namespace) have the address itself? */
bool dmp_address_is_local(const struct dmp_address *address);

/* The abstract name of the shm door of a tcp address with a port. */
void dmp_address_door(const struct dmp_address *address, struct sockaddr_un *door,
		      socklen_t *length);

/* The same port on every address of the machine: whose door stands in for an exact one. */
void dmp_address_make_any(struct dmp_address *address);

/* Port, in host order; 0 for unix. */
unsigned int dmp_address_port(const struct dmp_address *address);

#endif /* DMP_ADDRESS_H */
