/* SPDX-License-Identifier: GPL-2.0 */
/*
 * address.h - "host:port" and "[host]:port", and who they reach
 *
 * The kernel resolves no names: a host is a number. IPv4 inside IPv6 becomes IPv4, and the
 * unspecified address becomes loopback for who connects, as in the embedded plane.
 */
#ifndef DMP_KERNEL_ADDRESS_H
#define DMP_KERNEL_ADDRESS_H

#include <linux/socket.h>

#include "dmaplane.h"
#include "types.h"

/*
 * @text is DMP_ADDRESS_BYTES from outside, perhaps without a NUL. -EINVAL; -EHOSTUNREACH a
 * name; -EOPNOTSUPP "unix:..." .
 */
int dmp_address_parse(const u8 text[DMP_ADDRESS_BYTES], bool listening,
		      struct sockaddr_storage *address);

/* NUL ended and zero filled. */
void dmp_address_print(const struct sockaddr_storage *address, u8 text[DMP_ADDRESS_BYTES]);

/* Loopback: no secret is needed. */
bool dmp_address_is_loopback(const struct sockaddr_storage *address);

/* Whom it is counted as, where it failed to prove a secret (core/origin.h). */
u64 dmp_address_origin(const struct sockaddr_storage *address);

#endif /* DMP_KERNEL_ADDRESS_H */
