/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a kernel says to a server, from its greeting to the end: requests with
 * good headers and odd bodies, misses that are answered late and in any order,
 * interrupts, a content file that fills, is emptied, and loses what it had.
 */
#define _GNU_SOURCE /* memfd_create() */
#include "fuzz.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "session/events.h"
#include "session/image.h"
#include "session/replies.h"
#include "session/requests.h"
#include "session/session.h"

static struct session session;

static void change(struct session *s, struct input *in)
{
	uint8_t how = next(in);
	unsigned device = how >> 7, chunk = how % CHUNK_COUNT[device];

	switch (how >> 2 & 7) {
	case 0:
	case 1:
	case 2:
		fetch(s, device, chunk);
		break;
	case 3:
	case 4: /* fetched by nobody, or just now */
		evict(s, device, chunk, how >> 2 & 1);
		break;
	case 5:
		lose(s, device, chunk, false);
		break;
	case 6:
		lose(s, device, chunk, true);
		break;
	default:
		lfs_server_mark(s->server, how % 4, how % 5);
	}
}

static void open_session(struct session *s, uint8_t how)
{
	static const struct lfs_attribute attributes[] = {
		{"user.lazyfs.fixed", (const uint8_t *)"42", 2},
		{HEALTH, NULL, 0},
	};
	static const int wide = 4 << 20;
	struct lfs_layer layers[2];
	struct lfs_image image = {.layers = layers,
				  .attributes = attributes,
				  .attribute_count = 2};
	unsigned i, chunk;
	int ends[2];

	memset(s, 0, sizeof(*s));
	make_image(&s->made);
	s->options = (struct lfs_options){
		.threads = 1,
		.max_waiting = how & 1 ? WAITING_ROOM : MAX_REQUESTS,
		.max_touches = how & 2 ? 2 : 16,
		.max_read = LFS_MAX_READ,
		.share_device = true,
		.stays = true,
		.serves_devices = (how & 12) == 12,
	};
	s->is_threaded = how >= 248;
	for (i = 0; i < 2; i++) {
		CHECK(lfs_table_open(&layers[i].table, s->made.tables[i],
				     s->made.table_sizes[i]) == LFS_OK);
		s->contents[i] = memfd_create("content", MFD_CLOEXEC);
		CHECK(ftruncate(s->contents[i], CONTENT_SIZE) == 0);
		layers[i].states = s->made.states[i];
		layers[i].states_size = 3;
		layers[i].content_fd = s->contents[i];
		layers[i].digest = i ? "sha256:upper" : "sha256:lower";
		layers[i].diff_id = "sha256:diff";
		for (chunk = 0; chunk < CHUNK_COUNT[i]; chunk++)
			evict(s, i, chunk, 0);
	}
	CHECK(lfs_index_open(&image.index, s->made.index, INDEX_SIZE) ==
	      LFS_OK);
	CHECK(lfs_provenance_open(&image.provenance, s->made.provenance,
				  PROVENANCE_SIZE) == LFS_OK);
	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
	for (i = 0; i < 2; i++)
		setsockopt(ends[i], SOL_SOCKET, SO_SNDBUF, &wide,
			   sizeof(wide));
	s->device = ends[0];
	s->kernel = ends[1];
	CHECK(lfs_server_create(&s->server, s->device, &image, &s->options) ==
	      0);
	if (s->is_threaded)
		CHECK(lfs_server_start(s->server) == 0);
}

static void check_table(const struct session *s)
{
	struct lfs_statistics statistics;
	unsigned i, waiting = 0;

	for (i = 0; i < s->count; i++)
		waiting += s->sent[i].is_waiting;
	lfs_server_statistics(s->server, &statistics);
	CHECK(statistics.waiting == waiting);
	CHECK(waiting <= s->options.max_waiting);
	CHECK(lfs_server_is_ready(s->server) == !!statistics.protocol_minor);
}

static void close_session(struct session *s, bool answers)
{
	struct lfs_touch touches[32];
	struct lfs_event event;
	size_t i, count;
	bool seen[3][3] = {{false}};

	check_table(s);
	while (answers && lfs_server_take(s->server, &event, 1))
		check_event(s, &event);
	for (i = s->event_count; answers && i-- > 0;)
		lfs_server_answer_error(s->server, s->events[i].id, EIO);
	receive(s);
	check_table(s);
	for (i = 0; answers && i < s->count; i++)
		CHECK(!s->sent[i].is_waiting);
	count = lfs_server_touches(s->server, 0, touches, 32);
	CHECK(count <= s->options.max_touches);
	for (i = 0; i < count; i++) {
		CHECK(touches[i].device <= 2 && touches[i].chunk < 3);
		CHECK(!seen[touches[i].device][touches[i].chunk]);
		seen[touches[i].device][touches[i].chunk] = true;
	}
	lfs_server_stop(s->server);
	CHECK(!receive(s)); /* who still waits is not told anything */
	lfs_server_destroy(s->server);
	close(s->kernel);
	close(s->device);
	close(s->contents[0]);
	close(s->contents[1]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	uint8_t what;

	if (!size)
		return 0;
	open_session(&session, next(&in));
	while (in.size && !session.is_over && session.count < MAX_REQUESTS - 1) {
		what = next(&in);
		if (what < 160)
			ask(&session, &in, what);
		else if (what < 192)
			change(&session, &in);
		else if (what < 216)
			take(&session, 1 + what % 8);
		else
			answer(&session, &in);
		if (!session.is_over)
			check_table(&session);
	}
	close_session(&session, size % 4);
	return 0;
}

size_t fuzz_seed(uint8_t *data, size_t max)
{
	size_t size;

	CHECK(max >= 500);
	for (size = 0; size < 500; size++)
		data[size] = (uint8_t)random_number();
	return size;
}
