// SPDX-License-Identifier: MIT
/* door.c - see door.h */
#define _GNU_SOURCE
#include "door.h"

#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "verbs.h"

#define KERNEL_BACKLOG_MIN 1024u	/* a burst waits there; beyond it tcp is a second late */

static int listen_error(int error)
{
	switch (error) {
	case EACCES:
	case EROFS:
		return -EPERM;
	case EADDRNOTAVAIL:
	case EAFNOSUPPORT:
		return -EHOSTUNREACH;
	case ENOENT:
	case ENOTDIR:
	case ELOOP:
	case ENAMETOOLONG:
		return -EINVAL;
	default:
		return -error;
	}
}

static int start_listening(int socket, __u32 backlog)
{
	if (backlog < KERNEL_BACKLOG_MIN)
		backlog = KERNEL_BACKLOG_MIN;
	return listen(socket, (int)backlog) == 0 ? 0 : listen_error(errno);
}

static int open_tcp(struct dmp_doors *doors, bool listens, __u32 backlog)
{
	struct dmp_address *address = &doors->address;
	int fd, error, on = 1, off = 0;

	fd = socket(address->socket.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return listen_error(errno);
	if (address->socket.ss_family == AF_INET6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
	/*
	 * Connections of an earlier listener, closed a minute ago, do not keep the port. With
	 * port 0 only after bind: until then it would widen what the kernel chooses from.
	 */
	if (dmp_address_port(address) != 0)
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(fd, (struct sockaddr *)&address->socket, address->length) != 0 ||
	    getsockname(fd, (struct sockaddr *)&address->socket, &address->length) != 0) {
		error = listen_error(errno);
		goto err_close;
	}
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	error = listens ? start_listening(fd, backlog) : 0;
	if (error)
		goto err_close;
	doors->tcp = fd;
	doors->tcp_listens = listens;
	return 0;

err_close:
	close(fd);
	return error;
}

/* An unnamed, unconnected socket of the kind shm speaks; nobody else may open its file. */
static int new_local(void)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd >= 0 && fchmod(fd, 0600) != 0) {
		close(fd);
		errno = EPERM;
		return -1;
	}
	return fd;
}

int dmp_door_knock(const struct sockaddr_un *name, socklen_t length)
{
	int error, fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	if (connect(fd, (const struct sockaddr *)name, length) == 0)
		return fd;
	error = -errno;
	close(fd);
	return error;
}

bool dmp_door_is_ours(int socket)
{
	struct ucred peer;
	socklen_t length = sizeof(peer);

	return getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 &&
	       peer.uid == geteuid();
}

/* The door next to a tcp socket. Its name is taken by a stranger: only required shm minds. */
static int open_door(struct dmp_doors *doors, bool required, __u32 backlog)
{
	struct sockaddr_un name;
	socklen_t length;
	int fd, other, error;
	bool ours;

	dmp_address_door(&doors->address, &name, &length);
	fd = new_local();
	if (fd < 0)
		return listen_error(errno);
	error = bind(fd, (struct sockaddr *)&name, length) == 0 ? start_listening(fd, backlog) :
								  listen_error(errno);
	if (!error) {
		doors->local = fd;
		return 0;
	}
	close(fd);
	if (error != -EADDRINUSE || required)
		return error;
	other = dmp_door_knock(&name, length);
	/* A full queue does not say whose it is: better refuse. Who refuses listens to nobody. */
	ours = other == -EAGAIN || (other >= 0 && dmp_door_is_ours(other));
	if (other >= 0)
		close(other);
	return ours ? -EADDRINUSE : 0;
}

/* Does the file that keeps us from the path belong to a listener that is gone? Then it goes. */
static int remove_stale(const struct sockaddr_un *name, socklen_t length)
{
	struct stat before, after;
	int other;

	if (lstat(name->sun_path, &before) != 0)
		return errno == ENOENT ? 0 : listen_error(errno);
	if (!S_ISSOCK(before.st_mode) || before.st_uid != geteuid())
		return -EADDRINUSE;
	other = dmp_door_knock(name, length);
	if (other >= 0)
		close(other);
	if (other != -ECONNREFUSED)
		return -EADDRINUSE;
	if (lstat(name->sun_path, &after) != 0)
		return errno == ENOENT ? 0 : listen_error(errno);
	if (after.st_ino != before.st_ino || after.st_dev != before.st_dev)
		return -EADDRINUSE;
	return unlink(name->sun_path) == 0 || errno == ENOENT ? 0 : listen_error(errno);
}

static int open_path(struct dmp_doors *doors, __u32 backlog)
{
	const struct sockaddr_un *name = (const struct sockaddr_un *)&doors->address.socket;
	const struct sockaddr *address = (const struct sockaddr *)name;
	socklen_t length = doors->address.length;
	int fd = new_local(), error = 0;
	struct stat file;

	if (fd < 0)
		return listen_error(errno);
	if (bind(fd, address, length) != 0) {
		error = errno == EADDRINUSE ? remove_stale(name, length) : listen_error(errno);
		if (!error && bind(fd, address, length) != 0)
			error = listen_error(errno);
		if (error)
			goto err_close;
	}
	if (lstat(name->sun_path, &file) != 0) {
		error = -EADDRINUSE;	/* somebody took it away and will want the place */
		goto err_close;
	}
	doors->file_device = file.st_dev;
	doors->file_inode = file.st_ino;
	doors->local = fd;
	error = start_listening(fd, backlog);
	if (!error)
		return 0;
	dmp_doors_close(doors);
	return error;

err_close:
	close(fd);
	return error;
}

/*
 * RDMA at the same port, where there is a device for the address. Somebody who has the port there is
 * no listener of tcp: only required verbs minds.
 */
static int open_verbs(struct dmp_doors *doors, bool required, __u32 backlog)
{
	int error;

	if (!required && access(DMP_VERBS_MANAGER, R_OK | W_OK) != 0)
		return 0;
	error = dmp_verbs_door_open(&doors->address, backlog, &doors->verbs);
	return required ? error : 0;
}

int dmp_doors_open(struct dmp_doors *doors, const struct dmp_address *address, __u32 require,
		   bool encrypt, __u32 backlog)
{
	int error;

	memset(doors, 0, sizeof(*doors));
	doors->address = *address;
	doors->tcp = -1;
	doors->local = -1;
	if (require != 0 && require != DMP_PATH_SHM && require != DMP_PATH_TCP &&
	    require != DMP_PATH_VERBS)
		return -ENODEV;
	if (require == DMP_PATH_VERBS && encrypt)
		return -EOPNOTSUPP;
	if (address->is_unix)
		return require != 0 && require != DMP_PATH_SHM ? -ENODEV : open_path(doors, backlog);
	error = open_tcp(doors, require == 0 || require == DMP_PATH_TCP, backlog);
	if (!error && (require == 0 || require == DMP_PATH_SHM))
		error = open_door(doors, require == DMP_PATH_SHM, backlog);
	if (!error && !encrypt && (require == 0 || require == DMP_PATH_VERBS))
		error = open_verbs(doors, require == DMP_PATH_VERBS, backlog);
	if (error)
		dmp_doors_close(doors);
	return error;
}

void dmp_doors_close(struct dmp_doors *doors)
{
	const struct sockaddr_un *name = (const struct sockaddr_un *)&doors->address.socket;
	struct stat file;

	/* The file first: a path without a listener would look stale to others. */
	if (doors->local >= 0 && doors->address.is_unix && lstat(name->sun_path, &file) == 0 &&
	    file.st_dev == doors->file_device && file.st_ino == doors->file_inode)
		unlink(name->sun_path);
	if (doors->local >= 0)
		close(doors->local);
	if (doors->tcp >= 0)
		close(doors->tcp);
	if (doors->verbs)
		dmp_verbs_door_close(doors->verbs);
	doors->verbs = NULL;
	doors->local = -1;
	doors->tcp = -1;
}
