/* SPDX-License-Identifier: MIT */
/* tcp.h - the fabric between any two machines: one connected socket */
#ifndef DMP_TCP_H
#define DMP_TCP_H

#include "fabric.h"

/*
 * Sets what we need on a connected socket (no delay, not blocking, keepalive, buffers); it
 * is the fabric's then, and still the caller's after an error.
 */
int dmp_tcp_fabric(int socket, struct dmp_fabric **fabric);

#endif /* DMP_TCP_H */
