/* SPDX-License-Identifier: MIT */
/*
 * door.h - the sockets on which one address is listened on
 *
 * A tcp address has a tcp socket and a door, an abstract unix socket, for those of our user
 * on this machine; where there is a device for the address it is listened on for RDMA too, at
 * the same port. Listened on for shm or verbs only, the tcp socket keeps the port and refuses. A
 * unix path has its socket alone.
 */
#ifndef DMP_DOOR_H
#define DMP_DOOR_H

#include "address.h"

struct dmp_verbs_door;

struct dmp_doors {
	struct dmp_address address;	/* with the port that was really taken */
	int tcp;			/* listens, or keeps the port; -1: none */
	int local;			/* unix; -1: none */
	bool tcp_listens;
	struct dmp_verbs_door *verbs;	/* NULL: none */
	/* a unix path: the file we made, which we take away if it is still that one */
	__u64 file_device;
	__u64 file_inode;
};

/*
 * @require is a DMP_PATH_* or 0. @encrypt: no door over verbs, where nobody encrypts; who knocks
 * there is told so (EOPNOTSUPP) on tcp. -EADDRINUSE, -EPERM, -ENODEV, -EHOSTUNREACH (the
 * address is not ours), -EINVAL (no such directory), -EMFILE, -EOPNOTSUPP (verbs, encrypted).
 */
int dmp_doors_open(struct dmp_doors *doors, const struct dmp_address *address, __u32 require,
		   bool encrypt, __u32 backlog);
void dmp_doors_close(struct dmp_doors *doors);

/* A socket that is connected to a unix address, or -errno; does not block (-EAGAIN: full). */
int dmp_door_knock(const struct sockaddr_un *name, socklen_t length);

/* Is the process at the other end of a unix socket of our user? */
bool dmp_door_is_ours(int socket);

#endif /* DMP_DOOR_H */
