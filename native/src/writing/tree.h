/* SPDX-License-Identifier: Apache-2.0 */
/* The layers' trees as one, as merging leaves them and writing needs them. */
#ifndef LAZYFS_TREE_INTERNAL_H
#define LAZYFS_TREE_INTERNAL_H

#include <stddef.h>
#include <stdint.h>

#include "lazyfs_tree.h"
#include "reading/bytes.h"
#include "toc.h"

/* A node of a layer, and what the merged tree makes of it. */
struct inode {
	struct toc_node node; /* links count through all layers */
	uint32_t layer;
	uint32_t parent; /* of a directory */
	uint32_t nlink;	 /* 0: not in the tree */
	uint32_t nid;
	uint32_t block; /* its first data block */
	struct lfs_body body;
};

struct lfs_tree {
	struct lfs_toc *const *tocs;
	struct inode *inodes;
	uint32_t count;
	uint32_t *order; /* numbers of those in the tree, as their nids */
	uint32_t order_count;
	uint32_t provenance_count;
	uint32_t most_children;
	uint64_t most_data; /* of one directory */
	uint64_t end;	    /* of the inodes */
	uint64_t block_count;
};

/* Compare the names of two nodes as bytes. */
static inline int tree_compare_names(const struct toc_node *a,
				     const struct toc_node *b)
{
	return lfs_compare_names(a->name, a->name_size, b->name, b->name_size);
}

/* tree_entry() returns the entry that an inode is of; NULL for an implied
 * directory. */
static inline const struct toc_entry *tree_entry(const struct lfs_tree *tree,
						 const struct inode *inode)
{
	return inode->node.entry == NONE
		       ? NULL
		       : &tree->tocs[inode->layer]->entries[inode->node.entry];
}

#endif /* LAZYFS_TREE_INTERNAL_H */
