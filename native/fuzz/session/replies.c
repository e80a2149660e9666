/* SPDX-License-Identifier: Apache-2.0 */
/* What the server may say to the kernel: well-formed, true, and at its time. */
#include "replies.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "image.h"
#include "serving/fuse_abi.h"

static uint8_t message[sizeof(struct fuse_out_header) + LFS_MAX_READ + 4096];

struct sent *find_sent(struct session *s, uint64_t unique)
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
unsigned receive(struct session *s)
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
