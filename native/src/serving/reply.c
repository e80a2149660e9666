/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is written to the kernel.  A reply is one writev(): header, then data.
 *
 * Errors are not looked at.  ENOENT says that the request has ended meanwhile,
 * EINVAL that the kernel did not like the reply, in which case it fails the
 * request; and a connection that is gone shows at the next read.
 */
#include "reply.h"

#include <errno.h>
#include <sys/uio.h>
#include <unistd.h>

#include "fuse_abi.h"
#include "server_state.h"

static void reply(int fd, uint64_t unique, int error, const void *data,
		  size_t size)
{
	struct fuse_out_header header = {
		.len = (uint32_t)(sizeof(header) + size),
		.error = -error,
		.unique = unique,
	};
	struct iovec parts[2] = {
		{.iov_base = &header, .iov_len = sizeof(header)},
		{.iov_base = (void *)(uintptr_t)data, .iov_len = size},
	};
	ssize_t written;

	do {
		written = writev(fd, parts, size ? 2 : 1);
	} while (written < 0 && errno == EINTR);
}

void lfs_reply(const struct lfs_worker *worker, uint64_t unique,
	       const void *data, size_t size)
{
	reply(worker->fd, unique, 0, data, size);
}

void lfs_reply_error(const struct lfs_worker *worker, uint64_t unique,
		     int error)
{
	reply(worker->fd, unique, error, NULL, 0);
}

void lfs_reply_xattr(const struct lfs_worker *worker, uint64_t unique,
		     const void *data, size_t size, uint32_t wanted)
{
	struct fuse_getxattr_out out = {.size = (uint32_t)size};

	if (!wanted)
		lfs_reply(worker, unique, &out, sizeof(out));
	else if (size > wanted)
		lfs_reply_error(worker, unique, ERANGE);
	else
		lfs_reply(worker, unique, data, size);
}
