/* SPDX-License-Identifier: Apache-2.0 */
/* A scanned table of contents, for who fills it and who reads it. */
#ifndef LAZYFS_TOC_INTERNAL_H
#define LAZYFS_TOC_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NONE UINT32_MAX
#define DIGEST_SIZE 32
#define BLOCK_SIZE 4096
#define MAX_DEVICE_SIZE ((uint64_t)0xFFFFFFFF * BLOCK_SIZE)

/* Names in a layer's root that say what is to be fetched first; no files. */
#define TOC_LANDMARK ".prefetch.landmark"
#define TOC_NO_LANDMARK ".no.prefetch.landmark"

enum kind { /* EROFS' directory-entry types, and one of our own */
	KIND_REGULAR = 1,
	KIND_DIRECTORY = 2,
	KIND_CHAR = 3,
	KIND_BLOCK = 4,
	KIND_FIFO = 5,
	KIND_SYMLINK = 7,
	KIND_HARDLINK = 8,
};

struct toc_chunk {
	uint64_t offset; /* in the file */
	uint64_t size;
	uint64_t blob_offset;
	uint64_t inner_offset;
	uint8_t digest[DIGEST_SIZE];
};

/* Paths and a hardlink's target have a NUL where a name has a slash: sorted as
 * bytes, each directory then comes before what is in it, and that before its
 * siblings. */
struct toc_entry {
	const uint8_t *path;
	const uint8_t *link; /* a symlink's target as it is */
	const uint8_t *xattrs; /* their JSON, NULL without any */
	uint64_t size;
	int64_t seconds;
	uint64_t device_offset;
	uint32_t path_size, link_size, xattrs_size;
	uint32_t nanoseconds, uid, gid;
	uint32_t major, minor;
	uint32_t first_chunk, chunk_count;
	uint32_t node;
	uint16_t mode;
	uint8_t kind;
	bool has_digest;
	uint8_t digest[DIGEST_SIZE];
};

/* One name of a layer's tree, or a directory that its paths imply.  Lists of
 * children and of whiteouts are sorted by name. */
struct toc_node {
	const uint8_t *name;
	uint32_t name_size;
	uint32_t entry; /* NONE for an implied directory */
	uint32_t first_child, next;
	uint32_t first_whiteout; /* named by what they remove */
	uint32_t target;	 /* the node that a hardlink means */
	uint8_t kind;
	bool is_opaque;
};

struct lfs_toc {
	uint8_t *arena; /* paths, and texts that were escaped */
	struct toc_entry *entries;
	uint32_t count, room;
	struct toc_chunk *chunks;
	uint32_t chunk_count, chunk_room;
	struct toc_node *nodes; /* the root first */
	uint32_t node_count, node_room;
	uint32_t *sorted; /* the entries' numbers, by path */
	uint64_t device_size;
	uint8_t codec;
	const uint8_t *tar_split;
	uint32_t tar_split_size;
};

/* toc_find() returns the number of the entry at 'path' of the sorted ones, or
 * NONE. */
uint32_t toc_find(const struct lfs_toc *toc, const uint8_t *path, size_t size);

/* toc_enlarge() gives a full array twice its room; false: no memory. */
bool toc_enlarge(void **array, uint32_t *room, size_t size);

/* toc_grow() sees that an array has room for one more; false: no memory. */
static inline bool toc_grow(void **array, uint32_t count, uint32_t *room,
			    size_t size)
{
	return count < *room || toc_enlarge(array, room, size);
}

#endif /* LAZYFS_TOC_INTERNAL_H */
