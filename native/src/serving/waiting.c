/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests that wait for the owner, and what it is told.
 *
 * A waiting request has a slot in one table, whose size is the limit.  Slots
 * that the owner has not taken yet are a queue through the table, so that there
 * is no second place that could be full.  An id names slot and generation: an
 * answer that comes after its request was interrupted finds nobody.
 */
#include "waiting.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "events.h"
#include "lazyfs_server.h"
#include "reply.h"
#include "server_state.h"

int lfs_waiting_create(struct lfs_server *server)
{
	server->slots =
		calloc(server->options.max_waiting, sizeof(*server->slots));
	server->answer = malloc(LFS_OUT_SIZE);
	if (!server->slots || !server->answer)
		return ENOMEM;
	server->free_slot = LFS_NO_SLOT;
	server->first_queued = LFS_NO_SLOT;
	server->last_queued = LFS_NO_SLOT;
	return 0;
}

void lfs_waiting_destroy(struct lfs_server *server)
{
	free(server->slots);
	free(server->answer);
}

/* Put a request into a free slot and at the end of the queue. */
static bool put(struct lfs_server *server, const struct lfs_waiting *request)
{
	uint32_t number, generation;
	struct lfs_waiting *slot;

	pthread_mutex_lock(&server->lock);
	number = server->free_slot;
	if (number != LFS_NO_SLOT) {
		server->free_slot = server->slots[number].next;
	} else if (server->used_slots < server->options.max_waiting) {
		number = server->used_slots++;
	} else {
		pthread_mutex_unlock(&server->lock);
		return false;
	}
	slot = &server->slots[number];
	generation = slot->generation;
	*slot = *request;
	slot->generation = generation;
	slot->next = LFS_NO_SLOT;
	slot->is_queued = true;
	if (server->last_queued == LFS_NO_SLOT)
		server->first_queued = number;
	else
		server->slots[server->last_queued].next = number;
	server->last_queued = number;
	server->waiting++;
	pthread_mutex_unlock(&server->lock);
	lfs_server_wake(server);
	return true;
}

bool lfs_wait_for_bytes(struct lfs_worker *worker, uint64_t unique,
			uint64_t node, uint64_t offset, uint32_t device,
			uint64_t device_offset, uint32_t size, bool is_lost,
			bool is_direct)
{
	struct lfs_waiting request = {
		.is_lost = is_lost,
		.is_direct = is_direct,
		.unique = unique,
		.node = node,
		.offset = offset,
		.device_offset = device_offset,
		.size = size,
		.number = device,
		.worker = (uint16_t)worker->number,
		.kind = LFS_EVENT_MISS,
	};

	return put(worker->server, &request);
}

bool lfs_wait_for_attribute(struct lfs_worker *worker, uint64_t unique,
			    uint32_t number, uint32_t wanted)
{
	struct lfs_waiting request = {
		.unique = unique,
		.size = wanted,
		.number = number,
		.worker = (uint16_t)worker->number,
		.kind = LFS_EVENT_ATTRIBUTE,
	};

	return put(worker->server, &request);
}

/* Take slot 'number' off the queue; it is the first one, except when a request
 * is interrupted that the owner has not seen. */
static void unqueue(struct lfs_server *server, uint32_t number)
{
	uint32_t before = LFS_NO_SLOT, at = server->first_queued;

	while (at != number) {
		before = at;
		at = server->slots[at].next;
	}
	if (before == LFS_NO_SLOT)
		server->first_queued = server->slots[at].next;
	else
		server->slots[before].next = server->slots[at].next;
	if (server->last_queued == at)
		server->last_queued = before;
	server->slots[at].next = LFS_NO_SLOT;
}

static void release(struct lfs_server *server, uint32_t number)
{
	struct lfs_waiting *slot = &server->slots[number];

	if (slot->is_queued)
		unqueue(server, number);
	slot->is_queued = false;
	slot->kind = 0;
	slot->generation++;
	slot->next = server->free_slot;
	server->free_slot = number;
	server->waiting--;
}

static struct lfs_waiting *slot_of(struct lfs_server *server, uint64_t id)
{
	uint32_t number = (uint32_t)id;
	struct lfs_waiting *slot;

	if (number >= server->used_slots)
		return NULL;
	slot = &server->slots[number];
	if (!slot->kind || slot->generation != id >> 32)
		return NULL;
	return slot;
}

bool lfs_waiting_get(struct lfs_server *server, uint64_t id, bool is_final,
		     struct lfs_waiting *request)
{
	struct lfs_waiting *slot;

	pthread_mutex_lock(&server->lock);
	slot = slot_of(server, id);
	if (slot) {
		*request = *slot;
		if (is_final)
			release(server, (uint32_t)id);
	}
	pthread_mutex_unlock(&server->lock);
	return slot;
}

bool lfs_interrupt(struct lfs_server *server, uint64_t unique)
{
	const struct lfs_worker *worker = NULL;
	uint32_t number;

	pthread_mutex_lock(&server->lock);
	for (number = 0; number < server->used_slots; number++) {
		if (server->slots[number].kind &&
		    server->slots[number].unique == unique) {
			worker = &server->workers[server->slots[number].worker];
			release(server, number);
			break;
		}
	}
	pthread_mutex_unlock(&server->lock);
	if (worker)
		lfs_reply_error(worker, unique, EINTR);
	return worker;
}

static void fill_event(const struct lfs_server *server, uint32_t number,
		       struct lfs_event *event)
{
	const struct lfs_waiting *slot = &server->slots[number];

	memset(event, 0, sizeof(*event));
	event->kind = slot->kind;
	event->id = (uint64_t)slot->generation << 32 | number;
	if (slot->kind == LFS_EVENT_ATTRIBUTE) {
		event->number = slot->number;
		return;
	}
	event->number = slot->is_lost;
	event->device = slot->number;
	event->node = slot->node;
	event->offset = slot->offset;
	event->device_offset = slot->device_offset;
	event->size = slot->size;
}

size_t lfs_server_take(struct lfs_server *server, struct lfs_event *events,
		       size_t max)
{
	size_t taken = 0;
	uint32_t number;
	eventfd_t count;
	bool is_more;

	/* First: what is put in from here on wakes the owner again */
	(void)eventfd_read(server->event_fd, &count);
	pthread_mutex_lock(&server->lock);
	while (taken < max && server->first_queued != LFS_NO_SLOT) {
		number = server->first_queued;
		fill_event(server, number, &events[taken++]);
		server->first_queued = server->slots[number].next;
		server->slots[number].next = LFS_NO_SLOT;
		server->slots[number].is_queued = false;
		if (server->first_queued == LFS_NO_SLOT)
			server->last_queued = LFS_NO_SLOT;
	}
	while (taken < max && server->ring_count) {
		events[taken++] = server->ring[server->ring_start];
		server->ring_start = (server->ring_start + 1) % LFS_RING_SIZE;
		server->ring_count--;
	}
	is_more = server->first_queued != LFS_NO_SLOT || server->ring_count;
	pthread_mutex_unlock(&server->lock);
	if (is_more)
		lfs_server_wake(server);
	return taken;
}
