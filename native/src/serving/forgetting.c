/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Having the kernel forget pages that turned out to be wrong.
 *
 * It waits for pages that are being read, in a sleep that nothing interrupts.
 * A read that waits for the owner may wait for minutes; so pages of such reads
 * are left out.  What is in them was not there when the wrong bytes were found.
 */
#include <errno.h>
#include <poll.h>
#include <time.h>
#include <unistd.h>

#include "fuse_abi.h"
#include "lazyfs_server.h"
#include "server_state.h"

#define SETTLE_ROUNDS 2
#define SETTLE_NANOSECONDS 1000000

static uint64_t page_of(uint64_t offset)
{
	return offset / LFS_BLOCK_SIZE * LFS_BLOCK_SIZE;
}

bool lfs_server_held(struct lfs_server *server, uint64_t node, uint64_t offset,
		     uint64_t end, uint64_t *start_ret, uint64_t *end_ret)
{
	uint64_t start, stop;
	bool is_held = false;
	uint32_t number;

	pthread_mutex_lock(&server->lock);
	for (number = 0; number < server->used_slots; number++) {
		const struct lfs_waiting *slot = &server->slots[number];

		if (slot->kind != LFS_EVENT_MISS || slot->node != node ||
		    slot->is_direct)
			continue;
		start = page_of(slot->offset);
		stop = page_of(slot->offset + slot->size + LFS_BLOCK_SIZE - 1);
		if (start >= end || stop <= offset)
			continue;
		if (is_held && *start_ret <= start)
			continue;
		*start_ret = start;
		*end_ret = stop;
		is_held = true;
	}
	pthread_mutex_unlock(&server->lock);
	return is_held;
}

void lfs_settle(int device_fd)
{
	const struct timespec pause = {.tv_nsec = SETTLE_NANOSECONDS};
	struct pollfd poller = {.fd = device_fd, .events = POLLIN};
	unsigned i;

	for (i = 0; i < SETTLE_ROUNDS; i++) {
		if (poll(&poller, 1, 0) <= 0)
			return;
		(void)nanosleep(&pause, NULL);
	}
}

int lfs_forget(int device_fd, uint64_t node, uint64_t offset, uint64_t size)
{
	struct {
		struct fuse_out_header header;
		struct fuse_notify_inval_inode_out range;
	} message = {
		.header = {.len = sizeof(message),
			   .error = FUSE_NOTIFY_INVAL_INODE},
		.range = {.ino = node,
			  .off = (int64_t)offset,
			  .len = (int64_t)size},
	};
	ssize_t written;

	do {
		written = write(device_fd, &message, sizeof(message));
	} while (written < 0 && errno == EINTR);
	return written < 0 ? errno : 0;
}
