/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Extended attributes: those of the image, and what the mount says of itself.
 *
 * An image must not be able to forge its identity.  Names under user.lazyfs.
 * are shown on the root only, where the index was built with them and the mount
 * adds its own; the user.lazyfs.file.* names answer everywhere and are never
 * listed. The rules are those of lazyfs/mount/attrs.py.
 */
#include "attributes.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "events.h"
#include "fuse_abi.h"
#include "lazyfs_index.h"
#include "lazyfs_tables.h"
#include "reply.h"
#include "server_state.h"
#include "waiting.h"

#define PREFIX "user.lazyfs."
#define FILE_PREFIX "user.lazyfs.file."

static bool has_prefix(const char *name, size_t size, const char *prefix)
{
	size_t prefix_size = strlen(prefix);

	return size >= prefix_size && !memcmp(name, prefix, prefix_size);
}

static bool is_word(const char *name, size_t size, const char *word)
{
	return size == strlen(word) && !memcmp(name, word, size);
}

/* Answer user.lazyfs.file.WORD, from the provenance table. */
static void reply_origin(const struct lfs_worker *worker, uint64_t unique,
			 uint64_t nid, const char *word, size_t word_size,
			 uint32_t wanted)
{
	const struct lfs_server *server = worker->server;
	const struct lfs_layer *layer;
	struct lfs_origin origin;
	char text[80];
	size_t i;

	if (lfs_provenance_of(&server->provenance, nid, &origin) != LFS_OK ||
	    origin.layer >= server->device_count) {
		lfs_reply_error(worker, unique, ENODATA);
		return;
	}
	layer = &server->devices[origin.layer].layer;
	if (is_word(word, word_size, "layer")) {
		lfs_reply_xattr(worker, unique, layer->digest,
				strlen(layer->digest), wanted);
	} else if (is_word(word, word_size, "diffid")) {
		lfs_reply_xattr(worker, unique, layer->diff_id,
				strlen(layer->diff_id), wanted);
	} else if (is_word(word, word_size, "layer.index")) {
		i = (size_t)snprintf(text, sizeof(text), "%u", origin.layer);
		lfs_reply_xattr(worker, unique, text, i, wanted);
	} else if (is_word(word, word_size, "digest") && origin.digest) {
		memcpy(text, "sha256:", 7);
		for (i = 0; i < 32; i++)
			snprintf(text + 7 + 2 * i, 3, "%02x", origin.digest[i]);
		lfs_reply_xattr(worker, unique, text, 7 + 64, wanted);
	} else {
		lfs_reply_error(worker, unique, ENODATA);
	}
}

/* Answer a name that the mount adds to its root; false: it adds no such name.
 */
static bool reply_own(struct lfs_worker *worker, uint64_t unique,
		      const char *name, size_t size, uint32_t wanted)
{
	const struct lfs_server *server = worker->server;
	const struct lfs_own_attribute *own;
	size_t i;

	for (i = 0; i < server->attribute_count; i++) {
		own = &server->attributes[i];
		if (own->name_size != size || memcmp(own->name, name, size))
			continue;
		if (own->value)
			lfs_reply_xattr(worker, unique, own->value,
					own->value_size, wanted);
		else if (!lfs_wait_for_attribute(worker, unique, (uint32_t)i,
						 wanted))
			lfs_reply_error(worker, unique, EIO);
		return true;
	}
	return false;
}

void lfs_getxattr(struct lfs_worker *worker, const struct lfs_request *request)
{
	const struct lfs_server *server = worker->server;
	uint64_t nid = lfs_nid_of(server, request->header.nodeid);
	uint64_t unique = request->header.unique;
	struct lfs_xattr xattr, found = {0};
	struct fuse_getxattr_in in;
	struct lfs_xattrs xattrs;
	struct lfs_inode inode;
	enum lfs_result result;
	const char *name;
	bool is_found = false;
	size_t size;

	if (request->body_size < sizeof(in)) {
		lfs_reply_error(worker, unique, EINVAL);
		return;
	}
	memcpy(&in, request->body, sizeof(in));
	name = (const char *)request->body + sizeof(in);
	size = strnlen(name, request->body_size - sizeof(in));
	if (has_prefix(name, size, PREFIX)) {
		if (has_prefix(name, size, FILE_PREFIX)) {
			reply_origin(worker, unique, nid,
				     name + strlen(FILE_PREFIX),
				     size - strlen(FILE_PREFIX), in.size);
			return;
		}
		if (nid != server->index.root_nid) {
			lfs_reply_error(worker, unique, ENODATA);
			return;
		}
		if (reply_own(worker, unique, name, size, in.size))
			return;
	}
	result = lfs_index_inode(&server->index, nid, &inode);
	if (result == LFS_OK)
		result = lfs_xattrs_open(&xattrs, &server->index, &inode);
	while (result == LFS_OK) {
		result = lfs_xattrs_next(&xattrs, &xattr);
		if (result == LFS_OK && lfs_xattr_is(&xattr, name, size)) {
			found = xattr;
			is_found = true;
		}
	}
	if (result != LFS_ABSENT)
		lfs_fault(worker, request);
	else if (is_found)
		lfs_reply_xattr(worker, unique, found.value, found.value_size,
				in.size);
	else
		lfs_reply_error(worker, unique, ENODATA);
}

/* Write a name and its NUL behind the '*used' bytes; false: no room for it. */
static bool put_name(uint8_t *out, size_t *used, const char *prefix,
		     size_t prefix_size, const uint8_t *rest, size_t rest_size)
{
	uint8_t *out_next = out + *used;

	if (LFS_OUT_SIZE - *used < prefix_size + rest_size + 1)
		return false;
	memcpy(out_next, prefix, prefix_size);
	if (rest_size)
		memcpy(out_next + prefix_size, rest, rest_size);
	out_next[prefix_size + rest_size] = 0;
	*used += prefix_size + rest_size + 1;
	return true;
}

/* Does the list of names at 'out' hold this one? */
static bool is_listed(const uint8_t *out, size_t used, const char *name)
{
	const char *out_next = (const char *)out;
	const char *end = out_next + used;

	for (; out_next < end; out_next += strlen(out_next) + 1)
		if (!strcmp(out_next, name))
			return true;
	return false;
}

void lfs_listxattr(struct lfs_worker *worker, const struct lfs_request *request)
{
	const struct lfs_server *server = worker->server;
	uint64_t nid = lfs_nid_of(server, request->header.nodeid);
	bool is_root = nid == server->index.root_nid;
	const char *hidden = is_root ? FILE_PREFIX : PREFIX;
	const struct lfs_own_attribute *own;
	struct fuse_getxattr_in in;
	struct lfs_xattrs xattrs;
	struct lfs_xattr xattr;
	struct lfs_inode inode;
	enum lfs_result result;
	size_t i, start, used = 0;
	bool fits = true;

	if (request->body_size < sizeof(in)) {
		lfs_reply_error(worker, request->header.unique, EINVAL);
		return;
	}
	memcpy(&in, request->body, sizeof(in));
	result = lfs_index_inode(&server->index, nid, &inode);
	if (result == LFS_OK)
		result = lfs_xattrs_open(&xattrs, &server->index, &inode);
	while (result == LFS_OK && fits) {
		result = lfs_xattrs_next(&xattrs, &xattr);
		if (result != LFS_OK)
			break;
		start = used;
		fits = put_name(worker->out, &used, xattr.prefix,
				xattr.prefix_size, xattr.rest, xattr.rest_size);
		if (fits && has_prefix((const char *)worker->out + start,
				       used - start - 1, hidden))
			used = start;
	}
	for (i = 0; is_root && fits && i < server->attribute_count; i++) {
		own = &server->attributes[i];
		if (!is_listed(worker->out, used, own->name))
			fits = put_name(worker->out, &used, own->name,
					own->name_size, NULL, 0);
	}
	if (result == LFS_CORRUPT || result == LFS_WRONG_KIND)
		lfs_fault(worker, request);
	else if (!fits)
		lfs_reply_error(worker, request->header.unique, E2BIG);
	else
		lfs_reply_xattr(worker, request->header.unique, worker->out,
				used, in.size);
}
