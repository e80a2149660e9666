/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Answers that the owner gives to requests that wait for it.
 *
 * Whoever answers takes the request off the table first, under the lock, so
 * that each is answered once; then writes the reply, without the lock.
 */
#include <pthread.h>

#include "contents.h"
#include "lazyfs_server.h"
#include "reply.h"
#include "server_state.h"
#include "waiting.h"

enum lfs_result lfs_server_answer(struct lfs_server *server, uint64_t id)
{
	enum lfs_result result = LFS_OK;
	struct lfs_device *device;
	struct lfs_waiting request;
	struct lfs_worker *worker;

	if (!lfs_waiting_get(server, id, false, &request) ||
	    request.kind != LFS_EVENT_MISS)
		return LFS_ABSENT;
	device = &server->devices[request.number - 1];
	if (lfs_is_resident(server, device, request.device_offset,
			    request.size) != LFS_OK)
		return LFS_CORRUPT;
	pthread_mutex_lock(&server->answer_lock);
	if (!lfs_read_whole(device, server->answer, request.device_offset,
			    request.size)) {
		result = LFS_CORRUPT; /* the owner gets the bytes elsewhere */
	} else if (!lfs_waiting_get(server, id, true, &request)) {
		result = LFS_ABSENT;
	} else {
		worker = &server->workers[request.worker];
		if (server->options.serves_devices)
			lfs_clear_gaps(device, server->answer,
				       request.device_offset, request.size);
		lfs_reply(worker, request.unique, server->answer, request.size);
	}
	pthread_mutex_unlock(&server->answer_lock);
	return result;
}

bool lfs_server_waits(struct lfs_server *server, uint64_t id)
{
	struct lfs_waiting request;

	return lfs_waiting_get(server, id, false, &request);
}

enum lfs_result lfs_server_answer_bytes(struct lfs_server *server, uint64_t id,
					const uint8_t *bytes, size_t size)
{
	struct lfs_waiting request;

	if (!lfs_waiting_get(server, id, false, &request) ||
	    request.kind != LFS_EVENT_MISS)
		return LFS_ABSENT;
	if (request.size != size)
		return LFS_CORRUPT;
	if (!lfs_waiting_get(server, id, true, &request))
		return LFS_ABSENT;
	lfs_reply(&server->workers[request.worker], request.unique, bytes,
		  size);
	return LFS_OK;
}

enum lfs_result lfs_server_answer_attribute(struct lfs_server *server,
					    uint64_t id, const uint8_t *value,
					    size_t size)
{
	struct lfs_waiting request;

	if (!lfs_waiting_get(server, id, false, &request) ||
	    request.kind != LFS_EVENT_ATTRIBUTE ||
	    !lfs_waiting_get(server, id, true, &request))
		return LFS_ABSENT;
	lfs_reply_xattr(&server->workers[request.worker], request.unique, value,
			size, request.size);
	return LFS_OK;
}

enum lfs_result lfs_server_answer_error(struct lfs_server *server, uint64_t id,
					int error)
{
	struct lfs_waiting request;

	if (!lfs_waiting_get(server, id, true, &request))
		return LFS_ABSENT;
	lfs_reply_error(&server->workers[request.worker], request.unique,
			error);
	return LFS_OK;
}
