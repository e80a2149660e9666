/* SPDX-License-Identifier: Apache-2.0 */
/* Pages that the kernel is not to wait for: those of reads that wait. */
#define _GNU_SOURCE /* O_DIRECT */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "support.h"

static struct fake fake;
static struct fake_reply reply;

static bool is_held(uint64_t node, uint64_t offset, uint64_t end,
		    uint64_t start_expected, uint64_t end_expected)
{
	uint64_t start = 0, stop = 0;

	return lfs_server_held(fake.server, node, offset, end, &start, &stop) &&
	       start == start_expected && stop == end_expected;
}

static bool is_free(uint64_t node, uint64_t offset, uint64_t end)
{
	uint64_t start, stop;

	return !lfs_server_held(fake.server, node, offset, end, &start, &stop);
}

static void check_held(void)
{
	uint64_t big = fake.made.big;
	struct lfs_event first, last;

	CHECK(is_free(big, 0, UINT64_MAX));
	fake_send_read(&fake, big, 8192, 4096); /* ends with the file */
	last = fake_take(&fake);
	fake_send_read(&fake, big, 10, 10);
	first = fake_take(&fake);
	CHECK(is_held(big, 0, UINT64_MAX, 0, 4096));
	CHECK(is_held(big, 4095, 4096, 0, 4096));
	CHECK(is_free(big, 4096, 8192));
	CHECK(is_held(big, 4096, 8193, 8192, 12288));
	CHECK(is_held(big, 12287, 1 << 20, 8192, 12288));
	CHECK(is_free(big, 12288, UINT64_MAX));
	CHECK(is_free(fake.made.file, 0, UINT64_MAX));
	CHECK(lfs_server_answer_error(fake.server, first.id, EIO) == LFS_OK);
	fake_receive(&fake, &reply);
	CHECK(is_held(big, 0, UINT64_MAX, 8192, 12288));
	CHECK(lfs_server_answer_error(fake.server, last.id, EIO) == LFS_OK);
	fake_receive(&fake, &reply);
	CHECK(is_free(big, 0, UINT64_MAX));
}

static void check_direct(void)
{
	struct fuse_read_in in = {.size = 4096, .flags = O_DIRECT};
	struct lfs_event event;

	fake_send(&fake, FUSE_READ, fake.made.big, &in, sizeof(in));
	event = fake_take(&fake);
	CHECK(is_free(fake.made.big, 0, UINT64_MAX));
	CHECK(lfs_server_answer_error(fake.server, event.id, EIO) == LFS_OK);
	fake_receive(&fake, &reply);
}

static void check_message(void)
{
	struct {
		struct fuse_out_header header;
		struct fuse_notify_inval_inode_out range;
	} message;

	lfs_settle(fake.device);
	CHECK(lfs_forget(fake.device, 5, 4096, 8192) == 0);
	CHECK(read(fake.kernel, &message, sizeof(message)) == sizeof(message));
	CHECK(message.header.len == sizeof(message) && !message.header.unique);
	CHECK(message.header.error == FUSE_NOTIFY_INVAL_INODE);
	CHECK(message.range.ino == 5 && message.range.off == 4096 &&
	      message.range.len == 8192);
	CHECK(lfs_forget(-1, 5, 4096, 8192) == EBADF);
}

int main(void)
{
	struct lfs_options options = {
		.threads = 1,
		.max_waiting = 8,
		.max_touches = 8,
		.max_read = LFS_MAX_READ,
		.share_device = true,
	};

	fake_open(&fake, &options);
	memset(fake.made.states[0], 0, 3);
	check_held();
	check_direct();
	check_message();
	fake_close(&fake);
	return 0;
}
