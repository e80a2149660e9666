/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A session of a made-up kernel with a server.
 *
 *   image.c     what the image holds, and what of it is resident
 *   replies.c   what the server may say to the kernel
 *   events.c    what it tells its owner, and the owner's answers
 *   requests.c  what the kernel says
 *
 * Whatever the kernel would refuse, or should never be told, is a failure: see
 * replies.c.  Bytes that are not resident are poison in the content file, so
 * that a reply which has them is known by its bytes.
 */
#ifndef LAZYFS_FUZZ_SESSION_H
#define LAZYFS_FUZZ_SESSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lazyfs_server.h"
#include "support.h"

#define MAX_REQUESTS 160
#define CONTENT_SIZE 12288
#define POISON 0xEE
#define WAITING_ROOM 5
#define NAMES_ROOT 8
#define HEALTH "user.lazyfs.health"

enum state { UNSENT, SENT, ANSWERED };

struct sent {
	uint64_t unique, node, offset, event;
	uint32_t opcode, size; /* 'size': the room that the caller has */
	size_t body_size;
	enum state state;
	bool wants_reply, is_waiting, was_resident;
	bool is_known; /* the place is one that readdir has given out */
	uint32_t first; /* its number in the directory */
	char name[64];
};

struct session {
	struct made made;
	struct lfs_server *server;
	int kernel, device, contents[2];
	bool is_intact[2][3]; /* the content file has the chunk's bytes */
	struct sent sent[MAX_REQUESTS];
	unsigned count;
	struct lfs_event events[MAX_REQUESTS];
	unsigned event_count, hints;
	struct lfs_options options;
	struct {
		uint64_t node, offset;
		uint32_t first;
	} cursor; /* of a directory that is read on */
	bool is_threaded, is_over;
};

struct input {
	const uint8_t *data;
	size_t size;
};

/* The next byte of an input; zeros behind its end. */
static inline uint8_t next(struct input *in)
{
	if (!in->size)
		return 0;
	in->size--;
	return *in->data++;
}

#endif /* LAZYFS_FUZZ_SESSION_H */
