/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which request goes where, and the greeting.
 *
 * Everything that would change the image is EROFS; the kernel refuses nearly
 * all of it by itself, the mount being read-only.  Everything unknown is
 * ENOSYS, after which the kernel does without and does not ask again:
 *
 *   OPEN, OPENDIR    files and directories are opened without us, with kept
 *                    pages and cached directories
 *   FLUSH, FSYNC     nothing is ever dirty
 *   LSEEK            SEEK_DATA and SEEK_HOLE as for a file without holes
 *   STATX            GETATTR says all that we know
 */
#include "requests.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <time.h>

#include "attributes.h"
#include "contents.h"
#include "events.h"
#include "fuse_abi.h"
#include "metadata.h"
#include "reply.h"
#include "server_state.h"
#include "waiting.h"

/* Reads in the background that may be under way: of these the kernel counts
 * every read through its page cache.  As many as there can be: those that wait
 * for a registry that is away must not keep hits of other files waiting.  From
 * CONGESTION on the kernel reads ahead less. */
#define MAX_BACKGROUND 65535
#define CONGESTION 48
#define INTERRUPT_NANOSECONDS 500000

static void greet(struct lfs_worker *worker, const struct lfs_request *request)
{
	struct lfs_server *server = worker->server;
	uint64_t unique = request->header.unique;
	struct fuse_init_out out = {
		.major = FUSE_KERNEL_VERSION,
		.minor = LFS_FUSE_MINOR,
	};
	struct fuse_init_in in = {0};
	uint64_t offered, wanted;

	if (request->body_size < 8) {
		lfs_reply_error(worker, unique, EPROTO);
		return;
	}
	memcpy(&in, request->body,
	       request->body_size < sizeof(in) ? request->body_size
					       : sizeof(in));
	if (in.major > FUSE_KERNEL_VERSION) {
		/* The kernel greets again, in our version */
		lfs_reply(worker, unique, &out, sizeof(out));
		return;
	}
	if (in.major < FUSE_KERNEL_VERSION ||
	    in.minor < LFS_FUSE_OLDEST_MINOR) {
		lfs_reply_error(worker, unique, EPROTO);
		return;
	}
	offered = in.flags;
	if (in.minor >= 36 && (offered & LFS_INIT_EXT))
		offered |= (uint64_t)in.flags2 << 32;
	/* Without ASYNC_DIO: a reader with O_DIRECT then waits for one request,
	 * of which the kernel tells us when the reader is killed; with it, the
	 * reader could not be killed before all of its requests are answered */
	wanted = FUSE_ASYNC_READ | FUSE_EXPORT_SUPPORT | FUSE_SPLICE_WRITE |
		 FUSE_SPLICE_MOVE | FUSE_DO_READDIRPLUS |
		 FUSE_READDIRPLUS_AUTO | FUSE_NO_OPEN_SUPPORT |
		 FUSE_PARALLEL_DIROPS | FUSE_POSIX_ACL | FUSE_MAX_PAGES |
		 FUSE_CACHE_SYMLINKS | FUSE_NO_OPENDIR_SUPPORT |
		 FUSE_EXPLICIT_INVAL_DATA | LFS_INIT_EXT | LFS_HAS_RESEND;
	wanted &= offered;
	out.flags = (uint32_t)wanted;
	out.flags2 = (uint32_t)(wanted >> 32);
	out.max_readahead = in.max_readahead;
	out.max_background = MAX_BACKGROUND;
	out.congestion_threshold = CONGESTION;
	out.max_write = LFS_BLOCK_SIZE; /* sets how large our buffer must be */
	out.max_pages = (uint16_t)(server->options.max_read / LFS_BLOCK_SIZE);
	out.time_gran = 1;
	lfs_reply(worker, unique, &out, sizeof(out));
	atomic_store(&server->init_flags, wanted);
	atomic_store(&server->protocol_minor, in.minor);
	lfs_server_wake(server);
}

static void open_without_us(struct lfs_worker *worker,
			    const struct lfs_request *request)
{
	struct fuse_open_out device = {.open_flags = FOPEN_DIRECT_IO};
	struct fuse_open_in in = {0};

	if (request->body_size >= sizeof(in))
		memcpy(&in, request->body, sizeof(in));
	if (in.flags & (O_WRONLY | O_RDWR | O_TRUNC))
		lfs_reply_error(worker, request->header.unique, EROFS);
	else if (worker->server->options.serves_devices &&
		 request->header.opcode == FUSE_OPEN)
		lfs_reply(worker, request->header.unique, &device, sizeof(device));
	else
		lfs_reply_error(worker, request->header.unique, ENOSYS);
}

static void interrupt(struct lfs_worker *worker,
		      const struct lfs_request *request)
{
	struct timespec pause = {.tv_nsec = INTERRUPT_NANOSECONDS};
	struct lfs_server *server = worker->server;
	struct fuse_interrupt_in in;
	unsigned i;

	if (request->body_size < sizeof(in))
		return;
	if (server->options.serves_devices) {
		/* The kernel does not ask again, and lets everybody wait */
		lfs_reply_error(worker, request->header.unique, ENOSYS);
		return;
	}
	memcpy(&in, request->body, sizeof(in));
	if (lfs_interrupt(server, in.unique)) {
		lfs_count(&worker->counters.interrupted, 1);
		return;
	}
	/*
	 * Answered already, or another thread is just at it.  EAGAIN makes the
	 * kernel say it again as long as there is something to interrupt; only
	 * the descriptor that read the request knows of it.  When it says it at
	 * once, that thread waits for a slow disk, and we give it some time.
	 */
	if (worker->last_interrupted == in.unique)
		nanosleep(&pause, NULL);
	worker->last_interrupted = in.unique;
	for (i = 0; i < server->options.threads; i++) {
		if (i && server->workers[i].fd == server->workers[0].fd)
			break;
		lfs_reply_error(&server->workers[i], request->header.unique,
				EAGAIN);
	}
}

bool lfs_dispatch(struct lfs_worker *worker, const uint8_t *in, size_t size)
{
	struct lfs_request request;

	if (size < sizeof(request.header))
		return true;
	memcpy(&request.header, in, sizeof(request.header));
	if (request.header.len != size)
		return true; /* not from a kernel */
	request.body = in + sizeof(request.header);
	request.body_size = size - sizeof(request.header);
	lfs_count(&worker->counters.requests, 1);
	worker->was_large = false;

	switch (request.header.opcode) {
	case FUSE_LOOKUP:
		lfs_lookup(worker, &request);
		break;
	case FUSE_GETATTR:
		lfs_getattr(worker, &request);
		break;
	case FUSE_READ:
		lfs_read(worker, &request);
		break;
	case FUSE_READDIR:
	case FUSE_READDIRPLUS:
		lfs_readdir(worker, &request);
		break;
	case FUSE_READLINK:
		lfs_readlink(worker, &request);
		break;
	case FUSE_GETXATTR:
		lfs_getxattr(worker, &request);
		break;
	case FUSE_LISTXATTR:
		lfs_listxattr(worker, &request);
		break;
	case FUSE_STATFS:
		lfs_statfs(worker, &request);
		break;
	case FUSE_OPEN:
	case FUSE_OPENDIR:
		open_without_us(worker, &request);
		break;
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
		break; /* nothing was remembered; no reply */
	case FUSE_INTERRUPT:
		interrupt(worker, &request);
		break;
	case FUSE_ACCESS: /* never asked: the kernel checks modes itself */
	case FUSE_RELEASE:
	case FUSE_RELEASEDIR:
		lfs_reply_error(worker, request.header.unique, 0);
		break;
	case FUSE_SETATTR:
	case FUSE_SYMLINK:
	case FUSE_MKNOD:
	case FUSE_MKDIR:
	case FUSE_UNLINK:
	case FUSE_RMDIR:
	case FUSE_RENAME:
	case FUSE_RENAME2:
	case FUSE_LINK:
	case FUSE_CREATE:
	case FUSE_TMPFILE:
	case FUSE_WRITE:
	case FUSE_SETXATTR:
	case FUSE_REMOVEXATTR:
	case FUSE_FALLOCATE:
	case FUSE_COPY_FILE_RANGE:
		lfs_reply_error(worker, request.header.unique, EROFS);
		break;
	case FUSE_INIT:
		greet(worker, &request);
		break;
	case FUSE_DESTROY:
		lfs_reply_error(worker, request.header.unique, 0);
		return false;
	default:
		lfs_reply_error(worker, request.header.unique, ENOSYS);
	}
	return true;
}
