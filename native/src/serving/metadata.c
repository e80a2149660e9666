/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names, attributes, directories and links.  Whatever the kernel is told holds
 * for ever, that a name does not exist too: an image never changes.
 */
#include "metadata.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "events.h"
#include "fuse_abi.h"
#include "lazyfs_index.h"
#include "reply.h"
#include "server_state.h"

static enum lfs_result load_inode(const struct lfs_worker *worker,
				  const struct lfs_request *request,
				  struct lfs_inode *inode)
{
	const struct lfs_server *server = worker->server;

	return lfs_index_inode(&server->index,
			       lfs_nid_of(server, request->header.nodeid),
			       inode);
}

static enum lfs_result fill_attr(const struct lfs_server *server,
				 const struct lfs_inode *inode,
				 struct fuse_attr *attr)
{
	memset(attr, 0, sizeof(*attr));
	if (inode->nid == server->index.root_nid)
		attr->ino = FUSE_ROOT_ID;
	else if (inode->nid > FUSE_ROOT_ID)
		attr->ino = inode->nid;
	else
		return LFS_CORRUPT; /* 1 is the root's */
	attr->size = inode->size;
	/* Whole blocks, in units of 512 bytes, as the kernel's EROFS counts */
	attr->blocks = (inode->size / LFS_BLOCK_SIZE +
			!!(inode->size % LFS_BLOCK_SIZE)) *
		       (LFS_BLOCK_SIZE / 512);
	attr->atime = (uint64_t)inode->mtime;
	attr->mtime = (uint64_t)inode->mtime;
	attr->ctime = (uint64_t)inode->mtime;
	attr->atimensec = inode->mtime_nanoseconds;
	attr->mtimensec = inode->mtime_nanoseconds;
	attr->ctimensec = inode->mtime_nanoseconds;
	attr->mode = inode->mode;
	attr->nlink = inode->nlink;
	attr->uid = inode->uid;
	attr->gid = inode->gid;
	attr->rdev = inode->rdev;
	attr->blksize = LFS_BLOCK_SIZE;
	return LFS_OK;
}

static enum lfs_result fill_entry(const struct lfs_server *server, uint64_t nid,
				  struct fuse_entry_out *entry)
{
	struct lfs_inode inode;
	enum lfs_result result;

	memset(entry, 0, sizeof(*entry));
	entry->entry_valid = LFS_FOREVER;
	entry->attr_valid = LFS_FOREVER;
	result = lfs_index_inode(&server->index, nid, &inode);
	if (result == LFS_OK)
		result = fill_attr(server, &inode, &entry->attr);
	entry->nodeid = entry->attr.ino;
	return result;
}

void lfs_lookup(struct lfs_worker *worker, const struct lfs_request *request)
{
	const struct lfs_server *server = worker->server;
	const uint8_t *name = request->body;
	struct fuse_entry_out entry;
	struct lfs_inode parent;
	enum lfs_result result;
	size_t name_size;
	uint64_t nid = 0;

	name_size = strnlen((const char *)name, request->body_size);
	result = load_inode(worker, request, &parent);
	if (result == LFS_OK && name_size == 1 && name[0] == '.')
		nid = parent.nid; /* of any kind: asked for by NFS' server */
	else if (result == LFS_OK)
		result = lfs_index_lookup(&server->index, &parent, name,
					  name_size, &nid);
	if (result == LFS_OK) {
		result = fill_entry(server, nid, &entry);
	} else if (result == LFS_ABSENT) {
		memset(&entry, 0, sizeof(entry));
		entry.entry_valid = LFS_FOREVER;
		result = LFS_OK;
	}
	if (result == LFS_OK)
		lfs_reply(worker, request->header.unique, &entry,
			  sizeof(entry));
	else
		lfs_fault(worker, request);
}

void lfs_getattr(struct lfs_worker *worker, const struct lfs_request *request)
{
	struct fuse_attr_out out = {.attr_valid = LFS_FOREVER};
	struct lfs_inode inode;
	enum lfs_result result;

	result = load_inode(worker, request, &inode);
	if (result == LFS_OK)
		result = fill_attr(worker->server, &inode, &out.attr);
	if (result == LFS_OK)
		lfs_reply(worker, request->header.unique, &out, sizeof(out));
	else
		lfs_fault(worker, request);
}

void lfs_readlink(struct lfs_worker *worker, const struct lfs_request *request)
{
	struct lfs_inode inode;
	enum lfs_result result;
	const uint8_t *target;
	size_t size;

	result = load_inode(worker, request, &inode);
	if (result == LFS_OK)
		result = lfs_index_readlink(&worker->server->index, &inode,
					    &target, &size);
	if (result == LFS_OK)
		lfs_reply(worker, request->header.unique, target, size);
	else
		lfs_fault(worker, request);
}

/* Write one entry at 'out', with its attributes if 'is_plus'; '*used' is its
 * size, or 0 when there are fewer than that many bytes left. */
static enum lfs_result put_entry(const struct lfs_server *server,
				 const struct lfs_entry *entry, bool is_plus,
				 uint8_t *out, size_t left, size_t *used)
{
	size_t head = is_plus ? FUSE_NAME_OFFSET_DIRENTPLUS : FUSE_NAME_OFFSET;
	size_t unaligned = head + entry->name_size;
	size_t size = FUSE_DIRENT_ALIGN(unaligned);
	struct fuse_entry_out attributes;
	struct fuse_dirent dirent;
	enum lfs_result result;

	*used = 0;
	if (size > left)
		return LFS_OK;
	result = fill_entry(server, entry->nid, &attributes);
	if (result != LFS_OK)
		return result;
	dirent.ino = attributes.attr.ino;
	dirent.off = entry->next_offset;
	dirent.namelen = (uint32_t)entry->name_size;
	dirent.type = (attributes.attr.mode & S_IFMT) >> 12;
	if (is_plus) {
		memcpy(out, &attributes, sizeof(attributes));
		out += sizeof(attributes);
	}
	memcpy(out, &dirent, FUSE_NAME_OFFSET);
	out += FUSE_NAME_OFFSET;
	memcpy(out, entry->name, entry->name_size);
	memset(out + entry->name_size, 0, size - unaligned);
	*used = size;
	return LFS_OK;
}

void lfs_readdir(struct lfs_worker *worker, const struct lfs_request *request)
{
	const struct lfs_server *server = worker->server;
	bool is_plus = request->header.opcode == FUSE_READDIRPLUS;
	size_t room, used, size = 0;
	struct lfs_entries entries;
	struct fuse_read_in in;
	struct lfs_entry entry;
	struct lfs_inode inode;
	enum lfs_result result;

	if (request->body_size < sizeof(in)) {
		lfs_reply_error(worker, request->header.unique, EINVAL);
		return;
	}
	memcpy(&in, request->body, sizeof(in));
	room = in.size < LFS_OUT_SIZE ? in.size : LFS_OUT_SIZE;
	result = load_inode(worker, request, &inode);
	if (result == LFS_OK)
		result = lfs_entries_open(&entries, &server->index, &inode,
					  in.offset);
	while (result == LFS_OK) {
		result = lfs_entries_next(&entries, &entry);
		if (result != LFS_OK)
			break;
		result = put_entry(server, &entry, is_plus, worker->out + size,
				   room - size, &used);
		if (result == LFS_OK && !used)
			break;
		size += used;
	}
	if (result == LFS_OK || result == LFS_ABSENT)
		lfs_reply(worker, request->header.unique, worker->out, size);
	else
		lfs_fault(worker, request);
}

void lfs_statfs(struct lfs_worker *worker, const struct lfs_request *request)
{
	const struct lfs_server *server = worker->server;
	struct fuse_statfs_out out = {0};
	uint64_t size = 0;
	uint32_t device;

	for (device = 1; device <= server->device_count; device++)
		size += lfs_index_device_size(&server->index, device);
	out.st.bsize = LFS_BLOCK_SIZE;
	out.st.frsize = LFS_BLOCK_SIZE;
	/* It is full: nothing can be written */
	out.st.blocks = size > LFS_BLOCK_SIZE
				? (size + LFS_BLOCK_SIZE - 1) / LFS_BLOCK_SIZE
				: 1;
	out.st.files = server->index.inode_count;
	out.st.namelen = 255;
	lfs_reply(worker, request->header.unique, &out, sizeof(out));
}
