/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel says: requests with good headers and odd bodies. */
#include "requests.h"

#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "image.h"
#include "replies.h"
#include "serving/requests.h"
#include "serving/server_state.h"

static uint64_t pick_node(const struct session *s, struct input *in)
{
	const struct made *made = &s->made;
	const uint64_t nodes[] = {1,	      made->root, made->big,
				  made->dir,  made->file, made->empty,
				  made->link, made->null, made->big,
				  made->file, made->dir,  made->big};
	uint8_t which = next(in);

	if (which < 240)
		return nodes[which % 12];
	if (which < 250)
		return (uint64_t)next(in) | (uint64_t)(which % 3) << 60;
	return which & 1 ? 0 : UINT64_MAX;
}

/* Send a request, and take what comes at once. */
static void send_request(struct session *s, struct sent *sent,
			 const void *body, size_t size, int wrong)
{
	static uint8_t bytes[sizeof(struct fuse_in_header) + 8192];
	struct fuse_in_header header = {
		.opcode = sent->opcode,
		.nodeid = sent->node,
		.unique = sent->unique,
		.pid = (uint32_t)getpid(),
	};
	size_t whole = sizeof(header) + size;
	struct fuse_in_header marker = {
		.len = sizeof(marker), .opcode = FUSE_ACCESS, .nodeid = 1};
	struct sent *mark;

	header.len = (uint32_t)(whole + (size_t)wrong);
	memcpy(bytes, &header, sizeof(header));
	if (size)
		memcpy(bytes + sizeof(header), body, size);
	sent->state = SENT;
	sent->body_size = size;
	if (wrong)
		sent->wants_reply = false;
	if (!s->is_threaded) {
		s->is_over = !lfs_dispatch(&s->server->workers[0], bytes,
					   whole);
		CHECK(!s->is_over || sent->opcode == FUSE_DESTROY);
		receive(s);
		return;
	}
	CHECK(write(s->kernel, bytes, whole) == (ssize_t)whole);
	s->is_over = sent->opcode == FUSE_DESTROY && !wrong;
	if (s->is_over || s->count >= MAX_REQUESTS) {
		while (s->is_over && !lfs_server_is_gone(s->server))
			sched_yield();
		receive(s);
		return;
	}
	/* One thread takes them in their order: what it says to a request is
	 * there when a further one has its answer */
	mark = &s->sent[s->count++];
	memset(mark, 0, sizeof(*mark));
	mark->opcode = FUSE_ACCESS;
	mark->unique = marker.unique = 2 * s->count;
	mark->wants_reply = true;
	mark->state = SENT;
	CHECK(write(s->kernel, &marker, sizeof(marker)) == sizeof(marker));
	while (mark->state != ANSWERED)
		if (!receive(s))
			sched_yield();
}

static void interrupt(struct session *s, struct input *in, struct sent *sent)
{
	struct fuse_interrupt_in body = {.unique = UINT64_MAX};
	struct sent *other = NULL;
	bool was_waiting;
	uint8_t which = next(in);

	if (which < 250 && s->count > 1) {
		other = &s->sent[which % (s->count - 1)];
		body.unique = other->unique;
	}
	was_waiting = other && other->is_waiting;
	sent->unique = body.unique | 1; /* as the kernel does */
	if (find_sent(s, sent->unique) != sent) {
		sent->unique = UINT64_MAX - 2 * s->count; /* said before */
	}
	send_request(s, sent, &body, sizeof(body), 0);
	if (s->options.serves_devices) {
		CHECK(sent->state == ANSWERED);
		return;
	}
	/* Either it ends what waits, or the kernel is to ask again */
	CHECK(sent->state == (was_waiting ? SENT : ANSWERED));
	if (was_waiting)
		CHECK(other->state == ANSWERED);
	sent->wants_reply = false;
}

static void read_file(struct session *s, struct input *in, struct sent *sent)
{
	static const uint64_t offsets[] = {
		0,    1,    4095, 4096, 4097, 8191,	  8192,	     9999,
		5000, 4999, 5001, 1,	10000, 1u << 30, UINT64_MAX, 12287};
	static const uint32_t sizes[] = {
		1,    4096,	   4095, 4097, 8192, 0,
		5000, 1u << 20, 100,	 (1u << 20) + 1, UINT32_MAX, 10};
	struct fuse_read_in body = {0};
	bool is_resident, is_intact;
	uint64_t end, size;
	unsigned device;

	body.offset = offsets[next(in) % 16];
	body.size = sizes[next(in) % 12];
	sent->offset = body.offset;
	sent->size = body.size;
	if (next(in) >= 250) {
		send_request(s, sent, &body, sizeof(body) - 1, 0);
		CHECK(sent->state == ANSWERED);
		return;
	}
	send_request(s, sent, &body, sizeof(body), 0);
	sent->is_waiting = sent->state == SENT;
	if (!is_node(s, sent->node))
		return;
	if (!file_of(s, sent->node, &device, &size) || body.offset >= size ||
	    !body.size) {
		CHECK(sent->state == ANSWERED);
		return;
	}
	end = body.offset + body.size < size ? body.offset + body.size : size;
	look(s, device, body.offset, end, &is_resident, &is_intact);
	if (is_resident && is_intact)
		CHECK(sent->state == ANSWERED);
}

static void read_directory(struct session *s, struct input *in,
			   struct sent *sent)
{
	struct fuse_read_in body = {0};
	uint8_t how = next(in);

	body.size = how & 8 ? 4096u : (uint32_t)next(in) * 3u;
	if (how >= 240)
		body.size = UINT32_MAX;
	if (how & 1) {
		body.offset = 0;
		sent->is_known = is_directory(s, sent->node);
	} else if (how & 2 && s->cursor.node) {
		sent->node = s->cursor.node;
		sent->is_known = true;
		sent->first = s->cursor.first;
		body.offset = s->cursor.offset;
	} else {
		body.offset = (uint64_t)next(in) << (how >> 2 & 60);
	}
	sent->size = body.size;
	send_request(s, sent, &body, sizeof(body) - (how == 128), 0);
}

static void ask_attribute(struct session *s, struct input *in,
			  struct sent *sent)
{
	static const char *const names[] = {
		"user.note", "user.lazyfs.fixed", HEALTH,
		"user.lazyfs.schema", "user.lazyfs.file.layer",
		"user.lazyfs.file.layer.index", "user.lazyfs.file.digest",
		"user.lazyfs.file.x", "user.lazyfs.", "user.", "",
		"system.posix_acl_access", "user.lazyfs.file.diffid",
		"trusted.none", "user.note2", HEALTH};
	struct {
		struct fuse_getxattr_in in;
		char name[64];
	} body = {{0}, {0}};
	uint8_t how = next(in);
	size_t size = sizeof(body.in);

	/* Every size around those of the values */
	body.in.size = how < 200 ? how % 100 : (uint32_t)how << (how % 25);
	sent->size = body.in.size;
	if (sent->opcode == FUSE_GETXATTR) {
		strcpy(body.name, names[next(in) % 16]);
		strcpy(sent->name, body.name);
		size += strlen(body.name) + (how % 7 > 0);
	}
	if (how == 255)
		size = sizeof(body.in) - 1;
	send_request(s, sent, &body, size, 0);
	sent->is_waiting = sent->state == SENT;
	CHECK(!sent->is_waiting || !strcmp(sent->name, HEALTH));
}

static void look_up(struct session *s, struct input *in, struct sent *sent)
{
	static const char *const names[] = {
		"big",	 "dir", "empty", "file", "link",  "null", ".",
		"..",	 "n0",	"bi",	 "bigg", "n0000", "n0599", "n0600",
		"n0229", "~",	"",	 "a/b"};
	uint8_t which = next(in);
	uint64_t nid;

	if (which < 200)
		strcpy(sent->name, names[which % 18]);
	else if (!is_directory(s, sent->node) ||
		 !name_in(s, sent->node, which * 3u, sent->name, &nid))
		memset(sent->name, which, 1 + which % 62);
	send_request(s, sent, sent->name,
		     strlen(sent->name) + (which % 5 > 0), 0);
}

static void greet(struct session *s, struct input *in, struct sent *sent)
{
	struct fuse_init_in body = {.major = 7};
	uint8_t how = next(in);
	size_t size = sizeof(body);

	body.minor = next(in) % 45;
	body.max_readahead = (uint32_t)next(in) << (how % 25);
	body.flags = how & 1 ? UINT32_MAX
			     : (uint32_t)next(in) << 24 |
				       (uint32_t)next(in) << 8 | next(in);
	body.flags2 = how & 2 ? UINT32_MAX : next(in);
	if (how >= 224)
		body.major = how % 10;
	if (how & 4)
		size = next(in) % (sizeof(body) + 1);
	sent->first = size >= 16 ? body.flags : size < 13 ? 0 : UINT32_MAX;
	send_request(s, sent, &body, size, 0);
}

static void forget(struct session *s, struct input *in, struct sent *sent)
{
	uint8_t body[sizeof(struct fuse_batch_forget_in) + 64] = {next(in)};

	sent->wants_reply = false;
	send_request(s, sent, body, next(in) % sizeof(body), 0);
}

static void send_other(struct session *s, struct input *in, struct sent *sent)
{
	static const uint32_t opcodes[] = {
		FUSE_STATFS, FUSE_OPEN,	   FUSE_OPENDIR, FUSE_ACCESS,
		FUSE_IOCTL,  FUSE_LSEEK,   FUSE_FLUSH,	 FUSE_RELEASE,
		FUSE_WRITE,  FUSE_SETATTR, FUSE_POLL,	 FUSE_READLINK,
		FUSE_STATFS, LFS_FUSE_STATX, FUSE_READLINK, FUSE_GETATTR};
	uint8_t body[128], how = next(in);
	size_t i, size = next(in) % sizeof(body);

	for (i = 0; i < size; i++)
		body[i] = how & 1 ? next(in) : 0;
	sent->opcode = how < 200 ? opcodes[how % 16] : next(in);
	if (sent->opcode == FUSE_DESTROY && how < 250)
		sent->opcode = FUSE_STATFS;
	if (sent->opcode == FUSE_FORGET || sent->opcode == FUSE_BATCH_FORGET)
		sent->wants_reply = false;
	switch (sent->opcode) {
	case FUSE_INIT: /* those have their own, which know what comes */
	case FUSE_LOOKUP:
	case FUSE_READ:
	case FUSE_READDIR:
	case FUSE_READDIRPLUS:
	case FUSE_GETXATTR:
	case FUSE_LISTXATTR:
	case FUSE_INTERRUPT:
		sent->opcode = FUSE_GETATTR;
	}
	/* One byte too many or too few in the header: from no kernel */
	send_request(s, sent, body, size, how % 32 == 9   ? 1
					  : how % 32 == 8 ? -1
							  : 0);
	CHECK(sent->state == (sent->wants_reply ? ANSWERED : SENT));
}

void ask(struct session *s, struct input *in, uint8_t what)
{
	static const uint32_t opcodes[] = {
		FUSE_READ,	 FUSE_READ,	FUSE_READ,     FUSE_LOOKUP,
		FUSE_READDIR,	 FUSE_READDIRPLUS, FUSE_GETXATTR,
		FUSE_LISTXATTR,	 FUSE_INTERRUPT, FUSE_INIT,    FUSE_FORGET,
		FUSE_STATFS,	 FUSE_STATFS,	FUSE_READ,
		FUSE_INTERRUPT,	 FUSE_BATCH_FORGET};
	struct sent *sent = &s->sent[s->count++];

	memset(sent, 0, sizeof(*sent));
	sent->unique = 2 * s->count;
	sent->opcode = opcodes[what % 16];
	sent->wants_reply = true;
	sent->node = pick_node(s, in);
	switch (sent->opcode) {
	case FUSE_READ:
		read_file(s, in, sent);
		break;
	case FUSE_LOOKUP:
		look_up(s, in, sent);
		break;
	case FUSE_READDIR:
	case FUSE_READDIRPLUS:
		read_directory(s, in, sent);
		break;
	case FUSE_GETXATTR:
	case FUSE_LISTXATTR:
		ask_attribute(s, in, sent);
		break;
	case FUSE_INTERRUPT:
		interrupt(s, in, sent);
		break;
	case FUSE_INIT:
		greet(s, in, sent);
		break;
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
		forget(s, in, sent);
		break;
	default:
		send_other(s, in, sent);
	}
	/* Nobody is left without an answer who is not on the table */
	if (sent->wants_reply && !sent->is_waiting && sent->opcode != FUSE_INTERRUPT)
		CHECK(sent->state == ANSWERED);
}
