/* SPDX-License-Identifier: Apache-2.0 */
/* Reads: hits, misses answered in every way, interrupts, marks, first touches.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "support.h"

static struct fake fake;
static struct fake_reply reply;

static bool is_content(unsigned device, uint64_t offset, size_t size)
{
	size_t i;

	if (reply.error || reply.size != size)
		return false;
	for (i = 0; i < size; i++)
		if (reply.data[i] != content_byte(device, offset + i))
			return false;
	return true;
}

static void check_hits(void)
{
	static const struct {
		uint64_t offset;
		uint32_t size;
		size_t expected;
	} reads[] = {
		{0, 1, 1},
		{0, BIG_SIZE, BIG_SIZE},
		{4095, 2, 2},
		{8000, 4096, 2000},
		{9999, 1, 1},
		{10000, 5, 0},
		{0, 1 << 20, BIG_SIZE},
		{UINT64_MAX, 9, 0},
		{5, 0, 0},
	};
	unsigned i;

	for (i = 0; i < sizeof(reads) / sizeof(*reads); i++) {
		fake_send_read(&fake, fake.made.big, reads[i].offset,
			       reads[i].size);
		fake_receive(&fake, &reply);
		CHECK(is_content(1, reads[i].offset, reads[i].expected));
	}
	fake_send_read(&fake, fake.made.empty, 0, 100);
	fake_receive(&fake, &reply);
	CHECK(!reply.error && !reply.size);
	fake_send_read(&fake, 1, 0, 100); /* a directory */
	fake_receive(&fake, &reply);
	CHECK(reply.error == EIO);
	CHECK(fake_take(&fake).kind == LFS_EVENT_FAULT);
}

static void check_misses(void)
{
	static uint8_t bytes[BIG_SIZE];
	struct lfs_event first, second, third;
	uint64_t uniques[3];

	/* Not "resident": absent, doubtful, and anything else */
	fake.made.states[0][0] = 0;
	fake.made.states[0][1] = 1;
	fake.made.states[0][2] = 3;
	uniques[0] = fake_send_read(&fake, fake.made.big, 0, 4096);
	uniques[1] = fake_send_read(&fake, fake.made.big, 4096, 4096);
	uniques[2] = fake_send_read(&fake, fake.made.big, 8192, 4096);
	first = fake_take(&fake);
	second = fake_take(&fake);
	third = fake_take(&fake);
	CHECK(first.kind == LFS_EVENT_MISS && first.device == 1);
	CHECK(first.node == fake.made.big && first.size == 4096);
	CHECK(third.device_offset == 8192 && third.size == BIG_SIZE - 8192);
	/* Hits go on, also of the layer's other chunks */
	fake_send_read(&fake, fake.made.file, 0, FILE_SIZE);
	fake_receive(&fake, &reply);
	CHECK(is_content(2, 0, FILE_SIZE));
	/* Not answered from the file before it is resident */
	CHECK(lfs_server_answer(fake.server, first.id) == LFS_CORRUPT);
	CHECK(fake_is_silent(&fake));
	/* Out of order: the last from the file, the second fails, the first
	 * gets bytes that are in no file */
	fake.made.states[0][2] = 2;
	CHECK(lfs_server_answer(fake.server, third.id) == LFS_OK);
	fake_receive(&fake, &reply);
	CHECK(reply.unique == uniques[2] &&
	      is_content(1, 8192, BIG_SIZE - 8192));
	CHECK(lfs_server_answer_error(fake.server, second.id, ETIMEDOUT) ==
	      LFS_OK);
	fake_receive(&fake, &reply);
	CHECK(reply.unique == uniques[1] && reply.error == ETIMEDOUT);
	CHECK(lfs_server_answer_bytes(fake.server, first.id, bytes, 4095) ==
	      LFS_CORRUPT);
	CHECK(lfs_server_answer_bytes(fake.server, first.id, bytes, 4096) ==
	      LFS_OK);
	fake_receive(&fake, &reply);
	CHECK(reply.unique == uniques[0] && reply.size == 4096);
	CHECK(!memcmp(reply.data, bytes, 4096));
	/* Each only once */
	CHECK(lfs_server_answer(fake.server, third.id) == LFS_ABSENT);
	CHECK(lfs_server_answer_error(fake.server, second.id, EIO) ==
	      LFS_ABSENT);
	CHECK(lfs_server_answer_bytes(fake.server, first.id, bytes, 4096) ==
	      LFS_ABSENT);
	CHECK(lfs_server_answer_error(fake.server, UINT64_MAX, EIO) ==
	      LFS_ABSENT);
	CHECK(fake_is_silent(&fake));
}

static void interrupt(uint64_t unique)
{
	struct fuse_interrupt_in in = {.unique = unique};

	fake_send(&fake, FUSE_INTERRUPT, 0, &in, sizeof(in));
}

static void check_interrupts(void)
{
	struct lfs_statistics statistics;
	struct lfs_event first, second;
	uint64_t uniques[3];

	memset(fake.made.states[0], 0, 3);
	uniques[0] = fake_send_read(&fake, fake.made.big, 0, 10);
	first = fake_take(&fake);
	CHECK(lfs_server_waits(fake.server, first.id));
	interrupt(uniques[0]);
	fake_receive(&fake, &reply);
	CHECK(reply.unique == uniques[0] && reply.error == EINTR);
	CHECK(!lfs_server_waits(fake.server, first.id));
	CHECK(lfs_server_answer_error(fake.server, first.id, EIO) ==
	      LFS_ABSENT);
	/* The slot is used again; the old id means nothing */
	uniques[1] = fake_send_read(&fake, fake.made.big, 4096, 10);
	second = fake_take(&fake);
	CHECK((uint32_t)second.id == (uint32_t)first.id &&
	      second.id != first.id);
	CHECK(lfs_server_answer_error(fake.server, first.id, EIO) ==
	      LFS_ABSENT);
	/* Interrupted before anybody took it: the queue goes on without */
	uniques[2] = fake_send_read(&fake, fake.made.big, 0, 10);
	do {
		lfs_server_statistics(fake.server, &statistics);
	} while (statistics.waiting != 2);
	interrupt(uniques[2]);
	fake_receive(&fake, &reply);
	CHECK(reply.unique == uniques[2] && reply.error == EINTR);
	/* Nothing to interrupt: the kernel is asked to say it again */
	interrupt(987654);
	fake_receive(&fake, &reply);
	CHECK(reply.error == EAGAIN);
	CHECK(lfs_server_answer_error(fake.server, second.id, EIO) == LFS_OK);
	fake_receive(&fake, &reply);
	CHECK(reply.unique == uniques[1]);
	lfs_server_statistics(fake.server, &statistics);
	CHECK(statistics.waiting == 0 && statistics.interrupted == 2);
}

static void check_limit(void)
{
	struct lfs_statistics statistics;
	struct lfs_event events[8], event;
	unsigned i;

	for (i = 0; i < 8; i++)
		fake_send_read(&fake, fake.made.big, i, 1);
	for (i = 0; i < 8; i++)
		events[i] = fake_take(&fake);
	fake_send_read(&fake, fake.made.big, 100, 1);
	fake_receive(&fake, &reply);
	CHECK(reply.error == EIO);
	fake_send_read(&fake, fake.made.file, 0, 1);
	fake_receive(&fake, &reply);
	CHECK(!reply.error);
	lfs_server_answer_error(fake.server, events[3].id, EIO);
	fake_receive(&fake, &reply);
	fake_send_read(&fake, fake.made.big, 100, 1);
	event = fake_take(&fake);
	CHECK(event.offset == 100);
	events[3] = event;
	for (i = 0; i < 8; i++) {
		lfs_server_answer_error(fake.server, events[i].id, EIO);
		fake_receive(&fake, &reply);
	}
	lfs_server_statistics(fake.server, &statistics);
	CHECK(statistics.refused == 1 && statistics.waiting == 0);
	CHECK(!lfs_server_take(fake.server, events, 8));
}

static void check_marks(void)
{
	struct lfs_event event;

	memset(fake.made.states[0], 2, 3);
	lfs_server_mark(fake.server, 1, 1);
	lfs_server_mark(fake.server, 0, 1);
	lfs_server_mark(fake.server, 9, 1);
	fake_send_read(&fake, fake.made.big, 0, 100); /* not the marked one */
	fake_receive(&fake, &reply);
	fake_send_read(&fake, fake.made.big, 4000, 200);
	fake_receive(&fake, &reply);
	CHECK(is_content(1, 4000, 200));
	event = fake_take(&fake);
	CHECK(event.kind == LFS_EVENT_HINT && event.device == 1 &&
	      event.number == 1);
	fake_send_read(&fake, fake.made.big, 4000, 200);
	fake_receive(&fake, &reply);
	CHECK(!lfs_server_take(fake.server, &event, 1));
}

static void check_touches(void)
{
	struct lfs_touch touches[16];

	/* check_hits() began with chunk 0 of device 1 and then read all of it;
	 * check_misses() went on with device 2 */
	CHECK(lfs_server_touches(fake.server, 0, touches, 16) == 4);
	CHECK(touches[0].device == 1 && touches[0].chunk == 0);
	CHECK(touches[2].device == 1 && touches[2].chunk == 2);
	CHECK(touches[3].device == 2 && touches[3].chunk == 0);
	CHECK(lfs_server_touches(fake.server, 3, touches, 16) == 1);
	CHECK(lfs_server_touches(fake.server, 0, touches, 2) == 2);
	CHECK(lfs_server_touches(fake.server, 9, touches, 16) == 0);
}

static void check_attribute(void)
{
	struct {
		struct fuse_getxattr_in in;
		char name[32];
	} body = {.in = {.size = 10}, .name = "user.lazyfs.health"};
	struct lfs_event event;

	fake_send(&fake, FUSE_GETXATTR, 1, &body, sizeof(body.in) + 19);
	event = fake_take(&fake);
	CHECK(event.kind == LFS_EVENT_ATTRIBUTE && event.number == 1);
	CHECK(lfs_server_answer(fake.server, event.id) == LFS_ABSENT);
	CHECK(lfs_server_answer_attribute(fake.server, event.id,
					  (const uint8_t *)"ok", 2) == LFS_OK);
	fake_receive(&fake, &reply);
	CHECK(!reply.error && reply.size == 2);
	fake_send(&fake, FUSE_GETXATTR, 1, &body, sizeof(body.in) + 19);
	event = fake_take(&fake);
	CHECK(lfs_server_answer_attribute(fake.server, event.id,
					  (const uint8_t *)"much too long",
					  13) == LFS_OK);
	fake_receive(&fake, &reply);
	CHECK(reply.error == ERANGE);
}

static void check_damaged_content(void)
{
	static uint8_t bytes[BIG_SIZE];
	struct lfs_event event;
	size_t i;

	/* Marked, and not there: the owner has to get the bytes elsewhere */
	CHECK(ftruncate(fake.contents[0], 5000) == 0);
	fake_send_read(&fake, fake.made.big, 0, BIG_SIZE);
	event = fake_take(&fake);
	CHECK(event.kind == LFS_EVENT_MISS && event.number == 1);
	CHECK(lfs_server_waits(fake.server, event.id));
	CHECK(lfs_server_answer(fake.server, event.id) == LFS_CORRUPT);
	CHECK(fake_is_silent(&fake));
	for (i = 0; i < BIG_SIZE; i++)
		bytes[i] = content_byte(1, i);
	CHECK(lfs_server_answer_bytes(fake.server, event.id, bytes, BIG_SIZE) ==
	      LFS_OK);
	fake_receive(&fake, &reply);
	CHECK(is_content(1, 0, BIG_SIZE));
	CHECK(!lfs_server_waits(fake.server, event.id));
	fake_send_read(&fake, fake.made.big, 0, 5000);
	fake_receive(&fake, &reply);
	CHECK(is_content(1, 0, 5000));

	/* It has its size again, and zeros where nobody wrote */
	CHECK(ftruncate(fake.contents[0], 0) == 0);
	CHECK(pwrite(fake.contents[0], bytes + 8192, BIG_SIZE - 8192, 8192) ==
	      BIG_SIZE - 8192);
	fake_send_read(&fake, fake.made.big, 4096, 4096);
	event = fake_take(&fake);
	CHECK(event.kind == LFS_EVENT_MISS && event.number == 1);
	CHECK(lfs_server_answer(fake.server, event.id) == LFS_CORRUPT);
	CHECK(pwrite(fake.contents[0], bytes, 8192, 0) == 8192);
	CHECK(lfs_server_answer(fake.server, event.id) == LFS_OK);
	fake_receive(&fake, &reply);
	CHECK(is_content(1, 4096, 4096));

	/* Zeros that were written are bytes as others are */
	memset(bytes, 0, 4096);
	CHECK(pwrite(fake.contents[0], bytes, 4096, 4096) == 4096);
	fake_send_read(&fake, fake.made.big, 4096, 4096);
	fake_receive(&fake, &reply);
	CHECK(!reply.error && !memcmp(reply.data, bytes, 4096));
	/* A filesystem that makes holes of them */
	CHECK(ftruncate(fake.contents[0], 0) == 0);
	CHECK(ftruncate(fake.contents[0], BIG_SIZE) == 0);
	lfs_server_ignore_holes(fake.server, 0);
	lfs_server_ignore_holes(fake.server, 9);
	lfs_server_ignore_holes(fake.server, 1);
	fake_send_read(&fake, fake.made.big, 4096, 4096);
	fake_receive(&fake, &reply);
	CHECK(!reply.error && !memcmp(reply.data, bytes, 4096));
}

int main(void)
{
	struct lfs_options options = {.threads = 1,
				      .max_waiting = 8,
				      .max_touches = 16,
				      .max_read = LFS_MAX_READ};

	fake_open(&fake, &options);
	check_hits();
	check_misses();
	check_interrupts();
	check_limit();
	check_marks();
	check_touches();
	check_attribute();
	check_damaged_content();
	CHECK(!lfs_server_is_gone(fake.server));
	fake_close(&fake); /* stops threads that wait in read() */
	return 0;
}
