/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From tables of contents to the rootfs index: merging the layers, writing the
 * index.  The rules are those of lazyfs_toc.h.
 */
#ifndef LAZYFS_TREE_H
#define LAZYFS_TREE_H

#include <stddef.h>
#include <stdint.h>

#include "lazyfs_result.h"
#include "lazyfs_toc.h"

#ifdef __cplusplus
extern "C" {
#endif

struct lfs_tree; /* the layers of an image, merged */

/* lfs_tree_merge() lays 'count' layers over each other, bottom first; they must
 * stay while the tree does. */
enum lfs_result lfs_tree_merge(struct lfs_tree **tree,
			       struct lfs_toc *const *tocs, size_t count);
void lfs_tree_free(struct lfs_tree *tree);

/* An inode that has extended attributes: where the entry is that says so. */
struct lfs_tree_place {
	uint32_t layer, entry;
};

/* The body of an inode's extended attributes. */
struct lfs_body {
	const uint8_t *bytes;
	size_t size;
};

/* lfs_tree_xattrs() writes at most 'max' places in the order of the inodes, and
 * returns how many there are. */
size_t lfs_tree_xattrs(const struct lfs_tree *tree,
		       struct lfs_tree_place *places, size_t max);

/* lfs_tree_number() gives every inode its place in an image whose inodes begin
 * at byte 'start'.  'bodies' are as many as lfs_tree_xattrs() has places;
 * 'root' is the root's, and takes the place of its own, unless it is NULL. */
enum lfs_result lfs_tree_number(struct lfs_tree *tree, uint64_t start,
				const struct lfs_body *bodies, size_t count,
				const struct lfs_body *root);

/* After lfs_tree_number(): sizes in bytes, of the image and of the records of
 * the provenance table. */
void lfs_tree_sizes(const struct lfs_tree *tree, uint64_t *inode_count,
		    uint64_t *image_size, uint64_t *provenance_size);

/* After lfs_tree_number(): the nid of the root, which lies behind 'start' where
 * its names would have crossed a block's end. */
uint64_t lfs_tree_root(const struct lfs_tree *tree);

/* lfs_tree_write() writes both; all bytes of the image must be zero before, and
 * the bodies still be there.  Superblock and devices are left out. */
enum lfs_result lfs_tree_write(const struct lfs_tree *tree, uint8_t *image,
			       uint8_t *provenance);

#ifdef __cplusplus
}
#endif

#endif /* LAZYFS_TREE_H */
