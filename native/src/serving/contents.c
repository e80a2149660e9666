/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads.  A byte leaves this file only if its chunk was RESIDENT, which another
 * process or thread says by a store into the presence map, after the verified
 * bytes are in the content file.  The map is therefore read with acquire order,
 * and before the content.  A file that was cut since, and written to again, has
 * zeros there, and a hole: zeros are looked into before they are believed.
 */
#define _GNU_SOURCE /* SEEK_HOLE, O_DIRECT */
#include "contents.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "events.h"
#include "fuse_abi.h"
#include "lazyfs_index.h"
#include "lazyfs_tables.h"
#include "reply.h"
#include "server_state.h"
#include "waiting.h"

/* Reads from here on are read-ahead, which is better done beside the reader. */
#define LARGE (64u << 10)

static bool is_chunk_resident(const struct lfs_device *device, uint64_t chunk)
{
	return chunk < device->layer.states_size &&
	       __atomic_load_n(&device->layer.states[chunk],
			       __ATOMIC_ACQUIRE) == LFS_RESIDENT;
}

static bool are_resident(const struct lfs_device *device, uint64_t first,
			 uint64_t last)
{
	if (device->layer.content_fd < 0)
		return false;
	for (; first < last; first++)
		if (!is_chunk_resident(device, first))
			return false;
	return true;
}

/* Find the records that a read needs; LFS_CORRUPT: bytes that cannot be verified. */
static enum lfs_result records_for(const struct lfs_server *server,
				   const struct lfs_device *device,
				   uint64_t start, uint64_t end,
				   uint64_t *first, uint64_t *last)
{
	if (!server->options.serves_devices)
		return lfs_table_covering(&device->layer.table, start, end,
					  first, last);
	lfs_table_overlapping(&device->layer.table, start, end, first, last);
	return LFS_OK;
}

void lfs_clear_gaps(const struct lfs_device *device, uint8_t *out,
		    uint64_t offset, size_t size)
{
	const struct lfs_table *table = &device->layer.table;
	uint64_t end = offset + size, place = offset, first, last, from, to;

	lfs_table_overlapping(table, offset, end, &first, &last);
	for (; first <= last && place < end; first++) {
		from = to = end;
		if (first < last)
			lfs_table_record(table, first, &from, &to);
		if (from > end)
			from = end;
		if (from > place)
			memset(out + (place - offset), 0, from - place);
		if (to > place)
			place = to;
	}
}

enum lfs_result lfs_is_resident(const struct lfs_server *server,
				const struct lfs_device *device,
				uint64_t offset, uint64_t size)
{
	uint64_t first, last;
	enum lfs_result result;

	result = records_for(server, device, offset, offset + size, &first,
			     &last);
	if (result != LFS_OK)
		return result;
	return are_resident(device, first, last) ? LFS_OK : LFS_ABSENT;
}

static bool read_content(const struct lfs_device *device, uint8_t *out,
			 uint64_t offset, size_t size)
{
	ssize_t got;

	while (size) {
		got = pread(device->layer.content_fd, out, size, (off_t)offset);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return false; /* the content file was damaged */
		out += got;
		offset += (uint64_t)got;
		size -= (size_t)got;
	}
	return true;
}

static bool is_zero(const uint8_t *bytes, size_t size)
{
	return !bytes[0] && !memcmp(bytes, bytes + 1, size - 1);
}

/* Is a page of the device, or what 'bytes' has of it, zeros? */
static bool has_zero_page(const uint8_t *bytes, uint64_t offset, size_t size)
{
	size_t piece;

	for (; size; bytes += piece, offset += piece, size -= piece) {
		piece = LFS_BLOCK_SIZE - (size_t)(offset % LFS_BLOCK_SIZE);
		if (piece > size)
			piece = size;
		if (is_zero(bytes, piece))
			return true;
	}
	return false;
}

/* Is part of a chunk that was written a hole of the file, or behind its end? */
static bool has_hole(const struct lfs_device *device, uint64_t offset,
		     size_t size)
{
	const struct lfs_table *table = &device->layer.table;
	uint64_t first, last, from, to;
	off_t hole;

	lfs_table_overlapping(table, offset, offset + size, &first, &last);
	for (; first < last; first++) {
		if (lfs_table_is_hole(table, first))
			continue;
		lfs_table_record(table, first, &from, &to);
		if (from < offset)
			from = offset;
		if (to > offset + size)
			to = offset + size;
		hole = lseek(device->layer.content_fd, (off_t)from, SEEK_HOLE);
		/* Other errors: a filesystem that cannot tell */
		if (hole < 0 ? errno == ENXIO : (uint64_t)hole < to)
			return true;
	}
	return false;
}

bool lfs_read_whole(const struct lfs_device *device, uint8_t *out,
		    uint64_t offset, size_t size)
{
	return read_content(device, out, offset, size) &&
	       !(has_zero_page(out, offset, size) &&
		 !atomic_load(&device->ignores_holes) &&
		 has_hole(device, offset, size));
}

/* Note the chunks that nobody has read before. */
static void touch(struct lfs_server *server, uint32_t number, uint64_t first,
		  uint64_t last)
{
	struct lfs_device *device = &server->devices[number - 1];
	uint32_t place;

	for (; first < last; first++) {
		if (atomic_load_explicit(&device->seen[first],
					 memory_order_relaxed) ||
		    atomic_exchange_explicit(&device->seen[first], 1,
					     memory_order_relaxed))
			continue;
		place = atomic_load_explicit(&server->touch_count,
					     memory_order_relaxed);
		do {
			if (place >= server->options.max_touches)
				return;
		} while (!atomic_compare_exchange_weak(&server->touch_count,
						       &place, place + 1));
		__atomic_store_n(&server->touches[place].chunk, (uint32_t)first,
				 __ATOMIC_RELAXED);
		/* Device 0 is none: the place is taken but not written yet */
		__atomic_store_n(&server->touches[place].device, number,
				 __ATOMIC_RELEASE);
	}
}

/* Tell the owner that a reader has reached the marked chunk, once. */
static void check_mark(struct lfs_server *server, uint32_t number,
		       uint64_t first, uint64_t last)
{
	struct lfs_device *device = &server->devices[number - 1];
	struct lfs_event event = {.kind = LFS_EVENT_HINT, .device = number};
	uint32_t mark;

	mark = atomic_load_explicit(&device->mark, memory_order_relaxed);
	if (mark < first || mark >= last)
		return;
	if (!atomic_compare_exchange_strong(&device->mark, &mark, LFS_NO_MARK))
		return;
	event.number = mark;
	lfs_tell(server, &event);
}

void lfs_read(struct lfs_worker *worker, const struct lfs_request *request)
{
	struct lfs_server *server = worker->server;
	uint64_t nid = lfs_nid_of(server, request->header.nodeid);
	uint64_t unique = request->header.unique;
	struct lfs_device *device;
	struct lfs_extent extent;
	struct fuse_read_in in;
	struct lfs_inode inode;
	uint64_t start, first, last;
	bool is_marked;
	uint32_t size;

	lfs_count(&worker->counters.reads, 1);
	if (request->body_size < sizeof(in)) {
		lfs_reply_error(worker, unique, EINVAL);
		return;
	}
	memcpy(&in, request->body, sizeof(in));
	worker->was_large = in.size >= LARGE;
	if (lfs_index_inode(&server->index, nid, &inode) != LFS_OK ||
	    lfs_index_extent(&server->index, &inode, &extent) != LFS_OK) {
		lfs_fault(worker, request);
		return;
	}
	if (in.offset >= extent.size || !in.size) {
		lfs_reply(worker, unique, NULL, 0);
		return;
	}
	size = in.size;
	if (size > extent.size - in.offset)
		size = (uint32_t)(extent.size - in.offset);
	if (size > LFS_MAX_READ) {
		/* Never short: the kernel would take it for the file's end */
		lfs_reply_error(worker, unique, EINVAL);
		return;
	}
	device = &server->devices[extent.device - 1];
	start = extent.offset + in.offset;
	if (records_for(server, device, start, start + size, &first, &last) !=
	    LFS_OK) {
		lfs_fault(worker, request);
		return;
	}
	touch(server, extent.device, first, last);
	is_marked = are_resident(device, first, last);
	if (is_marked)
		check_mark(server, extent.device, first, last);
	/* What the disk does not give back the owner gets elsewhere */
	if (!is_marked || !lfs_read_whole(device, worker->out, start, size)) {
		lfs_count(&worker->counters.misses, 1);
		if (!lfs_wait_for_bytes(worker, unique, nid, in.offset,
					extent.device, start, size,
					is_marked, in.flags & O_DIRECT)) {
			lfs_count(&worker->counters.refused, 1);
			lfs_reply_error(worker, unique, EIO);
		}
		return;
	}
	if (server->options.serves_devices)
		lfs_clear_gaps(device, worker->out, start, size);
	lfs_count(&worker->counters.read_size, size);
	lfs_reply(worker, unique, worker->out, size);
}
