/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the owner is told that needs no answer: hints and faults.  They are a
 * ring, and what finds no place in it is dropped.
 */
#include "events.h"

#include <errno.h>
#include <sys/eventfd.h>

#include "fuse_abi.h"
#include "reply.h"
#include "server_state.h"

void lfs_server_wake(struct lfs_server *server)
{
	(void)eventfd_write(server->event_fd, 1);
}

void lfs_tell(struct lfs_server *server, const struct lfs_event *event)
{
	uint32_t place;

	pthread_mutex_lock(&server->lock);
	if (server->ring_count < LFS_RING_SIZE) {
		place = (server->ring_start + server->ring_count++) %
			LFS_RING_SIZE;
		server->ring[place] = *event;
	}
	pthread_mutex_unlock(&server->lock);
	lfs_server_wake(server);
}

void lfs_fault(struct lfs_worker *worker, const struct lfs_request *request)
{
	struct lfs_event event = {
		.kind = LFS_EVENT_FAULT,
		.node = lfs_nid_of(worker->server, request->header.nodeid),
		.number = request->header.opcode,
	};

	lfs_count(&worker->counters.faults, 1);
	lfs_tell(worker->server, &event);
	lfs_reply_error(worker, request->header.unique, EIO);
}
