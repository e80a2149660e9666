/* SPDX-License-Identifier: Apache-2.0 */
/* The rootfs index: an EROFS image that holds no contents of files. */
#ifndef LAZYFS_INDEX_H
#define LAZYFS_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lazyfs_result.h"

#ifdef __cplusplus
extern "C" {
#endif

/* An opened index.  The fields are for the functions below. */
struct lfs_index {
	const uint8_t *bytes;
	size_t size;
	uint64_t metadata; /* where inode 0 would lie */
	uint64_t root_nid;
	uint64_t inode_count;
	uint32_t block_bits;
	uint32_t device_count;
	size_t devices; /* where the device table lies */
};

/* One inode; 'place', 'format', 'xattr_words' and 'data' are the format's own.
 */
struct lfs_inode {
	uint64_t nid;
	uint64_t size; /* in bytes */
	int64_t mtime; /* in seconds; may be negative */
	uint32_t mtime_nanoseconds;
	uint32_t mode; /* with the file type, as in stat */
	uint32_t uid;
	uint32_t gid;
	uint32_t nlink;
	uint32_t rdev; /* 0 unless it is a device; minor's low 8 bits, then
			  12 bits of major, then the rest of minor */
	size_t place;
	uint16_t format;
	uint16_t xattr_words;
	uint32_t data;
};

/* Where the bytes of a regular file lie; device 1 is the bottom layer. */
struct lfs_extent {
	uint32_t device; /* 0 when the file is empty */
	uint64_t offset;
	uint64_t size;
};

/*
 * lfs_index_open() checks the superblock in 'bytes' and fills in '*index'.
 * LFS_CORRUPT: not a rootfs index.
 */
enum lfs_result lfs_index_open(struct lfs_index *index, const uint8_t *bytes,
			       size_t size);

/* lfs_index_device_size() returns the size of device 1 ... device_count in
 * bytes, and 0 for any other number. */
uint64_t lfs_index_device_size(const struct lfs_index *index, uint32_t device);

/* lfs_index_inode() reads inode 'nid'.  LFS_CORRUPT: there is none. */
enum lfs_result lfs_index_inode(const struct lfs_index *index, uint64_t nid,
				struct lfs_inode *inode);

/*
 * lfs_index_lookup() finds a name in a directory, by bisection.  LFS_ABSENT: no
 * such name.  LFS_WRONG_KIND: not a directory.  "." and ".." are found too.
 */
enum lfs_result lfs_index_lookup(const struct lfs_index *index,
				 const struct lfs_inode *directory,
				 const uint8_t *name, size_t name_size,
				 uint64_t *nid);

/* One name of a directory. */
struct lfs_entry {
	const uint8_t *name; /* points into the index; not terminated */
	size_t name_size;    /* never 0 */
	uint64_t nid;
	uint64_t next_offset; /* where to go on behind this entry */
	uint8_t kind;	      /* EROFS' number of the file type */
};

/* A walk through a directory.  The fields are for lfs_entries_next(). */
struct lfs_entries {
	const struct lfs_index *index;
	const struct lfs_inode *directory;
	uint64_t block;
	uint64_t number; /* of the next entry in the block */
	size_t start;	 /* of the block in the index */
	size_t size;	 /* of the block */
	uint64_t count;	 /* of entries in the block; 0: not looked at yet */
};

/*
 * lfs_entries_open() begins a walk at 'offset', which is 0 or the next_offset
 * of an entry; any other number leads somewhere, or to the end.  Both arguments
 * must outlive the walk.  LFS_WRONG_KIND: not a directory.
 */
enum lfs_result lfs_entries_open(struct lfs_entries *entries,
				 const struct lfs_index *index,
				 const struct lfs_inode *directory,
				 uint64_t offset);

/*
 * lfs_entries_next() goes to the next entry, in the order of the names' bytes;
 * "." and ".." are among them.  LFS_ABSENT: there is no further one.
 */
enum lfs_result lfs_entries_next(struct lfs_entries *entries,
				 struct lfs_entry *entry);

/*
 * lfs_index_readlink() finds the target of a symlink; it points into the index
 * and is not terminated.  LFS_WRONG_KIND: not a symlink.
 */
enum lfs_result lfs_index_readlink(const struct lfs_index *index,
				   const struct lfs_inode *inode,
				   const uint8_t **target, size_t *target_size);

/*
 * lfs_index_extent() says where the bytes of a regular file lie; device, offset
 * and size are inside of the device.  LFS_WRONG_KIND: not a regular file.
 */
enum lfs_result lfs_index_extent(const struct lfs_index *index,
				 const struct lfs_inode *inode,
				 struct lfs_extent *extent);

/* One extended attribute; its name is 'prefix' and then 'rest'. */
struct lfs_xattr {
	const char *prefix; /* terminated */
	size_t prefix_size;
	const uint8_t *rest; /* points into the index, like 'value' */
	size_t rest_size;
	const uint8_t *value;
	size_t value_size;
};

/* A walk through an inode's attributes; set it up with lfs_xattrs_open(). */
struct lfs_xattrs {
	const struct lfs_index *index;
	size_t position;
	size_t end;
};

/* lfs_xattrs_open() begins a walk; the index must outlive it. */
enum lfs_result lfs_xattrs_open(struct lfs_xattrs *xattrs,
				const struct lfs_index *index,
				const struct lfs_inode *inode);

/* lfs_xattrs_next() goes to the next one.  LFS_ABSENT: no further one. */
enum lfs_result lfs_xattrs_next(struct lfs_xattrs *xattrs,
				struct lfs_xattr *xattr);

/* lfs_xattr_is() says whether an attribute has the name 'name'. */
bool lfs_xattr_is(const struct lfs_xattr *xattr, const char *name,
		  size_t name_size);

#ifdef __cplusplus
}
#endif

#endif /* LAZYFS_INDEX_H */
