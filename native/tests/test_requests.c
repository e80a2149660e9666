/* SPDX-License-Identifier: Apache-2.0 */
/* Requests that need nobody: what the kernel is answered. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "support.h"

static struct fake fake;
static struct fake_reply reply;

static void check_greeting(void)
{
	struct fuse_init_in in = {.major = 7,
				  .minor = 45,
				  .flags = ~0u,
				  .flags2 = ~0u,
				  .max_readahead = 131072};
	struct fuse_init_out out;

	CHECK(!lfs_server_is_ready(fake.server));
	in.major = 8; /* greets again with 7 */
	CHECK(fake_ask(&fake, FUSE_INIT, 0, &in, sizeof(in), &reply) == 0);
	memcpy(&out, reply.data, sizeof(out));
	CHECK(out.major == 7 && !lfs_server_is_ready(fake.server));
	in.major = 7;
	in.minor = 12;
	CHECK(fake_ask(&fake, FUSE_INIT, 0, &in, sizeof(in), &reply) == EPROTO);
	in.minor = 45;
	CHECK(fake_ask(&fake, FUSE_INIT, 0, &in, sizeof(in), &reply) == 0);
	CHECK(reply.size == sizeof(out));
	memcpy(&out, reply.data, sizeof(out));
	CHECK(out.max_pages == 256 && out.max_write == 4096);
	CHECK(out.flags & FUSE_POSIX_ACL && out.flags & FUSE_ASYNC_READ);
	CHECK(!(out.flags & FUSE_WRITEBACK_CACHE));
	CHECK(!(out.flags & FUSE_POSIX_LOCKS) &&
	      !(out.flags & FUSE_FLOCK_LOCKS));
	/* Nothing is taken that was not offered */
	in.flags = FUSE_ASYNC_READ;
	CHECK(fake_ask(&fake, FUSE_INIT, 0, &in, sizeof(in), &reply) == 0);
	memcpy(&out, reply.data, sizeof(out));
	CHECK(out.flags == FUSE_ASYNC_READ && !out.flags2);
	CHECK(lfs_server_is_ready(fake.server));
}

static void check_names(void)
{
	struct fuse_entry_out entry;
	struct fuse_attr_out attr;

	CHECK(fake_ask(&fake, FUSE_LOOKUP, 1, "big", 4, &reply) == 0);
	CHECK(reply.size == sizeof(entry));
	memcpy(&entry, reply.data, sizeof(entry));
	CHECK(entry.nodeid == fake.made.big && entry.attr.ino == entry.nodeid);
	CHECK(entry.attr.size == BIG_SIZE && entry.attr.blocks == 24);
	CHECK((int64_t)entry.attr.mtime == -86400 && entry.attr.mtimensec == 5);
	CHECK(entry.entry_valid > 1000000 && entry.attr_valid > 1000000);
	CHECK(fake_ask(&fake, FUSE_LOOKUP, 1, "absent", 7, &reply) == 0);
	memcpy(&entry, reply.data, sizeof(entry));
	CHECK(!entry.nodeid && entry.entry_valid > 1000000);
	CHECK(fake_ask(&fake, FUSE_LOOKUP, fake.made.dir, "..", 3, &reply) ==
	      0);
	memcpy(&entry, reply.data, sizeof(entry));
	CHECK(entry.nodeid == 1 && entry.attr.ino == 1);
	CHECK(fake_ask(&fake, FUSE_LOOKUP, fake.made.big, ".", 2, &reply) == 0);
	memcpy(&entry, reply.data, sizeof(entry));
	CHECK(entry.nodeid == fake.made.big);
	CHECK(fake_ask(&fake, FUSE_LOOKUP, 999999, "x", 2, &reply) == EIO);
	CHECK(fake_ask(&fake, FUSE_GETATTR, 1, NULL, 0, &reply) == 0);
	memcpy(&attr, reply.data, sizeof(attr));
	CHECK(attr.attr.ino == 1 && S_ISDIR(attr.attr.mode));
	CHECK(fake_ask(&fake, FUSE_READLINK, fake.made.link, NULL, 0, &reply) ==
	      0);
	CHECK(reply.size == strlen(LINK_TARGET) &&
	      !memcmp(reply.data, LINK_TARGET, reply.size));
	CHECK(fake_ask(&fake, FUSE_READLINK, 1, NULL, 0, &reply) == EIO);
}

/* Read a directory with 'size' bytes at a time; returns the number of names. */
static unsigned read_directory(uint32_t opcode, uint64_t node, uint32_t size)
{
	struct fuse_read_in in = {.size = size};
	struct fuse_dirent dirent;
	size_t head =
		opcode == FUSE_READDIRPLUS ? sizeof(struct fuse_entry_out) : 0;
	unsigned count = 0;
	size_t at, step;

	do {
		CHECK(fake_ask(&fake, opcode, node, &in, sizeof(in), &reply) ==
		      0);
		CHECK(reply.size <= size);
		for (at = 0; at < reply.size; at += step) {
			memcpy(&dirent, reply.data + at + head,
			       FUSE_NAME_OFFSET);
			CHECK(dirent.namelen && dirent.ino && dirent.type);
			step = FUSE_DIRENT_ALIGN(head + FUSE_NAME_OFFSET +
						 dirent.namelen);
			in.offset = dirent.off;
			count++;
		}
		CHECK(at == reply.size);
	} while (reply.size);
	return count;
}

static void check_directories(void)
{
	struct fuse_read_in in = {.size = 20};
	uint32_t size;

	for (size = 200; size < 40000; size = size * 3 + 7) {
		CHECK(read_directory(FUSE_READDIR, fake.made.dir, size) ==
		      DIR_COUNT + 2);
		CHECK(read_directory(FUSE_READDIRPLUS, fake.made.dir, size) ==
		      DIR_COUNT + 2);
	}
	CHECK(read_directory(FUSE_READDIRPLUS, 1, UINT32_MAX) == 8);
	/* Room for no name at all */
	CHECK(fake_ask(&fake, FUSE_READDIR, 1, &in, sizeof(in), &reply) == 0);
	CHECK(!reply.size);
	in.offset = UINT64_MAX;
	in.size = 4096;
	CHECK(fake_ask(&fake, FUSE_READDIR, 1, &in, sizeof(in), &reply) == 0);
	CHECK(!reply.size);
	CHECK(fake_ask(&fake, FUSE_READDIR, fake.made.big, &in, sizeof(in),
		       &reply) == EIO);
}

static int get(uint64_t node, const char *name, uint32_t size)
{
	struct {
		struct fuse_getxattr_in in;
		char name[256];
	} body = {.in = {.size = size}};

	strcpy(body.name, name);
	return fake_ask(&fake, FUSE_GETXATTR, node, &body,
			sizeof(body.in) + strlen(name) + 1, &reply);
}

static bool is_value(const char *value)
{
	return reply.size == strlen(value) &&
	       !memcmp(reply.data, value, reply.size);
}

static void check_xattrs(void)
{
	struct fuse_getxattr_in in = {.size = 1000};
	struct fuse_getxattr_out out;

	CHECK(get(1, "user.note", 100) == 0 && is_value("hi"));
	CHECK(get(1, "user.note", 1) == ERANGE);
	CHECK(get(1, "user.note", 0) == 0 && reply.size == sizeof(out));
	memcpy(&out, reply.data, sizeof(out));
	CHECK(out.size == 2);
	CHECK(get(1, "user.lazyfs.schema", 100) == 0 && is_value("1"));
	CHECK(get(1, "user.lazyfs.fixed", 100) == 0 && is_value("42"));
	CHECK(get(1, "user.lazyfs.other", 100) == ENODATA);
	CHECK(get(1, "user.lazyfs.file.x", 100) == ENODATA); /* forged */
	CHECK(get(fake.made.big, "user.lazyfs.fixed", 100) == ENODATA);
	CHECK(get(fake.made.big, "user.lazyfs.file.layer", 100) == 0 &&
	      is_value("sha256:lower"));
	CHECK(get(fake.made.file, "user.lazyfs.file.layer.index", 100) == 0 &&
	      is_value("1"));
	CHECK(get(fake.made.file, "user.lazyfs.file.digest", 100) == ENODATA);
	CHECK(get(fake.made.big, "user.lazyfs.file.digest", 100) == 0);
	CHECK(reply.size == 71 && !memcmp(reply.data, "sha256:abab", 11));
	CHECK(get(fake.made.dir, "user.lazyfs.file.layer", 100) == ENODATA);
	CHECK(get(fake.made.big, "user.note", 100) == ENODATA);
	CHECK(fake_ask(&fake, FUSE_LISTXATTR, 1, &in, sizeof(in), &reply) == 0);
	CHECK(reply.size == 19 + 10 + 24 + 18 + 19);
	CHECK(!memcmp(reply.data, "user.lazyfs.schema\0user.note\0", 29));
	in.size = 10;
	CHECK(fake_ask(&fake, FUSE_LISTXATTR, 1, &in, sizeof(in), &reply) ==
	      ERANGE);
	in.size = 1000;
	CHECK(fake_ask(&fake, FUSE_LISTXATTR, fake.made.big, &in, sizeof(in),
		       &reply) == 0);
	CHECK(!reply.size);
}

static void check_opens(void)
{
	struct fuse_open_in in = {.flags = O_RDONLY};

	CHECK(fake_ask(&fake, FUSE_OPEN, fake.made.big, &in, sizeof(in),
		       &reply) == ENOSYS);
	CHECK(fake_ask(&fake, FUSE_OPENDIR, 1, &in, sizeof(in), &reply) ==
	      ENOSYS);
	in.flags = O_RDWR;
	CHECK(fake_ask(&fake, FUSE_OPEN, fake.made.big, &in, sizeof(in),
		       &reply) == EROFS);
}

static void check_others(void)
{
	static const uint32_t changes[] = {
		FUSE_SETATTR,	  FUSE_SYMLINK,	 FUSE_MKNOD,  FUSE_MKDIR,
		FUSE_UNLINK,	  FUSE_RMDIR,	 FUSE_RENAME, FUSE_RENAME2,
		FUSE_LINK,	  FUSE_CREATE,	 FUSE_WRITE,  FUSE_SETXATTR,
		FUSE_REMOVEXATTR, FUSE_FALLOCATE};
	uint32_t opcode;
	unsigned i;

	for (i = 0; i < sizeof(changes) / sizeof(*changes); i++)
		CHECK(fake_ask(&fake, changes[i], 1, "x", 2, &reply) == EROFS);
	CHECK(fake_ask(&fake, FUSE_FLUSH, 1, NULL, 0, &reply) == ENOSYS);
	CHECK(fake_ask(&fake, FUSE_LSEEK, 1, NULL, 0, &reply) == ENOSYS);
	CHECK(fake_ask(&fake, LFS_FUSE_STATX, 1, NULL, 0, &reply) == ENOSYS);
	for (opcode = 53; opcode < 70; opcode++)
		CHECK(fake_ask(&fake, opcode, 1, NULL, 0, &reply) == ENOSYS);
	CHECK(fake_ask(&fake, FUSE_STATFS, 1, NULL, 0, &reply) == 0);
	CHECK(reply.size == sizeof(struct fuse_statfs_out));
	/* No reply to these */
	fake_send(&fake, FUSE_FORGET, 1, "12345678", 8);
	fake_send(&fake, FUSE_BATCH_FORGET, 1, "12345678", 8);
	CHECK(fake_ask(&fake, FUSE_ACCESS, 1, "12345678", 8, &reply) == 0);
}

/* Every request cut short is answered with something, and nothing breaks. */
static void check_short_requests(void)
{
	static const uint8_t zeros[64];
	uint32_t opcode;
	size_t size;

	for (opcode = 1; opcode < 53; opcode++) {
		if (opcode == FUSE_FORGET || opcode == FUSE_BATCH_FORGET ||
		    opcode == FUSE_INTERRUPT || opcode == FUSE_DESTROY)
			continue;
		for (size = 0; size < sizeof(zeros); size += 3)
			fake_ask(&fake, opcode, size % 2 ? 1 : fake.made.big,
				 zeros, size, &reply);
	}
}

int main(void)
{
	struct lfs_options options = {.threads = 1,
				      .max_waiting = 8,
				      .max_touches = 16,
				      .max_read = LFS_MAX_READ};
	struct lfs_statistics statistics;

	fake_open(&fake, &options);
	check_greeting();
	check_names();
	check_directories();
	check_xattrs();
	check_opens();
	check_others();
	lfs_server_statistics(fake.server, &statistics);
	CHECK(statistics.faults == 3 && statistics.threads == 1);
	check_short_requests();
	CHECK(fake_ask(&fake, FUSE_DESTROY, 0, NULL, 0, &reply) == 0);
	while (!lfs_server_is_gone(fake.server))
		fake_take(&fake);
	fake_close(&fake);
	return 0;
}
