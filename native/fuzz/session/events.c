/* SPDX-License-Identifier: Apache-2.0 */
/* What the server tells its owner, and the owner's answers. */
#include "events.h"

#include <errno.h>

#include "image.h"
#include "replies.h"
#include "serving/fuse_abi.h"

void check_event(struct session *s, const struct lfs_event *event)
{
	struct sent *sent = NULL;
	unsigned i, device;
	uint64_t size;

	if (event->kind == LFS_EVENT_HINT) {
		CHECK(event->device && event->device <= 2 && event->number < 3);
		s->hints++;
		return;
	}
	if (event->kind == LFS_EVENT_FAULT)
		return;
	CHECK(event->kind == LFS_EVENT_MISS ||
	      event->kind == LFS_EVENT_ATTRIBUTE);
	/* Requests are queued in their order: it is of the first without one */
	for (i = 0; i < s->count && !sent; i++)
		if (s->sent[i].is_waiting && !s->sent[i].event)
			sent = &s->sent[i];
	CHECK(sent && sent->state == SENT);
	sent->event = event->id + 1;
	CHECK(s->event_count < MAX_REQUESTS);
	s->events[s->event_count++] = *event;
	if (event->kind == LFS_EVENT_ATTRIBUTE) {
		CHECK(sent->opcode == FUSE_GETXATTR && event->number == 1);
		return;
	}
	CHECK(sent->opcode == FUSE_READ);
	if (!is_node(s, sent->node))
		return;
	CHECK(file_of(s, sent->node, &device, &size));
	CHECK(event->node == sent->node && event->device == device + 1);
	CHECK(event->offset == sent->offset &&
	      event->device_offset == sent->offset);
	CHECK(event->size && event->size <= sent->size &&
	      event->offset + event->size <= size);
	CHECK(event->number <= 1);
}

void take(struct session *s, size_t max)
{
	struct lfs_event events[8];
	size_t i, count;

	count = lfs_server_take(s->server, events, max);
	CHECK(count <= max);
	for (i = 0; i < count; i++)
		check_event(s, &events[i]);
}

static struct sent *waiting_for(struct session *s, uint64_t id)
{
	unsigned i;

	for (i = 0; i < s->count; i++)
		if (s->sent[i].is_waiting && s->sent[i].event == id + 1)
			return &s->sent[i];
	return NULL;
}

/* Answer an event, which may be one that was answered before. */
void answer(struct session *s, struct input *in)
{
	const struct lfs_event *event;
	bool is_resident, is_intact, is_miss;
	enum lfs_result result;
	struct sent *sent;
	uint8_t bytes[BIG_SIZE + 1];
	unsigned i, how = next(in);

	if (!s->event_count)
		return;
	event = &s->events[next(in) % s->event_count];
	sent = waiting_for(s, event->id);
	is_miss = event->kind == LFS_EVENT_MISS;
	switch (how % 6) {
	case 0:
	case 1: /* with what there is; or fetch it first */
		if (is_miss)
			for (i = 0; how & 1 && i < CHUNK_COUNT[event->device - 1];
			     i++)
				fetch(s, event->device - 1, i);
		result = lfs_server_answer(s->server, event->id);
		if (!sent || !is_miss) {
			CHECK(result == LFS_ABSENT);
			break;
		}
		look(s, event->device - 1, event->device_offset,
		     event->device_offset + event->size, &is_resident,
		     &is_intact);
		if (!is_resident)
			CHECK(result == LFS_CORRUPT);
		else if (is_intact)
			CHECK(result == LFS_OK);
		receive(s);
		CHECK((sent->state == ANSWERED) == (result == LFS_OK));
		return;
	case 2:
	case 3: /* with bytes, maybe too many */
		if (!is_miss)
			break;
		for (i = 0; i < event->size; i++)
			bytes[i] = content_byte(event->device,
						event->device_offset + i);
		bytes[event->size] = POISON;
		result = lfs_server_answer_bytes(s->server, event->id, bytes,
						 event->size + (how & 1));
		CHECK(result == (!sent	   ? LFS_ABSENT
				 : how & 1 ? LFS_CORRUPT
					   : LFS_OK));
		break;
	case 4:
		result = lfs_server_answer_attribute(
			s->server, event->id, (const uint8_t *)"healthy", 7);
		CHECK(result == (sent && !is_miss ? LFS_OK : LFS_ABSENT));
		break;
	default:
		result = lfs_server_answer_error(s->server, event->id, EIO);
		CHECK(result == (sent ? LFS_OK : LFS_ABSENT));
	}
	receive(s);
}
