/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a kernel says to a server, from its greeting to the end: requests with
 * good headers and odd bodies, misses that are answered late and in any order,
 * interrupts, a content file that fills, is emptied, and loses what it had.
 *
 * Whatever the kernel would refuse, or should never be told, is a failure: see
 * check_reply().  Bytes that are not resident are poison in the content file,
 * so that a reply which has them is known by its bytes.
 */
#define _GNU_SOURCE
#include "fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "serving/requests.h"
#include "serving/server_state.h"
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

static struct session session;
static uint8_t message[sizeof(struct fuse_out_header) + LFS_MAX_READ + 4096];

static uint8_t next(struct input *in)
{
	if (!in->size)
		return 0;
	in->size--;
	return *in->data++;
}

/* ---- What the image holds ------------------------------------------------ */

static const uint64_t CHUNK_START[2][4] = {{0, 4096, 8192, BIG_SIZE},
					   {0, FILE_SIZE}};
static const unsigned CHUNK_COUNT[2] = {3, 1};

/* The names of the root and of "dir", in their order. */
static bool name_in(const struct session *s, uint64_t node, uint32_t number,
		    char *name, uint64_t *nid)
{
	static const char names[NAMES_ROOT][8] = {
		".", "..", "big", "dir", "empty", "file", "link", "null"};
	const struct made *made = &s->made;
	const uint64_t nids[NAMES_ROOT] = {1,	       1,	   made->big,
					   made->dir,  made->empty, made->file,
					   made->link, made->null};

	if (node == 1 || node == made->root) {
		if (number >= NAMES_ROOT)
			return false;
		strcpy(name, names[number]);
		*nid = nids[number];
		return true;
	}
	CHECK(node == made->dir);
	if (number >= DIR_COUNT + 2)
		return false;
	if (number < 2) {
		strcpy(name, names[number]);
		*nid = number ? 1 : made->dir;
		return true;
	}
	snprintf(name, 8, "n%04u", number - 2);
	*nid = made->empty;
	return true;
}

static bool is_directory(const struct session *s, uint64_t node)
{
	return node == 1 || node == s->made.root || node == s->made.dir;
}

/* Is it one of the image's?  Others may look like inodes, or not. */
static bool is_node(const struct session *s, uint64_t node)
{
	const struct made *made = &s->made;

	return is_directory(s, node) || node == made->big ||
	       node == made->empty || node == made->file ||
	       node == made->link || node == made->null;
}

static bool file_of(const struct session *s, uint64_t node, unsigned *device,
		    uint64_t *size)
{
	*device = node == s->made.file;
	*size = node == s->made.big    ? BIG_SIZE
		: node == s->made.file ? FILE_SIZE
				       : 0;
	return *size || node == s->made.empty;
}

/* Are all chunks of these bytes resident; are their pages there, too? */
static void look(const struct session *s, unsigned device, uint64_t start,
		 uint64_t end, bool *is_resident, bool *is_intact)
{
	unsigned i;

	*is_resident = *is_intact = true;
	for (i = 0; i < CHUNK_COUNT[device]; i++) {
		if (CHUNK_START[device][i] >= end ||
		    CHUNK_START[device][i + 1] <= start)
			continue;
		if (s->made.states[device][i] != LFS_RESIDENT)
			*is_resident = false;
		if (!s->is_intact[device][i])
			*is_intact = false;
	}
}

static void write_content(struct session *s, unsigned device, unsigned chunk,
			  bool is_poison)
{
	uint64_t start = CHUNK_START[device][chunk], i;
	uint64_t size = CHUNK_START[device][chunk + 1] - start;
	uint8_t bytes[8192];

	for (i = 0; i < size; i++)
		bytes[i] = is_poison ? POISON
				     : content_byte(device + 1, start + i);
	CHECK(pwrite(s->contents[device], bytes, size, (off_t)start) ==
	      (ssize_t)size);
}

static void fetch(struct session *s, unsigned device, unsigned chunk)
{
	write_content(s, device, chunk, false);
	s->is_intact[device][chunk] = true;
	__atomic_store_n(&s->made.states[device][chunk], LFS_RESIDENT,
			 __ATOMIC_RELEASE);
}

static void evict(struct session *s, unsigned device, unsigned chunk,
		  uint8_t state)
{
	__atomic_store_n(&s->made.states[device][chunk], state,
			 __ATOMIC_RELEASE);
	write_content(s, device, chunk, true);
	s->is_intact[device][chunk] = true; /* as long as it is not marked */
}

/* Take whole pages out of the content file, the marks staying. */
static void lose(struct session *s, unsigned device, unsigned chunk, bool cuts)
{
	uint64_t start = CHUNK_START[device][chunk];
	unsigned i;

	if (!cuts) {
		CHECK(fallocate(s->contents[device],
				FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				(off_t)start, 4096) == 0);
		s->is_intact[device][chunk] = false;
		return;
	}
	CHECK(ftruncate(s->contents[device], (off_t)start) == 0);
	for (i = chunk; i < CHUNK_COUNT[device]; i++)
		s->is_intact[device][i] = false;
}

/* ---- Replies ------------------------------------------------------------- */

static struct sent *find_sent(struct session *s, uint64_t unique)
{
	unsigned i;

	for (i = 0; i < s->count; i++)
		if (s->sent[i].unique == unique)
			return &s->sent[i];
	return NULL;
}

static void check_attr(const struct session *s, uint64_t node,
		       const struct fuse_attr *attr)
{
	unsigned device;
	uint64_t size;

	CHECK(attr->ino && attr->nlink && attr->blksize == 4096);
	CHECK(attr->ctimensec < 1000000000);
	if (!is_node(s, node))
		return;
	CHECK(attr->ino == (node == s->made.root ? 1 : node));
	CHECK(S_ISDIR(attr->mode) == is_directory(s, node));
	CHECK(S_ISLNK(attr->mode) == (node == s->made.link));
	if (file_of(s, node, &device, &size))
		CHECK(S_ISREG(attr->mode) && attr->size == size);
}

static void check_lookup(const struct session *s, const struct sent *sent,
			 const uint8_t *data, size_t size)
{
	struct fuse_entry_out entry;
	bool is_found = false;
	uint64_t nid = 0;
	uint32_t i;
	char name[8];

	CHECK(size == sizeof(entry));
	memcpy(&entry, data, sizeof(entry));
	CHECK(entry.nodeid == entry.attr.ino && !entry.generation);
	if (entry.nodeid)
		check_attr(s, entry.nodeid, &entry.attr);
	if (!is_node(s, sent->node))
		return;
	if (!is_directory(s, sent->node)) {
		CHECK(!strcmp(sent->name, ".") && entry.nodeid == sent->node);
		return;
	}
	for (i = 0; !is_found && name_in(s, sent->node, i, name, &nid); i++)
		is_found = !strcmp(name, sent->name);
	CHECK(entry.nodeid == (is_found ? nid : 0));
}

static void check_read(const struct session *s, const struct sent *sent,
		       const uint8_t *data, size_t size)
{
	uint64_t file_size, i;
	unsigned device;

	CHECK(size <= sent->size);
	if (!is_node(s, sent->node))
		return;
	CHECK(file_of(s, sent->node, &device, &file_size));
	if (sent->offset >= file_size) {
		CHECK(!size);
		return;
	}
	CHECK(size == (sent->size < file_size - sent->offset
			       ? sent->size
			       : file_size - sent->offset));
	for (i = 0; i < size; i++)
		CHECK(data[i] == content_byte(device + 1, sent->offset + i));
}

static void check_entries(struct session *s, struct sent *sent,
			  const uint8_t *data, size_t size)
{
	bool is_plus = sent->opcode == FUSE_READDIRPLUS;
	size_t head = is_plus ? FUSE_NAME_OFFSET_DIRENTPLUS : FUSE_NAME_OFFSET;
	size_t at = 0, used, room = sent->size;
	uint32_t number = sent->first;
	struct fuse_entry_out entry;
	struct fuse_dirent dirent;
	uint64_t nid = 0, off = 0;
	char name[8];

	CHECK(size <= sent->size);
	for (; at < size; at += used, number++) {
		CHECK(size - at >= head);
		memcpy(&dirent, data + at + head - FUSE_NAME_OFFSET,
		       FUSE_NAME_OFFSET);
		used = FUSE_DIRENT_ALIGN(head + dirent.namelen);
		CHECK(dirent.namelen && dirent.namelen <= 255);
		CHECK(used <= size - at && dirent.ino);
		CHECK(!memchr(data + at + head, 0, dirent.namelen) &&
		      !memchr(data + at + head, '/', dirent.namelen));
		CHECK(dirent.off > off);
		off = dirent.off;
		if (is_plus) {
			memcpy(&entry, data + at, sizeof(entry));
			CHECK(entry.nodeid == dirent.ino &&
			      entry.attr.ino == dirent.ino);
			CHECK(dirent.type == (entry.attr.mode & S_IFMT) >> 12);
			check_attr(s, entry.nodeid, &entry.attr);
		}
		if (!sent->is_known)
			continue;
		CHECK(name_in(s, sent->node, number, name, &nid));
		CHECK(dirent.namelen == strlen(name) &&
		      !memcmp(data + at + head, name, dirent.namelen));
		CHECK(dirent.ino == nid);
		s->cursor.node = sent->node;
		s->cursor.offset = off;
		s->cursor.first = number + 1;
	}
	/* It ends where the directory does, or the room */
	if (sent->is_known && name_in(s, sent->node, number, name, &nid))
		CHECK(FUSE_DIRENT_ALIGN(head + strlen(name)) > room - size);
}

/* Check a text of which the caller has room for 'sent->size' bytes. */
static void check_text(const struct sent *sent, const uint8_t *data,
		       size_t size, const char *text, size_t text_size)
{
	struct fuse_getxattr_out out;

	if (sent->size) {
		CHECK(size <= sent->size);
		CHECK(size == text_size && !memcmp(data, text, size));
		return;
	}
	CHECK(size == sizeof(out));
	memcpy(&out, data, sizeof(out));
	CHECK(out.size == text_size);
}

static const char *xattr_of(const struct session *s, const struct sent *sent)
{
	bool is_root = sent->node == 1 || sent->node == s->made.root;
	bool is_big = sent->node == s->made.big;

	if (is_big || sent->node == s->made.file) {
		if (!strcmp(sent->name, "user.lazyfs.file.layer"))
			return is_big ? "sha256:lower" : "sha256:upper";
		if (!strcmp(sent->name, "user.lazyfs.file.layer.index"))
			return is_big ? "0" : "1";
	}
	if (!is_root)
		return NULL;
	if (!strcmp(sent->name, "user.note"))
		return "hi";
	if (!strcmp(sent->name, "user.lazyfs.fixed"))
		return "42";
	if (!strcmp(sent->name, "user.lazyfs.schema"))
		return "1";
	return strcmp(sent->name, HEALTH) ? NULL : "healthy";
}

static void check_list(const struct session *s, const struct sent *sent,
		       const uint8_t *data, size_t size)
{
	static const char names[] =
		"user.lazyfs.schema\0user.note\0system.posix_acl_access\0"
		"user.lazyfs.fixed\0user.lazyfs.health";

	if (sent->node == 1 || sent->node == s->made.root)
		check_text(sent, data, size, names, sizeof(names));
	else if (is_node(s, sent->node))
		check_text(sent, data, size, "", 0);
}

static void check_init(const struct sent *sent, const uint8_t *data,
		       size_t size)
{
	struct fuse_init_out out;

	CHECK(size == sizeof(out));
	memcpy(&out, data, sizeof(out));
	CHECK(out.major == FUSE_KERNEL_VERSION && out.minor == LFS_FUSE_MINOR);
	CHECK(!(out.flags & ~sent->first)); /* only what was offered */
	if (out.max_pages)
		CHECK(out.max_write == 4096 && out.time_gran == 1 &&
		      out.max_background && out.max_pages <= LFS_MAX_READ / 4096);
}

static void check_data(struct session *s, struct sent *sent,
		       const uint8_t *data, size_t size)
{
	struct fuse_attr_out attr;
	const char *value;

	switch (sent->opcode) {
	case FUSE_INIT:
		check_init(sent, data, size);
		break;
	case FUSE_LOOKUP:
		check_lookup(s, sent, data, size);
		break;
	case FUSE_GETATTR:
		CHECK(size == sizeof(attr));
		memcpy(&attr, data, sizeof(attr));
		check_attr(s, sent->node, &attr.attr);
		break;
	case FUSE_READ:
		check_read(s, sent, data, size);
		break;
	case FUSE_READDIR:
	case FUSE_READDIRPLUS:
		CHECK(!is_node(s, sent->node) || is_directory(s, sent->node));
		check_entries(s, sent, data, size);
		break;
	case FUSE_READLINK:
		CHECK(size <= 4095);
		if (is_node(s, sent->node))
			CHECK(sent->node == s->made.link &&
			      size == strlen(LINK_TARGET) &&
			      !memcmp(data, LINK_TARGET, size));
		break;
	case FUSE_GETXATTR:
		value = xattr_of(s, sent);
		if (value)
			check_text(sent, data, size, value, strlen(value));
		else
			CHECK(!sent->size ? size == 8 : size <= sent->size);
		break;
	case FUSE_LISTXATTR:
		check_list(s, sent, data, size);
		break;
	case FUSE_STATFS:
		CHECK(size == sizeof(struct fuse_statfs_out));
		break;
	case FUSE_OPEN:
		CHECK(s->options.serves_devices &&
		      size == sizeof(struct fuse_open_out));
		break;
	default: /* nothing else has data */
		CHECK(!size);
	}
}

/* Which errors a request may have that is whole and means what exists. */
static bool may_fail(const struct session *s, const struct sent *sent,
		     int error)
{
	switch (sent->opcode) {
	case FUSE_GETATTR:
		return !is_node(s, sent->node) && error == EIO;
	case FUSE_LOOKUP:
		return !is_directory(s, sent->node) && error == EIO;
	case FUSE_READ:
		if (error == EINVAL)
			return sent->body_size < sizeof(struct fuse_read_in) ||
			       sent->size > LFS_MAX_READ;
		return error == EIO || (error == EINTR && sent->is_waiting);
	case FUSE_READDIR:
	case FUSE_READDIRPLUS:
		if (error == EINVAL)
			return sent->body_size < sizeof(struct fuse_read_in);
		return error == EIO &&
		       !(sent->is_known && is_directory(s, sent->node));
	case FUSE_READLINK:
		return error == EIO && sent->node != s->made.link;
	case FUSE_GETXATTR:
		if (error == EINVAL)
			return sent->body_size <
			       sizeof(struct fuse_getxattr_in);
		if (error == ERANGE)
			return sent->size;
		if (!strcmp(sent->name, HEALTH))
			return error == EIO || error == EINTR ||
			       error == ENODATA;
		return (error == ENODATA && !xattr_of(s, sent)) ||
		       (error == EIO && !is_node(s, sent->node));
	case FUSE_LISTXATTR:
		if (error == EINVAL)
			return sent->body_size <
			       sizeof(struct fuse_getxattr_in);
		return (error == ERANGE && sent->size) ||
		       (error == EIO && !is_node(s, sent->node));
	case FUSE_STATFS:
	case FUSE_ACCESS:
	case FUSE_RELEASE:
	case FUSE_RELEASEDIR:
	case FUSE_DESTROY:
		return false;
	case FUSE_INIT:
		return error == EPROTO;
	case FUSE_INTERRUPT:
		return error == (s->options.serves_devices ? ENOSYS : EAGAIN);
	default:
		return error == ENOSYS || error == EROFS;
	}
}

static void check_reply(struct session *s, size_t size)
{
	struct fuse_out_header header;
	struct sent *sent;

	CHECK(size >= sizeof(header));
	memcpy(&header, message, sizeof(header));
	CHECK(header.len == size);
	CHECK(header.error <= 0 && header.error > -1000);
	CHECK(!header.error || size == sizeof(header));
	sent = find_sent(s, header.unique);
	CHECK(sent && sent->state == SENT && sent->wants_reply);
	sent->state = ANSWERED;
	if (header.error)
		CHECK(may_fail(s, sent, -header.error));
	else
		check_data(s, sent, message + sizeof(header),
			   size - sizeof(header));
	sent->is_waiting = false;
}

/* Take what the server has said; returns how many replies there were. */
static unsigned receive(struct session *s)
{
	unsigned count = 0;
	ssize_t size;

	while ((size = recv(s->kernel, message, sizeof(message),
			    MSG_DONTWAIT)) > 0) {
		check_reply(s, (size_t)size);
		count++;
	}
	CHECK(size < 0 && errno == EAGAIN);
	return count;
}

/* ---- Events -------------------------------------------------------------- */

static void check_event(struct session *s, const struct lfs_event *event)
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

static void take(struct session *s, size_t max)
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
static void answer(struct session *s, struct input *in)
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

/* ---- Requests ------------------------------------------------------------ */

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

static void ask(struct session *s, struct input *in, uint8_t what)
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

/* ---- From the greeting to the end ---------------------------------------- */

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
