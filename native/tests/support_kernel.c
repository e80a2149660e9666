/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "support.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

uint8_t content_byte(unsigned device, uint64_t offset)
{
	return (uint8_t)(offset * 31 + offset / 251 + device);
}

static int make_content(unsigned device, size_t size)
{
	int fd = memfd_create("content", MFD_CLOEXEC);
	size_t i;
	uint8_t byte;

	CHECK(fd >= 0);
	for (i = 0; i < size; i++) {
		byte = content_byte(device, i);
		CHECK(write(fd, &byte, 1) == 1);
	}
	return fd;
}

void fake_open(struct fake *fake, const struct lfs_options *options)
{
	static const struct lfs_attribute attributes[] = {
		{"user.lazyfs.fixed", (const uint8_t *)"42", 2},
		{"user.lazyfs.health", NULL, 0},
	};
	struct lfs_layer layers[2];
	struct lfs_image image = {.layers = layers,
				  .attributes = attributes,
				  .attribute_count = 2};
	int ends[2], room = 4 << 20;
	unsigned i;

	make_image(&fake->made);
	fake->unique = 0;
	CHECK(lfs_index_open(&image.index, fake->made.index, INDEX_SIZE) ==
	      LFS_OK);
	CHECK(lfs_provenance_open(&image.provenance, fake->made.provenance,
				  PROVENANCE_SIZE) == LFS_OK);
	for (i = 0; i < 2; i++) {
		CHECK(lfs_table_open(&layers[i].table, fake->made.tables[i],
				     fake->made.table_sizes[i]) == LFS_OK);
		layers[i].states = fake->made.states[i];
		layers[i].states_size = (size_t)layers[i].table.count;
		fake->contents[i] = make_content(i + 1, 12288);
		layers[i].content_fd = fake->contents[i];
		layers[i].digest = i ? "sha256:upper" : "sha256:lower";
		layers[i].diff_id = "sha256:diff";
	}
	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
	setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &room, sizeof(room));
	setsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &room, sizeof(room));
	fake->device = ends[0];
	fake->kernel = ends[1];
	CHECK(lfs_server_create(&fake->server, fake->device, &image, options) ==
	      0);
	CHECK(lfs_server_start(fake->server) == 0);
	CHECK(lfs_server_start(fake->server) == EALREADY);
}

void fake_close(struct fake *fake)
{
	lfs_server_destroy(fake->server);
	close(fake->kernel);
	close(fake->device);
	close(fake->contents[0]);
	close(fake->contents[1]);
}

uint64_t fake_send(struct fake *fake, uint32_t opcode, uint64_t node,
		   const void *body, size_t size)
{
	struct {
		struct fuse_in_header header;
		uint8_t body[8192];
	} request = {.header = {.opcode = opcode, .nodeid = node}};

	CHECK(size <= sizeof(request.body));
	request.header.len = (uint32_t)(sizeof(request.header) + size);
	request.header.unique = fake->unique += 2;
	if (size)
		memcpy(request.body, body, size);
	CHECK(write(fake->kernel, &request, request.header.len) ==
	      (ssize_t)request.header.len);
	return request.header.unique;
}

void fake_receive(struct fake *fake, struct fake_reply *reply)
{
	static uint8_t
		message[sizeof(struct fuse_out_header) + LFS_MAX_READ + 4096];
	struct pollfd wait = {.fd = fake->kernel, .events = POLLIN};
	struct fuse_out_header header;
	ssize_t size;

	CHECK(poll(&wait, 1, 10000) == 1);
	size = read(fake->kernel, message, sizeof(message));
	CHECK(size >= (ssize_t)sizeof(header));
	memcpy(&header, message, sizeof(header));
	CHECK(header.len == (size_t)size);
	CHECK(header.error <= 0 && header.error > -4096);
	CHECK(!header.error || size == sizeof(header));
	reply->error = -header.error;
	reply->unique = header.unique;
	reply->size = (size_t)size - sizeof(header);
	memcpy(reply->data, message + sizeof(header), reply->size);
}

int fake_ask(struct fake *fake, uint32_t opcode, uint64_t node,
	     const void *body, size_t size, struct fake_reply *reply)
{
	uint64_t unique = fake_send(fake, opcode, node, body, size);

	fake_receive(fake, reply);
	CHECK(reply->unique == unique);
	return reply->error;
}

uint64_t fake_send_read(struct fake *fake, uint64_t node, uint64_t offset,
			uint32_t size)
{
	struct fuse_read_in in = {.offset = offset, .size = size};

	return fake_send(fake, FUSE_READ, node, &in, sizeof(in));
}

struct lfs_event fake_take(struct fake *fake)
{
	struct pollfd wait = {.fd = lfs_server_event_fd(fake->server),
			      .events = POLLIN};
	struct lfs_event event;

	do {
		CHECK(poll(&wait, 1, 10000) == 1);
	} while (!lfs_server_take(fake->server, &event, 1));
	return event;
}

bool fake_is_silent(struct fake *fake)
{
	struct pollfd wait = {.fd = fake->kernel, .events = POLLIN};

	return poll(&wait, 1, 0) == 0;
}
